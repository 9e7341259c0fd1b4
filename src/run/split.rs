//! Which scans stand on which side of a run.

use crate::data::Scans;
use crate::data::names::some;
use crate::data::split::{Candidate, Fold, Split, subject, subject_classes, thin_classes};
use crate::data::store::targets::Targets;
use crate::data::store::{Entry, Store};
use crate::print::note;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

/// What a run needs of a scan beside its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    /// Labelled voxels.
    VoxelLabels,
    /// A class of its own; a cross-validation and a fraction keep the shares of the classes.
    ScanClass,
    /// A quantity of its own; these keep the shares of its fifths.
    ScanQuantity,
}

impl Needs {
    pub fn met_by(self, store: &Store, scan: usize) -> bool {
        match self {
            Needs::Nothing => true,
            Needs::VoxelLabels => store.index().subjects[scan].label,
            Needs::ScanClass => store.class(scan).is_some(),
            Needs::ScanQuantity => store.quantity(scan).is_some(),
        }
    }

    /// The scans of a store that a run can use; none of those that are one and the same with different classes or quantities.
    pub fn candidates(self, store: &Store) -> Vec<Candidate> {
        let contradictory = self.contradictory(store);
        let targets = store.targets().filter(|_| matches!(self, Needs::ScanClass | Needs::ScanQuantity));
        let strata = targets.map(Targets::strata);
        let candidate = |(scan, entry): (usize, &Entry)| {
            let class = strata.as_ref().and_then(|strata| strata[scan]);
            let usable = self.met_by(store, scan) && !contradictory.contains(entry.id.as_str());
            usable.then(|| Candidate { id: entry.id.clone(), side: entry.split.clone(), class })
        };
        store.index().subjects.iter().enumerate().filter_map(candidate).collect()
    }

    /// Scans that are one and the same, by [`Entry::marks`], with different classes or quantities: at least one of these is wrong.
    pub fn contradictory(self, store: &Store) -> BTreeSet<&str> {
        let value = |entry: &&Entry| {
            let scan = store.find(&entry.id).expect("an entry of the store");
            match self {
                Needs::Nothing | Needs::VoxelLabels => None,
                Needs::ScanClass => store.class(scan).map(f64::from),
                Needs::ScanQuantity => store.quantity(scan),
            }
        };
        let differ = |copies: &Vec<&Entry>| {
            let mut values = copies.iter().filter_map(value);
            values.next().is_some_and(|first| values.any(|other| other != first))
        };
        let groups = store.index().duplicates().into_iter().filter(differ);
        groups.flatten().map(|entry| entry.id.as_str()).collect()
    }

    /// The subjects' classes, which [`Split::balanced_fraction`] balances: the highest of a subject's scans.
    pub fn classes(self, store: &Store) -> BTreeMap<String, u8> {
        let scans = self.candidates(store);
        subject_classes(&scans).into_iter().filter_map(|(id, class)| Some((id.to_owned(), class?))).collect()
    }
}

/// How a new split's test side is drawn.
#[derive(Clone, Copy, Debug)]
pub enum TestSide {
    /// This share of the subjects that the dataset gives no side, 0 for none.
    Share(f64),
    Fold(Fold),
}

impl TestSide {
    /// The fold's number.
    pub fn fold(self) -> Option<u64> {
        match self {
            TestSide::Share(_) => None,
            TestSide::Fold(fold) => Some(fold.number),
        }
    }
}

/// The split in this file (the run's own, or one that the user names), or a new one of the scans that have what the run needs.
pub fn choose_split(
    file: Option<&Path>,
    store: &Store,
    needs: Needs,
    val_fraction: f64,
    test: TestSide,
    seed: u64,
) -> Result<Split> {
    let split = match file {
        Some(file) => Split::load(file)?,
        None => {
            if let TestSide::Fold(fold) = test {
                warn_of_thin_classes(store, needs, fold.of);
            }
            draw_split(store, needs, val_fraction, test, seed)?
        }
    };
    let unused = split.check(store.ids())?;
    if !unused.is_empty() {
        note!("{} subjects of the store are on no side of the split and are not used", unused.len());
    }
    let contradictory: Vec<&str> = needs.contradictory(store).into_iter().collect();
    if !contradictory.is_empty() {
        note!(
            "warning: {} scans are copies of one another with different values, at least one of which is wrong; none of them is trained \
             on: {}",
            contradictory.len(),
            some(&contradictory)
        );
    }
    let copies = take_copies(&mut split.clone(), store);
    if !copies.is_empty() {
        note!(
            "warning: {} subjects are copies of held-out ones, and the split has them on another side: {}",
            copies.len(),
            copies.join(", ")
        );
    }
    Ok(split)
}

/// A new split of a store's scans that have what the run needs.
pub fn draw_split(store: &Store, needs: Needs, val_fraction: f64, test: TestSide, seed: u64) -> Result<Split> {
    let scans = needs.candidates(store);
    let split = match test {
        TestSide::Share(share) => Split::draw(&scans, val_fraction, share, seed),
        TestSide::Fold(fold) => Split::kfold(&scans, fold, val_fraction, seed),
    };
    let mut split = split.with_context(|| store.folder().display().to_string())?;
    let copies = take_copies(&mut split, store);
    if !copies.is_empty() {
        note!("{} subjects are copies of held-out ones and on no side of the split: {}", copies.len(), copies.join(", "));
        ensure!(!split.train.is_empty(), "{}: only copies of held-out scans are left to train on", store.folder().display());
    }
    Ok(split)
}

/// Takes subjects off the training side that share a scan, by [`Entry::marks`], with the validation or test side, and off the validation
/// side those that share one with the test side; gives their ids. Public sets of photographs hold such copies.
fn take_copies(split: &mut Split, store: &Store) -> Vec<String> {
    let mut scans: HashMap<&str, Vec<&str>> = HashMap::new();
    store.index().subjects.iter().for_each(|s| scans.entry(subject(&s.id)).or_default().extend(s.marks()));
    let of = |id: &String| scans[id.as_str()].iter().copied();
    let mut held_out: HashSet<&str> = split.test.iter().flat_map(of).collect();
    let mut copies = Vec::new();
    for side in [&mut split.val, &mut split.train] {
        let (out, kept): (Vec<_>, Vec<_>) =
            std::mem::take(side).into_iter().partition(|id| of(id).any(|scan| held_out.contains(scan)));
        held_out.extend(kept.iter().flat_map(of));
        copies.extend(out);
        *side = kept;
    }
    copies
}

/// Names on standard error the classes that have too few subjects for every fold to test one.
pub fn warn_of_thin_classes(store: &Store, needs: Needs, folds: u64) {
    if needs == Needs::ScanQuantity {
        return;
    }
    for (class, n) in thin_classes(&needs.candidates(store), folds) {
        let name = store.classes().and_then(|names| names.get(class as usize));
        let name = name.map_or_else(|| class.to_string(), |name| format!("{class} ({name})"));
        note!("warning: class {name} has {n} subjects, fewer than the {folds} folds: some folds test none of it");
    }
}

/// The stored scans of these subjects.
pub fn scans_of(store: &Store, subjects: &[String]) -> Vec<String> {
    let wanted: HashSet<&str> = subjects.iter().map(String::as_str).collect();
    store.ids().iter().filter(|id| wanted.contains(subject(id))).cloned().collect()
}
