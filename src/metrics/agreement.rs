//! Agreement of predicted with true classes of whole scans, from counts.

use std::fmt;

/// How many cases of each true class got each predicted one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    /// `[true, predicted]`, row-major.
    counts: Vec<u64>,
}

impl fmt::Display for Confusion {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let text = |value: Option<f64>| value.map_or("undefined".into(), |v| format!("{v:.3}"));
        let [kappa, accuracy, balanced] = [self.weighted_kappa(), self.accuracy(), self.balanced_accuracy()].map(text);
        let n = self.total();
        write!(f, "quadratic weighted kappa {kappa}, accuracy {accuracy}, balanced accuracy {balanced}, {n} scans")
    }
}

impl Confusion {
    /// Of the cases' true and predicted classes, each below `classes`.
    pub fn of(truth: &[u8], predicted: &[u8], classes: usize) -> Confusion {
        assert_eq!(truth.len(), predicted.len(), "a prediction for each case");
        let mut counts = vec![0; classes * classes];
        for (&t, &p) in truth.iter().zip(predicted) {
            let (t, p) = (t as usize, p as usize);
            assert!(t < classes && p < classes, "true class {t}, predicted {p}, of {classes}");
            counts[t * classes + p] += 1;
        }
        Confusion { classes, counts }
    }

    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Cases of the class `truth` that were predicted as the class `predicted`.
    pub fn count(&self, truth: usize, predicted: usize) -> u64 {
        self.counts[truth * self.classes + predicted]
    }

    /// Cases of a true class.
    pub fn of_class(&self, truth: usize) -> u64 {
        self.counts[truth * self.classes..][..self.classes].iter().sum()
    }

    /// All cases.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Share of the cases with the right class; `None` without a case.
    pub fn accuracy(&self) -> Option<f64> {
        let right: u64 = (0..self.classes).map(|k| self.count(k, k)).sum();
        (self.total() > 0).then(|| right as f64 / self.total() as f64)
    }

    /// Share of a class's cases that were predicted as it; `None` without one.
    pub fn recall(&self, class: usize) -> Option<f64> {
        let cases = self.of_class(class);
        (cases > 0).then(|| self.count(class, class) as f64 / cases as f64)
    }

    /// Mean of the recalls of the classes that have cases; `None` without one.
    pub fn balanced_accuracy(&self) -> Option<f64> {
        let recalls: Vec<f64> = (0..self.classes).filter_map(|class| self.recall(class)).collect();
        (!recalls.is_empty()).then(|| recalls.iter().sum::<f64>() / recalls.len() as f64)
    }

    /// Cohen's kappa with quadratic weights over the ordered classes: 1 for full agreement, 0 for that of chance, below for
    /// less. `None` where it is 0/0: no case, or one single class in truth and predictions alike.
    ///
    /// Source: Cohen, *Weighted kappa*, Psychological Bulletin 70 (1968).
    pub fn weighted_kappa(&self) -> Option<f64> {
        let all = 0..self.classes;
        let rows: Vec<u64> = all.clone().map(|t| self.of_class(t)).collect();
        let columns: Vec<u64> = all.clone().map(|p| all.clone().map(|t| self.count(t, p)).sum()).collect();
        // The weights' common divisor, and that of the expected counts, cancel.
        let (mut observed, mut expected) = (0u128, 0u128);
        for (t, &row) in rows.iter().enumerate() {
            for (p, &column) in columns.iter().enumerate() {
                let weight = t.abs_diff(p).pow(2) as u128;
                observed += weight * self.count(t, p) as u128;
                expected += weight * row as u128 * column as u128;
            }
        }
        (expected > 0).then(|| 1. - observed as f64 * self.total() as f64 / expected as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Disagreement of the pairs against that of every truth with every prediction.
    fn naive_kappa(truth: &[u8], predicted: &[u8]) -> f64 {
        let square = |t: u8, p: u8| (t as f64 - p as f64).powi(2);
        let n = truth.len() as f64;
        let observed = truth.iter().zip(predicted).map(|(&t, &p)| square(t, p)).sum::<f64>() / n;
        let expected = truth.iter().flat_map(|&t| predicted.iter().map(move |&p| square(t, p))).sum::<f64>() / n.powi(2);
        1. - observed / expected
    }

    proptest! {
        #[test]
        fn agrees_with_all_pairs(pairs in prop::collection::vec((0u8..6, 0u8..6), 0..60), spare in 0usize..3) {
            let (truth, predicted): (Vec<u8>, Vec<u8>) = pairs.iter().copied().unzip();
            let confusion = Confusion::of(&truth, &predicted, 6 + spare);
            let naive = naive_kappa(&truth, &predicted);
            match confusion.weighted_kappa() {
                Some(kappa) => prop_assert!((kappa - naive).abs() < 1e-9, "{kappa}, expected {naive}"),
                None => prop_assert!(naive.is_nan()),
            }
            let right = pairs.iter().filter(|(t, p)| t == p).count() as f64 / pairs.len() as f64;
            prop_assert_eq!(confusion.accuracy(), (!pairs.is_empty()).then_some(right));
            let mut recalls = vec![];
            for class in 0..6 {
                let own: Vec<_> = pairs.iter().filter(|(t, _)| *t == class).collect();
                let right = own.iter().filter(|(_, p)| *p == class).count() as f64 / own.len() as f64;
                prop_assert_eq!(confusion.recall(class as usize), (!own.is_empty()).then_some(right));
                recalls.extend((!own.is_empty()).then_some(right));
            }
            let balanced = recalls.iter().sum::<f64>() / recalls.len() as f64;
            prop_assert_eq!(confusion.balanced_accuracy(), (!pairs.is_empty()).then_some(balanced));
        }
    }

    #[test]
    fn degenerate_cases() {
        // scikit-learn 1.9.1: cohen_kappa_score(truth, predicted, weights="quadratic", labels=range(3)); NaN is None here.
        let kappa = |truth: &[u8], predicted: &[u8]| Confusion::of(truth, predicted, 3).weighted_kappa();
        assert_eq!(kappa(&[0, 1, 2, 2], &[0, 1, 2, 2]), Some(1.));
        assert_eq!(kappa(&[0, 2, 0, 2], &[2, 0, 2, 0]), Some(-1.));
        assert_eq!(kappa(&[1, 1, 1], &[0, 1, 2]), Some(0.));
        assert_eq!(kappa(&[0, 1, 2], &[1, 1, 1]), Some(0.));
        assert_eq!(kappa(&[0, 0], &[2, 2]), Some(0.));
        assert_eq!(kappa(&[2, 2], &[2, 2]), None);
        assert_eq!(kappa(&[], &[]), None);
        assert_eq!(Confusion::of(&[], &[], 3).accuracy(), None);
        assert_eq!(Confusion::of(&[2, 2], &[2, 2], 3).accuracy(), Some(1.));
    }
}
