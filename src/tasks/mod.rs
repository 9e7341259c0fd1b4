//! Pretext tasks: what a sample is, and what the network must predict from it. A task knows no files and no training loop;
//! the training loop knows only [`Task`] and [`Head`].

pub mod cpc;
pub mod exemplar;
pub mod jigsaw;
pub mod rotation;
pub mod rpl;

use crate::data::Scans;
use crate::dim::{Rank, Shape};
use crate::nn::Encoder;
use crate::rng::Rng;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

/// The five pretext tasks, by their short names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TaskKind {
    /// Rotation prediction
    #[value(alias = "rotation")]
    #[serde(alias = "rotation")]
    Rot,
    /// Relative patch location
    #[value(alias = "relative-patch-location")]
    #[serde(alias = "relative-patch-location")]
    Rpl,
    /// Jigsaw puzzle
    #[value(alias = "jigsaw")]
    #[serde(alias = "jigsaw")]
    Jig,
    /// Contrastive predictive coding
    #[value(alias = "contrastive-predictive-coding")]
    #[serde(alias = "contrastive-predictive-coding")]
    Cpc,
    /// Exemplar (triplet loss)
    #[value(alias = "exemplar")]
    #[serde(alias = "exemplar")]
    Exe,
}

impl std::str::FromStr for TaskKind {
    type Err = anyhow::Error;
    /// Short and long names.
    fn from_str(name: &str) -> Result<Self> {
        clap::ValueEnum::from_str(name, true)
            .ok()
            .with_context(|| format!("unknown task {name:?}, expected rot, rpl, jig, cpc or exe"))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
pub struct TaskConfigs {
    #[command(flatten)]
    pub rot: rotation::RotationConfig,
    #[command(flatten)]
    pub rpl: rpl::RplConfig,
    #[command(flatten)]
    pub jig: jigsaw::JigsawConfig,
    #[command(flatten)]
    pub cpc: cpc::CpcConfig,
    #[command(flatten)]
    pub exe: exemplar::ExemplarConfig,
}

/// Builds a task for samples cut from windows of `window` voxels a side. `seed` fixes what is drawn once a run (the jigsaw's
/// permutations). Errors if the task's geometry does not fit the window.
pub fn build(
    kind: TaskKind,
    configs: &TaskConfigs,
    window: usize,
    channels: usize,
    rank: Rank,
    seed: u64,
) -> Result<Box<dyn Task>> {
    Ok(match kind {
        TaskKind::Rot => Box::new(rotation::Rotation::new(&configs.rot, window, channels, rank)?),
        TaskKind::Rpl => Box::new(rpl::Rpl::new(&configs.rpl, window, channels, rank)?),
        TaskKind::Jig => Box::new(jigsaw::Jigsaw::new(&configs.jig, window, channels, rank, seed)?),
        TaskKind::Cpc => Box::new(cpc::Cpc::new(&configs.cpc, window, channels, rank)?),
        TaskKind::Exe => Box::new(exemplar::Exemplar::new(&configs.exe, window, channels, rank)?),
    })
}

/// What a drawn sample is labelled with, beside its views.
pub struct Drawn {
    /// Class ids, [`Task::targets`] of them (none for contrastive tasks).
    pub targets: Vec<i64>,
    /// Every parameter that was drawn, enough to replay the sample from the scan; `inspect` writes it.
    pub params: serde_json::Value,
}

/// A metric that a head reports.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricInfo {
    pub name: &'static str,
    /// Value of a network that knows nothing, where that means anything.
    pub chance: Option<f64>,
}

/// One pretext task, built for a window of a given side, so that its geometry is checked before anything is read.
pub trait Task: Send + Sync {
    /// Short name: `rot`, `rpl`, `jig`, `cpc`, `exe`.
    fn name(&self) -> &'static str;
    /// Views (patches, rotated copies) in a sample.
    fn views(&self) -> usize;
    /// Shape of each view.
    fn view_shape(&self) -> Shape;
    /// Class ids a sample carries.
    fn targets(&self) -> usize;
    /// Draws a sample of the scan and writes its views into `out`: `[V, C, D, H, W]`, row-major.
    fn sample(&self, scans: &dyn Scans, scan: usize, rng: &mut Rng, out: &mut [f32]) -> Result<Drawn>;
    /// Caption of a sample's label for people, e.g. `90 degrees about axis 0`.
    fn caption(&self, drawn: &Drawn) -> String;
    /// Adds the task's own parameters under `vs` and returns the network above the encoder.
    fn head(&self, vs: &nn::Path, encoder: &dyn Encoder) -> Result<Box<dyn Head>>;
    /// Metrics of [`Outcome::metrics`], in order; the first one selects the best checkpoint (higher is better).
    fn metrics(&self) -> Vec<MetricInfo>;
}

/// A batch on the network's device.
pub struct Batch {
    /// `[B, V, C, D, H, W]`, for images `[B, V, C, H, W]`, float.
    pub views: Tensor,
    /// `[B, targets]`, int64.
    pub targets: Tensor,
}

/// What a forward pass gives.
pub struct Outcome {
    /// Scalar to minimise, with gradient.
    pub loss: Tensor,
    /// Per metric of [`Task::metrics`] a scalar on the device: the mean over this batch, without gradient.
    pub metrics: Vec<Tensor>,
}

/// A task's network above the encoder, with its loss.
pub trait Head {
    fn forward(&self, encoder: &dyn Encoder, batch: &Batch, train: bool) -> Outcome;
}

/// Cross-entropy in float32 and accuracy of logits `[N, classes]` against class ids `[N]`.
fn classify(logits: &Tensor, targets: &Tensor) -> Outcome {
    let logits = logits.to_kind(Kind::Float);
    let loss = logits.cross_entropy_for_logits(targets);
    let accuracy = tch::no_grad(|| logits.argmax(-1, false).eq_tensor(targets).to_kind(Kind::Float).mean(Kind::Float));
    Outcome { loss, metrics: vec![accuracy] }
}
