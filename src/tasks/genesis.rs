//! Models Genesis (Zhou et al. 2019 and 2021, arXiv 1908.06912 and 2004.07882): a window is spoilt in its intensities, its texture and its
//! content, and the U-Net gives back what it was.
//!
//! As the authors' code, with their probabilities: a Bezier curve for the intensities, shuffled voxels in small boxes, then boxes painted
//! over with noise or, more often, all but some boxes. The curve needs intensities from 0 to 1, which z-scores are not: it runs over the
//! range of the window's channel. The number of shuffled boxes follows the window, and nothing is mirrored unless asked for.

use super::restoration::{self, Restorer, relative_error};
use super::{Amounts, Batch, Drawn, Head, MetricInfo, Outcome, Picture, Task};
use crate::data::Scans;
use crate::dim::{Rank, Region, Shape, Sides, voxels};
use crate::nn::{Encoder, Mode};
use crate::rng::Rng;
use crate::sample::patch::{draw_box, draw_window};
use crate::transform::intensity::Stats;
use crate::transform::spatial::Orientation;
use anyhow::{Context, Result, ensure};
use rand::seq::SliceRandom;
use rand::{Rng as _, SeedableRng};
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use tch::{nn, no_grad};

/// Longest side of a box that is shuffled, as a share of the window's.
const SHUFFLED: f64 = 0.1;
/// Voxels of all shuffled boxes, overlaps counted, per voxel of the window: those of 10 000 boxes in 64 x 64 x 32.
const SHUFFLED_VOXELS: f64 = 1.8;
/// Boxes that are painted over, or left.
const BOXES: RangeInclusive<usize> = 1..=5;
/// Their sides, as shares of the window's.
const PAINTED: [f64; 2] = [1. / 6., 1. / 3.];
const LEFT: [f64; 2] = [3. / 7., 4. / 7.];
/// Places at which a curve is computed; between them it is straight.
const KNOTS: usize = 256;

// No doc comments on configurations' types: clap would take them for the command's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Models Genesis (gen)")]
pub struct GenesisConfig {
    /// Probability that a channel's intensities go through a Bezier curve, half of the time a falling one
    #[arg(id = "gen-curve", long = "gen-curve", value_name = "P", default_value_t = Self::default().curve)]
    pub curve: f64,
    /// Probability that voxels are shuffled in small boxes
    #[arg(id = "gen-shuffle", long = "gen-shuffle", value_name = "P", default_value_t = Self::default().shuffle)]
    pub shuffle: f64,
    /// Probability that parts are painted over with noise
    #[arg(id = "gen-paint", long = "gen-paint", value_name = "P", default_value_t = Self::default().paint)]
    pub paint: f64,
    /// Share of the paintings that leave some boxes and paint over the rest; the others paint over some boxes
    #[arg(id = "gen-outer", long = "gen-outer", value_name = "SHARE", default_value_t = Self::default().outer)]
    pub outer: f64,
    /// Probability of a mirror image along each axis, of input and target alike
    #[arg(id = "gen-flip", long = "gen-flip", value_name = "P", default_value_t = Self::default().flip)]
    pub flip: f64,
}

impl Default for GenesisConfig {
    fn default() -> Self {
        GenesisConfig { curve: 0.9, shuffle: 0.5, paint: 0.9, outer: 0.8, flip: 0. }
    }
}

/// A cubic Bezier curve from (0, 0) to (1, 1), or reversed from (0, 1) to (1, 0), by its two inner control points. With those in the unit
/// square it rises, or falls, all the way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Curve {
    points: [[f32; 2]; 2],
    reversed: bool,
}

impl Curve {
    fn draw(rng: &mut Rng) -> Self {
        Curve { points: rng.random(), reversed: rng.random_bool(0.5) }
    }

    /// Its values at `KNOTS + 1` even places from 0 to 1.
    fn table(&self) -> Vec<f32> {
        let at = |axis: usize, t: f64| {
            let [p, q] = self.points.map(|point| f64::from(point[axis]));
            let s = 1. - t;
            3. * s * s * t * p + 3. * s * t * t * q + t * t * t
        };
        // Much finer than the table, in rising order of x.
        let steps = 8 * KNOTS;
        let mut i = 0;
        let place = |i: usize| i as f64 / steps as f64;
        (0..=KNOTS)
            .map(|knot| {
                let x = knot as f64 / KNOTS as f64;
                while i + 1 < steps && at(0, place(i + 1)) < x {
                    i += 1;
                }
                let [from, to] = [i, i + 1].map(|i| [at(0, place(i)), at(1, place(i))]);
                let share = if to[0] > from[0] { ((x - from[0]) / (to[0] - from[0])).clamp(0., 1.) } else { 0. };
                let y = from[1] + share * (to[1] - from[1]);
                (if self.reversed { 1. - y } else { y }) as f32
            })
            .collect()
    }

    /// Maps a channel with this range in place; the range stays.
    fn apply(&self, stats: Stats, channel: &mut [f32]) {
        let (table, range) = (self.table(), stats.max - stats.min);
        if range <= 0. {
            return;
        }
        let scale = KNOTS as f32 / range;
        channel.iter_mut().for_each(|v| {
            let x = ((*v - stats.min) * scale).clamp(0., KNOTS as f32);
            let knot = (x as usize).min(KNOTS - 1);
            let y = table[knot] + (x - knot as f32) * (table[knot + 1] - table[knot]);
            *v = stats.min + range * y;
        });
    }
}

/// Uniform noise over each channel's range, in the boxes or everywhere else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Painting {
    /// Whether what lies outside of the boxes is painted over.
    outer: bool,
    boxes: Vec<Region>,
    seed: u64,
}

/// Everything that is drawn for a sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    window: Region,
    flip: [bool; 3],
    /// Of each channel.
    curves: Vec<Option<Curve>>,
    /// Seed of boxes and permutations.
    shuffle: Option<u64>,
    painting: Option<Painting>,
}

pub struct Genesis {
    config: GenesisConfig,
    rank: Rank,
    window: Shape,
}

impl Genesis {
    pub fn new(config: &GenesisConfig, window: Shape, rank: Rank) -> Result<Self> {
        let GenesisConfig { curve, shuffle, paint, outer, flip } = *config;
        for (name, p) in [("curve", curve), ("shuffle", shuffle), ("paint", paint), ("outer", outer), ("flip", flip)] {
            ensure!((0. ..=1.).contains(&p), "--gen-{name} must lie in 0 to 1, found {p}");
        }
        ensure!(
            curve > 0. || shuffle > 0. || paint > 0.,
            "gen: nothing spoils the input; raise --gen-curve, --gen-shuffle or --gen-paint"
        );
        let named = Sides::of(rank, window);
        let enough = rank.axes().all(|a| window[a] >= 8);
        ensure!(enough, "gen: a window of {named} voxels a side has no room for boxes, expected at least 8");
        Ok(Genesis { config: config.clone(), rank, window })
    }

    fn draw(&self, scans: &dyn Scans, scan: usize, rng: &mut Rng) -> Result<Params> {
        let window = draw_window(scans, scan, self.rank, self.window, rng)?;
        let mut flip = [false; 3];
        self.rank.axes().for_each(|a| flip[a] = rng.random_bool(self.config.flip));
        let curves = (0..scans.channels()).map(|_| rng.random_bool(self.config.curve).then(|| Curve::draw(rng))).collect();
        let shuffle = rng.random_bool(self.config.shuffle).then(|| rng.random());
        let painting = rng.random_bool(self.config.paint).then(|| {
            let outer = rng.random_bool(self.config.outer);
            let sides = self.window.map(|side| {
                let [shortest, longest] =
                    if outer { LEFT } else { PAINTED }.map(|share| ((share * side as f64) as usize).max(1));
                shortest..=longest
            });
            let boxes = (0..rng.random_range(BOXES)).map(|_| draw_box(self.rank, self.window, &sides, rng)).collect();
            Painting { outer, boxes, seed: rng.random() }
        });
        Ok(Params { window, flip, curves, shuffle, painting })
    }

    /// Spoils `input`, `[C, D, H, W]`, which holds the window as it is.
    fn spoil(&self, params: &Params, input: &mut [f32]) {
        let n = voxels(self.view_shape());
        let stats: Vec<Stats> = input.chunks_exact(n).map(Stats::of).collect();
        if let Some(seed) = params.shuffle {
            self.shuffle(seed, input);
        }
        for ((channel, curve), stats) in input.chunks_exact_mut(n).zip(&params.curves).zip(&stats) {
            if let Some(curve) = curve {
                curve.apply(*stats, channel);
            }
        }
        if let Some(Painting { outer, boxes, seed }) = &params.painting {
            let mut painted = vec![*outer; n];
            boxes.iter().flat_map(|region| region.rows(self.view_shape())).for_each(|row| painted[row].fill(!outer));
            let mut rng = Rng::seed_from_u64(*seed);
            for (channel, stats) in input.chunks_exact_mut(n).zip(&stats) {
                for (v, _) in channel.iter_mut().zip(&painted).filter(|(_, painted)| **painted) {
                    *v = stats.min + (stats.max - stats.min) * rng.random::<f32>();
                }
            }
        }
    }

    /// Exchanges the voxels of many small boxes, in every channel alike. Where boxes overlap, the later one's stay; each takes its voxels
    /// from the window as it was.
    fn shuffle(&self, seed: u64, input: &mut [f32]) {
        let (shape, before, mut rng) = (self.view_shape(), input.to_vec(), Rng::seed_from_u64(seed));
        let longest = shape.map(|side| ((SHUFFLED * side as f64) as usize).max(2));
        let mean: f64 = self.rank.axes().map(|a| (1 + longest[a]) as f64 / 2.).product();
        let sides = longest.map(|longest| 1..=longest);
        let count = (SHUFFLED_VOXELS * voxels(shape) as f64 / mean).round() as usize;
        let (mut places, mut from) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let region = draw_box(self.rank, shape, &sides, &mut rng);
            places.clear();
            region.rows(shape).for_each(|row| places.extend(row));
            from.clone_from(&places);
            from.shuffle(&mut rng);
            for (after, before) in input.chunks_exact_mut(voxels(shape)).zip(before.chunks_exact(voxels(shape))) {
                places.iter().zip(&from).for_each(|(&to, &from)| after[to] = before[from]);
            }
        }
    }

    fn network(&self, vs: &nn::Path, encoder: &dyn Encoder) -> Result<GenesisHead> {
        Ok(GenesisHead { restorer: Restorer::new(vs, encoder, self.view_shape())? })
    }
}

impl Task for Genesis {
    fn name(&self) -> &'static str {
        "gen"
    }

    /// The window as it was.
    fn clean_views(&self) -> usize {
        1
    }

    fn view_shape(&self) -> Shape {
        self.window
    }

    fn targets(&self) -> usize {
        0
    }

    fn sample(&self, scans: &dyn Scans, scan: usize, rng: &mut Rng, out: &mut [f32]) -> Result<Drawn> {
        let params = self.draw(scans, scan, rng)?;
        let (input, clean) = out.split_at_mut(scans.channels() * voxels(self.view_shape()));
        scans.read(scan, params.window, Orientation { flip: params.flip, ..Orientation::IDENTITY }, clean)?;
        input.copy_from_slice(clean);
        self.spoil(&params, input);
        Ok(Drawn { targets: Vec::new(), params: serde_json::to_value(params).context("recording a sample")? })
    }

    fn caption(&self, drawn: &Drawn) -> String {
        let Ok(Params { curves, shuffle, painting, .. }) = serde_json::from_value(drawn.params.clone()) else {
            return "spoilt".into();
        };
        let mut what = Vec::new();
        what.extend(curves.iter().any(Option::is_some).then(|| "intensities curved".to_owned()));
        what.extend(shuffle.map(|_| "voxels shuffled".to_owned()));
        what.extend(painting.map(|Painting { outer, boxes, .. }| {
            let n = boxes.len();
            if outer { format!("all but {n} boxes painted over") } else { format!("{n} boxes painted over") }
        }));
        if what.is_empty() { "as it was".into() } else { what.join(", ") }
    }

    fn head(&self, vs: &nn::Path, encoder: &dyn Encoder) -> Result<Box<dyn Head>> {
        Ok(Box::new(self.network(vs, encoder)?))
    }

    fn min_batch(&self) -> u64 {
        1
    }

    fn lower_is_better(&self) -> bool {
        true
    }

    fn last_is_best(&self) -> bool {
        true
    }

    fn amounts(&self) -> Amounts {
        Amounts { batch: 2, draws: 2, epochs: 10 }
    }

    fn metrics(&self) -> Vec<MetricInfo> {
        vec![
            MetricInfo { name: "relative_error", chance: Some(1.) },
            // As a share of the input's own error: 1 for a network that gives its input again.
            MetricInfo { name: "error_against_input", chance: Some(1.) },
        ]
    }
}

struct GenesisHead {
    restorer: Restorer,
}

impl Head for GenesisHead {
    fn pictures(&self, encoder: &dyn Encoder, batch: &Batch) -> Vec<Picture> {
        let restored = self.restorer.forward(encoder, &restoration::inputs(batch), Mode::Eval);
        vec![restoration::picture(&restored, &restoration::targets(batch), None, "")]
    }

    fn forward(&self, encoder: &dyn Encoder, batch: &Batch, mode: Mode) -> Outcome {
        let input = restoration::inputs(batch);
        let restored = self.restorer.forward(encoder, &input, mode);
        restoration::in_float32(batch, || {
            let clean = restoration::targets(batch);
            let loss = relative_error(&restored, &clean, None);
            let against_input = no_grad(|| restoration::share(&restored, &input, &clean, None));
            let metrics = vec![loss.detach(), against_input];
            Outcome { loss, metrics }
        })
    }
}

#[cfg(test)]
mod tests;
