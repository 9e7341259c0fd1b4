//! A fine-tuned network, loaded for prediction.

use crate::data::labelling::{Decoding, LabelRegion, LabelValue, Labelling};
use crate::data::layouts::columns::Column;
use crate::data::preprocess::Settings;
use crate::data::slices::Slices;
use crate::device::{DeviceChoice, Precision, memory_format};
use crate::dim::{Rank, Shape};
use crate::ffi;
use crate::nn::script::ScriptModule;
use crate::nn::{Encoder, EncoderConfig};
use crate::predict::window::over_mirror_images;
use crate::run::tensors::{self, ENCODER};
use crate::run::tuned::Tuned;
use crate::tasks::Downstream;
use crate::tasks::classification::{self, ClassificationConfig, ClassificationHead, Outputs, Score};
use crate::tasks::regression::{RegressionConfig, RegressionHead, Standard};
use crate::tasks::segmentation::{SegmentationConfig, SegmentationHead};
use crate::transform::augment::AugmentConfig;
use crate::transform::mirror::{MirrorAxis, Mirroring};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tch::nn::{self, VarStore};
use tch::{Device, Tensor};

/// What a fine-tuned run predicts: `downstream` in its `config.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "lowercase", deny_unknown_fields)]
pub enum DownstreamConfig {
    Segmentation {
        /// As the fields of [`Labelling`].
        labels: Vec<LabelValue>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        regions: Vec<LabelRegion>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ignore: Option<i64>,
        /// Voxels of a window.
        patch: Shape,
        segmentation: SegmentationConfig,
    },
    Classification {
        /// Names, in order.
        classes: Vec<String>,
        /// Whether the order means anything.
        #[serde(default = "yes")]
        ordered: bool,
        /// Of every scan.
        shape: Shape,
        classification: ClassificationConfig,
        /// Where they stood; runs of earlier versions knew the grades of photographs only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        column: Option<Column>,
    },
    Regression {
        /// The quantity.
        column: Column,
        /// The output is the quantity, standardised by the training scans.
        standard: Standard,
        /// Of every scan.
        shape: Shape,
        regression: RegressionConfig,
        dropout: f64,
    },
}

fn yes() -> bool {
    true
}

impl DownstreamConfig {
    /// The column of what is predicted of whole scans.
    pub fn column(&self) -> Option<&Column> {
        match self {
            DownstreamConfig::Segmentation { .. } => None,
            DownstreamConfig::Classification { column, .. } => column.as_ref(),
            DownstreamConfig::Regression { column, .. } => Some(column),
        }
    }

    pub fn segmentation(labelling: Labelling, patch: Shape, segmentation: SegmentationConfig) -> DownstreamConfig {
        let Labelling { labels, regions, ignore } = labelling;
        DownstreamConfig::Segmentation { labels, regions, ignore, patch, segmentation }
    }

    /// What the voxels' labels mean; of other tasks nothing.
    pub fn labelling(&self) -> Labelling {
        match self {
            DownstreamConfig::Segmentation { labels, regions, ignore, .. } => {
                Labelling { labels: labels.clone(), regions: regions.clone(), ignore: *ignore }
            }
            DownstreamConfig::Classification { .. } | DownstreamConfig::Regression { .. } => Labelling::default(),
        }
    }

    /// What the logits of a segmentation are, and what makes probabilities of them, for users of an export.
    pub fn described_outputs(&self) -> Option<Value> {
        let DownstreamConfig::Segmentation { .. } = self else { return None };
        let activation = match self.labelling().decoding() {
            Decoding::Classes => "softmax",
            Decoding::Regions(_) => "sigmoid",
        };
        Some(json!({ "names": self.outputs(), "activation": activation }))
    }

    /// Names of the network's outputs, in order; of a quantity none.
    pub fn outputs(&self) -> Vec<String> {
        match self {
            DownstreamConfig::Segmentation { .. } => self.labelling().outputs().into_iter().map(str::to_owned).collect(),
            DownstreamConfig::Classification { classes, .. } => classes.clone(),
            DownstreamConfig::Regression { .. } => vec![],
        }
    }
}

/// Decoder, classifier or regressor of a fine-tuned run.
enum DownstreamHead {
    Segmentation(SegmentationHead),
    Classification(ClassificationHead),
    Regression(RegressionHead),
}

impl DownstreamHead {
    /// With new weights; its variables lie under the task's name.
    fn new(root: &nn::Path, encoder: &dyn Encoder, downstream: &DownstreamConfig) -> DownstreamHead {
        match downstream {
            DownstreamConfig::Segmentation { patch, segmentation, .. } => {
                let labelling = downstream.labelling();
                let weights = vec![1.; labelling.outputs().len()];
                DownstreamHead::Segmentation(SegmentationHead::new(
                    &(root / "segmentation"),
                    encoder,
                    segmentation,
                    *patch,
                    &labelling,
                    &weights,
                ))
            }
            DownstreamConfig::Classification { classes, ordered, classification, .. } => {
                let weights = vec![1.; classes.len()];
                DownstreamHead::Classification(ClassificationHead::new(
                    &(root / "classification"),
                    encoder,
                    classification,
                    &weights,
                    Score::new(*ordered),
                ))
            }
            DownstreamConfig::Regression { standard, regression, dropout, .. } => DownstreamHead::Regression(
                RegressionHead::new(&(root / "regression"), encoder, regression, *dropout, *standard),
            ),
        }
    }

    /// Name of the task, under which its variables lie.
    fn task(&self) -> &'static str {
        match self {
            DownstreamHead::Segmentation(_) => "segmentation",
            DownstreamHead::Classification(_) => "classification",
            DownstreamHead::Regression(_) => "regression",
        }
    }

    fn head(&self) -> &dyn Downstream {
        match self {
            DownstreamHead::Segmentation(head) => head,
            DownstreamHead::Classification(head) => head,
            DownstreamHead::Regression(head) => head,
        }
    }
}

/// A network in evaluation mode.
pub struct Model {
    /// That it was loaded from.
    pub file: PathBuf,
    pub rank: Rank,
    /// Names of the channels that it takes, in order.
    pub channels: Vec<String>,
    /// How its scans were preprocessed.
    pub settings: Settings,
    /// How volumes are sliced for it.
    pub slices: Option<Slices>,
    pub downstream: DownstreamConfig,
    pub device: Device,
    /// Of its training.
    augment: AugmentConfig,
    bf16: bool,
    vs: VarStore,
    encoder: Box<dyn Encoder>,
    above: DownstreamHead,
}

impl Model {
    /// Loads what [`Tuned::open`] opens.
    pub fn load(path: &Path, device: DeviceChoice, precision: Precision) -> Result<Model> {
        let device = device.resolve()?;
        let tuned = Tuned::open(path)?;
        let downstream: DownstreamConfig = tuned.part("downstream")?;
        downstream.labelling().check_regions().with_context(|| tuned.described_in.display().to_string())?;
        let network: EncoderConfig = tuned.part("network")?;
        let input = tuned.input()?;
        let augment = AugmentConfig::of_settings(&tuned.part("settings")?).with_context(|| path.display().to_string())?;
        let file = tuned.file.clone();

        let mut vs = VarStore::new(Device::Cpu);
        let encoder = network.build(&vs.root() / ENCODER.trim_end_matches('.'));
        let above = DownstreamHead::new(&vs.root(), encoder.as_ref(), &downstream);
        tensors::restore(&vs.variables(), &tuned.tensors(above.task())).with_context(|| file.display().to_string())?;
        let bf16 = precision.is_bf16(device);
        vs.set_device(device);
        vs.variables().values().try_for_each(|v| ffi::set_memory_format(v, memory_format(device, bf16)))?;
        Ok(Model {
            file,
            rank: network.rank(),
            channels: input.channels,
            settings: input.preprocessing,
            slices: input.slices,
            downstream,
            device,
            augment,
            bf16,
            vs,
            encoder,
            above,
        })
    }

    /// Logits (float32) of inputs `[B, C, D, H, W]`, images `[B, C, H, W]`, on the model's device: `[B, K, ...]` of a segmentation,
    /// `[B, K]` of a classification, `[B, 1]` of a regression, standardised.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ffi::set_memory_format(x, memory_format(self.device, self.bf16))?;
        let head = self.above.head();
        Ok(ffi::with_autocast(self.device, self.bf16, || tch::no_grad(|| head.logits(self.encoder.as_ref(), x))))
    }

    /// Class and the probability of each, of one scan `[C, D, H, W]`, row-major. `mirroring`: average the logits of all mirror images.
    pub fn classify(
        &self,
        image: &[f32],
        shape: Shape,
        outputs: Outputs,
        mirroring: Option<&Mirroring>,
    ) -> Result<(u8, Vec<f32>)> {
        classification::decide(outputs, &[self.whole(image, shape, mirroring)?])
    }

    /// The quantity of one scan; arguments as of [`Model::classify`].
    pub fn estimate(&self, image: &[f32], shape: Shape, standard: Standard, mirroring: Option<&Mirroring>) -> Result<f64> {
        Ok(standard.undo(self.whole(image, shape, mirroring)?.double_value(&[0, 0])))
    }

    /// Logits `[1, K]` of a whole scan.
    pub(super) fn whole(&self, image: &[f32], shape: Shape, mirroring: Option<&Mirroring>) -> Result<Tensor> {
        let mut dims = vec![1, self.channels.len() as i64];
        dims.extend(self.rank.axes().map(|a| shape[a] as i64));
        let x = Tensor::from_slice(image).reshape(dims).to_device(self.device);
        over_mirror_images(&x, self.rank, mirroring, &|x| self.forward(x), &|logits, _| logits)
    }

    /// Mirror images that a prediction may be averaged over: those along the `wanted` axes, but for those that classes with a side do not
    /// allow.
    pub fn mirroring(&self, wanted: &[MirrorAxis]) -> Result<Mirroring> {
        let mirroring = self.mirrors(wanted)?;
        // Output k is "at least class k", which no exchange of outputs mirrors.
        let ordinal = matches!(&self.downstream, DownstreamConfig::Classification { classification, .. }
            if classification.outputs() == Outputs::Ordinal);
        Ok(if ordinal { mirroring.without_swap() } else { mirroring })
    }

    /// Axes along which the network has seen mirror images.
    pub fn mirrored_in_training(&self) -> Result<[bool; 3]> {
        match self.augment.mirrors() {
            true => Ok(self.mirrors(&self.augment.flip_axes)?.axes),
            false => Ok([false; 3]),
        }
    }

    fn mirrors(&self, wanted: &[MirrorAxis]) -> Result<Mirroring> {
        let names = self.downstream.outputs();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        Mirroring::new(wanted, self.rank, self.slices, &names)
    }

    /// The whole network as TorchScript, from an input to its logits, of a regression to the quantity; of the others also to
    /// `probabilities`. `source`: further methods.
    pub fn script(&self, source: &str) -> ScriptModule {
        let (name, above, methods) = match &self.above {
            DownstreamHead::Segmentation(head) => ("decoder", head.script(), head.probabilities_source()),
            DownstreamHead::Classification(head) => ("head", head.script(), head.probabilities_source()),
            DownstreamHead::Regression(head) => ("head", head.script(), ""),
        };
        let output = format!("self.{name}.forward(self.encoder.forward(x))");
        let output = match &self.downstream {
            DownstreamConfig::Regression { standard, .. } => standard.undo_source(&output),
            _ => output,
        };
        ScriptModule::new(format!("def forward(self, x: Tensor) -> Tensor:\n    return {output}\n{methods}{source}"))
            .child("encoder", self.encoder.script())
            .child(name, above)
    }

    /// Every tensor by the name it has in [`Model::script`], which names no task.
    pub fn state(&self) -> tensors::Tensors {
        let task = format!("{}.", self.above.task());
        let name = |name: String| name.strip_prefix(&task).map_or(name.clone(), str::to_owned);
        self.vs.variables().into_iter().map(|(n, t)| (name(n), t)).collect()
    }
}
