//! Recognising a dataset on disk: which files make which subject. One file a layout.

mod brats;
mod channels;
pub mod columns;
mod decathlon;
mod description;
mod dicom;
mod files;
mod finish;
mod folder;
mod images;
mod manifest;
mod nnunet;
pub mod people;
pub mod segmentations;
mod sides;
mod source;
mod table;
mod ukb;
mod volumes;

use crate::data::formats;
use crate::data::formats::dicom::Series;
use crate::data::labelling::Labelling;
use anyhow::{Context, Result, bail, ensure};
pub use channels::Missing;
use columns::{Columns, Value, WantedColumns};
use description::Description;
pub use description::described_labels;
pub use dicom::Wanted;
use files::Files;
use finish::finish;
pub use folder::is_unnamed_channel;
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
pub use volumes::Volumes;

/// How a dataset's owners arrange it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Scans anywhere below a folder, one a file, or several contrasts a subject by suffix.
    Folder,
    /// Medical Segmentation Decathlon: `dataset.json`, `imagesTr`, `labelsTr`.
    Decathlon,
    /// BraTS, 2018 and 2023 names.
    Brats,
    /// nnU-Net raw: `imagesTr/case_0000.nii.gz`, `dataset.json`.
    Nnunet,
    /// UK Biobank zips, one a subject, read without unpacking.
    Ukb,
    /// Photographs anywhere below a folder, with a CSV of grades: `id_code,diagnosis` or `image,level`.
    Images,
    /// DICOM series anywhere below a folder, in files of any name.
    Dicom,
    /// A CSV: subject, one column a channel, optional label and split.
    Manifest,
}

/// Where the voxels of one scan are.
/// In text a member is written `archive.zip:member`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    File(PathBuf),
    Zip { archive: PathBuf, member: String },
    Series(Arc<Series>),
}

/// One subject's files.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// Unique in the dataset. `subject/scan` where one person has several scans: the part before the slash is what splits go by
    /// ([`crate::data::split::subject`]). Every part is fit to be a file name.
    pub id: String,
    /// One file a channel, in [`Dataset::channels`]' order; or a single 4D file that holds them all.
    pub channels: Vec<Source>,
    /// Names of its channels, where scans have channels of their own; otherwise none: those of the dataset.
    pub contrasts: Vec<String>,
    /// Channels of the dataset that have no file, where others do.
    pub missing: Vec<String>,
    /// Which channel of its only file it is, where it is one of several; otherwise it is all of them.
    pub part: Option<usize>,
    pub label: Option<Source>,
    /// Class of the whole scan, a position in [`Dataset::classes`].
    pub class: Option<u8>,
    /// Of the whole scan, by the names of [`Dataset::columns`].
    pub values: BTreeMap<String, Value>,
    /// `train`, `val` or `test`, where the dataset says.
    pub split: Option<String>,
}
/// A file that cannot be used.
#[derive(Clone, Debug)]
pub struct Problem {
    pub path: PathBuf,
    pub reason: String,
    /// Channels that a scan does not have, where that is the problem.
    pub lacks: Vec<String>,
    /// Of labels alone: none where labels are left out.
    of_labels: bool,
}

/// Which labels are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Labels {
    /// With the values that the dataset describes.
    #[default]
    Described,
    /// With values of the user's.
    Given,
    /// None: nothing that is wrong with them matters.
    Unwanted,
}

/// How to read a dataset.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading<'a> {
    /// `None`: recognised.
    pub layout: Option<Layout>,
    pub labels: Labels,
    /// A pattern whose first group is the person in each scan's path below the folder, in a manifest's `subject`.
    pub person: Option<&'a Regex>,
    /// Every channel is a scan of its own, and scans need not have the same ones.
    pub separate: bool,
    /// What becomes of scans without all channels, or without those of `channels`, if it names any.
    pub missing: Missing,
    pub channels: &'a [String],
    /// What becomes of files of several volumes.
    pub volumes: Volumes,
    /// Of DICOM.
    pub dicom: Wanted<'a>,
    /// Values of whole scans.
    pub columns: WantedColumns<'a>,
}

/// What a folder or manifest holds.
#[derive(Clone, Debug)]
pub struct Dataset {
    pub layout: Layout,
    /// Channel names, e.g. `t1`, `flair`; what every subject has. For one 4D file a subject they come from the description,
    /// or are `NAME_0`, `NAME_1`.. after most headers.
    pub channels: Vec<String>,
    /// Known label values; `None`: without labels, or unknown until the labels are read.
    pub labels: Option<Labelling>,
    /// Names of the classes of whole scans, e.g. grades of a disease; `None`: scans have no class.
    pub classes: Option<Vec<String>>,
    /// Columns of tables whose values scans have.
    pub columns: Columns,
    /// Sorted by id, ids unique.
    pub subjects: Vec<Subject>,
    /// Scans and labels that were left out though they look like data, each with the reason.
    pub problems: Vec<Problem>,
    /// What was left out by the layout's own rules and loses no scan: side files such as tables, contrasts few subjects have.
    pub ignored: Vec<Problem>,
}

impl Dataset {
    /// Whether its scans are photographs, by their names.
    pub fn is_photographs(&self) -> bool {
        self.subjects.iter().any(|subject| subject.channels[0].is_image())
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Layout::Folder => "folder",
            Layout::Decathlon => "decathlon",
            Layout::Brats => "brats",
            Layout::Nnunet => "nnunet",
            Layout::Ukb => "ukb",
            Layout::Images => "images",
            Layout::Dicom => "dicom",
            Layout::Manifest => "manifest",
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.reason)
    }
}

impl Problem {
    fn new(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Problem { path: path.into(), reason: reason.into(), lacks: vec![], of_labels: false }
    }

    /// A scan without these channels.
    fn lacking(path: impl Into<PathBuf>, id: &str, lacks: Vec<String>) -> Self {
        let reason = format!("subject {id}: no {}", lacks.join(", "));
        Problem { lacks, ..Problem::new(path, reason) }
    }

    fn of_labels(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Problem { of_labels: true, ..Problem::new(path, reason) }
    }
}

/// Lists the subjects of a folder or a manifest; no voxel is read.
///
/// Without a `layout` it is recognised, the first that fits: a `.csv` file is a manifest; a `dataset.json` with
/// `channel_names` is nnU-Net's, as one with `training` where each channel has its file; another one with `training` is the Decathlon's; folders `X` holding
/// `X_t1ce` or `X-t1n` are BraTS; zips holding `T1/T1.nii.gz` are UK Biobank's; DICOM without any
/// other scan is DICOM; photographs without any scan are images; anything else is a folder of scans.
/// [`Dataset::layout`] says which it was.
///
/// Errors: a path that does not exist, nothing that is a scan, ids that occur twice, a description that cannot be read. What
/// concerns single subjects is in [`Dataset::problems`] instead, except that every fault of a manifest is an error.
pub fn open(path: &Path, layout: Option<Layout>) -> Result<Dataset> {
    open_as(path, Reading { layout, ..Reading::default() })
}

/// As [`open`], in a given way.
pub fn open_as(path: &Path, reading: Reading) -> Result<Dataset> {
    let Reading { layout, labels, separate, .. } = reading;
    // Scans are found with the channels that they have.
    let partial = separate || reading.missing != Missing::Refuse;
    let kind = path.metadata().with_context(|| format!("{}: cannot be opened", path.display()))?;
    if kind.is_file() {
        let manifest = layout == Some(Layout::Manifest) || (layout.is_none() && table::is_table(path));
        let found = || formats::foreign(path).unwrap_or("another file".into());
        ensure!(manifest, "{}: expected a folder or a CSV manifest, found {}", path.display(), found());
        ensure!(
            !reading.dicom.is_given(),
            "--series and --patient-ids are for folders of DICOM, found a manifest, whose cells name series"
        );
        return manifest::open(path, reading, partial)
            .and_then(|found| finish(found, path, reading, &[]).with_context(|| path.display().to_string()));
    }
    ensure!(layout != Some(Layout::Manifest), "{}: expected a CSV manifest, found a folder", path.display());
    let mut files = Files::below(path)?;
    files.problems.extend(
        files
            .broken
            .iter()
            .map(|scan| Problem { of_labels: folder::is_label(scan), ..Problem::new(&scan.path, scan.broken()) }),
    );
    ensure!(!files.is_empty(), "{}: the folder is empty", path.display());
    let given = layout.is_some();
    let layout = match layout {
        Some(layout) => layout,
        None => recognise(&files)?,
    };
    ensure!(
        layout == Layout::Dicom || !reading.dicom.is_given(),
        "--series and --patient-ids are for DICOM, found the layout {layout}"
    );
    let tables = columns::among(&files.others);
    let dataset = match layout {
        Layout::Folder => folder::open(files, reading),
        Layout::Decathlon => decathlon::open(files, labels),
        Layout::Brats => brats::open(files, partial),
        Layout::Nnunet => nnunet::open(files, labels, partial),
        Layout::Ukb => ukb::open(files, partial),
        Layout::Images if separate => bail!("photographs: their colours make one image, and are no scans of their own"),
        Layout::Images => images::open(files, labels, reading.columns),
        Layout::Dicom => dicom::open(files, reading),
        Layout::Manifest => unreachable!("refused above"),
    };
    let how = if given { "as asked for" } else { "recognised by itself" };
    let dataset = dataset.and_then(|found| finish(found, path, reading, &tables));
    dataset.with_context(|| format!("{}, read in the layout {layout} ({how})", path.display()))
}

fn recognise(files: &Files) -> Result<Layout> {
    if files.root.join(description::NAME).is_file() {
        let description = Description::read(&files.root)?;
        return if description.has("channel_names") || nnunet::is_version_1(&description, files) {
            Ok(Layout::Nnunet)
        } else if description.has("training") {
            Ok(Layout::Decathlon)
        } else {
            bail!(
                "{}: expected `channel_names` (nnU-Net) or `modality` and `training` (Decathlon), found {}; name the layout to \
                 read the folder in another way, e.g. --layout folder",
                description.path.display(),
                description.keys()
            )
        };
    }
    Ok(if brats::recognise(files) {
        Layout::Brats
    } else if ukb::recognise(files) {
        Layout::Ukb
    } else if dicom::recognise(files) {
        Layout::Dicom
    } else if images::recognise(files) {
        Layout::Images
    } else {
        Layout::Folder
    })
}

/// The channel of scans whose names say none.
const UNNAMED: &str = "image";

#[cfg(test)]
mod tests;
