//! SimCLR (Chen et al. 2020, arXiv 2002.05709): of two crops of a scan, each changed at random, one is recognised among the crops of all
//! other scans of the batch by the other. NT-Xent loss on unit vectors.
//!
//! The vectors come from the deepest map's average alone, as what classification reads; who wants every level of the pyramid trained
//! takes a task with a decoder beside it (`--task simclr,mae`). Two samples of one scan in a batch are not each other's negatives.

use super::{Amounts, Batch, Drawn, Head, MetricInfo, Outcome, Task};
use crate::data::Scans;
use crate::dim::{Rank, Region, Shape, Sides, voxels};
use crate::ffi;
use crate::group;
use crate::nn::heads::{HeadKind, Pool, linear, unit_vectors};
use crate::nn::norm::{Norm, NormKind};
use crate::nn::{Encoder, Mode, step};
use crate::rng::Rng;
use crate::sample::patch::draw_window;
use crate::sample::turned::augmented;
use crate::transform::augment::{AugmentConfig, Augmentation, Augmenter, Interval};
use crate::transform::resample::ResampleRanges;
use anyhow::{Context, Result, ensure};
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use tch::nn::Module;
use tch::{Kind, Tensor, nn, no_grad};

/// Voxels of a crop above which a batch is half as large unless the user says otherwise, for the sake of memory.
const LARGE: usize = 64 * 64 * 64;

// No doc comments on configurations' types: clap would take them for the command's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "SimCLR (simclr)")]
pub struct SimclrConfig {
    /// Side in voxels of the two crops, or one along each axis; they overlap by half of it or more along every axis [default: three quarters
    /// of the window]
    #[arg(id = "simclr-crop", long = "simclr-crop", value_name = "VOXELS")]
    pub crop: Option<Sides>,
    /// What similarities, -1 to 1, are divided by; lower numbers weigh the most similar other crops more
    #[arg(id = "simclr-temperature", long = "simclr-temperature", value_name = "T", default_value_t = Self::default().temperature)]
    pub temperature: f64,
    /// Probability of a mirror image of each crop along each axis, by itself; what cannot tell left from right is of no help where labels do
    #[arg(id = "simclr-flip", long = "simclr-flip", value_name = "P", default_value_t = Self::default().flip)]
    pub flip: f64,
    /// Probability of each artefact of magnetic resonance in each crop, as fine-tuning has them (--aug-mr). For MR only
    #[arg(id = "simclr-mr", long = "simclr-mr", value_name = "P", default_value_t = Self::default().mr)]
    pub mr: f64,
    /// Length of an embedding
    #[arg(id = "simclr-embedding", long = "simclr-embedding", value_name = "N", default_value_t = Self::default().embedding)]
    pub embedding: usize,
}

impl Default for SimclrConfig {
    fn default() -> Self {
        SimclrConfig { crop: None, temperature: 0.5, flip: 0., mr: 0., embedding: 128 }
    }
}

/// Turns in degrees and magnification of a crop. Turned by any angle, and with intensities changed in most crops, scans that are much
/// alike were not told apart within hundreds of steps.
const SPATIAL: ResampleRanges = ResampleRanges { flip: 0., right_angle: 0., degrees: 30., zoom: [0.8, 1.2] };

/// Changes of intensity, for each channel by itself: colours tell the crops of a scan from those of another as little as possible.
fn strong(mr: f64) -> AugmentConfig {
    AugmentConfig {
        // Every crop is turned and scaled.
        flip: 0.,
        spatial: 0.,
        brightness_p: 0.3,
        brightness: 0.2,
        contrast_p: 0.3,
        contrast: Interval([0.5, 1.5]),
        gamma_p: 0.3,
        gamma: Interval([0.5, 2.]),
        noise_p: 0.3,
        noise: 0.1,
        mr,
        ..Default::default()
    }
}

/// One of the two views.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Crop {
    /// In the scan.
    region: Region,
    augmentation: Augmentation,
}

/// Everything that is drawn for a sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    window: Region,
    crops: [Crop; 2],
}

/// SimCLR; the views are the two crops, the target is the scan's index.
pub struct Simclr {
    rank: Rank,
    window: Shape,
    channels: usize,
    crop: Shape,
    config: SimclrConfig,
    augment: Augmenter,
}

impl Simclr {
    /// Errors if a crop is larger than the window, or a setting out of range.
    pub fn new(config: &SimclrConfig, window: Shape, channels: usize, rank: Rank) -> Result<Self> {
        let SimclrConfig { temperature, flip, mr, embedding, .. } = *config;
        let mut crop = [1; 3];
        rank.axes().for_each(|a| crop[a] = window[a] * 3 / 4);
        if let Some(given) = &config.crop {
            crop = given.shape("simclr-crop", rank)?;
        }
        let [longest, found] = [window, crop].map(|shape| Sides::of(rank, shape));
        ensure!(
            (0..3).all(|a| (1..=window[a]).contains(&crop[a])),
            "simclr: --simclr-crop must be 1 to {longest}, the window's side, found {found} voxels"
        );
        ensure!((0.01..=10.).contains(&temperature), "simclr: --simclr-temperature must be 0.01 to 10, found {temperature}");
        ensure!((0. ..=1.).contains(&flip), "simclr: --simclr-flip is a probability, 0 to 1, found {flip}");
        ensure!((0. ..=1.).contains(&mr), "simclr: --simclr-mr is a probability, 0 to 1, found {mr}");
        ensure!(embedding >= 2, "simclr: an embedding needs at least 2 numbers, found {embedding}");
        Ok(Simclr { rank, window, channels, crop, config: config.clone(), augment: strong(mr).augmenter(rank, None, &[])? })
    }

    fn draw(&self, scans: &dyn Scans, scan: usize, rng: &mut Rng) -> Result<Params> {
        let window = draw_window(scans, scan, self.rank, self.window, rng)?;
        let mut starts = [window.start; 2];
        for a in self.rank.axes() {
            let (room, apart) = (self.window[a] - self.crop[a], self.crop[a] / 2);
            let first = rng.random_range(0..=room);
            let second = rng.random_range(first.saturating_sub(apart)..=room.min(first + apart));
            starts[0][a] += first;
            starts[1][a] += second;
        }
        let crops = starts.map(|start| {
            let spatial = ResampleRanges { flip: self.config.flip, ..SPATIAL }.draw(self.rank, self.crop, rng);
            let augmentation = Augmentation { spatial, ..self.augment.draw(self.channels, self.crop, rng) };
            Crop { region: Region { start, size: self.view_shape() }, augmentation }
        });
        Ok(Params { window, crops })
    }

    fn render(&self, scans: &dyn Scans, scan: usize, params: &Params, out: &mut [f32]) -> Result<()> {
        let view = self.channels * voxels(self.view_shape());
        ensure!(out.len() == 2 * view, "simclr: a sample has {} values, found room for {}", 2 * view, out.len());
        for (crop, out) in params.crops.iter().zip(out.chunks_exact_mut(view)) {
            augmented(scans, scan, crop.region, &crop.augmentation, out, None)?;
        }
        Ok(())
    }

    fn network(&self, vs: &nn::Path, encoder: &dyn Encoder) -> Result<SimclrHead> {
        let pool = Pool::new(HeadKind::Gap, encoder, self.view_shape())?;
        Ok(SimclrHead {
            hidden: linear(vs / "hidden", pool.features, pool.features),
            norm: Norm::new(vs / "norm", NormKind::Batch, pool.features),
            output: linear(vs / "output", pool.features, self.config.embedding as i64),
            output_norm: Norm::new(vs / "output_norm", NormKind::Batch, self.config.embedding as i64),
            pool,
            temperature: self.config.temperature,
        })
    }
}

impl Task for Simclr {
    fn name(&self) -> &'static str {
        "simclr"
    }

    fn views(&self) -> usize {
        2
    }

    fn view_shape(&self) -> Shape {
        self.crop
    }

    /// The scan's index, by which crops of the same scan are known.
    fn targets(&self) -> usize {
        1
    }

    fn sample(&self, scans: &dyn Scans, scan: usize, rng: &mut Rng, out: &mut [f32]) -> Result<Drawn> {
        let params = self.draw(scans, scan, rng)?;
        self.render(scans, scan, &params, out)?;
        Ok(Drawn { targets: vec![scan as i64], params: serde_json::to_value(params).context("recording a sample")? })
    }

    fn caption(&self, drawn: &Drawn) -> String {
        let Ok(Params { crops, .. }) = serde_json::from_value(drawn.params.clone()) else {
            return "two crops".into();
        };
        let [a, b] = crops.map(|crop| crop.augmentation.spatial.degrees);
        format!("two crops of {} voxels, turned by {a:.0} and {b:.0} degrees", Sides::of(self.rank, self.crop))
    }

    fn head(&self, vs: &nn::Path, encoder: &dyn Encoder) -> Result<Box<dyn Head>> {
        Ok(Box::new(self.network(vs, encoder)?))
    }

    /// How well crops are found again depends on the batch, and says little of what the features are worth.
    fn last_is_best(&self) -> bool {
        true
    }

    /// A crop and those that it is not.
    fn min_scans(&self) -> usize {
        2
    }

    /// The more scans, the harder it is to tell them apart.
    fn amounts(&self) -> Amounts {
        let batch = match self.rank {
            Rank::Two => 32,
            Rank::Three if voxels(self.view_shape()) > LARGE => 8,
            Rank::Three => 16,
        };
        Amounts { batch, draws: 4, epochs: 15 }
    }

    fn metrics(&self) -> Vec<MetricInfo> {
        vec![
            // Share of the crops whose partner is the most similar one of the candidates.
            MetricInfo { name: "accuracy", chance: None },
            // One over the number of candidates: it depends on the batch.
            MetricInfo { name: "chance", chance: None },
            // Mean cosine of partners, and of crops of different scans: with both near 1, the embeddings have collapsed.
            MetricInfo { name: "similarity", chance: None },
            MetricInfo { name: "similarity_of_others", chance: None },
        ]
    }
}

/// The one projection head for all crops.
struct SimclrHead {
    pool: Pool,
    hidden: nn::Linear,
    norm: Norm,
    output: nn::Linear,
    /// As the authors have it: around the batch's mean no two vectors are alike from the start.
    output_norm: Norm,
    temperature: f64,
}

impl SimclrHead {
    /// Unit vectors `[2 B, E]`, the two of a sample one after the other, float32.
    fn embed(&self, encoder: &dyn Encoder, views: &Tensor, mode: Mode) -> Tensor {
        let features = self.pool.forward(&encoder.encode_views(views, mode));
        ffi::without_autocast(views.device(), || {
            let train = mode.trains_head();
            let hidden = self.norm.forward(&self.hidden.forward(&features.to_kind(Kind::Float)), train).relu();
            unit_vectors(&self.output_norm.forward(&self.output.forward(&hidden), train))
        })
    }
}

impl Head for SimclrHead {
    fn forward(&self, encoder: &dyn Encoder, batch: &Batch, mode: Mode) -> Outcome {
        let x = self.embed(encoder, &batch.views, mode);
        // Bfloat16's 8 bits would blur the similarities that the loss compares.
        ffi::without_autocast(x.device(), || nt_xent(&x, &batch.targets.flatten(0, -1), self.temperature))
    }
}

/// Cross-entropy, scaled by the temperature, of finding each crop's partner among the crops of other scans, and what
/// [`Simclr::metrics`] names. `x`: unit vectors `[2 B, E]`, partners one after the other; `scans`: `[B]`, of each sample.
fn nt_xent(x: &Tensor, scans: &Tensor, temperature: f64) -> Outcome {
    // A row for each crop of this rank, a column for each of all ranks.
    let (rows, scans) = (x.size()[0], scans.repeat_interleave_self_int(2, 0, None));
    let (all, all_scans, first) = (group::gather(x), group::gather(&scans), group::rows(rows).1.start);
    let ids = Tensor::arange(all.size()[0], (Kind::Int64, x.device()));
    // 0 and 1, 2 and 3, ...
    let partner = ids.bitwise_xor(1).narrow(0, first, rows);
    let own = partner.unsqueeze(1).eq_tensor(&ids);
    let other = scans.unsqueeze(1).ne_tensor(&all_scans);
    let cosine = x.matmul(&all.tr());
    let scores = (&cosine / temperature).masked_fill(&own.logical_or(&other).logical_not(), f64::NEG_INFINITY);
    let loss = step::mean(scores.cross_entropy_for_logits(&partner), rows);
    let metrics = no_grad(|| {
        let mean = |x: &Tensor| step::mean(x.to_kind(Kind::Float).mean(Kind::Float), rows);
        let others = other.to_kind(Kind::Float);
        let chance = (others.sum_dim_intlist(1, false, Kind::Float) + 1.).reciprocal();
        let [apart, pairs] = step::sums([(&cosine * &others).sum(Kind::Float), others.sum(Kind::Float)]);
        let together = step::mean((&cosine * own.to_kind(Kind::Float)).sum(Kind::Float) / rows as f64, rows);
        let right = mean(&scores.argmax(1, false).eq_tensor(&partner));
        vec![right, mean(&chance), together, apart / pairs.clamp_min(1.)]
    });
    Outcome { loss, metrics }
}

#[cfg(test)]
mod tests;
