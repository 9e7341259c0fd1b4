//! What a sweep's cells say: means of arms, and differences of pairs that share rank, fraction, seed and fold.

use super::read::{Cell, Finished, Records};
use crate::run::record::{RANDOM, SCRATCH};
use crate::study::stats::{Estimate, Paired, SignedRank, estimate, holm, paired, signed_rank};
use std::collections::{BTreeMap, BTreeSet};

/// Rows of a table: what was trained and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arm {
    pub rank: usize,
    pub pretext: String,
    pub arm: String,
}

/// What makes two cells of one fraction a pair: seed and fold.
type Unit = (u64, Option<u64>);

/// What an interval of differences says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Gain,
    Loss,
    /// The interval holds 0.
    Neither,
    /// Fewer than two pairs.
    Unknown,
}

/// An arm against another one that shares everything but the encoder's start, or its rank.
pub struct Comparison {
    pub arm: Arm,
    pub fraction: f64,
    /// Pairs that the sweep plans.
    pub planned: usize,
    pub paired: Option<Paired>,
    /// The p-value, adjusted for the table's other comparisons.
    pub holm: Option<f64>,
    /// Over test cases, each the mean over its pairs, and their number.
    pub cases: Option<SignedRank>,
    pub case_count: usize,
}

/// One share of unlabelled scans.
pub struct Table {
    pub unlabelled: f64,
    pub arms: Vec<Arm>,
    pub fractions: Vec<f64>,
    /// Over seeds and folds; `[arm][fraction]`.
    pub means: Vec<Vec<Option<Estimate>>>,
    /// Pretrained arms with scratch.
    pub scratch: Vec<Comparison>,
    /// Frozen pretrained encoders with frozen random ones.
    pub random: Vec<Comparison>,
    /// 3D with the same in 2D.
    pub flat: Vec<Comparison>,
}

impl Arm {
    fn of(cell: &Cell) -> Arm {
        Arm { rank: cell.rank, pretext: cell.pretext.clone(), arm: cell.arm.clone() }
    }

    pub fn is_scratch(&self) -> bool {
        self.pretext == SCRATCH
    }

    pub fn is_pretrained(&self) -> bool {
        !self.is_scratch() && self.pretext != RANDOM
    }

    fn baseline(&self, pretext: &str, arm: &str) -> Arm {
        Arm { rank: self.rank, pretext: pretext.into(), arm: arm.into() }
    }

    /// With the rank if the report has several.
    pub fn label(&self, ranks: &[usize]) -> String {
        let name = if self.is_scratch() { SCRATCH.to_string() } else { format!("{} {}", self.pretext, self.arm) };
        if ranks.len() > 1 { format!("{name} {}D", self.rank) } else { name }
    }
}

impl Comparison {
    pub fn verdict(&self) -> Verdict {
        match self.paired.and_then(|p| p.difference.interval) {
            Some([low, _]) if low > 0.0 => Verdict::Gain,
            Some([_, high]) if high < 0.0 => Verdict::Loss,
            Some(_) => Verdict::Neither,
            None => Verdict::Unknown,
        }
    }

    pub fn pairs(&self) -> usize {
        self.paired.map_or(0, |p| p.difference.n)
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

    pub fn fractions(&self) -> Vec<f64> {
        distinct(self.sweep.cells.iter().map(|c| c.fraction))
    }

    /// Shares of unlabelled scans; where nothing is pretrained, the baselines' own.
    pub fn unlabelled(&self) -> Vec<f64> {
        let all = |baselines| self.sweep.cells.iter().filter(move |c| c.is_baseline() == baselines).map(|c| c.unlabelled);
        let shares = distinct(all(false));
        if shares.is_empty() { distinct(all(true)) } else { shares }
    }

    /// Planned arms of one share of unlabelled scans in the sweep's order, baselines first.
    pub fn arms(&self, unlabelled: f64) -> Vec<Arm> {
        let mut arms: Vec<Arm> = Vec::new();
        for cell in self.sweep.cells.iter().filter(|c| c.is_baseline() || c.unlabelled == unlabelled) {
            let arm = Arm::of(cell);
            if !arms.contains(&arm) {
                arms.push(arm);
            }
        }
        arms.sort_by_key(|a| (a.is_pretrained(), !a.is_scratch()));
        arms
    }

    /// Planned cells of an arm at a fraction, by unit.
    pub fn cells(&self, arm: &Arm, fraction: f64, unlabelled: f64) -> BTreeMap<Unit, Option<&Finished>> {
        let planned = self.sweep.cells.iter().zip(&self.finished);
        let here = |c: &Cell| Arm::of(c) == *arm && c.fraction == fraction && (c.is_baseline() || c.unlabelled == unlabelled);
        planned.filter(|(c, _)| here(c)).map(|(c, f)| ((c.seed, c.fold), f.as_ref())).collect()
    }

    pub fn tables(&self) -> Vec<Table> {
        self.unlabelled().into_iter().map(|unlabelled| self.table(unlabelled)).collect()
    }

    fn table(&self, unlabelled: f64) -> Table {
        let (arms, fractions) = (self.arms(unlabelled), self.fractions());
        let mean = |arm: &Arm, &fraction: &f64| {
            let scores = self.cells(arm, fraction, unlabelled).into_values().flatten().filter_map(|f| f.result.score);
            estimate(&scores.collect::<Vec<_>>())
        };
        let means = arms.iter().map(|arm| fractions.iter().map(|fraction| mean(arm, fraction)).collect()).collect();
        let family = |pairs: Vec<(&Arm, Arm)>| {
            let all = pairs.iter().flat_map(|(arm, other)| fractions.iter().map(move |&fraction| (*arm, other, fraction)));
            adjusted(all.filter_map(|(arm, other, fraction)| self.compare(arm, other, fraction, unlabelled)).collect())
        };
        let compare = |pretext: &str, own: &str, frozen: bool| {
            let pretrained = arms.iter().filter(|a| a.is_pretrained() && (!frozen || a.arm == own));
            family(pretrained.map(|arm| (arm, arm.baseline(pretext, own))).collect())
        };
        let (scratch, random) = (compare(SCRATCH, SCRATCH, false), compare(RANDOM, "frozen", true));
        let volumes = arms.iter().filter(|arm| arm.rank == 3);
        let flat = family(volumes.map(|arm| (arm, Arm { rank: 2, ..arm.clone() })).collect());
        Table { unlabelled, means, scratch, random, flat, arms, fractions }
    }

    /// Nothing where the sweep plans no pair.
    fn compare(&self, arm: &Arm, other: &Arm, fraction: f64, unlabelled: f64) -> Option<Comparison> {
        let others = self.cells(other, fraction, unlabelled);
        let planned: Vec<_> = self
            .cells(arm, fraction, unlabelled)
            .into_iter()
            .filter_map(|(unit, own)| Some((own, *others.get(&unit)?)))
            .collect();
        let done: Vec<(&Finished, &Finished)> = planned.iter().filter_map(|&(own, other)| own.zip(other)).collect();
        let scores = done.iter().filter_map(|(own, other)| own.result.score.zip(other.result.score));
        let (own, others): (Vec<f64>, Vec<f64>) = scores.unzip();
        let differences = case_differences(&done);
        (!planned.is_empty()).then(|| Comparison {
            arm: arm.clone(),
            fraction,
            planned: planned.len(),
            paired: paired(&own, &others),
            holm: None,
            cases: signed_rank(&differences),
            case_count: differences.len(),
        })
    }

    /// Why pairs may not be comparable: what one arm has and another one of the same rank, fraction, seed and fold has not.
    pub fn unfair(&self) -> Vec<String> {
        let mut units: BTreeMap<_, Vec<(&Cell, &Finished)>> = BTreeMap::new();
        for (cell, f) in self.done() {
            units.entry((cell.rank, cell.fraction.to_bits(), cell.seed, cell.fold)).or_default().push((cell, f));
        }
        let mut found = Vec::new();
        for members in units.values() {
            let (first, reference) = members[0];
            for (cell, f) in &members[1..] {
                let (a, b) = (&reference.result, &f.result);
                let differs = [
                    ("epochs", a.epochs != b.epochs),
                    ("data", a.data_fingerprint != b.data_fingerprint),
                    ("split", a.split_fingerprint != b.split_fingerprint),
                    ("numbers of training subjects", a.train_subjects != b.train_subjects),
                    ("test cases", tested(reference) != tested(f)),
                ];
                found.extend(difference(&[first, cell], &differs));
            }
        }
        found
    }

    /// Why a 3D and a 2D cell of the same share of labels, seed and fold may not be comparable: what they should share.
    pub fn unfair_ranks(&self) -> Vec<String> {
        let mut units: BTreeMap<_, BTreeMap<usize, (&Cell, &Finished)>> = BTreeMap::new();
        for (cell, f) in self.done() {
            let ranks = units.entry((cell.fraction.to_bits(), cell.seed, cell.fold)).or_default();
            ranks.entry(cell.rank).or_insert((cell, f));
        }
        let pairs = units.values().filter_map(|ranks| ranks.get(&2).zip(ranks.get(&3)));
        let differs = |(flat, deep): (&(&Cell, &Finished), &(&Cell, &Finished))| {
            let (a, b) = (&flat.1.result, &deep.1.result);
            let differs = [
                ("data", a.data_fingerprint != b.data_fingerprint),
                ("split", a.split_fingerprint != b.split_fingerprint),
                ("numbers of training subjects", a.train_subjects != b.train_subjects),
                ("test cases", tested(flat.1) != tested(deep.1)),
            ];
            difference(&[flat.0, deep.0], &differs)
        };
        pairs.filter_map(differs).collect()
    }
}

/// Ids of the test cases.
fn tested(finished: &Finished) -> BTreeSet<&str> {
    finished.result.cases.iter().map(|c| c.id.as_str()).collect()
}

/// Two cells and what they differ in; nothing where all is equal.
fn difference([a, b]: &[&Cell; 2], differs: &[(&str, bool)]) -> Option<String> {
    let names: Vec<&str> = differs.iter().filter(|d| d.1).map(|d| d.0).collect();
    (!names.is_empty()).then(|| format!("{} and {} differ in their {}", a.id, b.id, names.join(", ")))
}

/// Differences of each test case's mean score over the pairs in which both sides define it, by the case's name.
fn case_differences(pairs: &[(&Finished, &Finished)]) -> Vec<f64> {
    let mut sums: BTreeMap<&str, [f64; 2]> = BTreeMap::new();
    for (own, other) in pairs {
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
    let mut p = holm(&p).into_iter();
    for comparison in comparisons.iter_mut().filter(|c| c.paired.is_some_and(|p| p.p.is_some())) {
        comparison.holm = p.next();
    }
    comparisons
}
