//! What a sweep runs: a TOML file, see `experiments/`.

use crate::data::slices::Slices;
use crate::data::store::Store;
use crate::finetune::config::DownstreamKind;
use crate::study::labels::Labels;
use crate::study::read::Published;
use crate::study::repetitions::Repetitions;
use crate::tasks::{TaskKind, joined_names};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// A table `[[weights]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GivenWeights {
    /// What cells and the report call them.
    pub name: String,
    /// Whatever `finetune --weights` takes; from the working directory, as all paths.
    pub file: PathBuf,
}

/// A sweep: every pretext task x share of unlabelled scans is pretrained once a seed, and fine-tuned in every arm x label fraction x
/// seed, as given weights are; the arms without weights in every fraction x seed. A cross-validation does so for each fold.
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
    #[serde(default)]
    pub tasks: Vec<String>,
    /// Weights that are fine-tuned beside those of the tasks, in the same arms.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<GivenWeights>,
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
    /// start from that task's weights, or from given ones of that name, `arm.NAME` those of one arm, or of a variant of the arm that its
    /// key `base` names.
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

/// Flags that the sweep itself gives to `finetune`.
pub const FINETUNE_OWN: [&str; 15] = [
    "data",
    "split",
    "weights",
    "weights-name",
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

impl SweepConfig {
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

    /// The store, with what is learnt of its scans.
    pub fn open_store(&self) -> Result<Store> {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let column = self.finetune.get("column").map(text);
        let classes = match self.finetune.get("classes") {
            Some(Value::Array(classes)) => classes.iter().map(text).collect(),
            Some(classes) => text(classes).split(',').map(str::to_owned).collect(),
            None => vec![],
        };
        self.downstream()?.learn(Store::open(&self.data)?.sliced(self.slices()?)?, column.as_deref(), &classes)
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

    /// A table is for a pretext task, or for tasks that this sweep trains jointly.
    pub fn check_task(&self, key: &str) -> Result<()> {
        let names = short_names(key)?;
        let joint = self.tasks.iter().any(|tasks| short_names(tasks).is_ok_and(|tasks| tasks == names));
        ensure!(joint || !key.contains(','), "`tasks` has no {key:?}");
        Ok(())
    }
}

/// Short names of pretext tasks joined by `-`, as runs are called; `tasks` as `pretrain --task` takes them.
pub fn short_names(tasks: &str) -> Result<String> {
    Ok(joined_names(&tasks.split(',').map(str::parse::<TaskKind>).collect::<Result<Vec<_>, _>>()?))
}
