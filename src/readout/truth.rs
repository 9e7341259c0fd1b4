//! What is read out of features: the class or the quantity of each scan.

use super::one_hot;
use crate::data::store::targets::{Targets, Values, fifths};
use crate::metrics::agreement::Confusion;
use crate::metrics::errors::Errors;
use std::fmt;
use tch::{Kind, Tensor};

/// Of each scan.
pub enum Truth {
    Classes {
        of: Vec<u8>,
        /// How many there are.
        classes: usize,
    },
    Quantity(Vec<f64>),
}

/// How well it is predicted.
pub enum Score {
    Classes(Confusion),
    Quantity(Errors),
}

impl Truth {
    /// Of those of these scans that have a value, in this order.
    pub fn of(targets: &Targets, scans: impl Iterator<Item = usize>) -> Truth {
        match &targets.values {
            Values::Classes { names, of, .. } => {
                Truth::Classes { of: scans.filter_map(|scan| of[scan]).collect(), classes: names.len() }
            }
            Values::Numbers(numbers) => Truth::Quantity(scans.filter_map(|scan| numbers[scan]).collect()),
        }
    }

    /// What readouts are fitted to, `[N, K]`, float64: one-hot classes, of a quantity a column.
    pub fn matrix(&self) -> Tensor {
        match self {
            Truth::Classes { of, classes } => {
                one_hot(&Tensor::from_slice(&of.iter().map(|&class| i64::from(class)).collect::<Vec<_>>()), *classes)
            }
            Truth::Quantity(numbers) => Tensor::from_slice(numbers).unsqueeze(1),
        }
    }

    /// Of each scan what folds have equal shares of: its class, of a quantity the fifth.
    pub fn strata(&self) -> Vec<u8> {
        match self {
            Truth::Classes { of, .. } => of.clone(),
            Truth::Quantity(numbers) => fifths(numbers),
        }
    }

    /// What all scans have, where it is the same.
    pub fn only(&self) -> Option<String> {
        match self {
            Truth::Classes { of, .. } => of.windows(2).all(|pair| pair[0] == pair[1]).then(|| format!("of class {}", of[0])),
            Truth::Quantity(numbers) => {
                numbers.windows(2).all(|pair| pair[0] == pair[1]).then(|| format!("of the value {}", numbers[0]))
            }
        }
    }

    /// Of the outputs of a readout, `[N, K]`. The class is that with the largest one, of several the lowest.
    pub fn score(&self, outputs: &Tensor) -> Score {
        let outputs: Vec<f64> = Vec::try_from(outputs.to_kind(Kind::Double).flatten(0, 1)).expect("a vector of numbers");
        match self {
            Truth::Classes { of, classes } => {
                let largest = |row: &[f64]| (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b]));
                let class = |row| largest(row).expect("there are classes") as u8;
                let predicted: Vec<u8> = outputs.chunks(*classes).map(class).collect();
                Score::Classes(Confusion::of(of, &predicted, *classes))
            }
            Truth::Quantity(numbers) => Score::Quantity(Errors::of(numbers.iter().copied().zip(outputs))),
        }
    }
}

impl Score {
    /// In one number, higher being better: quadratic weighted kappa, R squared. `None` where all scans have the same.
    pub fn single(&self) -> Option<f64> {
        match self {
            Score::Classes(confusion) => confusion.weighted_kappa(),
            Score::Quantity(errors) => errors.r_squared(),
        }
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Score::Classes(confusion) => confusion.fmt(f),
            Score::Quantity(errors) => errors.fmt(f),
        }
    }
}
