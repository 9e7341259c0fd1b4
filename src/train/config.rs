//! Settings of a run: flags, settings-file keys and what is written into the run's folder are one structure.

use crate::data::slices::Slices;
use crate::device::{DeviceChoice, Precision};
use crate::group::work::check_same;
use crate::run::folder::versions;
use crate::run::input::Input;
use crate::train::optim::OptimizerKind;
use crate::train::schedule::ScheduleKind;
use anyhow::{Result, ensure};
use serde::Serialize;
use serde_json::{Map, Value};
use std::path::PathBuf;

/// What every training has, pretraining and fine-tuning alike.
#[derive(Clone, Debug, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
pub struct TrainConfig {
    /// Store of preprocessed scans, as `pretext3d preprocess` writes it
    #[arg(long, value_name = "STORE")]
    pub data: PathBuf,
    /// Epochs [default: the task's own]
    #[arg(long, value_name = "N")]
    pub epochs: Option<u64>,
    /// Samples a step and task [default: the task's own; docs/training.md lists them]
    #[arg(long, value_name = "B")]
    pub batch_size: Option<u64>,
    /// Samples drawn from each training scan in an epoch [default: the task's own]
    #[arg(long, value_name = "N")]
    pub draws: Option<u64>,
    /// Optimizer steps an epoch, whatever the number of scans [default: as many as the draws fill, fine-tuning 50]
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,

    /// Read volumes as 2D slices, for a 2D network
    #[arg(long, value_enum, value_name = "PLANE", help_heading = "Data")]
    pub slices: Option<Slices>,
    /// Share of the subjects held out for validation, above 0 and below 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.2, help_heading = "Data")]
    pub val_fraction: f64,
    /// Share of the training subjects to use, above 0 and up to 1; a smaller share is contained in a larger one
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, help_heading = "Data")]
    pub fraction: f64,
    /// Use the split of an earlier run (its `split.json`) instead of drawing one
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub split: Option<PathBuf>,
    /// Seed of every draw: split, order, samples, initial weights, dropout
    #[arg(long, default_value_t = 0, help_heading = "Data")]
    pub seed: u64,

    /// Dropout probability after each level of the U-Net, after each dense layer of the DenseNet
    #[arg(long, value_name = "P", default_value_t = 0.0, help_heading = "Network")]
    pub dropout: f64,
    #[arg(long, value_enum, default_value = "adamw", help_heading = "Optimization")]
    pub optimizer: OptimizerKind,
    /// Learning rate, after warm-up; in fine-tuning that of the new layers, see --encoder-lr
    #[arg(long, default_value_t = 1e-3, help_heading = "Optimization")]
    pub lr: f64,
    #[arg(long, value_enum, default_value = "cosine", help_heading = "Optimization")]
    pub schedule: ScheduleKind,
    /// Epochs of linear warm-up; may be a fraction; never more than half of the steps (or of those with the encoder fixed)
    #[arg(long, value_name = "EPOCHS", default_value_t = 1.0, help_heading = "Optimization")]
    pub warmup_epochs: f64,
    /// Share of the learning rate that each warm-up starts with, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 1e-3, help_heading = "Optimization")]
    pub warmup_floor: f64,
    /// Weight decay; not applied to biases and normalisation
    #[arg(long, value_name = "L2", default_value_t = 1e-2, help_heading = "Optimization")]
    pub weight_decay: f64,
    /// Largest joint L2 norm of the gradients; 0 for no clipping
    #[arg(long, value_name = "NORM", default_value_t = 5.0, help_heading = "Optimization")]
    pub clip: f64,
    /// Batches whose gradients are averaged before a step
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Optimization")]
    pub accumulate: u64,
    /// Keep less of the network's maps for the backward pass, and compute them again there: less memory, more time. For networks with
    /// instance normalisation
    #[arg(long, help_heading = "Optimization")]
    pub checkpointing: bool,

    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", help_heading = "Machine")]
    pub device: DeviceChoice,
    #[arg(long, value_enum, default_value = "auto", help_heading = "Machine")]
    pub precision: Precision,
    /// Threads that prepare batches [default: 2, with a GPU all cores up to 16]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    pub threads: Option<usize>,
    /// Batches that lie ready, beside those that the threads are preparing
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = "Machine")]
    pub prefetch: usize,

    /// The run's folder [default: runs/<task>-<number>]
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub out: Option<PathBuf>,
    /// Minutes between checkpoints within an epoch; one is also written after each epoch
    #[arg(long, value_name = "MINUTES", default_value_t = 10.0, help_heading = "Output")]
    pub save_minutes: f64,
}

/// Settings that a resumed run may change. `epochs` moves a cosine schedule's rates; the others do not touch what is
/// computed (a device only its rounding).
pub const RESUMABLE: [&str; 7] = ["epochs", "device", "threads", "prefetch", "checkpointing", "out", "save-minutes"];

impl TrainConfig {
    /// What is trained on, in words.
    pub fn data_name(&self) -> String {
        let slices = self.slices.map_or(String::new(), |slices| format!("{} slices of ", slices.name()));
        format!("{slices}{}", self.data.display())
    }

    /// Errors unless all ranks train with these settings, on this input, by the same program.
    pub fn check_ranks(&self, settings: &Map<String, Value>, input: &Input) -> Result<()> {
        check_same("the version of the program", &versions())?;
        check_same("--data", input)?;
        check_same("what the command line says", settings)
    }

    /// Checks ranges that the parser cannot.
    pub fn check(&self) -> Result<()> {
        share("val-fraction", self.val_fraction, false)?;
        share("fraction", self.fraction, true)?;
        let positive = [
            ("epochs", self.epochs.unwrap_or(1)),
            ("batch-size", self.batch_size.unwrap_or(1)),
            ("draws", self.draws.unwrap_or(1)),
            ("steps", self.steps.unwrap_or(1)),
            ("accumulate", self.accumulate),
            ("threads", self.threads.unwrap_or(1) as u64),
            ("prefetch", self.prefetch as u64),
        ];
        positive.iter().try_for_each(|(name, value)| {
            ensure!(*value > 0, "--{name} must be at least 1");
            Ok(())
        })?;
        ensure!((0. ..1.).contains(&self.dropout), "--dropout must be at least 0 and below 1, found {}", self.dropout);
        let floor = self.warmup_floor;
        ensure!((0. ..=1.).contains(&floor), "--warmup-floor must be 0 to 1, found {floor}");
        [
            ("lr", self.lr),
            ("weight-decay", self.weight_decay),
            ("clip", self.clip),
            ("warmup-epochs", self.warmup_epochs),
            ("save-minutes", self.save_minutes),
        ]
        .into_iter()
        .try_for_each(|(name, value)| from_zero(name, value))?;
        Ok(())
    }
}

/// Checks an amount.
pub fn from_zero(name: &str, value: f64) -> Result<()> {
    ensure!(value >= 0. && value.is_finite(), "--{name} must be a number from 0 on, found {value}");
    Ok(())
}

/// Checks a share of something: above 0 and below 1, or `one` as well.
pub fn share(name: &str, value: f64, one: bool) -> Result<()> {
    ensure!(
        value > 0. && (value < 1. || (one && value == 1.)),
        "--{name} must be above 0 and {} 1, found {value}",
        if one { "at most" } else { "below" }
    );
    Ok(())
}
