//! DICOM: slices in files of any name, which make a series.

mod arrange;
mod file;
mod image;
mod jpegls;
mod pixels;
mod segmentation;

pub use arrange::{Arranged, arrange};
pub use file::{Place, is};
pub use image::{Found, Image, Labels, read};
pub use segmentation::{Referenced, Segment};

use super::content::Content;
use super::open::Opened;
use super::voxels::Voxels;
use super::write::Made;
use super::{Format, Header, nifti};
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

pub static FORMAT: Format = Format {
    name: "DICOM",
    // Names say nothing: a folder of files is sorted by what they hold.
    endings: &[],
    headers: &[],
    is,
    open,
    written: ".nii.gz",
    interleaves: false,
    write,
};

/// A series whose slices are in order.
#[derive(Clone, Debug)]
pub struct Series {
    /// For messages and for the store: it says nothing of the patient unless that is asked for.
    pub name: String,
    /// The folder that holds its files, at whatever depth.
    pub folder: PathBuf,
    /// Whether messages may name files.
    pub revealed: bool,
    pub slices: Arranged,
}

impl PartialEq for Series {
    fn eq(&self, other: &Series) -> bool {
        (&self.name, &self.folder) == (&other.name, &other.folder) && self.slices.places().eq(other.slices.places())
    }
}

impl Eq for Series {}

impl Series {
    pub fn open(&self) -> Result<Opened<'_>> {
        Opened::new(self.name.clone(), self.slices.header()?, self.slices.voxels(self.revealed))
    }

    /// Its files, in the slices' order.
    pub fn files(&self) -> impl Iterator<Item = &std::path::Path> {
        self.slices.places().filter_map(|place| match place {
            Place::File(path) => Some(path.as_path()),
            Place::Memory(_) => None,
        })
    }
}

/// One file: all slices of an enhanced one, or one slice.
fn open(mut content: Content) -> Result<(Header, Voxels)> {
    let mut bytes = vec![];
    content.stream.read_to_end(&mut bytes)?;
    let slices = arrange_file(Place::Memory(Arc::new(bytes)))?;
    let header = slices.header()?;
    Ok((header, slices.into_voxels()))
}

/// The slices of one file.
pub fn arrange_file(place: Place) -> Result<Arranged> {
    match read(place)? {
        Found::Image(_, image) => arrange(vec![*image]),
        Found::Other(what) => bail!("it is one of the {what}"),
    }
}

/// As a new NIfTI-1 file: what is computed from slices is a volume.
fn write(like: &Header, made: &mut Made, out: &mut dyn Write) -> Result<()> {
    let header = Header::new(like.shape, &like.affine).context("a NIfTI file in the series' space")?;
    (nifti::FORMAT.write)(&header, made, out)
}
