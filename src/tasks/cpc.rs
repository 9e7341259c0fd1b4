//! Contrastive predictive coding (Taleb et al. 2020, section 3.1; Oord et al. 2018): from the patches of the planes seen so far,
//! recognise the patch some planes further among all patches of the batch. InfoNCE loss.
//!
//! The reference encodes every patch many times, draws one negative for each positive and scores `sigmoid(mean(zhat * z))` with
//! binary cross-entropy. Here every patch is encoded once, and that one tensor of codes gives all positives and negatives.
//!
//! Batch normalisation in the encoder takes its statistics over all patches of a batch, so that with `--norm batch` the planes seen know a
//! little of those that are to be recognised. With `--norm instance` every patch is encoded by itself; nothing above the encoder normalises.
//!
//! Each patch is flipped and cropped to 7/8 of its side, then padded back with the channel's smallest value in the window.

use super::views::Grid;
use super::{Amounts, Batch, Drawn, Head, MetricInfo, Outcome, Task};
use crate::data::Scans;
use crate::dim::{Rank, Region, Shape, Sides, voxels};
use crate::ffi;
use crate::group;
use crate::nn::heads::{HeadKind, Pool, linear};
use crate::nn::{Encoder, Mode, NormKind, step};
use crate::rng::Rng;
use crate::sample::patch::{PatchGrid, draw_window};
use crate::transform::intensity::Stats;
use crate::transform::spatial::Orientation;
use anyhow::{Context, Result, ensure};
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use tch::nn::{Init, Module, init};
use tch::{Kind, Tensor, nn};

// No doc comments on configurations' types: clap would take them for the command's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Contrastive predictive coding (cpc)")]
pub struct CpcConfig {
    /// Half-overlapping patches a side, or along each axis [default: as many as keep a patch at 32 voxels or more, 3 to 4; images 16, with
    /// --norm instance 32, 3 to 7; 1 along an axis too short for 3, where another one is not]
    #[arg(id = "cpc-grid", long = "cpc-grid", value_name = "N")]
    pub grid: Option<Sides>,
    /// Planes from the last one seen to the first one predicted; 1 predicts neighbours that overlap what was seen
    #[arg(id = "cpc-first-step", long = "cpc-first-step", value_name = "PLANES", default_value_t = Self::default().first_step)]
    pub first_step: usize,
    /// Length of a patch's code
    #[arg(id = "cpc-code", long = "cpc-code", value_name = "N", default_value_t = Self::default().code)]
    pub code: usize,
}

impl Default for CpcConfig {
    fn default() -> Self {
        CpcConfig { grid: None, first_step: 2, code: 128 }
    }
}

/// Default patches along each axis: the paper's 4 (2D: 7), fewer where patches would become too small for the encoder's 16-fold pooling, of
/// which instance normalisation needs more than one voxel. What is predicted lies along the first axis, which always has 3.
pub fn default_grid(rank: Rank, window: Shape, norm: NormKind) -> Sides {
    let (most, side) = match (rank, norm) {
        (Rank::Two, NormKind::Batch) => (7, 16),
        (Rank::Two, NormKind::Instance) => (7, 32),
        (Rank::Three, _) => (4, 32),
    };
    let fitting = |a: usize| (3..=most).rev().find(|n| 2 * (window[a] / (n + 1)) >= side);
    let thin = if rank.axes().any(|a| fitting(a).is_some()) { 1 } else { 3 };
    let mut grid = [1; 3];
    rank.axes().for_each(|a| grid[a] = fitting(a).unwrap_or(if a == rank.axes().start { 3 } else { thin }));
    Sides::of(rank, grid)
}

/// Augmentation of one patch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PatchParams {
    /// First corner of the sub-crop in the patch, before the flip.
    crop: Shape,
    flip: [bool; 3],
    /// Where the flipped sub-crop lies in the view; the rest of the view is the window's smallest value in that channel.
    place: Shape,
}

/// Everything that is drawn for a sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    window: Region,
    /// Voxels along a patch's sides, between neighbouring patches' first corners, and along a sub-crop's sides.
    side: Sides,
    step: Sides,
    crop_side: Sides,
    /// In row-major order of the grid.
    patches: Vec<PatchParams>,
}

/// Contrastive predictive coding; views are the grid's patches in row-major order.
pub struct Cpc {
    window: Shape,
    channels: usize,
    grid: PatchGrid,
    /// Sides of the sub-crop: 7/8 of the patch's.
    crop: Shape,
    first_step: usize,
    code: usize,
}

impl Cpc {
    /// Errors if nothing is left to predict, or patches have no voxels.
    pub fn new(config: &CpcConfig, window: Shape, channels: usize, rank: Rank) -> Result<Self> {
        let given = config.grid.clone().unwrap_or_else(|| default_grid(rank, window, NormKind::Batch));
        let n = given.shape("cpc-grid", rank)?;
        let CpcConfig { first_step, code, .. } = *config;
        let planes = n[rank.axes().start];
        ensure!(first_step >= 1, "cpc: the first step must be at least 1 plane, found {first_step}");
        ensure!(planes > first_step, "cpc: with {planes} patches a side, no patch lies {first_step} planes after another one");
        ensure!(code >= 1, "cpc: a code needs at least 1 number");
        let grid = PatchGrid::overlapping(rank, window, n).context("cpc")?;
        let mut crop = [1; 3];
        rank.axes().for_each(|a| crop[a] = grid.side[a] * 7 / 8);
        Ok(Cpc { window, channels, grid, crop, first_step, code })
    }

    fn draw(&self, scans: &dyn Scans, scan: usize, rng: &mut Rng) -> Result<Params> {
        let PatchGrid { rank, side, step, .. } = self.grid;
        let [patch_side, step, crop_side] = [side, step, self.crop].map(|sides| Sides::of(rank, sides));
        let window = draw_window(scans, scan, rank, self.window, rng)?;
        let patches = (0..self.grid.count())
            .map(|_| {
                let mut drawn = PatchParams { crop: [0; 3], flip: [false; 3], place: [0; 3] };
                for a in rank.axes() {
                    drawn.flip[a] = rng.random_bool(0.5);
                    drawn.crop[a] = rng.random_range(0..=side[a] - self.crop[a]);
                    drawn.place[a] = rng.random_range(0..=side[a] - self.crop[a]);
                }
                drawn
            })
            .collect();
        Ok(Params { window, side: patch_side, step, crop_side, patches })
    }

    fn render(&self, scans: &dyn Scans, scan: usize, params: &Params, out: &mut [f32]) -> Result<()> {
        let (window, view) = (params.window.size, self.view_shape());
        let sample = self.views() * self.channels * voxels(view);
        ensure!(out.len() == sample, "cpc: a sample has {sample} values, found room for {}", out.len());
        // Patches overlap, so the window is read once and they are cut from memory.
        let mut source = vec![0f32; self.channels * voxels(window)];
        scans.read(scan, params.window, Orientation::IDENTITY, &mut source)?;
        // Around a sub-crop is background, whatever the normalisation: 0 may be the brain's mean.
        let fill: Vec<f32> = source.chunks_exact(voxels(window)).map(|channel| Stats::of(channel).min).collect();
        let views = out.chunks_exact_mut(self.channels * voxels(view));
        for ((patch, out), cell) in params.patches.iter().zip(views).zip(0..) {
            let corner = self.grid.region(cell).start;
            let start: Shape = std::array::from_fn(|a| corner[a] + patch.crop[a]);
            let channels = source.chunks_exact(voxels(window)).zip(out.chunks_exact_mut(voxels(view)));
            for ((source, out), &fill) in channels.zip(&fill) {
                out.fill(fill);
                copy_box(source, window, start, self.crop, patch.flip, out, view, patch.place);
            }
        }
        Ok(())
    }

    fn network(&self, vs: &nn::Path, encoder: &dyn Encoder) -> Result<CpcHead> {
        let pool = Pool::new(HeadKind::Gap, encoder, self.view_shape())?;
        let (n, code) = (self.grid.n, self.code as i64);
        // Codes spread by one cell a layer in the plane: n - 1 layers take them from corner to corner.
        let longest = n.into_iter().max().unwrap_or(1);
        let context = (1..longest).map(|i| CausalConv::new(vs / format!("context{i}"), self.grid.rank, code)).collect();
        // The method has no temperature. Predictions this small start the loss near its chance level all the same.
        let small = Init::Randn { mean: 0., stdev: 1. / self.code as f64 };
        let predict = (self.first_step..n[self.grid.rank.axes().start])
            .map(|l| vs.var(&format!("predict{l}"), &[code, code], small))
            .collect();
        let project = linear(vs / "code", pool.features, code);
        Ok(CpcHead { pool, project, context, predict, first_step: self.first_step, grid: self.grid })
    }
}

/// Copies a box of `size` at `start` of one channel, reversed along the flipped axes, to `place` in another channel.
#[allow(clippy::too_many_arguments)]
fn copy_box(
    source: &[f32],
    shape: Shape,
    start: Shape,
    size: Shape,
    flip: [bool; 3],
    out: &mut [f32],
    out_shape: Shape,
    place: Shape,
) {
    let from = |a: usize, x: usize| start[a] + if flip[a] { size[a] - 1 - x } else { x };
    for x0 in 0..size[0] {
        for x1 in 0..size[1] {
            let i = (from(0, x0) * shape[1] + from(1, x1)) * shape[2] + start[2];
            let o = ((place[0] + x0) * out_shape[1] + place[1] + x1) * out_shape[2] + place[2];
            let (source, out) = (&source[i..i + size[2]], &mut out[o..o + size[2]]);
            match flip[2] {
                true => out.iter_mut().zip(source.iter().rev()).for_each(|(o, s)| *o = *s),
                false => out.copy_from_slice(source),
            }
        }
    }
}

impl Task for Cpc {
    fn name(&self) -> &'static str {
        "cpc"
    }

    fn views(&self) -> usize {
        self.grid.count()
    }

    fn view_shape(&self) -> Shape {
        self.grid.side
    }

    fn grid(&self) -> Option<Grid> {
        let PatchGrid { rank, n, .. } = self.grid;
        let window_for = Box::new(move |patch: Shape| {
            let mut window = [1; 3];
            rank.axes().for_each(|a| window[a] = (n[a] + 1) * patch[a].div_ceil(2));
            window
        });
        Some(Grid { window: self.window, window_for })
    }

    fn targets(&self) -> usize {
        0
    }

    fn sample(&self, scans: &dyn Scans, scan: usize, rng: &mut Rng, out: &mut [f32]) -> Result<Drawn> {
        let params = self.draw(scans, scan, rng)?;
        self.render(scans, scan, &params, out)?;
        Ok(Drawn { targets: Vec::new(), params: serde_json::to_value(params).context("recording a sample")? })
    }

    fn caption(&self, _: &Drawn) -> String {
        let PatchGrid { rank, n, side, step } = self.grid;
        let times = |x: Shape| x[rank.axes()].iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        let step = Sides::of(rank, step);
        format!("{} patches of {} voxels, one every {step}, each flipped, cropped and padded", times(n), times(side))
    }

    fn head(&self, vs: &nn::Path, encoder: &dyn Encoder) -> Result<Box<dyn Head>> {
        Ok(Box::new(self.network(vs, encoder)?))
    }

    fn amounts(&self) -> Amounts {
        Amounts { batch: 4, draws: 1, epochs: 10 }
    }

    fn metrics(&self) -> Vec<MetricInfo> {
        vec![
            // Share of predictions whose own patch scores highest among all of the batch.
            MetricInfo { name: "accuracy", chance: None },
            // One over the number of candidates: it depends on the batch size.
            MetricInfo { name: "chance", chance: None },
            // The same among the patches of the own scan only: recognising the scan does not help.
            MetricInfo { name: "accuracy_within_scan", chance: Some(1. / self.views() as f64) },
        ]
    }
}

/// Convolution over the code grid, kernel 3, which sees the same and the two earlier planes along the first axis.
struct CausalConv {
    weight: Tensor,
    bias: Tensor,
    rank: Rank,
}

impl CausalConv {
    fn new(vs: nn::Path, rank: Rank, code: i64) -> Self {
        let mut dims = vec![code, code];
        dims.extend(vec![3; rank.n()]);
        CausalConv {
            weight: vs.var("weight", &dims, init::DEFAULT_KAIMING_NORMAL),
            bias: vs.var("bias", &[code], Init::Const(0.)),
            rank,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        match self.rank {
            Rank::Two => x.constant_pad_nd([1, 1, 2, 0]).conv2d(&self.weight, Some(&self.bias), 1, 0, 1, 1),
            Rank::Three => x.constant_pad_nd([1, 1, 1, 1, 2, 0]).conv3d(&self.weight, Some(&self.bias), 1, 0, 1, 1),
        }
    }
}

struct CpcHead {
    pool: Pool,
    project: nn::Linear,
    /// The context network: residual, and without normalisation, whose statistics would look ahead.
    context: Vec<CausalConv>,
    /// `W_l` of step `first_step + index`.
    predict: Vec<Tensor>,
    first_step: usize,
    grid: PatchGrid,
}

impl CpcHead {
    /// Codes `[B, n, n(, n), code]`; every patch passes the encoder once.
    fn codes(&self, encoder: &dyn Encoder, views: &Tensor, mode: Mode) -> Tensor {
        let features = self.pool.forward(&encoder.encode_views(views, mode));
        let mut sizes = vec![views.size()[0]];
        sizes.extend(self.grid.rank.axes().map(|a| self.grid.n[a] as i64));
        sizes.push(-1);
        ffi::without_autocast(views.device(), || self.project.forward(&features.to_kind(Kind::Float)).view(sizes.as_slice()))
    }

    /// Contexts `[B, n, n(, n), code]`: the one at plane `i` depends on all codes of the planes up to `i`, and on no other.
    fn contexts(&self, codes: &Tensor) -> Tensor {
        let first = codes.movedim_int(-1, 1);
        self.context.iter().fold(first, |x, layer| &x + layer.forward(&x.relu())).movedim_int(1, -1)
    }
}

impl Head for CpcHead {
    fn forward(&self, encoder: &dyn Encoder, batch: &Batch, mode: Mode) -> Outcome {
        let codes = self.codes(encoder, &batch.views, mode);
        // Bfloat16's 8 bits would blur the scores that the loss compares.
        ffi::without_autocast(batch.views.device(), || {
            let contexts = self.contexts(&codes);
            let (scores, own) = scores(&codes, &contexts, &self.predict, self.first_step);
            let samples = codes.size()[0];
            let loss = step::mean(scores.cross_entropy_for_logits(&own), samples);
            let metrics = tch::no_grad(|| {
                let hits = |scores: &Tensor| {
                    let hits = scores.argmax(-1, false).eq_tensor(&own).to_kind(Kind::Float).mean(Kind::Float);
                    step::mean(hits, samples)
                };
                let (candidates, patches) = (scores.size()[1], self.grid.count() as i64);
                let scan = |ids: &Tensor| ids.divide_scalar_mode(patches, "floor");
                let other = scan(&own).unsqueeze(1).ne_tensor(&scan(&Tensor::arange(candidates, (Kind::Int64, own.device()))));
                let chance = scores.new_full([], 1. / candidates as f64, (Kind::Float, scores.device()));
                vec![hits(&scores), chance, hits(&scores.masked_fill(&other, f64::NEG_INFINITY))]
            });
            Outcome { loss, metrics }
        })
    }
}

/// Scores `[M, N]` of every prediction against every code of the step, by one matrix product, and each prediction's own code,
/// `[M]`. Codes and contexts are `[B, n, n(, n), code]`, of all ranks flattened to `N` candidates, `n^rank` a sample; `M` predictions
/// run over the steps `l`, and for each over all `(b, i, j, k)` with `i + l < n`.
fn scores(codes: &Tensor, contexts: &Tensor, predict: &[Tensor], first_step: usize) -> (Tensor, Tensor) {
    let (sizes, code) = (codes.size(), codes.size()[codes.dim() - 1]);
    let (all, first) = (group::gather(codes), group::rows(sizes[0]).1.start);
    let grid = &all.size()[..sizes.len() - 1];
    let ids = Tensor::arange(grid.iter().product::<i64>(), (Kind::Int64, codes.device())).view(grid).narrow(0, first, sizes[0]);
    let (mut predictions, mut own) = (Vec::new(), Vec::new());
    for (map, l) in predict.iter().zip(first_step as i64..) {
        let planes = sizes[1] - l;
        predictions.push(contexts.narrow(1, 0, planes).reshape([-1, code]).matmul(&map.tr()));
        own.push(ids.narrow(1, l, planes).flatten(0, -1));
    }
    (Tensor::cat(&predictions, 0).matmul(&all.reshape([-1, code]).tr()), Tensor::cat(&own, 0))
}

#[cfg(test)]
mod tests;
