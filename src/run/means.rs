//! Running weighted means by name, part of a run's state so that a resumed epoch reports the same numbers.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Means {
    /// Name, weighted sum, weight; in order of first appearance.
    sums: Vec<(String, f64, f64)>,
}

impl Means {
    pub fn add(&mut self, name: &str, value: f64, weight: f64) {
        match self.sums.iter_mut().find(|s| s.0 == name) {
            Some(sum) => {
                sum.1 += value * weight;
                sum.2 += weight;
            }
            None => self.sums.push((name.to_owned(), value * weight, weight)),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.sums.iter().map(|(name, sum, weight)| (name.as_str(), sum / weight))
    }

    pub fn get(&self, name: &str) -> Option<f64> {
        self.iter().find(|(n, _)| *n == name).map(|(_, value)| value)
    }
}
