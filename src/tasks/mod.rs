//! Pretext tasks: what a sample is, and what the network must predict from it. A task knows no files and no training loop;
//! the training loop knows only [`Task`] and [`Head`].

use crate::data::Scans;
use crate::dim::Shape;
use crate::nn::Encoder;
use crate::rng::Rng;
use anyhow::Result;
use tch::{Tensor, nn};

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
