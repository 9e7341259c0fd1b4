//! Whether cells that are compared share what they should share.

use super::cell::Cell;
use super::read::{Finished, Records};
use std::collections::{BTreeMap, BTreeSet};

impl Records {
    /// Why pairs may not be comparable: what one arm has and another one of the same rank, fraction, seed and fold has not.
    pub fn unfair(&self) -> Vec<String> {
        let mut units: BTreeMap<_, Vec<(&Cell, &Finished)>> = BTreeMap::new();
        for (cell, f) in self.done() {
            units.entry((cell.rank, cell.fraction.to_bits(), cell.seed, cell.fold)).or_default().push((cell, f));
        }
        let mut found = Vec::new();
        for members in units.values() {
            let (first, reference) = members[0];
            for (cell, f) in &members[1..] {
                let (a, b) = (&reference.result, &f.result);
                let differs = [
                    ("epochs", a.epochs != b.epochs),
                    ("data", a.data_fingerprint != b.data_fingerprint),
                    ("split", a.split_fingerprint != b.split_fingerprint),
                    ("numbers of training subjects", a.train_subjects != b.train_subjects),
                    ("test cases", tested(reference) != tested(f)),
                ];
                found.extend(difference(&[first, cell], &differs));
            }
        }
        found
    }

    /// Why a 3D and a 2D cell of the same share of labels, seed and fold may not be comparable: what they should share.
    pub fn unfair_ranks(&self) -> Vec<String> {
        let mut units: BTreeMap<_, BTreeMap<usize, (&Cell, &Finished)>> = BTreeMap::new();
        for (cell, f) in self.done() {
            let ranks = units.entry((cell.fraction.to_bits(), cell.seed, cell.fold)).or_default();
            ranks.entry(cell.rank).or_insert((cell, f));
        }
        let pairs = units.values().filter_map(|ranks| ranks.get(&2).zip(ranks.get(&3)));
        let differs = |(flat, deep): (&(&Cell, &Finished), &(&Cell, &Finished))| {
            let (a, b) = (&flat.1.result, &deep.1.result);
            let differs = [
                ("data", a.data_fingerprint != b.data_fingerprint),
                ("split", a.split_fingerprint != b.split_fingerprint),
                ("numbers of training subjects", a.train_subjects != b.train_subjects),
                ("test cases", tested(flat.1) != tested(deep.1)),
            ];
            difference(&[flat.0, deep.0], &differs)
        };
        pairs.filter_map(differs).collect()
    }
}

/// Ids of the test cases.
fn tested(finished: &Finished) -> BTreeSet<&str> {
    finished.result.cases.iter().map(|c| c.id.as_str()).collect()
}

/// Two cells and what they differ in; nothing where all is equal.
fn difference([a, b]: &[&Cell; 2], differs: &[(&str, bool)]) -> Option<String> {
    let names: Vec<&str> = differs.iter().filter(|d| d.1).map(|d| d.0).collect();
    (!names.is_empty()).then(|| format!("{} and {} differ in their {}", a.id, b.id, names.join(", ")))
}
