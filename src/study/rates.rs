//! Learning rates that a sweep chose on the validation side, one for every arm: `rates.json`.

use super::cell::Cell;
use crate::run::history::History;
use crate::run::record::{CellResult, RESULT, VERSION, read_json};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// In a sweep's folder: what was chosen, and the runs that it was chosen by.
pub const FILE: &str = "rates.json";
pub const TUNING: &str = "tuning";

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    pub version: u64,
    pub chosen: Vec<Chosen>,
}

/// Of one arm that starts from one pretext task, or from none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chosen {
    pub pretext: String,
    pub arm: String,
    pub lr: f64,
    /// The whole grid, in rising order.
    pub grid: Vec<Tried>,
}

/// A rate of the grid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tried {
    pub lr: f64,
    /// Mean of the best validation scores of its runs.
    pub score: f64,
    pub runs: usize,
}

impl Rates {
    /// Nothing is chosen where there is no file.
    pub fn read(folder: &Path) -> Result<Rates> {
        let path = folder.join(FILE);
        if path.exists() { read_json(&path) } else { Ok(Rates { version: VERSION, chosen: vec![] }) }
    }

    pub fn of(&self, pretext: &str, arm: &str) -> Option<&Chosen> {
        self.chosen.iter().find(|c| c.pretext == pretext && c.arm == arm)
    }
}

impl Chosen {
    /// By rates and best validation scores of all runs of an arm: the rate with the best mean, of equal ones the smallest.
    pub fn best(pretext: &str, arm: &str, runs: &[(f64, f64)], lower_is_better: bool) -> Option<Chosen> {
        let mut sorted = runs.to_vec();
        sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
        let of_rate = |runs: &[(f64, f64)]| {
            let score = runs.iter().map(|run| run.1).sum::<f64>() / runs.len() as f64;
            Tried { lr: runs[0].0, score, runs: runs.len() }
        };
        let grid: Vec<Tried> = sorted.chunk_by(|a, b| a.0 == b.0).map(of_rate).collect();
        let better = |a: &Tried, b: &Tried| if lower_is_better { a.score < b.score } else { a.score > b.score };
        let best = grid.iter().reduce(|best, tried| if better(tried, best) { tried } else { best })?;
        Some(Chosen { pretext: pretext.to_owned(), arm: arm.to_owned(), lr: best.lr, grid })
    }
}

/// A cell trained at another rate than the sweep's common one.
pub fn at_rate(cell: &Cell, lr: f64) -> Cell {
    Cell { id: format!("{}-lr{lr}", cell.id), lr: Some(lr), ..cell.clone() }
}

/// The best validation score of a finished run, that of the epoch which is tested.
pub fn validation_score(folder: &Path) -> Result<f64> {
    let result: CellResult = read_json(&folder.join(RESULT))?;
    let column = format!("val/{}", result.validation_metric);
    let history = History::read(folder)?;
    let score = history.iter().find(|row| row.epoch == result.best_epoch).and_then(|row| row.get(&column));
    let score = score.with_context(|| format!("{}: no {column} of epoch {}", folder.display(), result.best_epoch))?;
    ensure!(score.is_finite(), "{}: {column} of epoch {} is {score}", folder.display(), result.best_epoch);
    Ok(score)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_mean_is_chosen_and_of_equal_ones_the_smallest() {
        let runs = [(1e-2, 0.5), (1e-3, 0.75), (3e-3, 0.5), (3e-3, 1.0), (1e-2, 0.875), (1e-3, 0.75)];
        let chosen = Chosen::best("rot", "full", &runs, false).unwrap();
        let tried = |lr, score| Tried { lr, score, runs: 2 };
        assert_eq!(chosen.grid, [tried(1e-3, 0.75), tried(3e-3, 0.75), tried(1e-2, 0.6875)]);
        assert_eq!(chosen.lr, 1e-3);
        for (lower_is_better, lr) in [(false, 1e-2), (true, 1e-3)] {
            assert_eq!(Chosen::best("rot", "full", &[(1e-3, 0.5), (1e-2, 0.75)], lower_is_better).unwrap().lr, lr);
        }
        assert_eq!(Chosen::best("rot", "full", &[], false), None);
    }
}
