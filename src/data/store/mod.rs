//! Preprocessed scans on disk: one memory-mapped safetensors file a subject, and an index.

pub mod build;
mod cache;
mod claim;
mod doubts;
pub mod enlarged;
pub mod file;
pub mod index;
pub mod oriented;
pub mod shards;
pub mod targets;
pub mod verify;

pub use index::{Entry, Index, LeftOut, is_store};

use crate::data::Scans;
use crate::data::identity::hex;
use crate::data::labelling::IGNORE;
use crate::data::preprocess::{Intensity, Outside};
use crate::data::slices::Slices;
use crate::dim::{Rank, Region, Shape, voxels};
use crate::transform::spatial::Orientation;
use anyhow::{Context, Result, bail, ensure};
use cache::{Cache, Limits};
use file::{Changed, Mapped, Voxels, changed};
use index::INDEX;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use targets::{Targets, Values};

/// Files up to whose number a store is looked at file by file when it is opened. More would keep a file server busy, with every process of a
/// training: of those only the names are read, and each is looked at when it is mapped.
const LOOKED_AT: usize = 1024;
/// Bytes up to which all of a file is read ahead; of larger ones what is asked for.
const READ_WHOLE: u64 = 32 << 20;

/// A store opened for reading; clones share it. As [`Scans`] it gives volumes, or with [`Store::sliced`] their slices; all
/// else speaks of what is stored.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    slices: Option<Slices>,
    /// What is learnt of whole scans.
    targets: Option<Arc<Targets>>,
}

struct Inner {
    folder: PathBuf,
    index: Index,
    /// Of each file when it was known to be right: when the index was written, after all files. One that was touched since is looked at closely,
    /// once.
    trusted: Vec<Mutex<Changed>>,
    ids: Vec<String>,
    by_id: HashMap<String, usize>,
    files: Cache,
}

impl Store {
    /// Opens a store. Errors: not a store, of a newer version, not complete, without subjects, or a subject's file that is
    /// missing, or, of up to 1024, has another length than the index says.
    pub fn open(folder: impl AsRef<Path>) -> Result<Store> {
        Store::within(folder.as_ref(), Limits::default(), LOOKED_AT)
    }

    fn within(folder: &Path, limits: Limits, looked_at: usize) -> Result<Store> {
        let index = Index::read(folder)?;
        let written = changed(&std::fs::metadata(folder.join(INDEX)).with_context(|| folder.display().to_string())?);
        shards::check_complete(folder, &index)?;
        ensure!(!index.subjects.is_empty(), "{}: the store holds no subjects", folder.display());
        let missing = |path: &Path| format!("{}: missing from the store; preprocess again", path.display());
        if index.subjects.len() <= looked_at {
            index.subjects.par_iter().try_for_each(|subject| {
                let path = folder.join(&subject.file);
                check_length(&path, std::fs::metadata(&path).with_context(|| missing(&path))?.len(), subject)
            })?;
        } else {
            let names = std::fs::read_dir(folder).and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
            let names: HashSet<OsString> = names.with_context(|| folder.display().to_string())?;
            if let Some(lost) = index.subjects.iter().find(|subject| !names.contains(OsStr::new(&subject.file))) {
                bail!(missing(&folder.join(&lost.file)));
            }
        }
        let ids: Vec<String> = index.subjects.iter().map(|s| s.id.clone()).collect();
        let by_id = ids.iter().cloned().enumerate().map(|(scan, id)| (id, scan)).collect();
        let files = Cache::new(ids.len(), limits);
        let trusted = ids.iter().map(|_| Mutex::new(written)).collect();
        let inner = Inner { folder: folder.to_path_buf(), index, trusted, ids, by_id, files };
        let targets = Targets::usual(&inner.index).map(Arc::new);
        Ok(Store { inner: Arc::new(inner), slices: None, targets })
    }

    /// Reads every volume as slices, `[slices, rows, columns]`: shapes, regions, voxels, labels and spacing follow. `None` changes
    /// nothing. Errors on images.
    pub fn sliced(self, slices: Option<Slices>) -> Result<Store> {
        let rank = self.rank()?;
        if let Some(slices) = slices {
            ensure!(
                rank == Rank::Three,
                "--slices {}: cuts volumes, but {} holds images",
                slices.name(),
                self.folder().display()
            );
        }
        Ok(Store { slices, ..self })
    }

    /// With what is learnt of whole scans; until then these are [`Targets::usual`].
    pub fn learning(self, targets: Targets) -> Store {
        Store { targets: Some(Arc::new(targets)), ..self }
    }

    pub fn targets(&self) -> Option<&Targets> {
        self.targets.as_deref()
    }

    /// Names of the classes of whole scans; `None`: they have none.
    pub fn classes(&self) -> Option<&[String]> {
        match &self.targets()?.values {
            Values::Classes { names, .. } => Some(names),
            Values::Numbers(_) => None,
        }
    }

    /// How the scans are sliced.
    pub fn slices(&self) -> Option<Slices> {
        self.slices
    }

    /// Rank of the scans as they are read: 2 for images and slices. Errors if the store mixes images and volumes.
    pub fn rank(&self) -> Result<Rank> {
        let subjects = &self.index().subjects;
        let rank = Rank::of(subjects[0].shape);
        ensure!(
            subjects.iter().all(|s| Rank::of(s.shape) == rank),
            "{}: the store mixes images and volumes",
            self.folder().display()
        );
        Ok(if self.slices.is_some() { Rank::Two } else { rank })
    }

    pub fn index(&self) -> &Index {
        &self.inner.index
    }

    pub fn folder(&self) -> &Path {
        &self.inner.folder
    }

    /// Ids of all subjects, by scan number.
    pub fn ids(&self) -> &[String] {
        &self.inner.ids
    }

    /// Scan number of a subject.
    pub fn find(&self, id: &str) -> Option<usize> {
        self.inner.by_id.get(id).copied()
    }

    /// The subject's file, mapped: header, metadata and whole arrays.
    pub fn file(&self, scan: usize) -> Result<Arc<Mapped>> {
        self.inner.files.get(scan, || self.map(scan))
    }

    fn map(&self, scan: usize) -> Result<Mapped> {
        let inner = &self.inner;
        let entry = &inner.index.subjects[scan];
        let path = inner.folder.join(&entry.file);
        let mapped = Mapped::open(&path)?;
        let header = mapped.header();
        ensure!(
            header.shape == entry.shape && header.channels == inner.index.channels.len() && header.has_label == entry.label,
            "{}: holds {} channels of {:?}, the index says {} of {:?}: preprocess again",
            path.display(),
            header.channels,
            header.shape,
            inner.index.channels.len(),
            entry.shape
        );
        ensure!(
            mapped.fingerprint().is_none_or(|fingerprint| fingerprint == entry.fingerprint),
            "{}: holds other voxels than the index said when the store was opened: it was made anew or exchanged since; take the store as it \
             was to go on, or begin anew with this one",
            path.display()
        );
        check_length(&path, mapped.bytes(), entry)?;
        if mapped.bytes() <= READ_WHOLE {
            mapped.read_ahead(0..mapped.bytes() as usize);
        }
        let mut trusted = inner.trusted[scan].lock().unwrap_or_else(PoisonError::into_inner);
        *trusted = mapped.check_since(*trusted)?.max(*trusted);
        drop(trusted);
        Ok(mapped)
    }

    /// The given subjects, in the given order. Errors on an id the store does not hold.
    pub fn subset(&self, ids: &[String]) -> Result<Subset> {
        let scan = |id: &String| self.find(id).with_context(|| format!("{}: holds no subject `{id}`", self.folder().display()));
        Ok(Subset { scans: ids.iter().map(scan).collect::<Result<_>>()?, store: self.clone() })
    }

    /// What to read of the stored volume for a region of the scan, turned, into a buffer of `found` values.
    fn stored(
        &self,
        scan: usize,
        region: Region,
        orientation: Orientation,
        channels: usize,
        found: usize,
    ) -> Result<(Region, Orientation)> {
        let shape = self.shape(scan);
        ensure!(region.fits(shape), "{}: region {region:?} leaves the scan of {shape:?}", self.id(scan));
        let expected = channels * voxels(region.size);
        ensure!(found == expected, "{}: buffer of {found} values, expected {expected}", self.id(scan));
        Ok(match self.slices {
            Some(slices) => (slices.stored_region(region), slices.orientation().then(orientation)),
            None => (region, orientation),
        })
    }
}

impl Scans for Store {
    fn len(&self) -> usize {
        self.inner.ids.len()
    }

    fn id(&self, scan: usize) -> &str {
        &self.inner.ids[scan]
    }

    fn channels(&self) -> usize {
        self.inner.index.channels.len()
    }

    fn shape(&self, scan: usize) -> Shape {
        let stored = self.inner.index.subjects[scan].shape;
        self.slices.map_or(stored, |slices| slices.orientation().output(stored))
    }

    fn spacing(&self, scan: usize) -> [f64; 3] {
        let stored = self.index().subjects[scan].spacing;
        self.slices.map_or(stored, |slices| slices.orientation().source.map(|a| stored[a]))
    }

    fn class_outside(&self) -> u8 {
        if self.index().ignore.is_some() { IGNORE } else { 0 }
    }

    fn zero_is_mean(&self) -> bool {
        self.index().settings.intensity == Intensity::ZScoreForeground
    }

    fn read(&self, scan: usize, region: Region, orientation: Orientation, out: &mut [f32]) -> Result<()> {
        let (region, orientation) = self.stored(scan, region, orientation, self.channels(), out.len())?;
        let (file, shape) = (self.file(scan)?, self.index().subjects[scan].shape);
        let (all, size) = (voxels(shape), voxels(region.size).max(1));
        if file.bytes() > READ_WHOLE {
            (0..self.channels()).for_each(|channel| file.read_ahead(file.bytes_of(channel, region)));
        }
        for (channel, out) in out.chunks_exact_mut(size).enumerate() {
            let range = channel * all..(channel + 1) * all;
            match file.voxels()? {
                Voxels::F16(voxels) => oriented::turn(&voxels[range], shape, region, orientation, out),
                Voxels::F32(voxels) => oriented::turn(&voxels[range], shape, region, orientation, out),
            }
        }
        file.check_unchanged()
    }

    fn read_ahead(&self, scan: usize) {
        // What is wrong with the file is said when it is read.
        let _ = self.file(scan);
    }

    fn label(&self, scan: usize, region: Region, orientation: Orientation, out: &mut [u8]) -> Result<()> {
        let file = self.file(scan)?;
        let Some(label) = file.label() else { bail!("{}: has no label in {}", self.id(scan), self.folder().display()) };
        let (region, orientation) = self.stored(scan, region, orientation, 1, out.len())?;
        oriented::turn(label, self.index().subjects[scan].shape, region, orientation, out);
        file.check_unchanged()
    }

    fn class(&self, scan: usize) -> Option<u8> {
        self.targets()?.class(scan)
    }

    fn quantity(&self, scan: usize) -> Option<f64> {
        self.targets()?.number(scan)
    }

    fn foreground(&self, scan: usize) -> Region {
        let Some(Outside { stored, .. }) = self.index().subjects[scan].outside else {
            return Region::whole(self.shape(scan));
        };
        let turn = self.slices.map_or(Orientation::IDENTITY, Slices::orientation);
        Region { start: turn.output(stored.start), size: turn.output(stored.size) }
    }
}

fn check_length(path: &Path, found: u64, entry: &Entry) -> Result<()> {
    ensure!(
        found == entry.bytes,
        "{}: truncated or replaced: {} bytes expected, found {found}; delete it and preprocess again",
        path.display(),
        entry.bytes
    );
    Ok(())
}

/// Some of a store's subjects.
#[derive(Clone)]
pub struct Subset {
    store: Store,
    scans: Vec<usize>,
}

impl Subset {
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Number in the store of this subset's scan.
    pub fn scan(&self, scan: usize) -> usize {
        self.scans[scan]
    }
}

impl Scans for Subset {
    fn len(&self) -> usize {
        self.scans.len()
    }

    fn id(&self, scan: usize) -> &str {
        self.store.id(self.scans[scan])
    }

    fn channels(&self) -> usize {
        self.store.channels()
    }

    fn shape(&self, scan: usize) -> Shape {
        self.store.shape(self.scans[scan])
    }

    fn spacing(&self, scan: usize) -> [f64; 3] {
        self.store.spacing(self.scans[scan])
    }

    fn class_outside(&self) -> u8 {
        self.store.class_outside()
    }

    fn zero_is_mean(&self) -> bool {
        self.store.zero_is_mean()
    }

    fn read(&self, scan: usize, region: Region, orientation: Orientation, out: &mut [f32]) -> Result<()> {
        self.store.read(self.scans[scan], region, orientation, out)
    }

    fn read_ahead(&self, scan: usize) {
        self.store.read_ahead(self.scans[scan]);
    }

    fn label(&self, scan: usize, region: Region, orientation: Orientation, out: &mut [u8]) -> Result<()> {
        self.store.label(self.scans[scan], region, orientation, out)
    }

    fn class(&self, scan: usize) -> Option<u8> {
        self.store.class(self.scans[scan])
    }

    fn quantity(&self, scan: usize) -> Option<f64> {
        self.store.quantity(self.scans[scan])
    }

    fn foreground(&self, scan: usize) -> Region {
        self.store.foreground(self.scans[scan])
    }
}

/// What the names of subjects' files end in.
const FILE: &str = ".safetensors";

/// File name of a subject in the store: the id where it is a plain name, otherwise cleaned and told apart by its hash.
pub fn file_name(id: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let clean: String = id.chars().map(|c| if plain(c) { c } else { '_' }).take(100).collect();
    if clean == id && !id.starts_with('.') && !id.is_empty() {
        format!("{id}{FILE}")
    } else {
        format!("{}-{}{FILE}", clean.trim_start_matches('.'), &hex(&Sha256::digest(id))[..12])
    }
}

#[cfg(test)]
mod tests;
