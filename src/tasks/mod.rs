//! Pretext and downstream tasks: what a sample is, and what the network must predict from it. A task knows no files and no training loop;
//! the training loop knows only [`Task`], [`Head`] and [`Downstream`].

pub mod class_weights;
pub mod classification;
pub mod cpc;
pub mod exemplar;
pub mod genesis;
pub mod jigsaw;
pub mod mae;
pub mod regression;
pub mod restoration;
pub mod rotation;
pub mod rpl;
pub mod segmentation;
pub mod simclr;
pub mod vf;
pub mod views;
pub mod whole;

use crate::data::Scans;
use crate::dim::{Rank, Shape, voxels};
use crate::group::work::each;
use crate::nn::{Encoder, EncoderConfig, Mode, step};
use crate::print::note;
use crate::rng::Rng;
use crate::sample::patch::JitteredGrid;
use crate::sample::size;
use anyhow::{Context, Result};
use clap::ValueEnum;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::ops::Range;
use tch::{Device, Kind, Tensor, nn};

/// The pretext tasks, by their short names.
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
    /// Masked autoencoding
    #[value(alias = "masked-autoencoding")]
    #[serde(alias = "masked-autoencoding")]
    Mae,
    /// Models Genesis
    #[value(alias = "models-genesis")]
    #[serde(alias = "models-genesis")]
    Gen,
    /// VolumeFusion
    #[value(alias = "volume-fusion")]
    #[serde(alias = "volume-fusion")]
    Vf,
    /// SimCLR: contrast of two crops with those of other scans
    Simclr,
}

impl std::str::FromStr for TaskKind {
    type Err = anyhow::Error;
    /// Short and long names.
    fn from_str(name: &str) -> Result<Self> {
        <Self as clap::ValueEnum>::from_str(name, true).ok().with_context(|| {
            format!(
                "unknown task {name:?}, expected {}",
                Self::value_variants().iter().map(|task| task.name()).collect::<Vec<_>>().join(", ")
            )
        })
    }
}

impl TaskKind {
    /// Short name.
    pub fn name(self) -> String {
        self.to_possible_value().expect("no task is skipped").get_name().to_owned()
    }

    /// Whether the head is a decoder, so that the window must be a multiple of what the encoder pools by.
    pub fn decodes(self) -> bool {
        matches!(self, TaskKind::Mae | TaskKind::Gen | TaskKind::Vf)
    }
}

/// Short names joined by `-`, as runs are called.
pub fn joined_names(tasks: &[TaskKind]) -> String {
    tasks.iter().map(|task| task.name()).collect::<Vec<_>>().join("-")
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
    #[command(flatten)]
    pub mae: mae::MaeConfig,
    #[command(flatten)]
    pub r#gen: genesis::GenesisConfig,
    #[command(flatten)]
    pub vf: vf::VfConfig,
    #[command(flatten)]
    pub simclr: simclr::SimclrConfig,
}

/// The window unless the user names one: as [`size::planned`] has it, of rotation with similar sides made equal; and where a decoder stands
/// above the encoder, what is left of it for the first of these that takes a multiple of what it pools by.
pub fn default_window(
    tasks: &[TaskKind],
    scans: &dyn Scans,
    rank: Rank,
    encoders: impl IntoIterator<Item = Result<EncoderConfig>>,
) -> Result<Shape> {
    let mut window = size::planned(scans, rank);
    if tasks.contains(&TaskKind::Rot) {
        window = size::evened(rank, window);
    }
    if tasks.iter().any(|task| task.decodes()) {
        let mut asked = None;
        for encoder in encoders {
            let encoder = encoder?;
            let fitting = encoder.reduction().whole(window);
            if !fitting.contains(&0) && encoder.fits(fitting) {
                return Ok(fitting);
            }
            asked.get_or_insert(encoder);
        }
        // The levels are no choice: an axis that is shorter than what the encoder pools by is padded to that.
        let padded = asked.map(|encoder| (encoder.reduction().whole_or_one(window), encoder));
        if let Some((padded, _)) = padded.filter(|(padded, encoder)| encoder.fits(*padded)) {
            return Ok(padded);
        }
    }
    Ok(window)
}

/// Builds a task for samples cut from windows of this shape. `seed` fixes what is drawn once a run (the jigsaw's
/// permutations). Errors if the task's geometry does not fit the window.
pub fn build(
    kind: TaskKind,
    configs: &TaskConfigs,
    window: Shape,
    channels: usize,
    rank: Rank,
    seed: u64,
) -> Result<Box<dyn Task>> {
    Ok(match kind {
        TaskKind::Rot => Box::new(rotation::Rotation::new(&configs.rot, window, rank)?),
        TaskKind::Rpl => Box::new(rpl::Rpl::new(&configs.rpl, window, channels, rank)?),
        TaskKind::Jig => Box::new(jigsaw::Jigsaw::new(&configs.jig, window, channels, rank, seed)?),
        TaskKind::Cpc => Box::new(cpc::Cpc::new(&configs.cpc, window, channels, rank)?),
        TaskKind::Exe => Box::new(exemplar::Exemplar::new(&configs.exe, window, channels, rank)?),
        TaskKind::Mae => Box::new(mae::Mae::new(&configs.mae, window, rank)?),
        TaskKind::Gen => Box::new(genesis::Genesis::new(&configs.r#gen, window, rank)?),
        TaskKind::Simclr => Box::new(simclr::Simclr::new(&configs.simclr, window, channels, rank)?),
        TaskKind::Vf => Box::new(vf::VolumeFusion::new(&configs.vf, window, rank)?),
    })
}

/// What a drawn sample is labelled with, beside its views.
pub struct Drawn {
    /// Class ids, [`Task::targets`] of them (none for contrastive tasks); of a regression a number.
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

/// How much a task trains on by default. Tuned so that about 50 scans of 64^3 take less than five minutes on two cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amounts {
    /// Samples a batch.
    pub batch: u64,
    /// Samples drawn from each scan in an epoch.
    pub draws: u64,
    pub epochs: u64,
}

/// One pretext task, built for windows of a given shape, so that its geometry is checked before anything is read.
pub trait Task: Send + Sync {
    /// Short name, as [`TaskKind`] has it.
    fn name(&self) -> &'static str;
    /// Views (patches, rotated copies) in a sample.
    fn views(&self) -> usize {
        1
    }
    /// Views after these that are what the network shall give, not what it sees: they stay float32 in every precision.
    fn clean_views(&self) -> usize {
        0
    }
    /// Shape of each view.
    fn view_shape(&self) -> Shape;
    /// The grid whose patches the views are; `None`: they are no patches.
    fn grid(&self) -> Option<views::Grid> {
        None
    }
    /// Class ids a sample carries.
    fn targets(&self) -> usize;
    /// Number of classes, where the targets are a class for each voxel of a view.
    fn voxel_classes(&self) -> Option<usize> {
        None
    }
    /// Voxels of a view that a sample hides from the network, `[D, H, W]`, to be shown as such.
    fn hidden(&self, _drawn: &Drawn) -> Option<Vec<bool>> {
        None
    }
    /// Whether a sample may come from a scan that [`MirrorZoom`](crate::sample::mirror_zoom::MirrorZoom) has changed.
    fn allows_mirror_zoom(&self) -> bool {
        false
    }
    /// Draws a sample of the scan and writes its views into `out`, the clean ones last: `[V, C, D, H, W]`, row-major.
    fn sample(&self, scans: &dyn Scans, scan: usize, rng: &mut Rng, out: &mut [f32]) -> Result<Drawn>;
    /// Caption of a sample's label for people, e.g. `90 degrees about axis 0`.
    fn caption(&self, drawn: &Drawn) -> String;
    /// Adds the task's own parameters under `vs` and returns the network above the encoder.
    fn head(&self, vs: &nn::Path, encoder: &dyn Encoder) -> Result<Box<dyn Head>>;
    /// Smallest batch. Batch normalisation makes one sample that is a single vector equal to any other.
    fn min_batch(&self) -> u64 {
        2
    }
    /// Metric that selects the best checkpoint.
    fn selects(&self) -> &'static str {
        self.metrics()[0].name
    }
    /// Whether the best value of that metric is its lowest.
    fn lower_is_better(&self) -> bool {
        false
    }
    /// Whether a pretraining's last checkpoint is its best one: where the metric says little of the encoder, which goes on learning.
    fn last_is_best(&self) -> bool {
        false
    }
    /// Scans that sampling needs, on either side of the split.
    fn min_scans(&self) -> usize {
        1
    }
    /// Amounts that the task trains with unless the user says otherwise.
    fn amounts(&self) -> Amounts;
    /// Metrics of [`Outcome::metrics`], in order.
    fn metrics(&self) -> Vec<MetricInfo>;
}

/// Values of a sample's views, the clean ones included, in one volume of [`Task::sample`].
pub fn sample_length(task: &dyn Task, channels: usize) -> usize {
    (task.views() + task.clean_views()) * channels * voxels(task.view_shape())
}

/// The views and the clean views of whole samples in a row, apart.
pub fn split_clean<'a>(task: &dyn Task, channels: usize, samples: &'a [f32]) -> [Cow<'a, [f32]>; 2] {
    if task.clean_views() == 0 {
        return [samples.into(), Cow::default()];
    }
    let (length, seen) = (sample_length(task, channels), task.views() * channels * voxels(task.view_shape()));
    let part = |of: Range<usize>| samples.chunks_exact(length).map(|sample| &sample[of.clone()]).collect::<Vec<_>>().concat();
    [part(0..seen), part(seen..length)].map(Cow::from)
}

/// A batch on the network's device.
pub struct Batch {
    /// `[B, V, C, D, H, W]`, for images `[B, V, C, H, W]`, float.
    pub views: Tensor,
    /// The clean views, float32, of the same extent; `None` where the task has none.
    pub clean: Option<Tensor>,
    /// `[B, targets]`, int64.
    pub targets: Tensor,
}

/// Samples in a row as a batch on the CPU; `bf16`: with its views in bfloat16.
pub fn batch(task: &dyn Task, rank: Rank, channels: usize, samples: &[f32], targets: &[i64], bf16: bool) -> Batch {
    let size = (samples.len() / sample_length(task, channels)) as i64;
    let shape = task.view_shape();
    let tensor = |values: &[u8], views: usize, kind: Kind| {
        let mut dims = vec![size, views as i64, channels as i64];
        dims.extend(rank.axes().map(|a| shape[a] as i64));
        Tensor::from_data_size(values, &dims, kind)
    };
    let [views, clean] = split_clean(task, channels, samples);
    let [seen, wanted] = [task.views(), task.clean_views()];
    Batch {
        views: if bf16 {
            let mut rounded = vec![half::bf16::ZERO; views.len()];
            rounded.convert_from_f32_slice(&views);
            tensor(bytemuck::cast_slice(&rounded), seen, Kind::BFloat16)
        } else {
            tensor(bytemuck::cast_slice(&views), seen, Kind::Float)
        },
        clean: (wanted > 0).then(|| tensor(bytemuck::cast_slice(&clean), wanted, Kind::Float)),
        targets: Tensor::from_slice(targets).view([size, task.targets() as i64]),
    }
}

impl Batch {
    /// Targets that are one for each voxel, `[B, D, H, W]`, for images `[B, H, W]`.
    fn class_map(&self) -> Tensor {
        let mut dims = self.views.size();
        dims.drain(1..3);
        self.targets.reshape(&dims)
    }
}

/// What a forward pass gives.
pub struct Outcome {
    /// Scalar to minimise, with gradient: of the whole step, whose samples several ranks may share.
    pub loss: Tensor,
    /// Per metric of [`Task::metrics`] a scalar on the device: the mean over the step, without gradient.
    pub metrics: Vec<Tensor>,
}

/// What a network makes of a sample, for people.
pub struct Picture {
    /// Of each channel, or one for all.
    pub captions: Vec<String>,
    /// `[C, D, H, W]` for each channel of the input, or `[1, D, H, W]`.
    pub image: Vec<f32>,
    /// What is black and what is white; `None`: as the input.
    pub window: Option<[f32; 2]>,
}

impl Picture {
    /// Of `[1, C, ...]`.
    fn new(captions: Vec<String>, image: &Tensor, window: Option<[f32; 2]>) -> Self {
        let values = image.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().flatten(0, -1);
        Picture { captions, image: Vec::try_from(values).expect("floats on the CPU"), window }
    }
}

/// A task's network above the encoder, with its loss.
pub trait Head {
    /// Of a batch of one sample, in evaluation, what it predicts, then pictures to compare it by; none where that is no picture.
    fn pictures(&self, _encoder: &dyn Encoder, _batch: &Batch) -> Vec<Picture> {
        vec![]
    }
    fn forward(&self, encoder: &dyn Encoder, batch: &Batch, mode: Mode) -> Outcome;
    /// The head of a downstream task, which validation judges on whole scans instead of drawn samples.
    fn downstream(&self) -> Option<&dyn Downstream> {
        None
    }
}

/// A head that is trained for its predictions.
pub trait Downstream: Head {
    /// Logits (float32) of inputs `[B, C, ...]`, in evaluation.
    fn logits(&self, encoder: &dyn Encoder, x: &Tensor) -> Tensor;
    /// Metrics over whole scans, by name, the first being [`Task::selects`]; NaN where one is undefined. `None` if `stop` said so.
    /// `place` lays out an input of the network, `[B, C, ...]` on `device`, as it computes fastest.
    fn judge(
        &self,
        encoder: &dyn Encoder,
        scans: &dyn Scans,
        device: Device,
        place: &dyn Fn(&Tensor) -> Result<()>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<(String, f64)>>>;
}

/// The numbers that `judge` gives for each scan, shared out between the ranks; `None` if `stop` said so.
fn each_scan(
    scans: &dyn Scans,
    stop: &dyn Fn() -> bool,
    judge: impl Fn(usize) -> Result<Vec<f64>>,
) -> Result<Option<Vec<Vec<f64>>>> {
    each(scans.len(), stop, |scan| judge(scan).with_context(|| format!("validating on {}", scans.id(scan))))
}

/// The check that a grid task does not live on matching edges turns the gap off; nobody should by accident.
fn warn_of_touching_patches(task: &str, grid: &JitteredGrid) {
    if grid.touches() {
        note!("warning: --{task}-jitter 0: neighbouring patches touch, so that matching their edges solves the task");
    }
}

/// Accuracy over this many equally likely classes.
fn accuracy(classes: usize) -> MetricInfo {
    MetricInfo { name: "accuracy", chance: Some(1. / classes as f64) }
}

/// Cross-entropy in float32 and accuracy of logits `[N, classes]` against class ids `[N]`.
fn classify(logits: &Tensor, targets: &Tensor) -> Outcome {
    let logits = logits.to_kind(Kind::Float);
    let rows = targets.size()[0];
    let loss = step::mean(logits.cross_entropy_for_logits(targets), rows);
    let accuracy = tch::no_grad(|| {
        let right = logits.argmax(-1, false).eq_tensor(targets).to_kind(Kind::Float).mean(Kind::Float);
        step::mean(right, rows)
    });
    Outcome { loss, metrics: vec![accuracy] }
}

#[cfg(test)]
pub(crate) mod tests;
