//! How far predicted quantities are from the true ones.

use std::fmt;

/// Pairs of true and predicted values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Errors {
    pairs: Vec<(f64, f64)>,
}

impl Errors {
    /// Of the cases' true and predicted values.
    pub fn of(pairs: impl IntoIterator<Item = (f64, f64)>) -> Errors {
        Errors { pairs: pairs.into_iter().collect() }
    }

    /// True and predicted values, case by case.
    pub fn pairs(&self) -> &[(f64, f64)] {
        &self.pairs
    }

    /// The same cases with one and the same prediction for all.
    pub fn with_constant(&self, predicted: f64) -> Errors {
        Errors::of(self.pairs.iter().map(|&(truth, _)| (truth, predicted)))
    }

    /// In the quantity's unit; `None` without a case.
    pub fn mean_absolute(&self) -> Option<f64> {
        let sum: f64 = self.pairs.iter().map(|(truth, predicted)| (predicted - truth).abs()).sum();
        (!self.pairs.is_empty()).then(|| sum / self.pairs.len() as f64)
    }

    /// Share of the true values' variance that the predictions explain: 1 less the sum of squared errors over that of the squared distances
    /// to the true values' mean. Negative where the errors are larger than these. `None` where all true values are the same.
    pub fn r_squared(&self) -> Option<f64> {
        let mean = self.pairs.iter().map(|pair| pair.0).sum::<f64>() / self.pairs.len() as f64;
        let around: f64 = self.pairs.iter().map(|(truth, _)| (truth - mean).powi(2)).sum();
        let errors: f64 = self.pairs.iter().map(|(truth, predicted)| (truth - predicted).powi(2)).sum();
        (around > 0.).then(|| 1. - errors / around)
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let text = |value: Option<f64>| value.map_or("undefined".into(), |v| format!("{v:.3}"));
        let (mae, r_squared) = (text(self.mean_absolute()), text(self.r_squared()));
        write!(f, "mean absolute error {mae}, R squared {r_squared}, {} scans", self.pairs.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_agree_with_scikit_learn() {
        // scikit-learn 1.9.1: mean_absolute_error(t, p), r2_score(t, p), with t = [3, -0.5, 2, 7], p = [2.5, 0, 2, 8];
        // with the constant 3 mean_absolute_error(t, [3] * 4) and r2_score(t, [3] * 4).
        let errors = Errors::of([(3., 2.5), (-0.5, 0.), (2., 2.), (7., 8.)]);
        assert_eq!(errors.mean_absolute(), Some(0.5));
        assert!((errors.r_squared().unwrap() - 0.9486081370449679).abs() < 1e-12);
        let constant = errors.with_constant(3.);
        assert_eq!(constant.mean_absolute(), Some(2.125));
        assert!((constant.r_squared().unwrap() + 0.0021413276231263545).abs() < 1e-12, "{:?}", constant.r_squared());
        assert_eq!((Errors::default().mean_absolute(), Errors::default().r_squared()), (None, None));
        assert_eq!(Errors::of([(2., 1.), (2., 3.)]).r_squared(), None);
    }
}
