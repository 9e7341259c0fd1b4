//! What a sweep runs: a TOML file, see `experiments/`.

use crate::config::to_flag;
use crate::data::slices::Slices;
use crate::report::study::read::{Cell, Published, RANDOM, SCRATCH};
use crate::tasks::{TaskKind, joined_names};
use crate::train::config::share;
use crate::train::finetune::Arm;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A sweep: every pretext task x share of unlabelled scans is pretrained once, and fine-tuned in every arm x label fraction x
/// seed; the arms without weights in every fraction x seed.
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
    /// Pretext tasks; several joined by `,` are trained jointly.
    pub tasks: Vec<String>,
    /// Arms of method 6: `scratch`, `warmup`, `full`, `frozen`, and `random`, a frozen encoder with random weights.
    pub arms: Vec<String>,
    /// Shares of the labelled training subjects.
    pub fractions: Vec<f64>,
    pub seeds: Vec<u64>,
    /// Shares of the unlabelled training subjects.
    #[serde(default = "all")]
    pub unlabelled_fractions: Vec<f64>,
    /// Shares of the labelled subjects that choose the best epoch and that are tested on, where the dataset does not say.
    pub val_fraction: f64,
    pub test_fraction: f64,
    /// Seed of the split into training, validation and test side, one for the whole sweep.
    #[serde(default)]
    pub split_seed: u64,
    /// Flags of `pretext3d pretrain`; a table with a task's name holds those of that task alone.
    #[serde(default)]
    pub pretrain: Map<String, Value>,
    /// Flags of `pretext3d finetune`, the same for every arm.
    #[serde(default)]
    pub finetune: Map<String, Value>,
    /// Numbers of others, shown beside the results with their source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<Published>,
}

/// Flags that the sweep itself gives to `pretrain` and to `finetune`.
const PRETRAIN_OWN: [&str; 8] = ["data", "task", "fraction", "split", "weights", "out", "config", "resume"];
const FINETUNE_OWN: [&str; 11] =
    ["data", "split", "weights", "arm", "fraction", "seed", "out", "config", "resume", "val-fraction", "test-fraction"];
/// Flags that shape the encoder and its input.
const SHAPE: [&str; 4] = ["encoder", "filters", "levels", "slices"];

fn all() -> Vec<f64> {
    vec![1.]
}

/// One pretraining of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct Pretraining {
    /// As `pretrain --task` takes them.
    pub tasks: String,
    pub fraction: f64,
}

/// One fine-tuning with the number of the pretraining that it starts from.
pub struct Finetuning {
    pub cell: Cell,
    pub pretraining: Option<usize>,
}

impl SweepConfig {
    /// Reads and checks a file; `smoke` applies its `[smoke]` table, which holds any of the other keys; those of a table change
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
            let config: SweepConfig = serde_json::from_value(value)?;
            config.check()?;
            Ok(config)
        };
        parse().with_context(|| format!("{}: not a sweep's configuration", path.display()))
    }

    fn check(&self) -> Result<()> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        ensure!(!self.name.is_empty() && self.name.chars().all(plain), "`name` is made of letters, digits, -, _ and .");
        let lists = [
            ("arms", self.arms.len()),
            ("fractions", self.fractions.len()),
            ("seeds", self.seeds.len()),
            ("unlabelled_fractions", self.unlabelled_fractions.len()),
        ];
        for (key, n) in lists {
            ensure!(n > 0, "`{key}` is empty");
        }
        for (key, values) in [("fractions", &self.fractions), ("unlabelled_fractions", &self.unlabelled_fractions)] {
            values.iter().try_for_each(|&v| share(key, v, true))?;
        }
        share("val_fraction", self.val_fraction, false)?;
        share("test_fraction", self.test_fraction, false)?;
        for task in self.tasks.iter().flat_map(|t| t.split(',')) {
            task.parse::<TaskKind>()?;
        }
        for arm in &self.arms {
            ensure!(
                arm == RANDOM || arm_of(arm).is_some(),
                "`arms`: {arm:?}, expected scratch, warmup, full, frozen or random"
            );
        }
        let needs_weights = self.arms.iter().any(|a| a != SCRATCH && a != RANDOM);
        ensure!(
            !needs_weights || !self.tasks.is_empty(),
            "`tasks` is empty, and arms other than scratch and random need weights"
        );
        // Every arm has the same network, also where pretraining does not hand it down.
        for (pretraining, key) in self.pretrainings().iter().flat_map(|p| SHAPE.map(|key| (p, key))) {
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

    /// How volumes are sliced, the same in both tables.
    pub fn slices(&self) -> Result<Option<Slices>> {
        let slices = self.finetune.get("slices").cloned();
        slices.map(serde_json::from_value).transpose().context("[finetune] slices")
    }

    pub fn pretrainings(&self) -> Vec<Pretraining> {
        let fractions = &self.unlabelled_fractions;
        let of = |tasks: &String| {
            fractions.iter().map(|&fraction| Pretraining { tasks: tasks.clone(), fraction }).collect::<Vec<_>>()
        };
        self.tasks.iter().flat_map(of).collect()
    }

    /// Every fine-tuning, the seeds outermost, so that an unfinished sweep already compares all arms.
    pub fn finetunings(&self, rank: usize) -> Vec<Finetuning> {
        let pretrainings = self.pretrainings();
        let mut out = Vec::new();
        for &seed in &self.seeds {
            for &fraction in &self.fractions {
                for arm in &self.arms {
                    let cell = |pretext: String, arm: &str, unlabelled: f64, suffix: String| Cell {
                        id: format!("{pretext}{suffix}-{arm}-f{fraction}-s{seed}"),
                        pretext,
                        arm: arm.to_owned(),
                        fraction,
                        seed,
                        fold: None,
                        unlabelled,
                        rank,
                    };
                    match arm.as_str() {
                        SCRATCH | RANDOM => {
                            let real = if arm == RANDOM { "frozen" } else { SCRATCH };
                            out.push(Finetuning { cell: cell(arm.clone(), real, 1., String::new()), pretraining: None });
                        }
                        _ => out.extend(pretrainings.iter().enumerate().map(|(i, p)| {
                            let cell = cell(p.name(), arm, p.fraction, p.suffix());
                            Finetuning { cell, pretraining: Some(i) }
                        })),
                    }
                }
            }
        }
        out
    }

    /// Settings of one pretraining, those of its task over those of all.
    fn pretrain_settings(&self, pretraining: &Pretraining) -> Result<Map<String, Value>> {
        let mut settings: Map<String, Value> = self.pretrain.clone();
        settings.retain(|_, value| !value.is_object());
        for (key, value) in self.pretrain.iter().filter(|(_, value)| value.is_object()) {
            ensure!(self.tasks.iter().any(|t| t == key) || key.parse::<TaskKind>().is_ok(), "[pretrain.{key}]: not a task");
            if *key == pretraining.tasks {
                settings.extend(value.as_object().cloned().unwrap_or_default());
            }
        }
        Ok(settings)
    }

    /// Flags of one pretraining.
    pub fn pretrain_flags(&self, pretraining: &Pretraining) -> Result<Vec<String>> {
        flags("pretrain", &self.pretrain_settings(pretraining)?, &PRETRAIN_OWN)
    }

    /// Flags that every fine-tuning shares.
    pub fn finetune_flags(&self) -> Result<Vec<String>> {
        flags("finetune", &self.finetune, &FINETUNE_OWN)
    }
}

impl Pretraining {
    /// Short task names joined by `-`, as runs are called.
    pub fn name(&self) -> String {
        let kind = |task: &str| task.parse::<TaskKind>().expect("checked when the configuration was read");
        joined_names(&self.tasks.split(',').map(kind).collect::<Vec<_>>())
    }

    /// Tells shares of the unlabelled scans apart.
    pub fn suffix(&self) -> String {
        if self.fraction == 1. { String::new() } else { format!("-u{}", self.fraction) }
    }
}

/// The arm of this name, as `finetune --arm` takes it.
fn arm_of(name: &str) -> Option<Arm> {
    clap::ValueEnum::from_str(name, false).ok()
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
