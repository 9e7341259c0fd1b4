//! The pretrainings and fine-tunings that a sweep is made of, and their flags.

use super::arms::Source;
use super::config::{FINETUNE_OWN, GivenWeights, SweepConfig, short_names};
use crate::settings::to_flag;
use crate::study::cell::Cell;
use crate::study::labels::Labels;
use crate::study::repetitions::Draw;
use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Flags that the sweep itself gives to `pretrain`.
const PRETRAIN_OWN: [&str; 9] = ["data", "task", "fraction", "seed", "split", "weights", "out", "config", "resume"];

/// One pretraining of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct Pretraining {
    /// As `pretrain --task` takes them.
    pub tasks: String,
    pub fraction: f64,
    pub seed: u64,
    /// The fold, and the seed of the split where there are several, whose training side it sees; `None`: one for all.
    pub fold: Option<u64>,
    pub split: Option<u64>,
}

/// One fine-tuning.
#[derive(Clone)]
pub struct Finetuning {
    pub cell: Cell,
    /// Its name in the sweep's file.
    pub arm: String,
    pub draw: Draw,
    pub weights: Weights,
}

/// What a fine-tuning starts from, by its number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    Random,
    Pretraining(usize),
    Given(usize),
}

impl Weights {
    pub fn pretraining(self) -> Option<usize> {
        if let Weights::Pretraining(i) = self { Some(i) } else { None }
    }
}

impl SweepConfig {
    /// Pretrainings, the first repetition's first.
    pub fn pretrainings(&self) -> Result<Vec<Pretraining>> {
        let repetitions = self.repetitions()?;
        let (mut out, mut drawn) = (Vec::new(), Vec::new());
        for draw in self.seeds.iter().map(|seed| repetitions.draws[seed]) {
            // Scans of their own are the same for every fold and split; of the labelled ones a test side must not be seen.
            let (folds, split) = match self.unlabelled {
                Some(_) => (vec![None], None),
                None => (self.folds(), repetitions.split_of(draw)),
            };
            if drawn.contains(&(draw.pretraining, split)) {
                continue;
            }
            drawn.push((draw.pretraining, split));
            for fold in folds {
                for tasks in &self.tasks {
                    out.extend(self.unlabelled_fractions.iter().map(|&fraction| Pretraining {
                        tasks: tasks.clone(),
                        fraction,
                        seed: draw.pretraining,
                        fold,
                        split,
                    }));
                }
            }
        }
        Ok(out)
    }

    /// Every fine-tuning, the seeds and folds outermost, so that an unfinished sweep already compares all arms. `subjects` are on the
    /// training side of a split and fold.
    pub fn finetunings(&self, rank: usize, subjects: &dyn Fn(u64, Option<u64>) -> usize) -> Result<Vec<Finetuning>> {
        let repetitions = self.repetitions()?;
        let mut out = Vec::new();
        for &seed in &self.seeds {
            for fold in self.folds() {
                let draw = repetitions.draws[&seed];
                for labels in self.labels()? {
                    out.extend(self.cells(rank, seed, fold, draw, labels, subjects)?);
                }
            }
        }
        Ok(out)
    }

    /// One fine-tuning of every arm.
    pub fn cells(
        &self,
        rank: usize,
        seed: u64,
        fold: Option<u64>,
        draw: Draw,
        labels: Labels,
        subjects: &dyn Fn(u64, Option<u64>) -> usize,
    ) -> Result<Vec<Finetuning>> {
        let fraction = labels.fraction(subjects(draw.split, fold));
        let split = self.repetitions()?.split_of(draw);
        let pretrainings = self.pretrainings()?;
        let mut out = Vec::new();
        for arm in self.sweep_arms()? {
            let cell = |pretext: String, unlabelled: f64, suffix: String, lr: Option<f64>| Cell {
                id: format!("{pretext}{suffix}-{}-{}-s{seed}{}", arm.shown(), labels.suffix(), fold_suffix(fold)),
                pretext,
                given: false,
                arm: arm.shown().to_owned(),
                base: (arm.shown() != arm.flag()).then(|| arm.flag().to_owned()),
                fraction,
                labelled: if let Labels::Subjects(n) = labels { Some(n) } else { None },
                seed,
                fold,
                unlabelled,
                rank,
                lr,
            };
            if !arm.has_weights() {
                let cell = cell(arm.base.clone(), 1., String::new(), self.common_rate(Source::Random, &arm.name)?);
                out.push(Finetuning { cell, arm: arm.name, draw, weights: Weights::Random });
                continue;
            }
            let own = pretrainings.iter().enumerate().filter(|(_, p)| {
                p.seed == draw.pretraining && (p.fold.is_none() || p.fold == fold) && (p.split.is_none() || p.split == split)
            });
            for (i, p) in own {
                let lr = self.common_rate(Source::Tasks(&p.tasks), &arm.name)?;
                let cell = cell(p.name(), p.fraction, p.suffix(), lr);
                out.push(Finetuning { cell, arm: arm.name.clone(), draw, weights: Weights::Pretraining(i) });
            }
            for (i, GivenWeights { name, .. }) in self.weights.iter().enumerate() {
                let lr = self.common_rate(Source::Given(name), &arm.name)?;
                let cell = Cell { given: true, ..cell(name.clone(), 1., String::new(), lr) };
                out.push(Finetuning { cell, arm: arm.name.clone(), draw, weights: Weights::Given(i) });
            }
        }
        Ok(out)
    }

    /// Settings of one pretraining: its task's table over the table of all tasks.
    pub fn pretrain_settings(&self, pretraining: &Pretraining) -> Result<Map<String, Value>> {
        let mut settings: Map<String, Value> = self.pretrain.clone();
        settings.retain(|_, value| !value.is_object());
        for (key, value) in self.pretrain.iter().filter(|(_, value)| value.is_object()) {
            self.check_task(key).with_context(|| format!("[pretrain.{key}]: not a task"))?;
            if short_names(key)? == pretraining.name() {
                settings.extend(value.as_object().cloned().unwrap_or_default());
            }
        }
        Ok(settings)
    }

    /// The stores that pretrainings are probed on.
    pub fn probes(&self) -> Result<BTreeSet<PathBuf>> {
        let mut probes = BTreeSet::new();
        for pretraining in self.pretrainings()? {
            probes.extend(self.pretrain_settings(&pretraining)?.get("probe").and_then(Value::as_str).map(PathBuf::from));
        }
        Ok(probes)
    }

    /// Flags of one pretraining.
    pub fn pretrain_flags(&self, pretraining: &Pretraining) -> Result<Vec<String>> {
        flags("pretrain", &self.pretrain_settings(pretraining)?, &PRETRAIN_OWN)
    }

    /// Flags of one fine-tuning.
    pub fn finetune_flags(&self, settings: &Map<String, Value>) -> Result<Vec<String>> {
        flags("finetune", settings, &FINETUNE_OWN)
    }
}

impl Pretraining {
    /// Short task names joined by `-`, as runs are called.
    pub fn name(&self) -> String {
        short_names(&self.tasks).expect("checked when the configuration was read")
    }

    /// Tells shares of the unlabelled scans apart, in the names of cells, which have a seed of their own.
    fn suffix(&self) -> String {
        if self.fraction == 1. { String::new() } else { format!("-u{}", self.fraction) }
    }

    /// Its folder in `pretrain/`.
    pub fn id(&self) -> String {
        let seed = if self.seed == 0 { String::new() } else { format!("-p{}", self.seed) };
        format!("{}{}{seed}{}", self.name(), self.suffix(), split_suffix(self.split, self.fold))
    }
}

/// Tells splits and folds apart, in the names of pretrainings and splits.
pub fn split_suffix(split: Option<u64>, fold: Option<u64>) -> String {
    split.map_or(String::new(), |seed| format!("-d{seed}")) + &fold_suffix(fold)
}

/// Tells folds apart, in the names of cells.
fn fold_suffix(fold: Option<u64>) -> String {
    fold.map_or(String::new(), |fold| format!("-k{fold}"))
}

/// `own`: keys that must not be given.
fn flags(table: &str, settings: &Map<String, Value>, own: &[&str]) -> Result<Vec<String>> {
    let mut out = Vec::new();
    for (key, value) in settings {
        let key = key.replace('_', "-");
        ensure!(!own.contains(&key.as_str()), "[{table}] {key}: the sweep sets it");
        out.extend(to_flag(&key, value).with_context(|| format!("[{table}]"))?);
    }
    Ok(out)
}
