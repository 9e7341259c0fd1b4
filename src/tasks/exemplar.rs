//! Exemplar (Taleb et al. 2020, section 3.5; Dosovitskiy et al. 2014): a scan lies closer to a transformed copy of itself than to
//! another scan of the training set. Triplet loss on the L2 distance of embeddings.
//!
//! The reference embeds the three views with three unshared layers, whose biases alone can satisfy it, and compares sigmoids
//! by mean squared distance, which never reaches its margin of 1. Here one head embeds all views on the unit sphere, where
//! distances reach 2.

use super::{Amounts, Batch, Drawn, Head, MetricInfo, Outcome, Task};
use crate::data::Scans;
use crate::dim::{Rank, Region, Shape, voxels};
use crate::ffi;
use crate::group;
use crate::nn::heads::{EPS, HeadKind, Pool, linear, unit_vectors};
use crate::nn::norm::{Norm, NormKind};
use crate::nn::{Encoder, Mode, step};
use crate::rng::Rng;
use crate::sample::patch::draw_window;
use crate::sample::turned::resampled;
use crate::transform::intensity::{self, IntensityChange, Stats};
use crate::transform::resample::{self, Resample};
use crate::transform::spatial::Orientation;
use anyhow::{Context, Result, ensure};
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use tch::nn::Module;
use tch::{Kind, Tensor, nn};

/// The paper's transforms.
const SPATIAL: resample::ResampleRanges =
    resample::ResampleRanges { flip: 0.5, right_angle: 0.5, degrees: 180., zoom: [0.8, 1.2] };
const INTENSITY: intensity::IntensityRanges = intensity::IntensityRanges { contrast: [0.5, 1.5], shift: 0.125 };

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
    intensity: IntensityChange,
    /// Index of the negative's scan, and its window.
    negative: usize,
    negative_id: String,
    negative_window: Region,
}

/// Exemplar; views are anchor, positive, negative.
pub struct Exemplar {
    rank: Rank,
    window: Shape,
    channels: usize,
    config: ExemplarConfig,
}

impl Exemplar {
    /// Errors if the margin cannot be met.
    pub fn new(config: &ExemplarConfig, window: Shape, channels: usize, rank: Rank) -> Result<Self> {
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
        let spatial = SPATIAL.draw(self.rank, self.window, rng);
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
        // What the rotation and the zoom bring in is the scan, beyond its ends background, whatever the normalisation.
        resampled(scans, scan, params.window, &params.spatial, positive, None)?;
        for (channel, anchor) in positive.chunks_exact_mut(voxels(shape)).zip(anchor.chunks_exact(voxels(shape))) {
            params.intensity.apply(Stats::of(anchor), channel);
        }
        Ok(())
    }

    fn network(&self, vs: &nn::Path, encoder: &dyn Encoder) -> Result<ExemplarHead> {
        let pool = Pool::new(HeadKind::Gap, encoder, self.view_shape())?;
        Ok(ExemplarHead {
            hidden: linear(vs / "hidden", pool.features, pool.features),
            norm: Norm::new(vs / "norm", NormKind::Batch, pool.features),
            output: linear(vs / "output", pool.features, self.config.embedding as i64),
            pool,
            margin: self.config.margin,
        })
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
        self.window
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
        Ok(Box::new(self.network(vs, encoder)?))
    }

    /// The anchor's and the negative's.
    fn min_scans(&self) -> usize {
        2
    }

    fn amounts(&self) -> Amounts {
        Amounts { batch: 4, draws: 1, epochs: 15 }
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
    fn embed(&self, encoder: &dyn Encoder, views: &Tensor, mode: Mode) -> Tensor {
        let features = self.pool.forward(&encoder.encode_views(views, mode));
        ffi::without_autocast(views.device(), || {
            let hidden = self.hidden.forward(&features.to_kind(Kind::Float)).relu();
            unit_vectors(&self.output.forward(&self.norm.forward(&hidden, mode.trains_head()))).unflatten(0, [-1, 3])
        })
    }
}

impl Head for ExemplarHead {
    fn forward(&self, encoder: &dyn Encoder, batch: &Batch, mode: Mode) -> Outcome {
        let x = self.embed(encoder, &batch.views, mode);
        let (near, far) = triplet_distances(&x);
        let rows = x.size()[0];
        let loss = step::mean((&near - &far + self.margin).relu().mean(Kind::Float), rows);
        let metrics = tch::no_grad(|| {
            let right = step::mean(near.lt_tensor(&far).to_kind(Kind::Float).mean(Kind::Float), rows);
            // Anchors and negatives; their pairwise distances, upper triangle.
            let x = group::gather(&x);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Arrays;
    use crate::rng::{Stream, rng};
    use crate::tasks::tests::{batch, check, encoder, scans};
    use crate::tasks::{TaskConfigs, TaskKind};
    use tch::Device;

    #[test]
    fn head_runs_forward_and_backward() {
        check(TaskKind::Exe, &TaskConfigs::default(), 20);
    }

    #[test]
    fn loss_and_metrics_as_written_out() {
        let (rank, size) = (Rank::Three, 4);
        let task = Exemplar::new(&ExemplarConfig { margin: 0.3, embedding: 6 }, [8; 3], 2, rank).unwrap();
        let vs = nn::VarStore::new(Device::Cpu);
        let encoder = encoder(&vs, rank);
        let head = task.network(&vs.root(), &encoder).unwrap();
        let (batch, _) = batch(&task, &scans([9, 8, 10]), rank, size);
        let x = tch::no_grad(|| head.embed(&encoder, &batch.views, Mode::Eval));
        let x: Vec<Vec<Vec<f64>>> = (0..size as i64)
            .map(|b| (0..3).map(|v| Vec::try_from(x.get(b).get(v).to_kind(Kind::Double)).unwrap()).collect())
            .collect();
        let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
        let (mut loss, mut right) = (0., 0.);
        for views in &x {
            assert!(views.iter().all(|v| (distance(v, &[0.; 6]) - 1.).abs() < 1e-5), "embeddings are unit vectors");
            let (near, far) = (distance(&views[0], &views[1]), distance(&views[0], &views[2]));
            loss += f64::max(0., near - far + 0.3) / size as f64;
            right += f64::from(near < far) / size as f64;
        }
        let originals: Vec<&Vec<f64>> = x.iter().flat_map(|v| [&v[0], &v[2]]).collect();
        let mut pairs = Vec::new();
        for (i, a) in originals.iter().enumerate() {
            pairs.extend(originals[..i].iter().map(|b| distance(a, b)));
        }
        let spread = pairs.iter().sum::<f64>() / pairs.len() as f64;
        let outcome = head.forward(&encoder, &batch, Mode::Eval);
        let found = [&outcome.loss, &outcome.metrics[0], &outcome.metrics[1]].map(|t| f64::try_from(t).unwrap());
        for (found, expected) in found.iter().zip([loss, right, spread]) {
            assert!((found - expected).abs() < 1e-4, "{found:?}: expected {expected}");
        }
        assert!(loss > 0. && spread > 0.);
    }

    #[test]
    fn identical_views_have_a_finite_gradient() {
        let x = Tensor::ones([2, 3, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let (near, far) = triplet_distances(&x);
        (near - far + 0.5).relu().mean(Kind::Float).backward();
        assert!(bool::try_from(x.grad().isfinite().all()).unwrap());
    }

    #[test]
    fn samples_replay_from_their_record() {
        let scans = scans([11, 9, 10]);
        let task = Exemplar::new(&ExemplarConfig::default(), [8; 3], 2, Rank::Three).unwrap();
        let mut negatives = std::collections::BTreeSet::new();
        for seed in 0..40 {
            let (mut out, mut again) = (vec![f32::NAN; 3 * 2 * 512], vec![f32::NAN; 3 * 2 * 512]);
            let drawn = task.sample(&scans, 1, &mut rng(seed, Stream::Train, 0, 0), &mut out).unwrap();
            let record: Params = serde_json::from_str(&drawn.params.to_string()).unwrap();
            task.render(&scans, 1, &record, &mut again).unwrap();
            assert_eq!(out, again);
            negatives.insert(record.negative);
            // The anchor and the negative are the scans themselves.
            let (a, n) = (record.window.start, record.negative_window.start);
            assert_eq!(out[0], scans.images[1][[0, a[0], a[1], a[2]]]);
            assert_eq!(out[2 * 2 * 512], scans.images[record.negative][[0, n[0], n[1], n[2]]]);
        }
        assert_eq!(Vec::from_iter(negatives), [0, 2], "negatives are all scans but the anchor's");
    }

    #[test]
    fn refuses_one_scan_and_a_margin_out_of_reach() {
        let mut one = scans([8; 3]);
        one.images.truncate(1);
        one.ids = vec!["lonely".into()];
        let one: Arrays = one;
        let task = Exemplar::new(&ExemplarConfig::default(), [8; 3], 2, Rank::Three).unwrap();
        let mut out = vec![0.; 3 * 2 * 512];
        let error = task.sample(&one, 0, &mut rng(0, Stream::Train, 0, 0), &mut out).err().unwrap();
        assert!(error.to_string().contains("lonely"), "{error}");
        let far = ExemplarConfig { margin: 2., ..Default::default() };
        assert!(Exemplar::new(&far, [8; 3], 2, Rank::Three).err().unwrap().to_string().contains("found 2"));
    }
}
