//! A sweep's folder: `sweep.json`, `cells/ID/result.json` and `metrics.jsonl`, `pretrain/RUN/result.json`. Reading is strict.

use super::cell::Cell;
use super::rates::{Rates, at_rate};
use super::repetitions::Repetitions;
use crate::run::history::{History, Row};
use crate::run::record::{CellResult, PretrainResult, RESULT, SCRATCH, read_json};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// `sweep.json`: what a sweep runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    pub version: u64,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The resolved configuration.
    pub settings: Value,
    pub cells: Vec<Cell>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<Published>,
}

/// A number from elsewhere, to be shown beside ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    pub pretext: String,
    pub fraction: f64,
    pub value: f64,
    /// How it was measured, in words.
    pub metric: String,
    pub source: String,
}

/// A finished cell.
#[derive(Clone)]
pub struct Finished {
    pub result: CellResult,
    pub history: Vec<Row>,
}

/// A cell at another learning rate than the one that is compared.
#[derive(Clone)]
pub struct OtherRate {
    pub cell: Cell,
    pub finished: Option<Finished>,
}

/// All that a sweep's folder holds.
#[derive(Clone)]
pub struct Records {
    pub sweep: Sweep,
    /// Beside `sweep.cells`; none where a cell is not finished.
    pub finished: Vec<Option<Finished>>,
    /// Beside `sweep.cells`, which are at the common learning rate, the same at the arm's own; none where that is not chosen or is the
    /// common one.
    pub others: Vec<Option<OtherRate>>,
    /// What was chosen, of each sweep with a grid, with its name where there are several.
    pub rates: Vec<(String, Rates)>,
    /// Of each sweep, and beside `sweep.cells` the number of the one that the cell is of.
    pub repetitions: Vec<Repetitions>,
    pub origins: Vec<usize>,
    /// With the name of the folder, in its order.
    pub pretraining: Vec<(String, PretrainResult)>,
    /// What a reader must know of several sweeps together.
    pub notes: Vec<String>,
}

impl Records {
    pub fn read(folder: &Path) -> Result<Records> {
        let path = folder.join("sweep.json");
        ensure!(path.is_file(), "{}: not a sweep's folder, it has no sweep.json", folder.display());
        let sweep: Sweep = read_json(&path)?;
        check(&sweep).with_context(|| path.display().to_string())?;
        let finished = sweep.cells.iter().map(|cell| read_cell(&folder.join("cells").join(&cell.id), cell));
        let finished: Vec<Option<Finished>> = finished.collect::<Result<_>>()?;
        let rates = sweep.cells.iter().any(|cell| cell.lr.is_some()).then(|| Rates::read(folder)).transpose()?;
        let others = sweep.cells.iter().map(|cell| read_own(folder, rates.as_ref(), cell)).collect::<Result<_>>()?;
        let rates = rates.into_iter().map(|rates| (sweep.name.clone(), rates)).collect();
        let first = finished.iter().flatten().next();
        let first = first.with_context(|| format!("{}: no finished cell, found no cells/*/result.json", folder.display()))?;
        for (cell, f) in sweep.cells.iter().zip(&finished).filter_map(|(c, f)| Some((c, f.as_ref()?))) {
            let (found, expected) = (&f.result.metric, &first.result.metric);
            let path = folder.join("cells").join(&cell.id).join(RESULT);
            ensure!(found == expected, "{}: metric {found:?}, other cells have {expected:?}", path.display());
        }
        let pretraining = read_pretraining(&folder.join("pretrain"))?;
        let repetitions = Repetitions::of(&sweep.settings).with_context(|| format!("{}: `settings`", path.display()))?;
        ensure!(
            repetitions.folds.is_some_and(|folds| folds > 1) || sweep.cells.iter().all(|c| c.fold.is_none()),
            "{}: cells of folds, expected `folds`, how many there are, in `settings`",
            path.display()
        );
        let origins = vec![0; sweep.cells.len()];
        Ok(Records { sweep, finished, others, rates, repetitions: vec![repetitions], origins, pretraining, notes: vec![] })
    }

    /// The same with every arm at its own rate, and the common one as the other; nothing where no sweep chooses rates.
    pub fn at_own_rates(&self) -> Option<Records> {
        if self.rates.is_empty() {
            return None;
        }
        let mut all = self.clone();
        let places = all.sweep.cells.iter_mut().zip(&mut all.finished).zip(&mut all.others);
        for ((cell, finished), other) in places {
            if let Some(own) = other {
                std::mem::swap(cell, &mut own.cell);
                std::mem::swap(finished, &mut own.finished);
            } else if cell.lr.is_some() && !self.rates.iter().any(|(_, rates)| rates.of(&cell.pretext, &cell.arm).is_some()) {
                let at_common = OtherRate { cell: cell.clone(), finished: finished.take() };
                cell.id = format!("{} at its own rate, not chosen yet", cell.id);
                *other = Some(at_common);
            }
        }
        Some(all)
    }

    /// Every finished run, at own rates and at the common one.
    pub fn runs(&self) -> impl Iterator<Item = (&Cell, &Finished)> {
        self.done().chain(self.others.iter().flatten().filter_map(|run| Some((&run.cell, run.finished.as_ref()?))))
    }

    pub fn title(&self) -> String {
        self.sweep.title.clone().unwrap_or_else(|| format!("Sweep {}", self.sweep.name))
    }

    /// Cells with their results, the finished ones only.
    pub fn done(&self) -> impl Iterator<Item = (&Cell, &Finished)> {
        self.sweep.cells.iter().zip(&self.finished).filter_map(|(cell, f)| Some((cell, f.as_ref()?)))
    }

    /// Of the score that is compared.
    pub fn lower_is_better(&self) -> bool {
        self.done().next().is_some_and(|(_, f)| f.result.lower_is_better)
    }

    /// Name of the score that is compared.
    pub fn metric(&self) -> &str {
        self.done().next().map_or("", |(_, f)| &f.result.metric)
    }
}

/// Errors on cells that could not be told apart or do not make sense.
pub fn check(sweep: &Sweep) -> Result<()> {
    ensure!(!sweep.cells.is_empty(), "`cells` is empty");
    let mut ids = HashSet::new();
    for cell in &sweep.cells {
        let Cell { id, pretext, fraction, unlabelled, rank, .. } = cell;
        ensure!(!id.is_empty() && !id.contains(['/', '\\']) && id != "..", "cell {id:?}: not the name of a folder");
        ensure!(ids.insert(id), "cell {id:?} is listed twice");
        for (name, share) in [("fraction", fraction), ("unlabelled", unlabelled)] {
            ensure!(*share > 0.0 && *share <= 1.0, "cell {id:?}: `{name}` is above 0 and at most 1, found {share}");
        }
        let arm = cell.base();
        ensure!((pretext == SCRATCH) == (arm == SCRATCH), "cell {id:?}: pretext {pretext:?} with arm {arm:?}");
        ensure!([2, 3].contains(rank), "cell {id:?}: `rank` is 2 or 3, found {rank}");
    }
    check_places(&sweep.cells)
}

/// Errors on cells that differ in nothing but their name.
pub fn check_places(cells: &[Cell]) -> Result<()> {
    let mut places = HashMap::new();
    for cell in cells {
        let Cell { id, pretext, arm, fraction, labelled, seed, fold, unlabelled, rank, .. } = cell;
        let share = cell.is_pretrained_here().then(|| unlabelled.to_bits());
        let labels = labelled.ok_or(fraction.to_bits());
        if let Some(other) = places.insert((pretext, arm, labels, seed, fold, share, rank), id) {
            bail!("cell {id:?}: {other:?} has the same pretext, arm, fraction, seed, fold, unlabelled share and rank");
        }
    }
    Ok(())
}

fn read_cell(folder: &Path, cell: &Cell) -> Result<Option<Finished>> {
    let path = folder.join(RESULT);
    if !path.exists() {
        return Ok(None);
    }
    let result: CellResult = read_json(&path)?;
    let r = &result;
    let found = (&r.pretext, &r.arm, r.fraction, r.seed, r.fold, r.unlabelled, r.rank);
    // Given weights say of what share they were pretrained on, which is no share of the sweep's.
    let unlabelled = if cell.given { r.unlabelled } else { cell.unlabelled };
    let expected = (&cell.pretext, &cell.base().to_owned(), cell.fraction, cell.seed, cell.fold, unlabelled, cell.rank);
    ensure!(
        found == expected,
        "{}: (pretext, arm, fraction, seed, fold, unlabelled, rank) is {found:?}, sweep.json has {expected:?}",
        path.display()
    );
    let mut ids = HashSet::new();
    for case in &r.cases {
        ensure!(ids.insert(&case.id), "{}: case {:?} is listed twice", path.display(), case.id);
    }
    for (name, score) in &r.scores {
        ensure!(score.is_number() || score.is_null(), "{}: score {name:?}: expected a number, found {score}", path.display());
    }
    Ok(Some(Finished { history: History::read(folder)?, result }))
}

/// A cell at its arm's own rate, where that is chosen and another than its own.
fn read_own(folder: &Path, rates: Option<&Rates>, cell: &Cell) -> Result<Option<OtherRate>> {
    let chosen = rates.and_then(|rates| rates.of(&cell.pretext, &cell.arm));
    let Some(chosen) = chosen.filter(|chosen| cell.lr != Some(chosen.lr)) else { return Ok(None) };
    let cell = at_rate(cell, chosen.lr);
    let finished = read_cell(&folder.join("cells").join(&cell.id), &cell)?;
    Ok(Some(OtherRate { cell, finished }))
}

fn read_pretraining(folder: &Path) -> Result<Vec<(String, PretrainResult)>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut runs = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry.with_context(|| folder.display().to_string())?;
        let path = entry.path().join(RESULT);
        if path.exists() {
            runs.push((entry.file_name().to_string_lossy().into_owned(), read_json(&path)?));
        }
    }
    runs.sort_by(|a: &(String, PretrainResult), b| a.0.cmp(&b.0));
    Ok(runs)
}
