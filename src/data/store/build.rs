//! Filling a store from a dataset: in parallel, restartable, one subject at a time in memory for each thread.

use crate::data::identity;
use crate::data::layouts::{Dataset, Source, Subject};
use crate::data::preprocess::{Plan, Prepared, label, prepare};
use crate::data::store::claim::claim;
use crate::data::store::file::{self, Mapped};
use crate::data::store::{Entry, Index, LeftOut, doubts, file_name};
use crate::fs::lock_folder;
use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
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
    pub kept: usize,
    /// [`Options::stop`] said so before all subjects were done.
    pub stopped: bool,
}

/// Makes or completes the store `folder`. Subjects that are there with the same settings and unchanged source files are kept.
/// The index is marked complete when every subject is in it, or every other one is left out with
/// [`Options::skip_bad`].
///
/// Errors: a folder that holds a store of other settings or of subjects that `dataset` lacks, or anything else; another
/// process filling it; labels of unknown values; a file that cannot be written (the subjects written so far are kept).
pub fn fill(dataset: &Dataset, plan: &Plan, folder: &Path, options: &Options) -> Result<Filled> {
    plan.settings.check()?;
    if plan.labels.is_none() {
        refuse_unknown_labels(dataset, options.threads)?;
    }
    fs::create_dir_all(folder).with_context(|| format!("making the store's folder {}", folder.display()))?;
    let _taken = lock_folder(folder)?;

    let has_labels = dataset.subjects.iter().any(|s| s.label.is_some());
    let labels = plan.labels.clone().filter(|_| has_labels);
    let mut index = Index::new(dataset.layout, plan.settings.clone(), plan.names(), labels);
    index.classes = dataset.classes.clone().filter(|_| dataset.subjects.iter().any(|s| s.class.is_some()));
    index.columns = dataset.columns.kept.clone();
    claim(folder, &index, dataset, options.overwrite)?;

    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build()?;
    // A file that cannot be written ends the run; a scan that cannot be read does not.
    let fatal: Mutex<Option<anyhow::Error>> = Mutex::new(None);
    let failed = AtomicBool::new(false);
    let one = |subject: &Subject| -> Option<Result<(Entry, bool), LeftOut>> {
        if (options.stop)() || failed.load(Ordering::Relaxed) {
            return None;
        }
        let done = match store_one(subject, plan, folder, options.note) {
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
    let done: Vec<_> = pool.install(|| dataset.subjects.par_iter().with_max_len(1).map(one).collect());
    if let Some(error) = fatal.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error.context("stopped; what is done is kept: run the same command to go on"));
    }

    let stopped = done.iter().any(Option::is_none);
    let mut there = BTreeSet::new();
    for done in done.into_iter().flatten() {
        match done {
            Ok((entry, was_there)) => {
                there.extend(was_there.then(|| entry.id.clone()));
                index.subjects.push(entry);
            }
            Err(left_out) => index.left_out.push(left_out),
        }
    }
    let labels = doubts::take_out_labels(&mut index, folder);
    let (expected, faults) = if options.no_labels { (labels, vec![]) } else { (vec![], labels) };
    index.left_out.extend(faults);
    let problems = dataset.problems.iter().map(|p| LeftOut { id: p.path.display().to_string(), reason: p.reason.clone() });
    index.left_out.extend(problems);
    index.complete = !stopped && !index.subjects.is_empty() && (options.skip_bad || index.left_out.is_empty());
    index.left_out.extend(expected);
    if index.complete && options.skip_duplicates {
        leave_out_duplicates(&mut index);
    }
    index.write(folder)?;
    let kept = index.subjects.iter().filter(|entry| there.contains(&entry.id)).count();
    Ok(Filled { index, kept, stopped })
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
    classes.len() > 1 || labels.len() > 1 || copies.iter().flat_map(|entry| entry.values.keys()).any(different)
}

/// Takes copies out of the index; their files stay, so that they are not made anew when the store is completed.
fn leave_out_duplicates(index: &mut Index) {
    let mut left_out = BTreeMap::new();
    for group in index.duplicates() {
        let ids = group.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>().join(", ");
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

/// Names in a file's metadata; files of earlier versions have none.
fn names(text: &BTreeMap<String, String>, key: &str) -> Vec<String> {
    text.get(key).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// Stores one subject unless it is there. The outer error is one of writing, the inner one of the scan; `true`: was there.
fn store_one(subject: &Subject, plan: &Plan, folder: &Path, note: &dyn Fn(&str)) -> Result<Result<(Entry, bool), LeftOut>> {
    let bad = |error: anyhow::Error| LeftOut { id: subject.id.clone(), reason: format!("{error:#}") };
    let name = file_name(&subject.id);
    let path = folder.join(&name);
    let key = match plan.key(subject) {
        Ok(key) => key,
        Err(error) => return Ok(Err(bad(error))),
    };
    if let Some(entry) = Mapped::open(&path).ok().filter(|file| file.header().text.get("key") == Some(&key)).and_then(|file| {
        let header = file.header();
        Some(Entry {
            id: subject.id.clone(),
            file: name.clone(),
            bytes: file.bytes(),
            shape: header.shape,
            spacing: serde_json::from_str(header.text.get("spacing")?).ok()?,
            contrast: subject.contrasts.first().cloned(),
            label: header.has_label,
            class: subject.class,
            values: subject.values.clone(),
            split: subject.split.clone(),
            fingerprint: header.text.get("fingerprint")?.clone(),
            // Files of earlier versions have none, or others, and are made anew.
            images: serde_json::from_str::<Vec<String>>(header.text.get("images")?)
                .ok()
                .filter(|images| images.iter().all(|id| identity::is_known(id)))?,
            outside: header.text.get("outside").map(|text| serde_json::from_str(text)).transpose().ok()?,
            resampled: names(&header.text, "resampled"),
            missing: names(&header.text, "missing"),
            few_values: serde_json::from_str(header.text.get("few_values")?).ok()?,
        })
    }) {
        return Ok(Ok((entry, true)));
    }
    let Prepared { image, label, images, outside, resampled, spacing, mut text } = match prepare(subject, plan, note) {
        Ok(prepared) => prepared,
        Err(error) => return Ok(Err(bad(error))),
    };
    let few_values = text.get("few_values").map(|values| serde_json::from_str(values)).transpose()?.unwrap_or_default();
    let missing = names(&text, "missing");
    text.insert("key".into(), key);
    let (_, d, h, w) = image.dim();
    let (bytes, fingerprint) = file::write(&path, image.view(), label.as_ref().map(|l| l.view()), plan.settings.dtype, text)?;
    let (id, split) = (subject.id.clone(), subject.split.clone());
    let entry = Entry {
        id,
        file: name,
        bytes,
        shape: [d, h, w],
        spacing,
        contrast: subject.contrasts.first().cloned(),
        label: label.is_some(),
        class: subject.class,
        values: subject.values.clone(),
        split,
        fingerprint,
        images,
        outside,
        resampled,
        missing,
        few_values,
    };
    Ok(Ok((entry, false)))
}
