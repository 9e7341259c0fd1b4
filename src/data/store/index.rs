//! What a store holds, scan by scan.

use super::file::{Changed, changed};
use crate::data::identity::{self, hex};
use crate::data::labelling::{LabelRegion, LabelValue, Labelling};
use crate::data::layouts::Layout;
use crate::data::layouts::columns::{Column, Value};
use crate::data::preprocess::{Outside, Settings};
use crate::data::volume::Affine;
use crate::dim::{Region, Shape};
use crate::fs::write_atomic;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const FORMAT: &str = "pretext3d-store";
const VERSION: u32 = 1;
pub(super) const INDEX: &str = "index.json";

/// How the name of the file begins that a shard leaves when it is done.
pub(super) const DONE: &str = ".done";

/// What a store holds: `index.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Index {
    pub format: String,
    pub version: u32,
    /// False while `preprocess` has not finished.
    pub complete: bool,
    /// Of a store that shards are filling; none once it is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<Shards>,
    /// SHA-256 over settings, channels, labels and every subject's id, class, values and voxels; the same on every machine.
    pub fingerprint: String,
    pub layout: Layout,
    pub settings: Settings,
    /// Channel names, in order.
    pub channels: Vec<String>,
    /// Class `k` of the stored labels is the owners' value `labels[k].value`; `None`: no subject has labels.
    pub labels: Option<Vec<LabelValue>>,
    /// Unions of label values that are learnt in place of the classes, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub regions: Vec<LabelRegion>,
    /// The owners' value of voxels that nobody labelled, stored as [`IGNORE`](crate::data::labelling::IGNORE).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore: Option<i64>,
    /// Names of the classes of whole scans; `None`: no subject has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<Vec<String>>,
    /// Columns of tables whose values scans have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<Column>,
    /// Sorted by id.
    pub subjects: Vec<Entry>,
    /// Scans that could not be used, where the user accepted that.
    pub left_out: Vec<LeftOut>,
}

/// One subject of a store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub id: String,
    /// File name in the store's folder.
    pub file: String,
    pub bytes: u64,
    pub shape: Shape,
    /// Millimetres along each axis of the stored grid.
    pub spacing: [f64; 3],
    /// Name of the scan's only channel, where channels are scans of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contrast: Option<String>,
    /// Whether the file holds a label.
    pub label: bool,
    /// Class of the whole scan, a position in [`Index::classes`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<u8>,
    /// Of the whole scan, by the names of [`Index::columns`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, Value>,
    /// `train`, `val` or `test`, where the dataset says.
    pub split: Option<String>,
    /// SHA-256 of the stored voxels.
    pub fingerprint: String,
    /// Of the scan's images as read, see [`identity::Image`]; stores of earlier versions have none, or others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// Labelled voxels that a prediction does not reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<Outside>,
    /// Channels that lay on another grid than the first one, and were resampled onto it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resampled: Vec<String>,
    /// Channels that the scan does not have, and that are 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// The first values of the scan as it was read, where all are whole numbers and few, or alike in patches as those of a label are; otherwise
    /// none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub few_values: Vec<i64>,
}

impl Entry {
    /// What the scan is known again by: its images as read, and its voxels as stored, which is all that an index of an earlier version
    /// has. Two scans that share one of these are the same.
    pub fn marks(&self) -> impl Iterator<Item = &str> {
        self.images.iter().chain([&self.fingerprint]).map(String::as_str)
    }

    /// Whether the scan would be known again in another store. Not if an earlier version made this one.
    pub fn is_known_elsewhere(&self) -> bool {
        self.images.iter().any(|id| identity::is_known(id))
    }
}

/// A scan that is not in the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeftOut {
    pub id: String,
    pub reason: String,
}

/// What all shards of a store have to agree on, beside its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shards {
    pub count: usize,
    /// Of the whole dataset.
    pub subjects: usize,
    /// SHA-256 of what is known of the subjects: ids, channels, classes, values and sides, not the places of their files.
    pub dataset: String,
    pub skip_bad: bool,
    pub skip_duplicates: bool,
    pub no_labels: bool,
}

impl Shards {
    /// For a message on what differs.
    pub fn list(&self) -> Vec<(String, String)> {
        vec![
            ("--shard".into(), format!("I/{}", self.count)),
            ("number of subjects".into(), self.subjects.to_string()),
            ("digest of the list of subjects".into(), self.dataset[..12].into()),
            ("--skip-bad".into(), self.skip_bad.to_string()),
            ("--skip-duplicates".into(), self.skip_duplicates.to_string()),
            ("--no-labels".into(), self.no_labels.to_string()),
        ]
    }
}

/// Of the file that a scan is from: extent and affine in its own axis order, and the box of it in RAS+ order that is stored.
#[derive(Clone, Debug)]
pub struct Origin {
    pub shape: Shape,
    pub affine: Affine,
    pub crop: Region,
}

impl Index {
    /// An index of a store that is still being filled.
    pub fn new(layout: Layout, settings: Settings, channels: Vec<String>, labelling: Option<Labelling>) -> Index {
        let any = labelling.is_some();
        let Labelling { labels, regions, ignore } = labelling.unwrap_or_default();
        Index {
            format: FORMAT.into(),
            version: VERSION,
            complete: false,
            shards: None,
            fingerprint: String::new(),
            layout,
            settings,
            channels,
            labels: any.then_some(labels),
            regions,
            ignore,
            classes: None,
            columns: Vec::new(),
            subjects: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// Reads a store's index; it may be of a store that is not complete.
    pub fn read(folder: &Path) -> Result<Index> {
        let path = folder.join(INDEX);
        ensure!(folder.exists(), "{}: no such folder", folder.display());
        ensure!(path.is_file(), "{}: not a store (no {INDEX}); make one with `pretext3d preprocess`", folder.display());
        let text = std::fs::read(&path).with_context(|| path.display().to_string())?;

        #[derive(Deserialize)]
        struct Kind {
            format: String,
            version: u32,
        }
        let kind: Kind = serde_json::from_slice(&text).with_context(|| format!("{}: not a store's index", path.display()))?;
        ensure!(kind.format == FORMAT, "{}: format is `{}`, expected `{FORMAT}`", path.display(), kind.format);
        ensure!(
            kind.version <= VERSION,
            "{}: store of version {}, this program reads up to {VERSION}: update it, or preprocess again",
            path.display(),
            kind.version
        );
        serde_json::from_slice(&text).with_context(|| path.display().to_string())
    }

    /// When the store in a folder was finished, after all its files were written; `None`: there is none, or it is not finished.
    pub fn finished(folder: &Path) -> Option<Changed> {
        let index = Index::read(folder).ok().filter(|index| index.complete)?;
        std::fs::metadata(folder.join(INDEX)).ok().filter(|_| !index.subjects.is_empty()).map(|file| changed(&file))
    }

    /// What the stored labels mean; `None`: no subject has labels.
    pub fn labelling(&self) -> Option<Labelling> {
        let labels = self.labels.clone()?;
        Some(Labelling { labels, regions: self.regions.clone(), ignore: self.ignore })
    }

    /// What each scan's only channel may be, where channels are scans of their own; otherwise nothing.
    pub fn contrasts(&self) -> Vec<String> {
        let names: BTreeSet<&String> = self.subjects.iter().filter_map(|subject| subject.contrast.as_ref()).collect();
        names.into_iter().cloned().collect()
    }

    /// Subjects that hold the same scan, group by group: copies under several names would stand on both sides of a split.
    pub fn duplicates(&self) -> Vec<Vec<&Entry>> {
        let mut alike: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
        for (i, subject) in self.subjects.iter().enumerate() {
            subject.marks().for_each(|mark| _ = alike.entry(mark).or_default().insert(i));
        }
        // Copies may share many marks, and are named once.
        let groups: BTreeSet<_> = alike.into_values().filter(|group| group.len() > 1).collect();
        groups.into_iter().map(|group| group.into_iter().map(|i| &self.subjects[i]).collect()).collect()
    }

    /// What shards that fill the store at the same time have to agree on: all but what they store.
    pub fn claim(&self) -> Result<String> {
        let (complete, fingerprint, subjects, left_out) = Default::default();
        let claim = Index { complete, fingerprint, subjects, left_out, ..self.clone() };
        Ok(hex(&Sha256::digest(serde_json::to_vec(&claim)?)))
    }

    /// Whether a shard has begun to fill the store as another one, or the same, is about to.
    pub fn is_same_claim(&self, other: &Index) -> bool {
        self.shards.is_some() && matches!((self.claim(), other.claim()), (Ok(own), Ok(other)) if own == other)
    }

    /// Writes the index; a complete one gets its fingerprint.
    pub fn write(&mut self, folder: &Path) -> Result<()> {
        self.fingerprint = self.computed_fingerprint()?;
        write_atomic(&folder.join(INDEX), |file| Ok(serde_json::to_writer_pretty(file, self)?))
    }

    /// Whether the index's fingerprint is what its subjects and settings give.
    pub fn is_whole(&self) -> Result<bool> {
        Ok(self.computed_fingerprint()? == self.fingerprint)
    }

    fn computed_fingerprint(&self) -> Result<String> {
        let mut hash = Sha256::new();
        hash.update(serde_json::to_vec(&(&self.settings, &self.channels, &self.labels))?);
        if !self.regions.is_empty() || self.ignore.is_some() {
            hash.update(serde_json::to_vec(&(&self.regions, self.ignore))?);
        }
        for subject in &self.subjects {
            hash.update(format!("\n{}\n{}", subject.id, subject.fingerprint));
            if let Some(class) = subject.class {
                hash.update(format!("\nclass {class}"));
            }
            for (name, value) in &subject.values {
                hash.update(format!("\n{name} {value}"));
            }
        }
        Ok(hex(&hash.finalize()))
    }
}

/// Whether a folder holds a store, whatever its state.
pub fn is_store(folder: &Path) -> bool {
    folder.join(INDEX).is_file()
}
