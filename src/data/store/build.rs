//! Filling a store from a dataset: in parallel, restartable, one subject at a time in memory for each thread.

use crate::data::identity;
use crate::data::layouts::{Dataset, Source, Subject};
use crate::data::names::some;
use crate::data::preprocess::{Plan, Prepared, label, prepare};
use crate::data::store::claim::claim;
use crate::data::store::file::{self, Changed, FileHeader, Mapped};
use crate::data::store::index::Origin;
use crate::data::store::{Entry, Index, LeftOut, doubts, file_name};
use crate::dim::Shape;
use crate::fs::lock_folder;
use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// How to go about it.
pub struct Options<'a> {
    /// Threads; each holds one subject at a time.
    pub threads: usize,
    /// A store without the scans that cannot be used is complete.
    pub skip_bad: bool,
    /// Leave out copies of scans, and scans that are there several times with different classes or labels.
    pub skip_duplicates: bool,
    /// Labels are not wanted: what looks like one is left out, which is no fault.
    pub no_labels: bool,
    /// Delete what a store in the folder holds, if it is of another kind or of other subjects.
    pub overwrite: bool,
    /// Asked before each subject: whether to stop after those in work.
    pub stop: &'a (dyn Fn() -> bool + Sync),
    /// Called after each subject, from any thread, with its id and, if it cannot be used, the reason.
    pub progress: &'a (dyn Fn(&str, Option<&str>) + Sync),
    /// Called with a line on what a subject takes, from any thread.
    pub note: &'a (dyn Fn(&str) + Sync),
}

/// What was done.
#[derive(Debug)]
pub struct Filled {
    pub index: Index,
    /// By id, of the index's subjects and those that were taken out.
    pub origins: HashMap<String, Origin>,
    pub kept: usize,
    /// [`Options::stop`] said so before all subjects were done.
    pub stopped: bool,
}

/// Subjects in work.
pub(super) struct Made {
    pub stored: Vec<Stored>,
    pub left_out: Vec<LeftOut>,
    pub stopped: bool,
}

/// A subject whose file is in the store.
pub(super) struct Stored {
    pub entry: Entry,
    pub origin: Origin,
    /// It was there.
    pub kept: bool,
}

/// Makes or completes the store `folder`. Subjects that are there with the same settings and unchanged source files are kept.
/// The index is marked complete when every subject is in it, or every other one is left out with
/// [`Options::skip_bad`].
///
/// Errors: a folder that holds a store of other settings or of subjects that `dataset` lacks, or anything else; another
/// process filling it; labels of unknown values; a file that cannot be written (the subjects written so far are kept).
pub fn fill(dataset: &Dataset, plan: &Plan, folder: &Path, options: &Options) -> Result<Filled> {
    let index = begin(dataset, plan, folder, options)?;
    let _taken = lock_folder(folder)?;
    fill_taken(index, dataset, plan, folder, options)
}

/// Checks what can be checked, and makes the folder. Gives the index of a store without subjects.
pub(super) fn begin(dataset: &Dataset, plan: &Plan, folder: &Path, options: &Options) -> Result<Index> {
    plan.settings.check()?;
    if plan.labels.is_none() {
        refuse_unknown_labels(dataset, options.threads)?;
    }
    fs::create_dir_all(folder).with_context(|| format!("making the store's folder {}", folder.display()))?;
    let has_labels = dataset.subjects.iter().any(|s| s.label.is_some());
    let labels = plan.labels.clone().filter(|_| has_labels);
    let mut index = Index::new(dataset.layout, plan.settings.clone(), plan.names(), labels);
    index.classes = dataset.classes.clone().filter(|_| dataset.subjects.iter().any(|s| s.class.is_some()));
    index.columns = dataset.columns.kept.clone();
    Ok(index)
}

/// As [`fill`], of a folder that is this process's own, from the index that [`begin`] gives.
pub(super) fn fill_taken(mut index: Index, dataset: &Dataset, plan: &Plan, folder: &Path, options: &Options) -> Result<Filled> {
    let trusted = Index::finished(folder);
    claim(folder, &index, dataset, None, options.overwrite)?;
    let subjects: Vec<&Subject> = dataset.subjects.iter().collect();
    let Made { stored, left_out, stopped } = store_all(&subjects, plan, folder, trusted, options)?;
    index.left_out = left_out;
    let (mut there, mut origins) = (HashSet::new(), HashMap::new());
    for Stored { entry, origin, kept } in stored {
        there.extend(kept.then(|| entry.id.clone()));
        origins.insert(entry.id.clone(), origin);
        index.subjects.push(entry);
    }
    let labels = doubts::take_out_labels(&mut index, &origins);
    let (expected, faults) = if options.no_labels { (labels, vec![]) } else { (vec![], labels) };
    index.left_out.extend(faults);
    let problems = dataset.problems.iter().map(|p| LeftOut { id: p.path.display().to_string(), reason: p.reason.clone() });
    index.left_out.extend(problems);
    index.complete = !stopped && !index.subjects.is_empty() && (options.skip_bad || index.left_out.is_empty());
    index.left_out.extend(expected);
    if index.complete {
        index.shards = None;
        if options.skip_duplicates {
            leave_out_duplicates(&mut index);
        }
    }
    index.write(folder)?;
    let kept = index.subjects.iter().filter(|entry| there.contains(&entry.id)).count();
    Ok(Filled { index, origins, kept, stopped })
}

/// Stores subjects, several at a time, unless they are there. `trusted`: when the store was finished before, if it was; what was touched since
/// is looked at closely.
pub(super) fn store_all(
    subjects: &[&Subject],
    plan: &Plan,
    folder: &Path,
    trusted: Option<Changed>,
    options: &Options,
) -> Result<Made> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build()?;
    // A file that cannot be written ends the run; a scan that cannot be read does not.
    let fatal: Mutex<Option<anyhow::Error>> = Mutex::new(None);
    let failed = AtomicBool::new(false);
    let one = |subject: &&Subject| -> Option<Result<Stored, LeftOut>> {
        if (options.stop)() || failed.load(Ordering::Relaxed) {
            return None;
        }
        let done = match store_one(subject, plan, folder, trusted, options.note) {
            Ok(done) => done,
            Err(error) => {
                failed.store(true, Ordering::Relaxed);
                fatal.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                return None;
            }
        };
        (options.progress)(&subject.id, done.as_ref().err().map(|left_out| left_out.reason.as_str()));
        Some(done)
    };
    // Subjects are handed out one by one, so that a few large ones do not leave threads idle.
    let done: Vec<_> = pool.install(|| subjects.par_iter().with_max_len(1).map(one).collect());
    if let Some(error) = fatal.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error.context("stopped; what is done is kept: run the same command to go on"));
    }
    let stopped = done.iter().any(Option::is_none);
    let (mut stored, mut left_out) = (vec![], vec![]);
    for done in done.into_iter().flatten() {
        match done {
            Ok(one) => stored.push(one),
            Err(bad) => left_out.push(bad),
        }
    }
    Ok(Made { stored, left_out, stopped })
}

/// Whether scans that are one and the same have different classes, values or labels, so that at least one is wrong.
pub fn disagree(copies: &[&Entry]) -> bool {
    let classes: BTreeSet<u8> = copies.iter().filter_map(|entry| entry.class).collect();
    // The fingerprint is that of image and label.
    let labels: BTreeSet<&str> = copies.iter().filter(|entry| entry.label).map(|entry| entry.fingerprint.as_str()).collect();
    let different = |name: &String| {
        let mut values = copies.iter().filter_map(|entry| entry.values.get(name));
        values.next().is_some_and(|first| values.any(|value| value != first))
    };
    let names: BTreeSet<&String> = copies.iter().flat_map(|entry| entry.values.keys()).collect();
    classes.len() > 1 || labels.len() > 1 || names.into_iter().any(different)
}

/// Takes copies out of the index; their files stay, so that they are not made anew when the store is completed.
fn leave_out_duplicates(index: &mut Index) {
    let mut left_out = BTreeMap::new();
    for group in index.duplicates() {
        let ids = some(&group.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>());
        // One with a class, a value or a label is worth more.
        let kept =
            group.iter().find(|entry| entry.class.is_some() || entry.label || !entry.values.is_empty()).unwrap_or(&group[0]);
        let (kept, why) = match disagree(&group) {
            true => (None, format!("the same scan as {ids}, whose classes or labels differ")),
            false => (Some(&kept.id), format!("a copy of {}", kept.id)),
        };
        for entry in group.iter().filter(|entry| Some(&entry.id) != kept) {
            left_out.entry(entry.id.clone()).or_insert_with(|| why.clone());
        }
    }
    index.subjects.retain(|entry| !left_out.contains_key(&entry.id));
    index.left_out.extend(left_out.into_iter().map(|(id, reason)| LeftOut { id, reason }));
}

/// Layouts without a description cannot say which values their labels hold.
fn refuse_unknown_labels(dataset: &Dataset, threads: usize) -> Result<()> {
    let labels: Vec<&Source> = dataset.subjects.iter().filter_map(|s| s.label.as_ref()).collect();
    let Some(first) = labels.first() else { return Ok(()) };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let read = || labels.par_iter().with_max_len(1).map(|source| label::values(source)).collect::<Result<Vec<_>>>();
    let found: BTreeSet<i64> = pool.install(read)?.into_iter().flatten().collect();
    // The background, which is the first, is 0 wherever there is a 0.
    let (zero, others): (Vec<i64>, Vec<i64>) = found.into_iter().partition(|value| *value == 0);
    let values = zero.iter().chain(&others).map(i64::to_string).collect::<Vec<_>>().join(",");
    bail!(
        "the layout {} does not say which label values its files may hold; {} hold {values}: give --labels {values} (all values, \
         background first; names as in 1=tumour; what nobody labelled =ignore), --labels FILE.json with a description as nnU-Net's \
         dataset.json, or --no-labels",
        dataset.layout,
        match labels.len() {
            1 => first.display(),
            n => format!("the {n} labels, the first {},", first.display()),
        }
    )
}

/// Stores one subject unless it is there. The outer error is one of writing, the inner one of the scan.
fn store_one(
    subject: &Subject,
    plan: &Plan,
    folder: &Path,
    trusted: Option<Changed>,
    note: &dyn Fn(&str),
) -> Result<Result<Stored, LeftOut>> {
    let bad = |error: anyhow::Error| LeftOut { id: subject.id.clone(), reason: format!("{error:#}") };
    let path = folder.join(file_name(&subject.id));
    let key = match plan.key(subject) {
        Ok(key) => key,
        Err(error) => return Ok(Err(bad(error))),
    };
    let there = Mapped::open(&path).ok().filter(|file| file.header().text.get("key") == Some(&key));
    let is_whole = |file: &Mapped| match trusted.map(|trusted| file.check_since(trusted)).transpose() {
        Ok(_) => true,
        Err(_) => {
            note(&format!("{}: was written over since the store was finished, and is made anew", path.display()));
            false
        }
    };
    if let Some(stored) = there.filter(is_whole).and_then(|file| {
        let FileHeader { shape, has_label, text, .. } = file.header();
        let (entry, origin) = described(subject, file.bytes(), *shape, *has_label, text)?;
        Some(Stored { entry, origin, kept: true })
    }) {
        return Ok(Ok(stored));
    }
    let Prepared { image, label, mut text, .. } = match prepare(subject, plan, note) {
        Ok(prepared) => prepared,
        Err(error) => return Ok(Err(bad(error))),
    };
    text.insert("key".into(), key);
    let (_, d, h, w) = image.dim();
    let dtype = plan.settings.dtype;
    let (bytes, fingerprint) = file::write(&path, image.view(), label.as_ref().map(|l| l.view()), dtype, text.clone())?;
    text.insert("fingerprint".into(), fingerprint);
    let described = described(subject, bytes, [d, h, w], label.is_some(), &text);
    let (entry, origin) = described.with_context(|| format!("{}: metadata that were just written", path.display()))?;
    Ok(Ok(Stored { entry, origin, kept: false }))
}

/// What the index says of a subject with this file; `None`: an earlier version made the file.
fn described(
    subject: &Subject,
    bytes: u64,
    shape: Shape,
    label: bool,
    text: &BTreeMap<String, String>,
) -> Option<(Entry, Origin)> {
    fn read<T: DeserializeOwned>(text: &BTreeMap<String, String>, key: &str) -> Option<T> {
        serde_json::from_str(text.get(key)?).ok()
    }
    let entry = Entry {
        id: subject.id.clone(),
        file: file_name(&subject.id),
        bytes,
        shape,
        spacing: read(text, "spacing")?,
        contrast: subject.contrasts.first().cloned(),
        label,
        class: subject.class,
        values: subject.values.clone(),
        split: subject.split.clone(),
        fingerprint: text.get("fingerprint")?.clone(),
        // Files of earlier versions have none, or others, and are made anew.
        images: read::<Vec<String>>(text, "images").filter(|images| images.iter().all(|id| identity::is_known(id)))?,
        outside: text.get("outside").map(|text| serde_json::from_str(text)).transpose().ok()?,
        resampled: read(text, "resampled").unwrap_or_default(),
        missing: read(text, "missing").unwrap_or_default(),
        few_values: read(text, "few_values")?,
    };
    let origin =
        Origin { shape: read(text, "original_shape")?, affine: read(text, "original_affine")?, crop: read(text, "crop")? };
    Some((entry, origin))
}
