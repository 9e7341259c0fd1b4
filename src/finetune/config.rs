//! What a fine-tuning is told: its flags, and what follows from them.

use crate::data::split::Fold;
use crate::data::store::Store;
use crate::data::store::targets::Targets;
use crate::metrics::regions::Regions;
use crate::metrics::table::{NSD_TOLERANCE_MM, check_tolerance};
use crate::nn::EncoderFlags;
use crate::run::record::{RANDOM, SCRATCH};
use crate::run::split::{Needs, TestSide};
use crate::run::weights::Transfer;
use crate::tasks::class_weights::ClassWeights;
use crate::tasks::classification::ClassificationConfig;
use crate::tasks::regression::RegressionConfig;
use crate::tasks::segmentation::{self, SegmentationConfig};
use crate::train::config::{TrainConfig, from_zero, share};
use crate::train::trainer::Given;
use crate::transform::augment::AugmentConfig;
use anyhow::{Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DownstreamKind {
    /// The class of every voxel
    Segmentation,
    /// The class of the whole scan, such as the grade of a photograph or the diagnosis of a person
    Classification,
    /// A quantity of the whole scan, such as the age of the person
    Regression,
}

impl DownstreamKind {
    /// The scans that have what it is to predict.
    pub fn needs(self) -> Needs {
        match self {
            DownstreamKind::Segmentation => Needs::VoxelLabels,
            DownstreamKind::Classification => Needs::ScanClass,
            DownstreamKind::Regression => Needs::ScanQuantity,
        }
    }

    /// The store with what is learnt of whole scans: the classes, in the order of `classes`, or the quantity in a column.
    pub fn learn(self, store: Store, column: Option<&str>, classes: &[String]) -> Result<Store> {
        let targets = match self {
            DownstreamKind::Segmentation => {
                ensure!(column.is_none(), "--column goes with --task classification or regression");
                return Ok(store);
            }
            DownstreamKind::Classification => Targets::classes(store.index(), column, classes),
            DownstreamKind::Regression => Targets::numbers(store.index(), column),
        };
        // Who names a column means it.
        let labels = column.is_none() && store.index().labels.is_some();
        let labels = if labels { "; it has labels of voxels: --task segmentation" } else { "" };
        let targets = targets.map_err(|error| anyhow!("{}: {error:#}{labels}", store.folder().display()))?;
        Ok(store.learning(targets))
    }

    pub fn name(self) -> &'static str {
        match self {
            DownstreamKind::Segmentation => "segmentation",
            DownstreamKind::Classification => "classification",
            DownstreamKind::Regression => "regression",
        }
    }

    /// Whether its score is an error.
    pub fn lower_is_better(self) -> bool {
        self == DownstreamKind::Regression
    }

    /// What [`DownstreamKind::needs`] scans have.
    pub fn label(self) -> &'static str {
        match self {
            DownstreamKind::Segmentation => "label",
            DownstreamKind::Classification => "class",
            DownstreamKind::Regression => "quantity",
        }
    }
}

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

#[derive(Clone, Debug, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
pub struct FinetuneConfig {
    /// What is learnt from the labels
    #[arg(long, value_enum, default_value = "segmentation")]
    pub task: DownstreamKind,
    /// Pretrained encoder: an exported .pt or .safetensors, a run's checkpoint, a .pth of nnU-Net, nnssl or torchvision, or `none`
    #[arg(long, value_name = "FILE|none")]
    pub weights: PathBuf,
    /// What results call the weights [default: the tasks that they were pretrained with, or the file's name]
    #[arg(long, value_name = "NAME")]
    pub weights_name: Option<String>,
    /// What is taken of the weights. A decoder that travels is given as the encoder is: it has its rate, and is fixed when it is
    #[arg(long, value_enum, default_value = "encoder")]
    pub transfer: Transfer,
    /// What is done with the encoder [default: warmup, with --weights none scratch]
    #[arg(long, value_enum)]
    pub arm: Option<Arm>,
    /// Epochs in which --arm warmup keeps the encoder fixed [default: a fifth of the epochs, at least 1]
    #[arg(long, value_name = "N")]
    pub frozen_epochs: Option<u64>,
    /// Epochs in which --arm warmup then raises the rates of the whole network anew; may be a fraction; never more than half of those that
    /// are left [default: a tenth of the epochs]
    #[arg(long, value_name = "EPOCHS", help_heading = "Optimization")]
    pub unfreeze_warmup_epochs: Option<f64>,
    /// Learning rate of the given weights, after warm-up [default: --lr]
    #[arg(long, value_name = "LR", help_heading = "Optimization")]
    pub encoder_lr: Option<f64>,
    #[command(flatten)]
    #[serde(flatten)]
    pub train: TrainConfig,
    /// Column of the store with the classes or the quantity of whole scans [default: its only one]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub column: Option<String>,
    /// Share of the subjects held out for the final test, above 0 and below 1; not used with --folds
    #[arg(long, value_name = "SHARE", default_value_t = 0.2, help_heading = "Data")]
    pub test_fraction: f64,
    /// Cross-validation: divide the subjects into this many folds, at least 2, with equal shares of each class
    #[arg(long, value_name = "N", requires = "fold", conflicts_with = "split", help_heading = "Data")]
    pub folds: Option<u64>,
    /// The fold that is tested on, from 0
    #[arg(long, value_name = "K", requires = "folds", help_heading = "Data")]
    pub fold: Option<u64>,
    /// Subjects that the weights were pretrained on are other people than those of the store, also where their ids are the same
    #[arg(long, help_heading = "Data")]
    pub other_people: bool,
    /// Masks that validation, which chooses the best epoch, and test score [default: the regions that the labels have, otherwise each
    /// class]
    #[arg(long, value_enum, help_heading = "Data")]
    pub regions: Option<Regions>,
    /// Draws the subjects that --fraction takes; parts of one seed are nested [default: the split's seed]
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub subset_seed: Option<u64>,
    /// Millimetres up to which the normalised surface Dice of the test takes two surfaces for the same
    #[arg(long, value_name = "MM", default_value_t = NSD_TOLERANCE_MM, help_heading = "Data")]
    pub nsd_tolerance: f64,
    #[command(flatten)]
    #[serde(flatten)]
    pub network: EncoderFlags,
    /// Weight of each class in the loss, class 0 (of a segmentation the background) first, of labels with regions of each region, or
    /// `balanced`: inversely to how often the training side holds it [default: 1 each]
    #[arg(long, value_name = "W,...|balanced", help_heading = "Optimization")]
    pub class_weights: Option<ClassWeights>,
    #[command(flatten)]
    #[serde(flatten)]
    pub segmentation: SegmentationConfig,
    #[command(flatten)]
    #[serde(flatten)]
    pub classification: ClassificationConfig,
    #[command(flatten)]
    #[serde(flatten)]
    pub regression: RegressionConfig,
    #[command(flatten)]
    pub aug: AugmentConfig,
}

/// Shares of the epochs that the warm-up arm keeps the encoder fixed, and that it then raises the rates in.
const FROZEN_SHARE: f64 = 0.2;
const UNFREEZE_WARMUP_SHARE: f64 = 0.1;

impl FinetuneConfig {
    /// Whether no weights are given.
    pub fn random(&self) -> bool {
        self.weights == Path::new("none")
    }

    pub fn arm(&self) -> Arm {
        self.arm.unwrap_or(if self.random() { Arm::Scratch } else { Arm::Warmup })
    }

    /// What a new split's test side is.
    pub fn test_side(&self) -> TestSide {
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
        check_tolerance(self.nsd_tolerance)?;
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
        for (name, given) in
            [("frozen-epochs", self.frozen_epochs.is_some()), ("unfreeze-warmup-epochs", self.unfreeze_warmup_epochs.is_some())]
        {
            ensure!(!given || self.arm() == Arm::Warmup, "--{name} goes with --arm warmup only");
        }
        from_zero("unfreeze-warmup-epochs", self.unfreeze_warmup_epochs.unwrap_or(0.))?;
        if let Some(name) = &self.weights_name {
            ensure!(!self.random(), "--weights-name goes with weights, not with --weights none");
            let plain = !name.trim().is_empty() && !name.contains(char::is_control);
            ensure!(plain, "--weights-name {name:?}: expected a name in one line");
            let taken = [SCRATCH, RANDOM].contains(&name.as_str());
            ensure!(!taken, "--weights-name {name}: results without weights are called so; give another name");
        }
        if self.transfer == Transfer::All {
            ensure!(!self.random(), "--transfer all takes the decoder of weights, and --weights none gives none");
            ensure!(
                self.task == DownstreamKind::Segmentation,
                "--transfer all: --task {} has no decoder that one could be loaded into; leave it out",
                self.task.name()
            );
        }
        let Some(encoder_lr) = self.encoder_lr else { return Ok(()) };
        match self.arm() {
            Arm::Scratch => bail!("--encoder-lr is the rate of given weights, and --arm scratch has none: give --lr"),
            Arm::Frozen => bail!("--encoder-lr: --arm frozen never trains the encoder; give --lr, or another arm"),
            Arm::Warmup | Arm::Full => from_zero("encoder-lr", encoder_lr),
        }
    }

    /// How what was given is trained, beside the new layers; `None` where all is new.
    pub fn given(&self, epochs: u64) -> Result<Option<Given>> {
        let frozen_epochs = self.frozen_epochs(epochs)?;
        Ok((self.arm() != Arm::Scratch).then(|| Given {
            decoder: (self.transfer == Transfer::All).then_some(segmentation::DECODER),
            lr: self.encoder_lr.unwrap_or(self.train.lr),
            frozen_epochs,
            unfreeze_warmup_epochs: self.unfreeze_warmup_epochs.unwrap_or(UNFREEZE_WARMUP_SHARE * epochs as f64),
        }))
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

    /// The store, with what is learnt of its scans.
    pub fn open_store(&self) -> Result<Store> {
        let store = Store::open(&self.train.data)?.sliced(self.train.slices)?;
        self.task.learn(store, self.column.as_deref(), &self.classification.classes)
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
