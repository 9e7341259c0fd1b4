//! How well the classes of scans are read out of their features: a cross-validation by subject.

use super::{ALPHAS, Ridge, Standard, nearest};
use crate::data::split::{Candidate, Fold, Split, subject};
use crate::metrics::agreement::Confusion;
use anyhow::{Result, ensure};
use std::collections::HashMap;
use tch::{Kind, Tensor};

/// Folds, unless there are fewer subjects.
pub const FOLDS: u64 = 10;
/// Fewest subjects: each fold leaves one for validation, which is used as the others are, and one to learn from.
pub const MIN_SUBJECTS: usize = 3;
/// Keys the folds; equal for every encoder, so that their scores compare.
const SEED: u64 = 0;

/// What predicts the class of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readout {
    /// The most frequent class, which needs no features.
    Majority,
    /// [`Ridge`].
    Linear,
    /// [`nearest`], with this many neighbours.
    Nearest(usize),
}

/// Those that are scored on features.
pub const READOUTS: [Readout; 3] = [Readout::Linear, Readout::Nearest(1), Readout::Nearest(5)];

impl Readout {
    pub fn name(self) -> String {
        match self {
            Readout::Majority => "majority".into(),
            Readout::Linear => "linear".into(),
            Readout::Nearest(k) => format!("nearest_{k}"),
        }
    }

    /// Classes of `x` `[N, D]`, fitted on others, `[M, D]` with their classes `truth` `[M]`.
    fn predict(self, x: &Tensor, fitted: &Tensor, truth: &Tensor, classes: usize) -> Tensor {
        let standard = Standard::of(fitted);
        let (x, fitted) = (standard.apply(x), standard.apply(fitted));
        match self {
            Readout::Majority => truth.bincount::<Tensor>(None, classes as i64).argmax(0, true).expand([x.size()[0]], false),
            Readout::Linear => Ridge::fit(&fitted, truth, classes, &ALPHAS).classes(&x),
            Readout::Nearest(k) => nearest(&x, &fitted, truth, classes, k),
        }
    }
}

/// A scan whose class is known.
pub struct Labelled {
    pub id: String,
    pub class: u8,
    /// By what it is known again: subjects that share a scan are on one side.
    pub marks: Vec<String>,
}

/// The fold that tests each scan: at most [`FOLDS`] and as many as there are subjects, with equal shares of each class. Errors with fewer
/// than [`MIN_SUBJECTS`] subjects or a single class.
pub fn folds(scans: &[Labelled]) -> Result<Vec<u64>> {
    let people = people(scans);
    let candidate =
        |(scan, person): (&Labelled, &usize)| Candidate { id: person.to_string(), side: None, class: Some(scan.class) };
    let candidates: Vec<Candidate> = scans.iter().zip(&people).map(candidate).collect();
    let mut distinct = people.clone();
    distinct.sort();
    distinct.dedup();
    ensure!(
        distinct.len() >= MIN_SUBJECTS,
        "{} subjects have a class, a cross-validation needs {MIN_SUBJECTS}",
        distinct.len()
    );
    ensure!(scans.iter().any(|scan| scan.class != scans[0].class), "all scans are of class {}", scans[0].class);
    let of = FOLDS.min(distinct.len() as u64);
    let mut fold_of = HashMap::new();
    for number in 0..of {
        let split = Split::kfold(&candidates, Fold { number, of }, 0., SEED)?;
        fold_of.extend(split.test.into_iter().map(|person| (person, number)));
    }
    Ok(candidates.iter().map(|candidate| fold_of[&candidate.id]).collect())
}

/// A number for each scan, equal where they are of one subject or of subjects that share a scan.
fn people(scans: &[Labelled]) -> Vec<usize> {
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

/// How well the true classes, of this many, are predicted; as [`predictions`].
pub fn score(readout: Readout, x: &Tensor, scans: &[Labelled], folds: &[u64], classes: usize) -> Confusion {
    let truth: Vec<u8> = scans.iter().map(|scan| scan.class).collect();
    Confusion::of(&truth, &predictions(readout, x, scans, folds, classes), classes)
}

/// Classes that each scan is given by the others outside its fold. `x`: features `[N, D]`.
fn predictions(readout: Readout, x: &Tensor, scans: &[Labelled], folds: &[u64], classes: usize) -> Vec<u8> {
    let x = x.to_kind(Kind::Double);
    let truth = Tensor::from_slice(&scans.iter().map(|scan| i64::from(scan.class)).collect::<Vec<_>>());
    let mut predicted = vec![0; scans.len()];
    let count = folds.iter().max().map_or(0, |last| last + 1);
    for fold in 0..count {
        let (tested, fitted): (Vec<i64>, Vec<i64>) = (0..scans.len() as i64).partition(|&i| folds[i as usize] == fold);
        let rows = Tensor::from_slice(&fitted);
        let (fitted, known) = (x.index_select(0, &rows), truth.index_select(0, &rows));
        let found = readout.predict(&x.index_select(0, &Tensor::from_slice(&tested)), &fitted, &known, classes);
        let found: Vec<i64> = Vec::try_from(found).expect("a vector of classes");
        tested.iter().zip(found).for_each(|(&i, class)| predicted[i as usize] = class as u8);
    }
    predicted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(id: &str, class: u8, marks: &[&str]) -> Labelled {
        Labelled { id: id.into(), class, marks: marks.iter().map(|m| m.to_string()).collect() }
    }

    #[test]
    fn scans_of_a_person_and_copies_under_other_names_are_in_one_fold() {
        let mut scans: Vec<Labelled> = (0..40).map(|i| scan(&format!("s{}/{i}", i / 2), (i / 2 % 4) as u8, &[])).collect();
        // s0 is s7, and s7 is s13, by one scan each.
        scans[1].marks.push("a".into());
        scans[15].marks.push("a".into());
        scans[14].marks.push("b".into());
        scans[27].marks.push("b".into());
        let folds = folds(&scans).unwrap();
        assert!((0..20).all(|s| folds[2 * s] == folds[2 * s + 1]));
        assert_eq!([folds[14], folds[26]], [folds[0]; 2]);
        let sizes: Vec<usize> = (0..FOLDS).map(|f| folds.iter().filter(|&&g| g == f).count()).collect();
        assert!(sizes.iter().all(|&n| n >= 2), "{sizes:?}");
    }

    #[test]
    fn few_subjects_are_left_out_one_by_one() {
        let scans: Vec<Labelled> = (0..4).map(|i| scan(&i.to_string(), i % 2, &[])).collect();
        let mut folds = folds(&scans).unwrap();
        folds.sort();
        assert_eq!(folds, [0, 1, 2, 3]);
        assert!(super::folds(&scans[..2]).unwrap_err().to_string().contains("2 subjects"));
        let same: Vec<Labelled> = (0..4).map(|i| scan(&i.to_string(), 3, &[])).collect();
        assert!(super::folds(&same).unwrap_err().to_string().contains("class 3"));
    }

    #[test]
    fn no_scan_is_predicted_from_its_own_person() {
        // The feature names the person and says nothing of the class.
        let scans: Vec<Labelled> = (0..24).map(|i| scan(&format!("{}/{}", i / 2, i % 2), (i / 2 % 2) as u8, &[])).collect();
        let x = Tensor::from_slice(&(0..24 * 12).map(|i| f64::from(u8::from(i / 12 / 2 == i % 12))).collect::<Vec<_>>())
            .view([24, 12]);
        let folds = folds(&scans).unwrap();
        for readout in READOUTS {
            let found = predictions(readout, &x, &scans, &folds, 2);
            let right = scans.iter().zip(&found).filter(|(scan, found)| scan.class == **found).count();
            assert!(right <= 16, "{readout:?}: {right} of 24");
        }
    }
}
