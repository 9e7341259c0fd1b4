//! Fine-tuning: a downstream task on labelled scans, from a pretrained encoder or from scratch, and its scores on the test
//! side (method 6).

use super::config::{self, TrainConfig, share};
use super::downstream::{self, DownstreamKind};
use super::pretrain::scans_of;
use crate::run::folder::{self, Run, TestSide, object};
use super::session::{Ended, Session};
use super::stop::Stop;
use super::trainer::{Setup, Trainer};
use crate::run::tensors::Tensors;
use crate::data::Scans;
use crate::data::split::{Fold, Split, subject};
use crate::data::store::{Store, Subset};
use crate::dim::{Rank, voxels};
use crate::export;
use crate::nn::{EncoderConfig, EncoderFlags};
use crate::report::study::read::{RANDOM, SCRATCH};
use crate::tasks::class_weights::ClassWeights;
use crate::tasks::classification::ClassificationConfig;
use crate::tasks::segmentation::SegmentationConfig;
use crate::transform::augment::AugmentConfig;
use crate::run::weights::{self, ENCODER};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is done with the encoder's weights (method 6). All else is the same for every arm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Arm {
    /// Random weights, all trained
    Scratch,
    /// Given weights, never trained; with `--weights none` random ones, the baseline for what the features are worth
    Frozen,
    /// Given weights, fixed for the first epochs, then trained
    Warmup,
    /// Given weights, all trained from the start
    Full,
}

/// What test scores are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Regions {
    /// Each class of the labels
    Classes,
    /// Whole tumour, tumour core and enhancing tumour
    Brats,
}

#[derive(Clone, Debug, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
pub struct FinetuneConfig {
    /// What is learnt from the labels
    #[arg(long, value_enum, default_value = "segmentation")]
    pub task: DownstreamKind,
    /// Pretrained encoder: an exported .pt or .safetensors, a run's checkpoint, or `none`
    #[arg(long, value_name = "FILE|none")]
    pub weights: PathBuf,
    /// What is done with the encoder [default: warmup, with --weights none scratch]
    #[arg(long, value_enum)]
    pub arm: Option<Arm>,
    /// Epochs in which --arm warmup keeps the encoder fixed [default: a fifth of the epochs, at least 1]
    #[arg(long, value_name = "N")]
    pub frozen_epochs: Option<u64>,
    #[command(flatten)]
    #[serde(flatten)]
    pub train: TrainConfig,
    /// Share of the subjects held out for the final test, above 0 and below 1; not used with --folds
    #[arg(long, value_name = "SHARE", default_value_t = 0.2, help_heading = "Data")]
    pub test_fraction: f64,
    /// Cross-validation: divide the subjects into this many folds, at least 2, with equal shares of each class
    #[arg(long, value_name = "N", requires = "fold", conflicts_with = "split", help_heading = "Data")]
    pub folds: Option<u64>,
    /// The fold that is tested on, from 0
    #[arg(long, value_name = "K", requires = "folds", help_heading = "Data")]
    pub fold: Option<u64>,
    /// What test scores are of
    #[arg(long, value_enum, default_value = "classes", help_heading = "Data")]
    pub regions: Regions,
    #[command(flatten)]
    #[serde(flatten)]
    pub network: EncoderFlags,
    /// Weight of each class in the loss, class 0 (of a segmentation the background) first, or `balanced`: inversely to how often the
    /// training side holds it [default: 1 each]
    #[arg(long, value_name = "W,...|balanced", help_heading = "Optimization")]
    pub class_weights: Option<ClassWeights>,
    #[command(flatten)]
    #[serde(flatten)]
    pub segmentation: SegmentationConfig,
    #[command(flatten)]
    #[serde(flatten)]
    pub classification: ClassificationConfig,
    #[command(flatten)]
    pub aug: AugmentConfig,
}

/// Steps an epoch unless the user says otherwise: the same for every label fraction, so that fewer labels do not mean less
/// training.
const STEPS: u64 = 50;
/// Share of the epochs that the warm-up arm keeps the encoder fixed.
const FROZEN_SHARE: f64 = 0.2;

impl FinetuneConfig {
    /// Whether no weights are given.
    fn random(&self) -> bool {
        self.weights == Path::new("none")
    }

    pub fn arm(&self) -> Arm {
        self.arm.unwrap_or(if self.random() { Arm::Scratch } else { Arm::Warmup })
    }

    /// What a new split's test side is.
    fn test_side(&self) -> TestSide {
        match (self.folds, self.fold) {
            (Some(of), Some(number)) => TestSide::Fold(Fold { number, of }),
            _ => TestSide::Share(self.test_fraction),
        }
    }

    /// Checks ranges that the parser cannot.
    pub fn check(&self) -> Result<()> {
        self.train.check()?;
        self.segmentation.check()?;
        self.classification.check()?;
        self.aug.check()?;
        share("test-fraction", self.test_fraction, false)?;
        if let TestSide::Fold(Fold { number, of }) = self.test_side() {
            ensure!(of >= 2, "--folds must be at least 2, found {of}");
            ensure!(number < of, "--fold must be from 0 to {}, found {number}", of - 1);
        }
        self.network.check()?;
        match (self.arm(), self.random()) {
            (Arm::Scratch, false) => bail!("--arm scratch starts from random weights: give --weights none"),
            (Arm::Warmup | Arm::Full, true) => {
                bail!("--weights none goes with --arm scratch, or with --arm frozen as a baseline; the other arms need weights")
            }
            _ => {}
        }
        ensure!(self.frozen_epochs.is_none() || self.arm() == Arm::Warmup, "--frozen-epochs goes with --arm warmup only");
        Ok(())
    }

    /// Epochs in which the encoder is fixed. Errors if the warm-up arm would be another one, `full` or `frozen`.
    fn frozen_epochs(&self, epochs: u64) -> Result<u64> {
        Ok(match self.arm() {
            Arm::Scratch | Arm::Full => 0,
            Arm::Frozen => u64::MAX,
            Arm::Warmup => {
                ensure!(
                    epochs > 1 || self.frozen_epochs.is_some(),
                    "--epochs 1: --arm warmup needs an epoch with the encoder fixed and one without; give --epochs 2 or more, or --arm full"
                );
                let frozen = self.frozen_epochs.unwrap_or((FROZEN_SHARE * epochs as f64).round().max(1.) as u64);
                ensure!(
                    (1..epochs).contains(&frozen),
                    "--frozen-epochs {frozen}: --arm warmup needs at least 1 and fewer than the {epochs} epochs"
                );
                frozen
            }
        })
    }

    /// What an arm without weights is called in results.
    pub fn baseline(&self) -> Option<&'static str> {
        match (self.random(), self.arm()) {
            (false, _) => None,
            (true, Arm::Scratch) => Some(SCRATCH),
            (true, _) => Some(RANDOM),
        }
    }
}

/// The sides of the split in the store.
pub struct Sides {
    pub train: Arc<Subset>,
    pub valid: Arc<Subset>,
    pub test: Arc<Subset>,
}

/// Trains until the last epoch or a signal, then scores the best epoch on the test side. `resume`: the folder of the run to
/// continue.
pub fn finetune(config: &FinetuneConfig, resume: Option<&Path>) -> Result<Ended> {
    config.check()?;
    let stop = Stop::on_signals()?;
    let store = Store::open(&config.train.data)?.sliced(config.train.slices)?;
    config.task.check(config, store.index())?;
    let device = config.train.device.resolve()?;
    let input = export::Input::of(&store);
    let run = resume.map(|dir| Run::reopen(dir, config::settings(config), &[], &input)).transpose()?;
    let split = folder::choose_split(&config.train, config.test_side(), config.task.usable(), &store, run.as_ref())?;
    let sides = sides(config, &store, &split)?;
    // A run that goes on has its weights in its checkpoint, unless it was killed before the first.
    let saved = match config.random() || run.as_ref().is_some_and(Run::has_checkpoint) {
        true => None,
        false => Some(weights::read(&config.weights)?),
    };
    let rank = store.rank()?;
    let encoder = match &run {
        Some(run) => run.network()?,
        None => network(config, rank, store.channels(), saved.as_ref())?,
    };
    let (task, downstream) = downstream::build(config, &store, &sides.train, &encoder)?;
    let view = task.view_shape();
    let epochs = config.train.epochs.unwrap_or(task.amounts().epochs);
    let mut resolved = config.clone();
    (resolved.train.epochs, resolved.arm) = (Some(epochs), Some(config.arm()));
    if config.train.draws.is_none() {
        resolved.train.steps.get_or_insert(STEPS);
    }
    let frozen_epochs = config.frozen_epochs(epochs)?;
    // Written down: with more epochs later it stays.
    resolved.frozen_epochs = Some(frozen_epochs).filter(|_| config.arm() == Arm::Warmup);
    let name = task.name();
    let trainer = Trainer::new(Setup {
        config: &resolved.train,
        device,
        tasks: vec![(task, 1.)],
        encoder: encoder.clone(),
        train: sides.train.clone(),
        valid: sides.valid.clone(),
        change: None,
        frozen_epochs,
    })?;
    let batch = trainer.tasks[0].batch;
    resolved.train.batch_size = Some(batch);
    // Batch normalisation of one value has no variance: its running one becomes NaN, and every prediction background.
    let deepest = trainer.network.encoder.deepest_shape(view);
    ensure!(
        batch as usize * voxels(deepest) > 1,
        "--batch-size 1 and a patch of {view:?}: the deepest level would normalise a single voxel; give larger ones"
    );
    let (mut pretrained, mut report) = (Value::Null, String::new());
    if let Some(saved) = &saved {
        let loaded = weights::load_encoder(&trainer.network.vs.variables(), saved, &config.weights)?;
        report = format!("{}: {loaded}", config.weights.display());
        let about = weights::describe(&config.weights)?;
        if about.data.as_ref() == Some(&store.index().fingerprint) && has_seen_test(about.split.as_deref(), &split) {
            report += "warning: pretrained on scans of this store by another split, so it has probably seen test scans (not their \
                       labels); for a clean test pretrain with --split set to this fine-tuning's split.json\n";
        }
        eprint!("{report}");
        pretrained = json!({
            "file": config.weights,
            "fingerprint": weights::fingerprint(saved),
            "pretext": about.pretext,
            "unlabelled": about.fraction,
        });
    }
    let run = match run {
        Some(run) => {
            let same = saved.is_none() || run.description()?.get("pretrained") == Some(&pretrained);
            ensure!(same, "{}: not the weights that {} was started with", config.weights.display(), run.dir.display());
            run
        }
        None => {
            let parts = json!({ "network": encoder, "input": input, "downstream": downstream, "pretrained": pretrained });
            let out = config.train.out.as_deref();
            Run::create(out, name, config::settings(&resolved), &split, object(parts))?
        }
    };
    run.keep_load_report(&report)?;
    eprintln!(
        "{}: {name} from {}, arm {}, on {device:?} in {}, {} training, {} validation and {} test scans, {} of {view:?} voxels, {} steps an \
         epoch",
        run.dir.display(),
        config.weights.display(),
        json!(config.arm()).as_str().unwrap_or_default(),
        if trainer.bf16 { "bf16" } else { "fp32" },
        sides.train.len(),
        sides.valid.len(),
        sides.test.len(),
        if config.task == DownstreamKind::Segmentation { "patches" } else { "whole scans" },
        trainer.steps
    );
    let metric = format!("{name}.{}", trainer.tasks[0].task.selects());
    let mut session = Session::open(run.clone(), trainer, name.to_owned(), 1, config.train.save_minutes, stop.clone())?;
    let mut ended = session.train()?;
    drop(session);
    if let Ended::Finished = ended {
        ended = super::test::test(config, &run, &split, &sides, &metric, &stop)?;
    }
    if let Ended::Stopped = ended {
        eprintln!("stopped and saved; continue with: pretext3d finetune --resume {}", run.dir.display());
    }
    Ok(ended)
}

/// Whether a pretraining by another split may have seen what is tested on: its training side was learnt from, its validation side chose
/// the epoch.
fn has_seen_test(pretraining: Option<&Path>, split: &Split) -> bool {
    match pretraining.map(Split::load) {
        Some(Ok(other)) => other.train.iter().chain(&other.val).any(|id| split.test.contains(id)),
        _ => true,
    }
}

/// The stored scans on each side; the training side cut to the label fraction.
fn sides(config: &FinetuneConfig, store: &Store, split: &Split) -> Result<Sides> {
    ensure!(!split.val.is_empty(), "the split has no validation subjects, which choose the best epoch");
    ensure!(!split.test.is_empty(), "the split has no test subjects");
    let (fraction, n) = (config.train.fraction, split.train.len());
    ensure!(
        (fraction * n as f64).round() >= 1.,
        "--fraction {fraction} leaves no subject of {n}; the smallest that leaves one is {:.4}",
        0.5 / n as f64
    );
    let usable = config.task.usable();
    let subset = |side: &str, subjects: &[String]| -> Result<Arc<Subset>> {
        let has = |id: &String| store.find(id).is_some_and(|scan| usable.has(&store.index().subjects[scan]));
        let scans: Vec<String> = scans_of(store, subjects).into_iter().filter(has).collect();
        let found: HashSet<&str> = scans.iter().map(|id| subject(id)).collect();
        if let Some(without) = subjects.iter().find(|id| !found.contains(id.as_str())) {
            bail!("{side} subject {without}: has no {} in {}", config.task.label(), store.folder().display());
        }
        Ok(Arc::new(store.subset(&scans)?))
    };
    let sides = Sides {
        train: subset("training", &split.balanced_fraction(fraction, &usable.classes(store))?)?,
        valid: subset("validation", &split.val)?,
        test: subset("test", &split.test)?,
    };
    if config.task == DownstreamKind::Classification {
        let classes: HashSet<Option<u8>> = (0..sides.valid.len()).map(|scan| sides.valid.class(scan)).collect();
        ensure!(classes.len() > 1, "all validation scans are of one class, so that kappa is undefined; raise --val-fraction");
    }
    Ok(sides)
}

/// The encoder: that of the weights, or the one asked for.
fn network(config: &FinetuneConfig, rank: Rank, channels: usize, saved: Option<&Tensors>) -> Result<EncoderConfig> {
    let (flags, channels, dropout) = (&config.network, channels as i64, config.train.dropout);
    let Some(saved) = saved else { return flags.config(rank, channels, dropout) };
    let file = config.weights.display();
    let found = EncoderConfig::of(saved, ENCODER).with_context(|| format!("{file}: another architecture; no encoder in it"))?;
    let flags = flags.of_weights(&found, rank, &config.weights).with_context(|| config.train.data_name())?;
    flags.config(rank, channels, dropout)
}
