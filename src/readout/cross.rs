//! How well the classes or the quantity of scans are read out of their features: a cross-validation by subject.

use super::truth::{Score, Truth};
use super::{ALPHAS, Ridge, Standard, nearest};
use crate::data::split::{Candidate, Fold, Split, subject};
use anyhow::{Result, ensure};
use std::collections::HashMap;
use tch::{Kind, Tensor};

/// Folds, unless there are fewer subjects.
pub const FOLDS: u64 = 10;
/// Fewest subjects: each fold leaves one for validation, which is used as the others are, and one to learn from.
pub const MIN_SUBJECTS: usize = 3;
/// Keys the folds; equal for every encoder, so that their scores compare.
const SEED: u64 = 0;

/// What predicts the class or the quantity of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readout {
    /// The mean of those that it is fitted on, the most frequent class, which needs no features.
    Baseline,
    /// [`Ridge`].
    Linear,
    /// [`nearest`], with this many neighbours.
    Nearest(usize),
}

/// Those that are scored on features.
pub const READOUTS: [Readout; 3] = [Readout::Linear, Readout::Nearest(1), Readout::Nearest(5)];

impl Readout {
    /// Outputs `[N, K]` for `x` `[N, D]`, fitted on others, `[M, D]` with their truth `y` `[M, K]`.
    fn predict(self, x: &Tensor, fitted: &Tensor, y: &Tensor) -> Tensor {
        let standard = Standard::of(fitted);
        let (x, fitted) = (standard.apply(x), standard.apply(fitted));
        match self {
            Readout::Baseline => y.mean_dim(0, true, Kind::Double).expand([x.size()[0], -1], false),
            Readout::Linear => Ridge::fit(&fitted, y, &ALPHAS).predict(&x),
            Readout::Nearest(k) => nearest(&x, &fitted, y, k),
        }
    }
}

/// A scan whose class or quantity is known.
pub struct Scan {
    pub id: String,
    /// By what it is known again: subjects that share a scan are on one side.
    pub marks: Vec<String>,
}

/// Scans in folds, each of which is predicted from the others.
pub struct CrossValidation {
    truth: Truth,
    /// The fold that tests each scan.
    folds: Vec<u64>,
}

impl CrossValidation {
    /// At most [`FOLDS`] folds and as many as there are subjects, with equal shares of each class or of each fifth of the quantity. Errors with
    /// fewer than [`MIN_SUBJECTS`] subjects or where all scans have the same. `truth`: of these scans.
    pub fn new(scans: &[Scan], truth: Truth) -> Result<CrossValidation> {
        let people = people(scans);
        let candidate = |(person, class): (&usize, u8)| Candidate { id: person.to_string(), side: None, class: Some(class) };
        let candidates: Vec<Candidate> = people.iter().zip(truth.strata()).map(candidate).collect();
        let mut distinct = people.clone();
        distinct.sort();
        distinct.dedup();
        let what = if matches!(truth, Truth::Classes { .. }) { "class" } else { "value" };
        ensure!(
            distinct.len() >= MIN_SUBJECTS,
            "{} subjects have a {what}, a cross-validation needs {MIN_SUBJECTS}",
            distinct.len()
        );
        if let Some(only) = truth.only() {
            anyhow::bail!("all scans are {only}");
        }
        let of = FOLDS.min(distinct.len() as u64);
        let mut fold_of = HashMap::new();
        for number in 0..of {
            let split = Split::kfold(&candidates, Fold { number, of }, 0., SEED)?;
            fold_of.extend(split.test.into_iter().map(|person| (person, number)));
        }
        let folds = candidates.iter().map(|candidate| fold_of[&candidate.id]).collect();
        Ok(CrossValidation { truth, folds })
    }

    pub fn truth(&self) -> &Truth {
        &self.truth
    }

    /// The fold that tests each scan.
    pub fn folds(&self) -> &[u64] {
        &self.folds
    }

    /// How well each scan is predicted from those outside its fold. `x`: features `[N, D]`.
    pub fn score(&self, readout: Readout, x: &Tensor) -> Score {
        let (x, y) = (x.to_kind(Kind::Double), self.truth.matrix());
        let mut outputs = y.zeros_like();
        let count = self.folds.iter().max().map_or(0, |last| last + 1);
        for fold in 0..count {
            let side: (Vec<i64>, Vec<i64>) = (0..self.folds.len() as i64).partition(|&i| self.folds[i as usize] == fold);
            let (tested, fitted) = (Tensor::from_slice(&side.0), Tensor::from_slice(&side.1));
            let rows = |of: &Tensor, rows: &Tensor| of.index_select(0, rows);
            let found = readout.predict(&rows(&x, &tested), &rows(&x, &fitted), &rows(&y, &fitted));
            let _ = outputs.index_copy_(0, &tested, &found);
        }
        self.truth.score(&outputs)
    }
}

/// A number for each scan, equal where they are of one subject or of subjects that share a scan.
fn people(scans: &[Scan]) -> Vec<usize> {
    let mut person: Vec<usize> = (0..scans.len()).collect();
    let mut first: HashMap<&str, usize> = HashMap::new();
    for (i, scan) in scans.iter().enumerate() {
        // A subject's id cannot be taken for a mark, which is a hash.
        for key in [subject(&scan.id)].into_iter().chain(scan.marks.iter().map(String::as_str)) {
            let (a, b) = (person[*first.entry(key).or_insert(i)], person[i]);
            person.iter_mut().filter(|p| **p == b).for_each(|p| *p = a);
        }
    }
    person
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scans(ids: impl Iterator<Item = String>) -> Vec<Scan> {
        ids.map(|id| Scan { id, marks: vec![] }).collect()
    }

    fn classes(of: impl Iterator<Item = u8>, classes: usize) -> Truth {
        Truth::Classes { of: of.collect(), classes }
    }

    #[test]
    fn scans_of_a_person_and_copies_under_other_names_are_in_one_fold() {
        let mut scans = scans((0..40).map(|i| format!("s{}/{i}", i / 2)));
        // s0 is s7, and s7 is s13, by one scan each.
        scans[1].marks.push("a".into());
        scans[15].marks.push("a".into());
        scans[14].marks.push("b".into());
        scans[27].marks.push("b".into());
        let quantity = Truth::Quantity((0..40).map(f64::from).collect());
        for truth in [classes((0..40).map(|i| i / 2 % 4), 4), quantity] {
            let cross = CrossValidation::new(&scans, truth).unwrap();
            let folds = cross.folds();
            assert!((0..20).all(|s| folds[2 * s] == folds[2 * s + 1]));
            assert_eq!([folds[14], folds[26]], [folds[0]; 2]);
            let sizes: Vec<usize> = (0..FOLDS).map(|f| folds.iter().filter(|&&g| g == f).count()).collect();
            assert!(sizes.iter().all(|&n| n >= 2), "{sizes:?}");
        }
    }

    #[test]
    fn few_subjects_are_left_out_one_by_one() {
        let scans = scans((0..4).map(|i| i.to_string()));
        let new = |n: usize, truth| CrossValidation::new(&scans[..n], truth);
        let mut folds = new(4, classes((0..4).map(|i| i % 2), 2)).unwrap().folds().to_vec();
        folds.sort();
        assert_eq!(folds, [0, 1, 2, 3]);
        let refused = |n, truth| new(n, truth).err().unwrap().to_string();
        assert!(refused(2, classes([0, 1].into_iter(), 2)).contains("2 subjects have a class"));
        assert!(refused(0, Truth::Quantity(vec![])).contains("0 subjects have a value"));
        assert!(refused(4, classes([3; 4].into_iter(), 4)).contains("class 3"));
        assert!(refused(4, Truth::Quantity(vec![2.5; 4])).contains("value 2.5"));
    }

    #[test]
    fn no_scan_is_predicted_from_its_own_person() {
        // The feature names the person and says nothing of the class or the quantity.
        let scans = scans((0..24).map(|i| format!("{}/{}", i / 2, i % 2)));
        let x = Tensor::from_slice(&(0..24 * 12).map(|i| f64::from(u8::from(i / 12 / 2 == i % 12))).collect::<Vec<_>>())
            .view([24, 12]);
        let class = CrossValidation::new(&scans, classes((0..24).map(|i| i / 2 % 2), 2)).unwrap();
        let quantity = Truth::Quantity((0..24).map(|i| f64::from(i / 2 * 7 % 12)).collect());
        let quantity = CrossValidation::new(&scans, quantity).unwrap();
        for readout in READOUTS {
            let (Score::Classes(confusion), Score::Quantity(errors)) = (class.score(readout, &x), quantity.score(readout, &x))
            else {
                panic!("of another kind than the truth")
            };
            let right = confusion.accuracy().unwrap();
            assert!(right <= 16. / 24., "{readout:?}: {right}");
            let r_squared = errors.r_squared().unwrap();
            assert!(r_squared < 0.1, "{readout:?}: {r_squared}");
        }
    }
}
