//! A fine-tuned network, loaded for prediction.

use super::device::{DeviceChoice, Precision};
use super::network::memory_format;
use super::run::Run;
use crate::checkpoint::{self, split_checkpoint};
use crate::data::layouts::LabelValue;
use crate::data::preprocess::Settings;
use crate::data::slices::Slices;
use crate::dim::{Rank, Shape};
use crate::export::Input;
use crate::ffi;
use crate::nn::script::ScriptModule;
use crate::nn::{Encoder, EncoderConfig};
use crate::tasks::Head;
use crate::tasks::segmentation::{SegmentationConfig, SegmentationHead};
use crate::weights::ENCODER;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use tch::{Device, Tensor, nn::VarStore};

/// What a fine-tuned run predicts: `downstream` in its `config.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Downstream {
    /// Also the name of its variables.
    pub task: String,
    /// Class `k` is `labels[k]`, background first.
    pub labels: Vec<LabelValue>,
    /// Voxels of a window.
    pub patch: Shape,
    pub segmentation: SegmentationConfig,
}

/// A network in evaluation mode.
pub struct Model {
    pub rank: Rank,
    /// Names of the channels that it takes, in order.
    pub channels: Vec<String>,
    /// How its scans were preprocessed.
    pub settings: Settings,
    /// How volumes are sliced for it.
    pub slices: Option<Slices>,
    /// Class `k` of its output is `labels[k]`, background first.
    pub labels: Vec<LabelValue>,
    pub patch: Shape,
    pub device: Device,
    pub network: EncoderConfig,
    bf16: bool,
    vs: VarStore,
    encoder: Box<dyn Encoder>,
    head: SegmentationHead,
}

impl Model {
    /// Loads `RUN`, `RUN/best`, `RUN/last` or the checkpoint file itself; a run's folder means its best checkpoint.
    pub fn load(path: &Path, device: DeviceChoice, precision: Precision) -> Result<Model> {
        let (run, which) = locate(path)?;
        let device = device.resolve()?;
        let file = run.checkpoint(&which);
        let mut description = run.description()?;
        let config = run.config_file();
        let mut part = |key: &str| description.remove(key).with_context(|| format!("{}: no `{key}`", config.display()));
        let downstream = part("downstream").with_context(|| {
            format!("{}: a pretrained encoder cannot predict; give a run of `pretext3d finetune`", run.dir.display())
        })?;
        let downstream: Downstream = serde_json::from_value(downstream).with_context(|| config.display().to_string())?;
        let network: EncoderConfig = serde_json::from_value(part("network")?)?;
        let input: Input = serde_json::from_value(part("input")?)?;
        ensure!(file.exists(), "{}: no checkpoint `{which}` yet", run.dir.display());
        let (tensors, _) = checkpoint::load_safetensors(&file)?;

        let mut vs = VarStore::new(Device::Cpu);
        let encoder = network.build(&vs.root() / ENCODER.trim_end_matches('.'));
        let path = &vs.root() / downstream.task.as_str();
        let head =
            SegmentationHead::new(&path, encoder.as_ref(), &downstream.segmentation, downstream.patch, downstream.labels.len());
        checkpoint::restore(&vs.variables(), &split_checkpoint(tensors).0).with_context(|| file.display().to_string())?;
        let bf16 = precision.is_bf16(device);
        if device == Device::Cpu {
            crate::machine::keep_freed_memory();
        }
        vs.set_device(device);
        vs.variables().values().try_for_each(|v| ffi::set_memory_format(v, memory_format(device, bf16)))?;
        Ok(Model {
            rank: network.rank(),
            channels: input.channels,
            settings: input.preprocessing,
            slices: input.slices,
            labels: downstream.labels,
            patch: downstream.patch,
            device,
            network,
            bf16,
            vs,
            encoder,
            head,
        })
    }

    /// Logits `[B, K, ...]` (float32) of inputs `[B, C, D, H, W]`, images `[B, C, H, W]`, on the model's device.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ffi::set_memory_format(x, memory_format(self.device, self.bf16))?;
        Ok(ffi::with_autocast(self.device, self.bf16, || tch::no_grad(|| self.head.logits(self.encoder.as_ref(), x))))
    }

    /// The whole network as TorchScript, from an input to its logits.
    pub fn script(&self, source: &str) -> ScriptModule {
        ScriptModule::new(format!(
            "def forward(self, x: Tensor) -> Tensor:\n    return self.decoder.forward(self.encoder.forward(x))\n{source}"
        ))
        .child("encoder", self.encoder.script())
        .child("decoder", self.head.script())
    }

    /// Every tensor by the name it has in [`Model::script`].
    pub fn state(&self) -> checkpoint::Tensors {
        let name = |name: String| name.split_once(".decoder.").map_or(name.clone(), |(_, rest)| format!("decoder.{rest}"));
        self.vs.variables().into_iter().map(|(n, t)| (name(n), t)).collect()
    }
}

/// The run and checkpoint that a path means.
fn locate(path: &Path) -> Result<(Run, String)> {
    if path.is_dir() {
        return Ok((Run { dir: path.to_owned() }, "best".to_owned()));
    }
    let file =
        if path.extension().is_some_and(|e| e == "safetensors") { path.to_owned() } else { path.with_extension("safetensors") };
    let (dir, which) = (file.parent().map(PathBuf::from), file.file_stem().map(|s| s.to_string_lossy().into_owned()));
    let run = dir.filter(|dir| dir.join("config.json").is_file()).map(|dir| Run { dir });
    run.zip(which).with_context(|| format!("{}: not a run's folder and not a checkpoint in one", path.display()))
}
