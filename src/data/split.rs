//! Train, validation and test sides, drawn by subject, saved and reused.

use crate::fs::write_atomic;
use crate::rng::{Stream, rng};
use anyhow::{Context, Result, bail, ensure};
pub use kfold::{Candidate, Fold, subject_classes, thin_classes};
use rand::RngCore;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

/// The subject a scan belongs to: its id up to the first `/`.
pub fn subject(id: &str) -> &str {
    id.split('/').next().unwrap_or(id)
}

/// Which subjects are trained on, which choose the best epoch and which are tested on. All scans `subject/..` of a subject
/// are on its side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// Keys the order in which subjects were drawn, and in which [`Split::fraction`] takes them.
    pub seed: u64,
    /// Of a cross-validation: which of its folds the test side is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fold: Option<Fold>,
    /// Sorted ids, as the others.
    pub train: Vec<String>,
    pub val: Vec<String>,
    pub test: Vec<String>,
}

impl Split {
    /// Draws the sides for these scans, whatever their classes; their order does not matter.
    ///
    /// A given side (`train`, `val` or `test`) is kept. `val` and `test` are drawn from the subjects without one, as fractions
    /// in [0, 1) of those, at least one subject each; a side whose fraction is 0, or for which the dataset gives any subject, is
    /// not drawn. All others are trained on.
    ///
    /// Errors: unknown or contradictory given sides, fractions out of range, and too few subjects for a side.
    pub fn draw(scans: &[Candidate], val_fraction: f64, test_fraction: f64, seed: u64) -> Result<Split> {
        for (name, fraction) in [("validation", val_fraction), ("test", test_fraction)] {
            ensure!((0.0..1.0).contains(&fraction), "the {name} fraction must be at least 0 and below 1, found {fraction}");
        }
        let mut given: BTreeMap<&str, Option<&str>> = BTreeMap::new();
        for Candidate { id, side, .. } in scans {
            let id = subject(id);
            let earlier = given.entry(id).or_insert(side.as_deref());
            ensure!(
                *earlier == side.as_deref(),
                "subject `{id}`: the dataset puts its scans on the sides {:?} and {:?}; if they are not of one person, preprocess \
                 with --subject-pattern, or from a manifest",
                earlier.unwrap_or("none"),
                side.as_deref().unwrap_or("none")
            );
        }
        let mut split = Split { seed, fold: None, train: vec![], val: vec![], test: vec![] };
        let mut free = vec![];
        for (&id, &side) in &given {
            match side {
                None => free.push(id),
                Some("train") => split.train.push(id.into()),
                Some("val") => split.val.push(id.into()),
                Some("test") => split.test.push(id.into()),
                Some(other) => bail!("subject `{id}`: the side must be train, val or test, found {other:?}"),
            }
        }
        let count = |fraction: f64, side: &[String]| match fraction > 0.0 && side.is_empty() {
            true => ((fraction * free.len() as f64).round() as usize).max(1),
            false => 0,
        };
        let (val, test) = (count(val_fraction, &split.val), count(test_fraction, &split.test));
        let left = usize::from(split.train.is_empty());
        if val + test + left > free.len() {
            let one = if given.len() == 1 { "there is one subject only: " } else { "" };
            bail!(
                "{one}a split needs {val} for validation, {test} for testing and at least {left} for training, found {} without a \
                 side of their own (of {}); add subjects or lower the fractions",
                free.len(),
                given.len()
            );
        }
        let order = shuffled(free, seed);
        let (drawn, rest) = order.split_at(test + val);
        split.test.extend(drawn[..test].iter().map(|id| id.to_string()));
        split.val.extend(drawn[test..].iter().map(|id| id.to_string()));
        split.train.extend(rest.iter().map(|id| id.to_string()));
        [&mut split.train, &mut split.val, &mut split.test].into_iter().for_each(|side| side.sort());
        Ok(split)
    }

    /// The first `fraction` in (0, 1] of the training subjects, at least one, in an order that depends on the seed and on each
    /// id alone: a smaller fraction is contained in a larger one, and a new subject shifts the others by one place at most.
    pub fn fraction(&self, fraction: f64) -> Result<Vec<String>> {
        self.first(fraction, |ids| shuffled(ids, self.seed))
    }

    /// The first `fraction` of the training subjects in some order of all of them.
    fn first<'a>(&'a self, fraction: f64, order: impl FnOnce(Vec<&'a str>) -> Vec<&'a str>) -> Result<Vec<String>> {
        ensure!(fraction > 0.0 && fraction <= 1.0, "the label fraction must be above 0 and at most 1, found {fraction}");
        ensure!(!self.train.is_empty(), "the split has no training subjects to take a fraction of");
        let n = ((fraction * self.train.len() as f64).round() as usize).max(1);
        let order = order(self.train.iter().map(String::as_str).collect());
        Ok(order[..n].iter().map(|id| id.to_string()).collect())
    }

    /// Compares with the ids a store holds. Errors if a subject of the split is not among them. Returns the stored subjects
    /// that are on no side, for the caller to report.
    pub fn check(&self, ids: &[String]) -> Result<Vec<String>> {
        let mut stored: BTreeSet<&str> = ids.iter().map(|id| subject(id)).collect();
        let unknown: Vec<&str> = self.sides().map(|(_, id)| id).filter(|id| !stored.remove(id)).collect();
        if let Some(first) = unknown.first() {
            let all = self.sides().count();
            bail!("{} of the split's {all} subjects are not in the store, the first `{first}`", unknown.len());
        }
        Ok(stored.into_iter().map(String::from).collect())
    }

    /// Writes the split as JSON.
    pub fn save(&self, path: &Path) -> Result<()> {
        write_atomic(path, |file| {
            serde_json::to_writer_pretty(&mut *file, self)?;
            Ok(file.write_all(b"\n")?)
        })
    }

    /// Reads a split; unknown keys and a subject that occurs twice are errors.
    pub fn load(path: &Path) -> Result<Split> {
        let text = std::fs::read(path).with_context(|| format!("{}: cannot be read", path.display()))?;
        let split: Split = serde_json::from_slice(&text)
            .with_context(|| format!("{}: expected a split with seed, train, val and test", path.display()))?;
        let mut seen = BTreeMap::new();
        for (side, id) in split.sides() {
            ensure!(!id.contains('/'), "{}: `{id}`: expected a subject, found one scan of it", path.display());
            if let Some(earlier) = seen.insert(id, side) {
                bail!("{}: subject `{id}` is in `{earlier}` and in `{side}`", path.display());
            }
        }
        Ok(split)
    }

    /// Every subject with the name of its side.
    fn sides(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let sides = [("train", &self.train), ("val", &self.val), ("test", &self.test)];
        sides.into_iter().flat_map(|(side, ids)| ids.iter().map(move |id| (side, id.as_str())))
    }
}

/// The ids by a random number drawn for each from the seed and the id itself.
fn shuffled(ids: Vec<&str>, seed: u64) -> Vec<&str> {
    let key = |id: &&str| {
        let hash = Sha256::digest(id.as_bytes());
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| hash[at + i]));
        (rng(seed, Stream::Split, word(0), word(8)).next_u64(), id.to_string())
    };
    let mut ids = ids;
    ids.sort_by_cached_key(key);
    ids
}

mod kfold;
#[cfg(test)]
mod tests;
