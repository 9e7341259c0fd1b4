//! Stratified cross-validation.

use super::{Split, shuffled, subject};
use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One of the folds of a cross-validation: the one that is tested on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fold {
    /// From 0.
    pub number: u64,
    /// How many there are, at least 2.
    pub of: u64,
}

/// A scan that a split is drawn for.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub id: String,
    /// The side that the dataset gives it.
    pub side: Option<String>,
    /// Class of the whole scan, where it is to be balanced.
    pub class: Option<u8>,
}

impl Split {
    /// Stratified K-fold cross-validation by subject. The subjects of each class (a subject's is the highest of its scans) are
    /// dealt to the folds in turn: how many of a class, and how many subjects in all, differs by at most one between folds. The
    /// fold is the test side; `val_fraction` of the others, balanced in the same way and at least one subject, is the
    /// validation side; the rest is trained on. The folds depend on the seed and the ids, not on the order of the scans.
    ///
    /// Errors: numbers out of range, too few subjects, and scans that the dataset itself puts on the side `val` or `test`.
    pub fn kfold(scans: &[Candidate], fold: Fold, val_fraction: f64, seed: u64) -> Result<Split> {
        let Fold { number, of } = fold;
        ensure!(of >= 2, "a cross-validation has at least 2 folds, found {of}");
        ensure!(number < of, "the folds are numbered from 0 to {}, found {number}", of - 1);
        ensure!(
            (0.0..1.0).contains(&val_fraction),
            "the validation fraction must be at least 0 and below 1, found {val_fraction}"
        );
        for Candidate { id, side, .. } in scans {
            match side.as_deref() {
                None | Some("train") => {}
                Some(side) => {
                    bail!("`{id}`: the dataset puts it on the side {side:?}; folds are drawn where it gives no such side")
                }
            }
        }
        let strata = strata(scans);
        let subjects = strata.values().map(Vec::len).sum::<usize>();
        ensure!(subjects as u64 >= of, "{of} folds need as many subjects, found {subjects}");
        let (mut test, mut rest) = (Vec::new(), BTreeMap::new());
        // Dealing goes on where the class before ended, so that the folds' sizes are equal too.
        let mut dealt = 0;
        for (class, ids) in strata {
            let (own, others): (Vec<_>, Vec<_>) =
                shuffled(ids, seed).into_iter().zip(dealt..).partition(|(_, place)| place % of == number);
            dealt += (own.len() + others.len()) as u64;
            test.extend(own.into_iter().map(|(id, _)| id));
            rest.insert(class, others.into_iter().map(|(id, _)| id).collect());
        }
        let rest = interleaved(rest);
        let val = ((val_fraction * rest.len() as f64).round() as usize).max(1);
        ensure!(
            val < rest.len(),
            "fold {number} of {of}: {} subjects beside it, needs {val} for validation and at least 1 for training",
            rest.len()
        );
        let sorted = |ids: &[&str]| {
            let mut ids: Vec<String> = ids.iter().map(|id| id.to_string()).collect();
            ids.sort();
            ids
        };
        Ok(Split { seed, fold: Some(fold), train: sorted(&rest[val..]), val: sorted(&rest[..val]), test: sorted(&test) })
    }

    /// As [`Split::fraction`], in the order of another seed and with as many of each class as its share: `classes` are the subjects'
    /// ones. Of one seed, a smaller fraction is contained in a larger one.
    pub fn balanced_fraction(&self, fraction: f64, classes: &BTreeMap<String, u8>, seed: u64) -> Result<Vec<String>> {
        self.first(fraction, |ids| {
            let mut strata: BTreeMap<Option<u8>, Vec<&str>> = BTreeMap::new();
            ids.into_iter().for_each(|id| strata.entry(classes.get(id).copied()).or_default().push(id));
            interleaved(strata.into_iter().map(|(class, ids)| (class, shuffled(ids, seed))).collect())
        })
    }
}

/// Classes that have fewer subjects than there are folds, with their number: some folds are without them.
pub fn thin_classes(scans: &[Candidate], folds: u64) -> Vec<(u8, usize)> {
    let thin = |(class, ids): (Option<u8>, Vec<&str>)| Some((class?, ids.len())).filter(|(_, n)| (*n as u64) < folds);
    strata(scans).into_iter().filter_map(thin).collect()
}

/// The highest class among each subject's scans.
pub fn subject_classes(scans: &[Candidate]) -> BTreeMap<&str, Option<u8>> {
    let mut classes: BTreeMap<&str, Option<u8>> = BTreeMap::new();
    for scan in scans {
        let class = classes.entry(subject(&scan.id)).or_default();
        *class = (*class).max(scan.class);
    }
    classes
}

/// Subjects by class.
fn strata(scans: &[Candidate]) -> BTreeMap<Option<u8>, Vec<&str>> {
    let mut strata: BTreeMap<_, Vec<_>> = BTreeMap::new();
    subject_classes(scans).into_iter().for_each(|(id, class)| strata.entry(class).or_default().push(id));
    strata
}

/// One order of all subjects in which every beginning holds each class by its share, less than one subject off. Within a class
/// the order stays.
///
/// Each place goes to the class that must have its next subject soonest, among the classes that are not ahead of their share.
fn interleaved(strata: BTreeMap<Option<u8>, Vec<&str>>) -> Vec<&str> {
    let total: usize = strata.values().map(Vec::len).sum();
    let mut taken = vec![0; strata.len()];
    let strata: Vec<&Vec<&str>> = strata.values().collect();
    let place = |n: usize| {
        let behind = (0..strata.len()).filter(|&k| taken[k] * total < strata[k].len() * n);
        let due = |k: usize| (taken[k] + 1) as f64 / strata[k].len() as f64;
        let next = behind.min_by(|&a, &b| due(a).total_cmp(&due(b))).expect("before place n fewer than n are taken");
        taken[next] += 1;
        strata[next][taken[next] - 1]
    };
    (1..=total).map(place).collect()
}
