//! Recognising a dataset on disk: which files make which subject. One file a layout.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

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
    /// A CSV: subject, one column a channel, optional label and split.
    Manifest,
}

/// Where the voxels of one file are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    File(PathBuf),
    Zip { archive: PathBuf, member: String },
}

/// One subject's files.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Unique in the dataset. `subject/scan` where one person has several scans: the part before the slash is what splits go by
    /// ([`crate::data::split::subject`]). Every part is fit to be a file name.
    pub id: String,
    /// One file a channel, in [`Dataset::channels`]' order; or a single 4D file that holds them all.
    pub channels: Vec<Source>,
    pub label: Option<Source>,
    /// `train`, `val` or `test`, where the dataset says.
    pub split: Option<String>,
}

/// A label value as stored by the owners, and what it means. Its class is its position in [`Dataset::labels`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelValue {
    pub value: i64,
    pub name: String,
}

/// A file that cannot be used.
#[derive(Clone, Debug)]
pub struct Problem {
    pub path: PathBuf,
    pub reason: String,
}

/// What a folder or manifest holds.
#[derive(Clone, Debug)]
pub struct Dataset {
    pub layout: Layout,
    /// Channel names, e.g. `t1`, `flair`; what every subject has.
    pub channels: Vec<String>,
    /// Known label values, background first; `None`: without labels, or unknown until the labels are read.
    pub labels: Option<Vec<LabelValue>>,
    /// Sorted by id, ids unique.
    pub subjects: Vec<Subject>,
    /// Scans and labels that were left out though they look like data, each with the reason.
    pub problems: Vec<Problem>,
    /// What was left out by the layout's own rules and loses no scan: side files such as tables, contrasts few subjects have.
    pub ignored: Vec<Problem>,
}
