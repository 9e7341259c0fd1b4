//! What a sweep runs: a TOML file, see `experiments/`.

use super::arms::{SweepArm, short_names};
use crate::data::slices::Slices;
use crate::finetune::config::DownstreamKind;
use crate::settings::to_flag;
use crate::study::cell::Cell;
use crate::study::labels::Labels;
use crate::study::read::Published;
use crate::study::repetitions::{Draw, Repetitions};
use crate::tasks::TaskKind;
use crate::train::config::share;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A sweep: every pretext task x share of unlabelled scans is pretrained once a seed, and fine-tuned in every arm x label fraction x
/// seed; the arms without weights in every fraction x seed. A cross-validation does so for each fold.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepConfig {
    /// Names the results' folder `runs/sweep-<name>`.
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Store with labels that is fine-tuned on.
    pub data: PathBuf,
    /// Store that is pretrained on; without it the training side of `data` alone, its labels unused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unlabelled: Option<PathBuf>,
    /// The subjects of `unlabelled` are other people than those of `data`, also where their ids are the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub other_people: bool,
    /// Pretext tasks; several joined by `,` are trained jointly.
    pub tasks: Vec<String>,
    /// Arms of method 6: `scratch`, `warmup`, `full`, `frozen`, and `random`, a frozen encoder with random weights; or variants of
    /// them, by the tables of `finetune`.
    pub arms: Vec<String>,
    /// Shares of the labelled training subjects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fractions: Vec<f64>,
    /// In their place numbers of labelled training subjects, and `"all"`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labelled: Vec<Value>,
    /// Of the fine-tunings, one a repetition: they draw the decoder's first weights and the samples.
    pub seeds: Vec<u64>,
    /// What else a repetition varies: seeds of the pretraining, of the label subset and of the split (or folds), each one for all
    /// repetitions or, beside `seeds`, one for each. The first two are `seeds` unless given, the last `split_seed` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pretrain_seeds: Option<Vec<u64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subset_seeds: Option<Vec<u64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split_seeds: Option<Vec<u64>>,
    /// Shares of the unlabelled training subjects.
    #[serde(default = "all")]
    pub unlabelled_fractions: Vec<f64>,
    /// Shares of the labelled subjects that choose the best epoch and that are tested on, where the dataset does not say. Of a
    /// cross-validation the first one alone, of the subjects outside the fold.
    pub val_fraction: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_fraction: Option<f64>,
    /// Cross-validation: how many folds the labelled subjects are divided into, each tested on once. Without `unlabelled` every
    /// fold has pretrainings of its own, on its training side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folds: Option<u64>,
    /// The folds that are run, from 0, where not all are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_folds: Option<Vec<u64>>,
    /// Seed of the split into training, validation and test side, or of the folds, where `split_seeds` gives none.
    #[serde(default)]
    pub split_seed: u64,
    /// Flags of `pretext3d pretrain`; a table with a task's name holds those of that task alone.
    #[serde(default)]
    pub pretrain: Map<String, Value>,
    /// Flags of `pretext3d finetune`, the same for every arm but for two kinds of tables: `pretext.TASK` holds those of the arms that
    /// start from that task's weights, `arm.NAME` those of one arm, or of a variant of the arm that its key `base` names.
    #[serde(default)]
    pub finetune: Map<String, Value>,
    /// Learning rates from which every arm's own is chosen, on the validation side, by the best score's mean over repetitions of
    /// these seeds with so many labels (as in `fractions` or `labelled`; without it the fewest). Every cell is then run at the rate of
    /// `finetune` and at its arm's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lr_grid: Vec<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_grid_seeds: Option<Vec<u64>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lr_grid_labels: Vec<Value>,
    /// Numbers of others, shown beside the results with their source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<Published>,
}

/// Flags that the sweep itself gives to `pretrain` and to `finetune`.
const PRETRAIN_OWN: [&str; 9] = ["data", "task", "fraction", "seed", "split", "weights", "out", "config", "resume"];
pub const FINETUNE_OWN: [&str; 14] = [
    "data",
    "split",
    "weights",
    "arm",
    "fraction",
    "seed",
    "subset-seed",
    "out",
    "config",
    "resume",
    "val-fraction",
    "test-fraction",
    "folds",
    "fold",
];
/// Flags that shape the encoder and its input.
pub const SHAPE: [&str; 5] = ["encoder", "filters", "levels", "norm", "slices"];

fn all() -> Vec<f64> {
    vec![1.]
}

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

/// One fine-tuning with the number of the pretraining that it starts from.
#[derive(Clone)]
pub struct Finetuning {
    pub cell: Cell,
    /// Its name in the sweep's file.
    pub arm: String,
    pub draw: Draw,
    pub pretraining: Option<usize>,
}

impl SweepConfig {
    /// Reads and checks a file; `smoke` applies its `[smoke]` table, which holds any of the other keys; the keys of a table change
    /// one by one. Errors name the file and the key.
    pub fn read(path: &Path, smoke: bool) -> Result<SweepConfig> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let parse = || -> Result<SweepConfig> {
            let mut value: Value = toml::from_str(&text)?;
            let changes = value.as_object_mut().and_then(|map| map.remove("smoke"));
            if smoke {
                let changes = changes.and_then(|c| c.as_object().cloned());
                merge(&mut value, changes.context("no [smoke] table, which --smoke needs")?);
            }
            let mut config: SweepConfig = serde_json::from_value(value)?;
            // Otherwise an interval says nothing of other encoders and of other labelled subjects.
            for list in [&mut config.pretrain_seeds, &mut config.subset_seeds] {
                list.get_or_insert_with(|| config.seeds.clone());
            }
            config.check()?;
            Ok(config)
        };
        parse().with_context(|| format!("{}: not a sweep's configuration", path.display()))
    }

    fn check(&self) -> Result<()> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        ensure!(!self.name.is_empty() && self.name.chars().all(plain), "`name` is made of letters, digits, -, _ and .");
        let lists =
            [("arms", self.arms.len()), ("seeds", self.seeds.len()), ("unlabelled_fractions", self.unlabelled_fractions.len())];
        for (key, n) in lists {
            ensure!(n > 0, "`{key}` is empty");
        }
        ensure!(self.split_seeds.is_none() || self.split_seed == 0, "give `split_seed` or `split_seeds`, not both");
        self.repetitions()?;
        self.labels()?;
        for (key, values) in [("fractions", &self.fractions), ("unlabelled_fractions", &self.unlabelled_fractions)] {
            values.iter().try_for_each(|&v| share(key, v, true))?;
        }
        share("val_fraction", self.val_fraction, false)?;
        match (self.test_fraction, self.folds) {
            (Some(test), None) => share("test_fraction", test, false)?,
            (None, Some(folds)) => ensure!(folds >= 2, "`folds` is at least 2, found {folds}"),
            _ => bail!("give `test_fraction`, or for a cross-validation `folds`, and not both"),
        }
        if let Some(run) = &self.run_folds {
            let folds = self.folds.context("`run_folds` goes with `folds`")?;
            ensure!(!run.is_empty() && run.iter().all(|&k| k < folds), "`run_folds`: expected some of 0 to {}", folds - 1);
        }
        self.downstream()?;
        for task in self.tasks.iter().flat_map(|t| t.split(',')) {
            task.parse::<TaskKind>()?;
        }
        self.check_arms()?;
        self.check_grid()?;
        let needs_weights = self.sweep_arms()?.iter().any(SweepArm::has_weights);
        ensure!(
            !needs_weights || !self.tasks.is_empty(),
            "`tasks` is empty, and arms other than scratch and random need weights"
        );
        // Every arm has the same network, also where pretraining does not hand it down.
        for (pretraining, key) in self.pretrainings()?.iter().flat_map(|p| SHAPE.map(|key| (p, key))) {
            let (pre, fine) = (self.pretrain_settings(pretraining)?.get(key).cloned(), self.finetune.get(key).cloned());
            let text = |v: &Option<Value>| v.as_ref().map_or("not set".to_owned(), Value::to_string);
            ensure!(
                pre == fine,
                "`{key}` is {} in [pretrain] (for {}) and {} in [finetune]; all arms need the same network",
                text(&pre),
                pretraining.tasks,
                text(&fine)
            );
        }
        Ok(())
    }

    /// How many labels there are to be, in the file's order.
    pub fn labels(&self) -> Result<Vec<Labels>> {
        match (self.fractions.is_empty(), self.labelled.is_empty()) {
            (false, true) => Ok(self.fractions.iter().copied().map(Labels::Share).collect()),
            (true, false) => self.labelled.iter().map(|value| self.labels_of(value)).collect(),
            _ => bail!("give `fractions`, shares of the labels, or `labelled`, numbers of labelled subjects, and not both"),
        }
    }

    /// An entry of `fractions` or of `labelled`, whichever the sweep has.
    pub fn labels_of(&self, value: &Value) -> Result<Labels> {
        match (value.as_f64(), value.as_u64(), value.as_str()) {
            (Some(share), ..) if self.labelled.is_empty() => Ok(Labels::Share(share)),
            (_, Some(n), _) if n > 0 && !self.labelled.is_empty() => Ok(Labels::Subjects(n)),
            (_, _, Some("all")) if !self.labelled.is_empty() => Ok(Labels::Share(1.)),
            _ if self.labelled.is_empty() => bail!("expected a share of the labels, found {value}"),
            _ => bail!("`labelled`: expected numbers of subjects from 1 on, or \"all\", found {value}"),
        }
    }

    /// How volumes are sliced, the same in both tables.
    pub fn slices(&self) -> Result<Option<Slices>> {
        let slices = self.finetune.get("slices").cloned();
        slices.map(serde_json::from_value).transpose().context("[finetune] slices")
    }

    /// The task that [finetune] is for.
    pub fn downstream(&self) -> Result<DownstreamKind> {
        let Some(task) = self.finetune.get("task") else { return Ok(DownstreamKind::Segmentation) };
        let known = task.as_str().and_then(|name| clap::ValueEnum::from_str(name, false).ok());
        known.with_context(|| format!("[finetune] task: {task} is no downstream task"))
    }

    /// The folds that are run; a single split is none of them.
    pub fn folds(&self) -> Vec<Option<u64>> {
        match self.folds {
            None => vec![None],
            Some(folds) => self.run_folds.clone().unwrap_or_else(|| (0..folds).collect()).into_iter().map(Some).collect(),
        }
    }

    /// What each seed stands for.
    pub fn repetitions(&self) -> Result<Repetitions> {
        Repetitions::of(&serde_json::to_value(self)?)
    }

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
                let cell = cell(arm.base.clone(), 1., String::new(), self.common_rate(None, &arm.name)?);
                out.push(Finetuning { cell, arm: arm.name, draw, pretraining: None });
                continue;
            }
            let own = pretrainings.iter().enumerate().filter(|(_, p)| {
                p.seed == draw.pretraining && (p.fold.is_none() || p.fold == fold) && (p.split.is_none() || p.split == split)
            });
            for (i, p) in own {
                let lr = self.common_rate(Some(&p.tasks), &arm.name)?;
                let cell = cell(p.name(), p.fraction, p.suffix(), lr);
                out.push(Finetuning { cell, arm: arm.name.clone(), draw, pretraining: Some(i) });
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

    /// A table is for a pretext task, or for tasks that this sweep trains jointly.
    pub fn check_task(&self, key: &str) -> Result<()> {
        let names = short_names(key)?;
        let joint = self.tasks.iter().any(|tasks| short_names(tasks).is_ok_and(|tasks| tasks == names));
        ensure!(joint || !key.contains(','), "`tasks` has no {key:?}");
        Ok(())
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

/// Puts `changes` over `value`, tables key by key.
fn merge(value: &mut Value, changes: Map<String, Value>) {
    let Some(map) = value.as_object_mut() else { return };
    for (key, change) in changes {
        match (map.get_mut(&key), change) {
            (Some(old @ Value::Object(_)), Value::Object(inner)) => merge(old, inner),
            (_, change) => {
                map.insert(key, change);
            }
        }
    }
}
