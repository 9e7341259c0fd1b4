//! Exemplar (Taleb et al. 2020, section 3.5; Dosovitskiy et al. 2014): a scan lies closer to a transformed copy of itself than to
//! another scan of the training set. Triplet loss on the L2 distance of embeddings.
//!
//! The reference embeds the three views with three unshared layers, whose biases alone can satisfy it, and compares sigmoids
//! by mean squared distance, which never reaches its margin of 1. Here one head embeds all views on the unit sphere, where
//! distances reach 2.

use super::{Batch, Drawn, Head, MetricInfo, Outcome, Task};
use crate::data::Scans;
use crate::dim::{Rank, Region, Shape, voxels};
use crate::ffi;
use crate::nn::Encoder;
use crate::nn::blocks::Norm;
use crate::nn::heads::{HeadKind, Pool, linear};
use crate::patch::draw_window;
use crate::rng::Rng;
use crate::transform::intensity::{self, Intensity, Stats};
use crate::transform::resample::{self, Interpolation, Resample};
use crate::transform::spatial::Orientation;
use anyhow::{Context, Result, ensure};
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use tch::nn::Module;
use tch::{Kind, Tensor, nn};

/// The paper's transforms.
const SPATIAL: resample::Ranges = resample::Ranges { flip: 0.5, right_angle: 0.5, degrees: 180., zoom: [0.8, 1.2] };
const INTENSITY: intensity::Ranges = intensity::Ranges { contrast: [0.5, 1.5], shift: 0.125 };
/// Added to squared distances: the root's gradient at 0 is infinite.
const EPS: f64 = 1e-12;

// No doc comments on configurations' types: clap would take them for the command's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Exemplar (exe)")]
pub struct ExemplarConfig {
    /// How much farther the other scan must lie than the transformed copy; distances are 0 to 2
    #[arg(id = "exe-margin", long = "exe-margin", value_name = "DISTANCE", default_value_t = Self::default().margin)]
    pub margin: f64,
    /// Length of an embedding
    #[arg(id = "exe-embedding", long = "exe-embedding", value_name = "N", default_value_t = Self::default().embedding)]
    pub embedding: usize,
}

impl Default for ExemplarConfig {
    fn default() -> Self {
        ExemplarConfig { margin: 0.5, embedding: 128 }
    }
}

/// Everything that is drawn for a sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    /// The anchor's window; the positive is its transformed copy.
    window: Region,
    spatial: Resample,
    intensity: Intensity,
    /// Index of the negative's scan, and its window.
    negative: usize,
    negative_id: String,
    negative_window: Region,
}

/// Exemplar; views are anchor, positive, negative.
pub struct Exemplar {
    rank: Rank,
    window: usize,
    channels: usize,
    config: ExemplarConfig,
}

impl Exemplar {
    /// Errors if the margin cannot be met.
    pub fn new(config: &ExemplarConfig, window: usize, channels: usize, rank: Rank) -> Result<Self> {
        ensure!(
            config.margin > 0. && config.margin < 2.,
            "exe: the margin must lie between 0 and 2, the largest distance of two embeddings, found {}",
            config.margin
        );
        ensure!(config.embedding >= 2, "exe: an embedding needs at least 2 numbers, found {}", config.embedding);
        Ok(Exemplar { rank, window, channels, config: config.clone() })
    }

    fn draw(&self, scans: &dyn Scans, scan: usize, rng: &mut Rng) -> Result<Params> {
        ensure!(
            scans.len() > 1,
            "exe: the negative is another scan, but {} is the only one: at least 2 are needed",
            scans.id(scan)
        );
        let window = draw_window(scans, scan, self.rank, self.window, rng)?;
        let spatial = SPATIAL.draw(self.rank, rng);
        let intensity = INTENSITY.draw(rng);
        let other = rng.random_range(0..scans.len() - 1);
        let negative = other + usize::from(other >= scan);
        let negative_window = draw_window(scans, negative, self.rank, self.window, rng)?;
        Ok(Params { window, spatial, intensity, negative, negative_id: scans.id(negative).into(), negative_window })
    }

    fn render(&self, scans: &dyn Scans, scan: usize, params: &Params, out: &mut [f32]) -> Result<()> {
        let shape = self.view_shape();
        let view = self.channels * voxels(shape);
        ensure!(out.len() == 3 * view, "exe: a sample has {} values, found room for {}", 3 * view, out.len());
        let (anchor, rest) = out.split_at_mut(view);
        let (positive, negative) = rest.split_at_mut(view);
        scans.read(scan, params.window, Orientation::IDENTITY, anchor)?;
        scans.read(params.negative, params.negative_window, Orientation::IDENTITY, negative)?;
        // What the rotation and the zoom bring in is background: the channel's smallest value, whatever the normalisation.
        let stats: Vec<Stats> = anchor.chunks_exact(voxels(shape)).map(Stats::of).collect();
        let fill: Vec<f32> = stats.iter().map(|s| s.min).collect();
        params.spatial.apply(anchor, shape, Interpolation::Linear, &fill, positive)?;
        for (channel, stats) in positive.chunks_exact_mut(voxels(shape)).zip(stats) {
            params.intensity.apply(stats, channel);
        }
        Ok(())
    }
}

impl Task for Exemplar {
    fn name(&self) -> &'static str {
        "exe"
    }

    fn views(&self) -> usize {
        3
    }

    fn view_shape(&self) -> Shape {
        self.rank.cube(self.window)
    }

    fn targets(&self) -> usize {
        0
    }

    fn sample(&self, scans: &dyn Scans, scan: usize, rng: &mut Rng, out: &mut [f32]) -> Result<Drawn> {
        let params = self.draw(scans, scan, rng)?;
        self.render(scans, scan, &params, out)?;
        Ok(Drawn { targets: Vec::new(), params: serde_json::to_value(params).context("recording a sample")? })
    }

    fn caption(&self, drawn: &Drawn) -> String {
        let Ok(Params { spatial, intensity, negative_id, .. }) = serde_json::from_value(drawn.params.clone()) else {
            return "anchor, positive, negative".into();
        };
        format!(
            "anchor, positive (flip {:?}, {:.0} degrees about axis {}, zoom {:.2?}, contrast {:.2}, shift {:+.3}), negative {negative_id}",
            spatial.flip.map(u8::from),
            spatial.degrees,
            spatial.axis,
            spatial.zoom,
            intensity.contrast,
            intensity.shift
        )
    }

    fn head(&self, vs: &nn::Path, encoder: &dyn Encoder) -> Result<Box<dyn Head>> {
        let pool = Pool::new(HeadKind::Gap, encoder, self.view_shape()).context("exe")?;
        Ok(Box::new(ExemplarHead {
            hidden: linear(vs / "hidden", pool.features, pool.features),
            norm: Norm::new(vs / "norm", pool.features),
            output: linear(vs / "output", pool.features, self.config.embedding as i64),
            pool,
            margin: self.config.margin,
        }))
    }

    fn metrics(&self) -> Vec<MetricInfo> {
        vec![
            // Share of the triplets with the positive closer than the negative.
            MetricInfo { name: "triplet_accuracy", chance: Some(0.5) },
            // Mean distance of the batch's untransformed views: near 0, the embeddings have collapsed.
            MetricInfo { name: "mean_distance", chance: None },
        ]
    }
}

/// The one projection head for all three views.
struct ExemplarHead {
    pool: Pool,
    hidden: nn::Linear,
    norm: Norm,
    output: nn::Linear,
    margin: f64,
}

impl ExemplarHead {
    /// Unit vectors `[B, 3, E]`.
    fn embed(&self, encoder: &dyn Encoder, views: &Tensor, train: bool) -> Tensor {
        let features = self.pool.forward(&encoder.encode_views(views, train));
        ffi::without_autocast(views.device(), || {
            let hidden = self.hidden.forward(&features.to_kind(Kind::Float)).relu();
            let x = self.output.forward(&self.norm.forward(&hidden, train)).unflatten(0, [-1, 3]);
            let length = (x.square().sum_dim_intlist(-1, true, Kind::Float) + EPS).sqrt();
            x / length
        })
    }
}

impl Head for ExemplarHead {
    fn forward(&self, encoder: &dyn Encoder, batch: &Batch, train: bool) -> Outcome {
        let x = self.embed(encoder, &batch.views, train);
        let (near, far) = triplet_distances(&x);
        let loss = (&near - &far + self.margin).relu().mean(Kind::Float);
        let metrics = tch::no_grad(|| {
            let right = near.lt_tensor(&far).to_kind(Kind::Float).mean(Kind::Float);
            // Anchors and negatives; their pairwise distances, upper triangle.
            let scans = Tensor::cat(&[x.select(1, 0), x.select(1, 2)], 0);
            vec![right, scans.pdist(2.).mean(Kind::Float)]
        });
        Outcome { loss, metrics }
    }
}

/// L2 distances anchor-positive and anchor-negative, `[B]` each, of embeddings `[B, 3, E]`.
fn triplet_distances(x: &Tensor) -> (Tensor, Tensor) {
    let distance = |view| {
        let difference = x.select(1, 0) - x.select(1, view);
        (difference.square().sum_dim_intlist(-1, false, Kind::Float) + EPS).sqrt()
    };
    (distance(1), distance(2))
}
