//! What a sweep's cells say: means of arms, and differences of pairs that share rank, fraction, seed and fold.

use super::cell::Cell;
use super::labels::Labels;
use super::read::{Finished, Records};
use super::repetitions::Repetitions;
use super::stats::{Estimate, Paired, SignedRank, corrected, estimate, holm, holm_factors, paired, signed_rank};
use crate::run::record::{CellResult, FROZEN, RANDOM, SCRATCH};
use std::collections::BTreeMap;

/// Rows of a table: what was trained and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arm {
    pub rank: usize,
    pub pretext: String,
    /// From weights that the sweep is given.
    pub given: bool,
    pub arm: String,
    /// What the arm is a variant of, or itself.
    pub base: String,
}

/// What makes two cells of one fraction a pair: seed and fold.
pub type Unit = (u64, Option<u64>);

/// A planned cell of an arm.
pub struct Repeat<'a> {
    /// Runs of one group are averaged before anything is estimated, see [`Repetitions::group`].
    pub group: Unit,
    pub finished: Option<&'a Finished>,
    repetitions: &'a Repetitions,
}

/// What an interval of differences says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Gain,
    Loss,
    /// The interval holds 0.
    Neither,
    /// Fewer repetitions than a test needs, or differences that are all the same.
    Unknown,
}

/// An arm against another one that shares everything but the encoder's start, or its rank.
pub struct Comparison {
    pub arm: Arm,
    pub labels: Labels,
    /// Of the score, such as an error.
    pub lower_is_better: bool,
    /// Whether its encoder is another one in kind than the other's: then more than the start differs.
    pub other_encoder: bool,
    /// Pairs of runs that the sweep plans, and those that are finished.
    pub planned: usize,
    pub pairs: usize,
    /// Over repetitions, which with folds are means over the seeds of a fold.
    pub paired: Option<Paired>,
    /// The p-value, adjusted for the table's other comparisons.
    pub holm: Option<f64>,
    /// The interval that goes with it.
    pub corrected: Option<[f64; 2]>,
    /// Over test cases, each the mean over its pairs, and their number.
    pub cases: Option<SignedRank>,
    pub case_count: usize,
}

/// One share of unlabelled scans.
pub struct Table {
    pub unlabelled: f64,
    pub arms: Vec<Arm>,
    pub labels: Vec<Labels>,
    /// Over repetitions; `[arm][labels]`.
    pub means: Vec<Vec<Option<Estimate>>>,
    /// Pretrained arms, and variants of scratch, with scratch.
    pub scratch: Vec<Comparison>,
    /// Frozen pretrained encoders with frozen random ones.
    pub random: Vec<Comparison>,
    /// 3D minus 2D of the same arm, label fraction, seed and fold.
    pub flat: Vec<Comparison>,
    /// Of each given weights, with their name: pretrained arms with the same arm from them.
    pub given: Vec<(String, Vec<Comparison>)>,
    /// Encoders of joint tasks with the best of single ones in the same arm.
    pub joint: Vec<(Arm, Comparison)>,
}

impl Arm {
    pub fn of(cell: &Cell) -> Arm {
        let Cell { rank, pretext, given, arm, .. } = cell;
        Arm { rank: *rank, pretext: pretext.clone(), given: *given, arm: arm.clone(), base: cell.base().to_owned() }
    }

    /// What the others are compared with, no variant of it.
    pub fn is_scratch(&self) -> bool {
        self.pretext == SCRATCH && self.arm == SCRATCH
    }

    /// By the sweep, or given.
    pub fn is_pretrained(&self) -> bool {
        self.pretext != SCRATCH && self.pretext != RANDOM
    }

    fn is_pretrained_here(&self) -> bool {
        self.is_pretrained() && !self.given
    }

    /// From an encoder that several tasks trained together: their names are joined.
    fn is_joint(&self) -> bool {
        self.is_pretrained_here() && self.pretext.contains('-')
    }

    fn baseline(&self, pretext: &str, arm: &str) -> Arm {
        Arm { rank: self.rank, pretext: pretext.into(), given: false, arm: arm.into(), base: arm.into() }
    }

    /// What it is compared with, where it has the same rank.
    pub fn scratch(&self) -> Arm {
        self.baseline(SCRATCH, SCRATCH)
    }

    /// With the rank if the report has several.
    pub fn label(&self, ranks: &[usize]) -> String {
        let name = if self.pretext == SCRATCH { self.arm.clone() } else { format!("{} {}", self.pretext, self.arm) };
        if ranks.len() > 1 { format!("{name} {}D", self.rank) } else { name }
    }
}

impl Comparison {
    pub fn verdict(&self) -> Verdict {
        let Some(Paired { difference, p: Some(_) }) = self.paired else { return Verdict::Unknown };
        match self.better_by(difference.interval) {
            Some([low, _]) if low > 0.0 => Verdict::Gain,
            Some([_, high]) if high < 0.0 => Verdict::Loss,
            _ => Verdict::Neither,
        }
    }

    /// An interval of differences as one of how much better the arm is.
    pub fn better_by(&self, interval: Option<[f64; 2]>) -> Option<[f64; 2]> {
        interval.map(|[low, high]| if self.lower_is_better { [-high, -low] } else { [low, high] })
    }
}

/// Distinct values, in rising order.
fn distinct(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.dedup();
    values
}

impl Records {
    pub fn ranks(&self) -> Vec<usize> {
        let mut ranks: Vec<usize> = self.sweep.cells.iter().map(|c| c.rank).collect();
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    }

    pub fn has_folds(&self) -> bool {
        self.sweep.cells.iter().any(|c| c.fold.is_some())
    }

    /// Shares of unlabelled scans; where nothing is pretrained, those of the other cells.
    pub fn unlabelled(&self) -> Vec<f64> {
        let all = |here| self.sweep.cells.iter().filter(move |c| c.is_pretrained_here() == here).map(|c| c.unlabelled);
        let shares = distinct(all(true));
        if shares.is_empty() { distinct(all(false)) } else { shares }
    }

    /// Planned arms of one share of unlabelled scans in the sweep's order, baselines first.
    pub fn arms(&self, unlabelled: f64) -> Vec<Arm> {
        let mut arms: Vec<Arm> = Vec::new();
        for cell in self.sweep.cells.iter().filter(|c| !c.is_pretrained_here() || c.unlabelled == unlabelled) {
            let arm = Arm::of(cell);
            if !arms.contains(&arm) {
                arms.push(arm);
            }
        }
        arms.sort_by_key(|a| (a.is_pretrained(), !a.is_scratch()));
        arms
    }

    /// Planned cells of an arm with so many labels, by unit.
    pub fn cells(&self, arm: &Arm, labels: Labels, unlabelled: f64) -> BTreeMap<Unit, Repeat<'_>> {
        let planned = self.sweep.cells.iter().zip(&self.finished).zip(&self.origins);
        let mut runs = BTreeMap::new();
        for ((cell, finished), origin) in planned {
            let here = !cell.is_pretrained_here() || cell.unlabelled == unlabelled;
            if here && Arm::of(cell) == *arm && Labels::of(cell) == labels {
                let repetitions = &self.repetitions[*origin];
                let group = repetitions.group(cell.seed, cell.fold);
                runs.insert((cell.seed, cell.fold), Repeat { group, finished: finished.as_ref(), repetitions });
            }
        }
        runs
    }

    /// The encoder of an arm, as a finished run of it says.
    pub fn encoder(&self, arm: &Arm) -> Option<&str> {
        self.done().filter(|(cell, _)| Arm::of(cell) == *arm).find_map(|(_, f)| f.result.encoder.as_deref())
    }

    /// Whether two arms of one rank have encoders that differ in kind, as far as it is known.
    pub fn other_encoder(&self, arm: &Arm, other: &Arm) -> bool {
        arm.rank == other.rank && self.encoder(arm).zip(self.encoder(other)).is_some_and(|(own, other)| own != other)
    }

    pub fn tables(&self) -> Vec<Table> {
        self.unlabelled().into_iter().map(|unlabelled| self.table(unlabelled)).collect()
    }

    fn table(&self, unlabelled: f64) -> Table {
        let (arms, labels) = (self.arms(unlabelled), self.labels());
        let mean = |arm: &Arm, &labels: &Labels| {
            let runs: Vec<Repeat> = self.cells(arm, labels, unlabelled).into_values().collect();
            let scores: Vec<_> = runs.iter().filter_map(|run| Some((run.group, run.finished?.result.score?))).collect();
            estimate(&averaged(&scores), overlap(&runs))
        };
        let means: Vec<Vec<_>> = arms.iter().map(|arm| labels.iter().map(|labels| mean(arm, labels)).collect()).collect();
        let family = |pairs: Vec<(&Arm, Arm)>| {
            let all = pairs.iter().flat_map(|(arm, other)| labels.iter().map(move |&labels| (*arm, other, labels)));
            adjusted(all.filter_map(|(arm, other, labels)| self.compare(arm, other, labels, unlabelled)).collect())
        };
        let with = |arms: Vec<&Arm>, pretext: &str, own: &str| {
            family(arms.into_iter().map(|arm| (arm, arm.baseline(pretext, own))).collect())
        };
        let others = |arm: &&Arm| arm.is_pretrained() || arm.pretext == SCRATCH && !arm.is_scratch();
        let scratch = with(arms.iter().filter(others).collect(), SCRATCH, SCRATCH);
        let frozen = |arm: &&Arm| arm.is_pretrained() && arm.base == FROZEN;
        let random = with(arms.iter().filter(frozen).collect(), RANDOM, FROZEN);
        let volumes = arms.iter().filter(|arm| arm.rank == 3);
        let flat = family(volumes.map(|arm| (arm, Arm { rank: 2, ..arm.clone() })).collect());
        let from = |name: &String, arm: &Arm| Arm { pretext: name.clone(), given: true, ..arm.clone() };
        let here = || arms.iter().filter(|arm| arm.is_pretrained_here());
        let given = given_names(&arms).into_iter();
        let given = given.map(|name| (name.clone(), family(here().map(|arm| (arm, from(name, arm))).collect())));
        let given = given.filter(|(_, comparisons)| !comparisons.is_empty()).collect();
        let joint = self.joint(&arms, &labels, &means, unlabelled);
        Table { unlabelled, means, scratch, random, flat, given, joint, arms, labels }
    }

    /// By the means of a table, `[arm][labels]`.
    fn joint(
        &self,
        arms: &[Arm],
        labels: &[Labels],
        means: &[Vec<Option<Estimate>>],
        unlabelled: f64,
    ) -> Vec<(Arm, Comparison)> {
        let mut out = Vec::new();
        for arm in arms.iter().filter(|arm| arm.is_joint()) {
            for (column, &labels) in labels.iter().enumerate() {
                let single = |other: &Arm| {
                    other.is_pretrained_here() && !other.is_joint() && (other.rank, &other.arm) == (arm.rank, &arm.arm)
                };
                let singles = arms.iter().zip(means).filter(|(other, _)| single(other));
                let scored = singles.filter_map(|(other, means)| Some((other, means[column]?.mean)));
                let better = |a: &f64, b: &f64| if self.lower_is_better() { b.total_cmp(a) } else { a.total_cmp(b) };
                let Some((best, _)) = scored.max_by(|a, b| better(&a.1, &b.1)) else { continue };
                out.extend(self.compare(arm, best, labels, unlabelled).map(|comparison| (best.clone(), comparison)));
            }
        }
        out
    }

    /// Nothing where the sweep plans no pair.
    fn compare(&self, arm: &Arm, other: &Arm, labels: Labels, unlabelled: f64) -> Option<Comparison> {
        let others = self.cells(other, labels, unlabelled);
        let runs = self.cells(arm, labels, unlabelled);
        let planned: Vec<(Repeat, &Repeat)> =
            runs.into_iter().filter_map(|(unit, own)| Some((own, others.get(&unit)?))).collect();
        let done = planned.iter().filter_map(|(own, other)| Some((own.group, own.finished?, other.finished?)));
        let done: Vec<(Unit, &Finished, &Finished)> = done.collect();
        let scored = |(group, own, other): &(Unit, &Finished, &Finished)| {
            let (own, other) = own.result.score.zip(other.result.score)?;
            Some(((*group, own), (*group, other)))
        };
        let (own, others): (Vec<_>, Vec<_>) = done.iter().filter_map(scored).unzip();
        let runs: Vec<Repeat> = planned.into_iter().map(|(own, _)| own).collect();
        let differences = case_differences(&done);
        (!runs.is_empty()).then(|| Comparison {
            arm: arm.clone(),
            labels,
            lower_is_better: self.lower_is_better(),
            other_encoder: self.other_encoder(arm, other),
            planned: runs.len(),
            pairs: own.len(),
            paired: paired(&averaged(&own), &averaged(&others), overlap(&runs)),
            holm: None,
            corrected: None,
            cases: signed_rank(&differences),
            case_count: differences.len(),
        })
    }
}

/// Names of given weights, in the order of the arms.
pub fn given_names(arms: &[Arm]) -> Vec<&String> {
    let mut names = Vec::new();
    for arm in arms.iter().filter(|arm| arm.given) {
        if !names.contains(&&arm.pretext) {
            names.push(&arm.pretext);
        }
    }
    names
}

/// The mean of each group's scores.
fn averaged(scores: &[(Unit, f64)]) -> Vec<f64> {
    let mut groups: BTreeMap<Unit, Vec<f64>> = BTreeMap::new();
    scores.iter().for_each(|(group, score)| groups.entry(*group).or_default().push(*score));
    groups.into_values().map(|scores| scores.iter().sum::<f64>() / scores.len() as f64).collect()
}

/// How much the repetitions of an arm depend on one another, see [`estimate`]: tested subjects over the others, where repetitions
/// test on different sides; 0 where one split makes every interval one about that split.
fn overlap(runs: &[Repeat]) -> f64 {
    let Some(repetitions) = runs.first().map(|run| run.repetitions) else { return 0.0 };
    match (repetitions.folds, repetitions.splits_vary()) {
        (Some(folds), _) => 1.0 / (folds - 1) as f64,
        (None, false) => 0.0,
        (None, true) => {
            let tested = runs.iter().filter_map(|run| run.finished).map(|f| &f.result);
            // The whole training side, of which a fraction was used.
            let share =
                |r: &CellResult| r.test_subjects as f64 / (r.train_subjects as f64 / r.fraction + r.val_subjects as f64);
            tested.map(share).fold(0.0, f64::max)
        }
    }
}

/// Differences of each test case's mean score over the pairs in which both sides define it, by the case's name.
fn case_differences(pairs: &[(Unit, &Finished, &Finished)]) -> Vec<f64> {
    let mut sums: BTreeMap<&str, [f64; 2]> = BTreeMap::new();
    for (_, own, other) in pairs {
        let others: BTreeMap<&str, f64> = other.result.cases.iter().filter_map(|c| Some((c.id.as_str(), c.score?))).collect();
        for case in &own.result.cases {
            if let (Some(a), Some(b)) = (case.score, others.get(case.id.as_str())) {
                let sum = sums.entry(&case.id).or_default();
                *sum = [sum[0] + a - b, sum[1] + 1.0];
            }
        }
    }
    sums.into_values().map(|[sum, n]| sum / n).collect()
}

/// Adjusts the p-values of one table.
fn adjusted(mut comparisons: Vec<Comparison>) -> Vec<Comparison> {
    let p: Vec<f64> = comparisons.iter().filter_map(|c| c.paired?.p).collect();
    let mut adjusted = holm(&p).into_iter().zip(holm_factors(&p));
    for comparison in &mut comparisons {
        let Some(Paired { difference, p: Some(_) }) = comparison.paired else { continue };
        if let Some((p, factor)) = adjusted.next() {
            comparison.holm = Some(p);
            comparison.corrected = corrected(&difference, factor);
        }
    }
    comparisons
}
