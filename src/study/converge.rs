//! Validation scores against the epoch, and when an arm first reaches what scratch ends with.

use super::compare::{Arm, Unit};
use super::labels::Labels;
use super::read::{Finished, Records};
use std::collections::BTreeMap;

/// An arm's validation score at each epoch that all its histories have, mean over seeds and folds.
pub struct Curve {
    pub arm: Arm,
    pub points: Vec<(usize, f64)>,
    /// The same of each run.
    pub runs: BTreeMap<Unit, Vec<(usize, f64)>>,
}

/// When an arm reaches what scratch ends with.
pub struct Reached {
    pub arm: Arm,
    /// First epoch at which the mean over repetitions is there; none: never.
    pub first: Option<usize>,
    /// The same in each repetition, whose own scratch it is compared with, as a share of scratch's epochs.
    pub each: Vec<Option<f64>>,
}

/// When the arms with so many labels reach scratch's last score.
pub struct Reach {
    pub scratch: Arm,
    pub labels: Labels,
    /// Mean of the last epoch of scratch.
    pub goal: f64,
    pub epochs: usize,
    /// First epoch at the goal or better, of scratch itself.
    pub own: usize,
    /// And of the other arms.
    pub first: Vec<Reached>,
}

/// The curves of the fine-tunings with so many labels; an arm without any finished cell or any common epoch has none.
pub fn curves(records: &Records, labels: Labels, unlabelled: f64) -> Vec<Curve> {
    let arms = records.arms(unlabelled).into_iter();
    let curves = arms.map(|arm| {
        let cells = records.cells(&arm, labels, unlabelled).into_iter();
        let done: BTreeMap<Unit, &Finished> = cells.filter_map(|(unit, run)| Some((unit, run.finished?))).collect();
        let points = mean(&done.values().copied().collect::<Vec<_>>());
        Curve { arm, points, runs: done.into_iter().map(|(unit, run)| (unit, mean(&[run]))).collect() }
    });
    curves.filter(|c| !c.points.is_empty()).collect()
}

fn mean(cells: &[&Finished]) -> Vec<(usize, f64)> {
    let value = |f: &Finished, epoch: usize| {
        let row = f.history.iter().find(|r| r.epoch == epoch)?;
        row.get(&format!("val/{}", f.result.validation_metric)).filter(|v| v.is_finite())
    };
    let epochs = cells.first().map(|f| f.history.iter().map(|r| r.epoch)).into_iter().flatten();
    let common = epochs.filter_map(|epoch| {
        let values: Option<Vec<f64>> = cells.iter().map(|f| value(f, epoch)).collect();
        values.map(|values| (epoch, values.iter().sum::<f64>() / values.len() as f64))
    });
    common.collect()
}

/// One entry for every rank whose scratch arm has a curve.
pub fn reach(curves: &[Curve], labels: Labels, lower_is_better: bool) -> Vec<Reach> {
    let scratch = curves.iter().filter(|c| c.arm.is_scratch());
    let reach = scratch.filter_map(|scratch| {
        let &(epochs, goal) = scratch.points.last()?;
        let there = |value: f64, goal: f64| if lower_is_better { value <= goal } else { value >= goal };
        let first = |points: &[(usize, f64)], goal: f64| points.iter().find(|p| there(p.1, goal)).map(|p| p.0);
        let own = first(&scratch.points, goal)?;
        let each = |c: &Curve| {
            let pairs = c.runs.iter().filter_map(|(unit, run)| Some((run, scratch.runs.get(unit)?.last()?)));
            pairs.map(|(run, &(epochs, goal))| Some(first(run, goal)? as f64 / epochs as f64)).collect()
        };
        let arms = curves.iter().filter(|c| c.arm.rank == scratch.arm.rank && !c.arm.is_scratch());
        let first = arms.map(|c| Reached { arm: c.arm.clone(), first: first(&c.points, goal), each: each(c) }).collect();
        Some(Reach { scratch: scratch.arm.clone(), labels, goal, epochs, own, first })
    });
    reach.collect()
}
