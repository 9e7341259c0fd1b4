//! Files of scans: which format one is in, told by its content, its header, and its voxels.
//!
//! A format is one file of this folder and one line of [`FORMATS`]. It says how its files begin, what a header means, and hands over the
//! voxels as a stream of bytes in their stored type; everything else (compression, byte order, scale, orientation, limits) is done here
//! for all. Photographs ([`image`]) are no volumes and have a door of their own.

mod compression;
mod content;
mod detached;
pub mod dicom;
mod foreign;
mod header;
pub mod image;
mod metaimage;
mod mgh;
pub mod nifti;
mod nrrd;
mod open;
mod text;
mod voxels;
mod write;

pub use header::{Header, Stored};
pub use open::{Opened, open, open_from};
pub use write::{write_classes, write_floats};

use super::names::strip_ending;
use anyhow::Result;
use content::Content;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use voxels::Voxels;
use write::Made;

/// The formats that are read; one file is tried for them in this order.
static FORMATS: [&Format; 6] =
    [&nifti::ANALYZE, &nifti::FORMAT, &nrrd::FORMAT, &metaimage::FORMAT, &mgh::FORMAT, &dicom::FORMAT];

/// A format of files.
pub struct Format {
    /// As its users call it.
    pub name: &'static str,
    /// What names of its files end in, but for compression, in the order of preference.
    endings: &'static [&'static str],
    /// Those of them whose header says in which other files the voxels are.
    headers: &'static [&'static str],
    /// Whether a file whose content begins with these bytes, up to 512 of them, is one.
    is: fn(&[u8]) -> bool,
    /// Its header, and how to come by the voxels.
    open: for<'a> fn(Content<'a>) -> Result<(Header, Voxels<'a>)>,
    /// Ending of files that are written for its scans.
    pub written: &'static str,
    /// Whether the channels of such files lie side by side, voxel by voxel.
    interleaves: bool,
    /// Writes a whole file of `Made` in the space of a scan that has the header.
    write: fn(&Header, &mut Made, &mut dyn Write) -> Result<()>,
}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Format {
    fn eq(&self, other: &Format) -> bool {
        self.name == other.name
    }
}

/// Says what a file is whose content begins so, if it is in a format that is not read. DICOM is foreign among other scans in a folder alone.
fn foreign_content(start: &[u8]) -> Option<String> {
    foreign::by_content(start).filter(|_| !dicom::is(start))
}

/// The name of a scan's file without its extension, whose case does not matter; `None` for any other file. Both files of a `.hdr` with
/// `.img` count for one, which the header stands for.
pub fn stem(path: &Path) -> Option<String> {
    named(path).map(|(_, stem)| stem)
}

/// The format that a name promises, and the name without its extension.
fn named(path: &Path) -> Option<(&'static Format, String)> {
    let name = path.file_name()?.to_string_lossy();
    let plain = compression::strip_ending(&name);
    FORMATS.into_iter().find_map(|format| {
        let stem = format.endings.iter().find_map(|ending| strip_ending(plain, ending))?;
        Some((format, stem.to_string()))
    })
}

/// The files beside a scan's that hold its voxels, as far as they are there.
pub fn beside(path: &Path) -> Vec<PathBuf> {
    if nifti::header_stem(path).is_some() {
        return nifti::voxels_file(path).into_iter().collect();
    }
    let plain = path.to_string_lossy();
    let plain = compression::strip_ending(&plain);
    let header = FORMATS.iter().flat_map(|format| format.headers).any(|ending| strip_ending(plain, ending).is_some());
    // What cannot be opened is found when it is read.
    let opened = header.then(|| open(path)).and_then(Result::ok);
    opened.map(|opened| opened.beside().to_vec()).unwrap_or_default()
}

/// Whether a file is a scan, by its name or else by its content.
pub fn is_scan(path: &Path) -> bool {
    stem(path).is_some() || path.is_file() && open(path).is_ok()
}

/// What a file is and how to convert it, if it is known not to be read.
pub fn foreign(path: &Path) -> Option<String> {
    foreign::by_name(path).or_else(|| foreign::of_file(path))
}

/// What names of scans end in, for messages.
pub fn endings() -> String {
    let endings: Vec<&str> = FORMATS.iter().flat_map(|format| format.endings).copied().collect();
    format!("{}, also with {}", endings.join(", "), compression::ENDINGS.join(", "))
}
