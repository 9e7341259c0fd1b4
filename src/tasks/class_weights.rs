//! Weights of the classes in a downstream task's loss.

use anyhow::{Result, ensure};
use serde::Serialize;

/// How much each class counts.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(into = "String")]
pub enum ClassWeights {
    /// A number for each class, the first class first.
    Given(Vec<f64>),
    /// Each class as much as any other one, however rare it is in what is trained on.
    Balanced,
}

const BALANCED: &str = "balanced";

impl std::str::FromStr for ClassWeights {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == BALANCED {
            return Ok(ClassWeights::Balanced);
        }
        let numbers: Option<Vec<f64>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
        let weights = numbers.ok_or_else(|| format!("expected numbers separated by commas, or {BALANCED}, found `{text}`"))?;
        match weights.iter().all(|w| *w >= 0. && w.is_finite()) && weights.iter().any(|w| *w > 0.) {
            true => Ok(ClassWeights::Given(weights)),
            false => Err(format!("expected numbers from 0 on, not all 0, found `{text}`")),
        }
    }
}

impl From<ClassWeights> for String {
    fn from(weights: ClassWeights) -> String {
        match weights {
            ClassWeights::Given(weights) => weights.iter().map(f64::to_string).collect::<Vec<_>>().join(","),
            ClassWeights::Balanced => BALANCED.into(),
        }
    }
}

impl ClassWeights {
    /// One weight for each class; a class that is not on the training side gets 1 when balanced. `counts`: scans or voxels of
    /// each class there. Errors if the number of given weights is not the number of classes.
    pub fn resolve(weights: Option<&Self>, counts: &[u64]) -> Result<Vec<f64>> {
        let classes = counts.len();
        Ok(match weights {
            None => vec![1.; classes],
            Some(ClassWeights::Given(weights)) => {
                ensure!(
                    weights.len() == classes,
                    "--class-weights has {} numbers, expected {classes}: one a class, of labels with regions one a region",
                    weights.len()
                );
                weights.clone()
            }
            Some(ClassWeights::Balanced) => {
                let mean = counts.iter().sum::<u64>() as f64 / classes as f64;
                counts.iter().map(|&n| if n == 0 { 1. } else { mean / n as f64 }).collect()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_read_written_and_resolved() {
        for text in ["balanced", "1,0.5,0"] {
            let weights: ClassWeights = text.parse().unwrap();
            assert_eq!(String::from(weights), text);
        }
        for wrong in ["", "0,0", "1,-1", "1,nan", "1;2", "Balanced"] {
            assert!(wrong.parse::<ClassWeights>().is_err(), "{wrong}");
        }
        // As scikit-learn's `compute_class_weight("balanced")`: n / (K * count).
        let balanced = ClassWeights::resolve(Some(&ClassWeights::Balanced), &[6, 3, 0]).unwrap();
        assert_eq!(balanced, [0.5, 1., 1.]);
        assert_eq!(ClassWeights::resolve(None, &[6, 3]).unwrap(), [1., 1.]);
        let error = ClassWeights::resolve(Some(&ClassWeights::Given(vec![1.])), &[6, 3]).unwrap_err().to_string();
        assert!(error.contains("1 numbers, expected 2"), "{error}");
    }
}
