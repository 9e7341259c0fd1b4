//! Artefacts of magnetic resonance: what scanners, patients and reconstruction do to an image. Parameters and effect as in TorchIO
//! (Pérez-García et al. 2021, arXiv 2003.04696) and, of Gibbs ringing, MONAI. Each changes one channel, `[D, H, W]`; an image has `D = 1`.

mod blur;
mod kspace;

use super::resample::{Affine, FLAT, others};
use crate::dim::{Rank, Shape, voxels};
use crate::rng::Rng;
use rand::Rng as _;
use serde::{Deserialize, Serialize};

/// The artefacts, in the order in which they are applied: that in which they arise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum MrKind {
    /// Slow change of brightness, as of a receive coil
    BiasField,
    /// Two movements of the patient while the scan is taken
    Motion,
    /// Copies along an axis, as of breathing and pulse
    Ghosting,
    /// Ripples at edges, of a k-space that ends too early
    Gibbs,
    /// Thick slices along an axis
    LowResolution,
    /// Gaussian, of another width along each axis
    Blur,
}

/// Largest order of the bias field's polynomial, and largest coefficient, either way (`RandomBiasField`; Sudre et al. 2017).
const ORDER: usize = 3;
const COEFFICIENT: f32 = 0.5;
/// Movements, largest angle in degrees and translation in voxels, either way, and by how much of the time between two of them each is
/// early or late (`RandomMotion`; Shaw et al. 2019). TorchIO has mm, of whole heads: of small windows it is a share of the side.
const MOVEMENTS: usize = 2;
const DEGREES: f32 = 10.;
const TRANSLATION: f32 = 10.;
const TRANSLATION_SHARE: f32 = 0.125;
const UNEVEN: f32 = 0.3;
/// Copies, and share of their lines of k-space that is lost (`RandomGhosting`).
const GHOSTS: [usize; 2] = [4, 10];
const INTENSITY: [f32; 2] = [0.5, 1.];
/// MONAI's `alpha`: 0 cuts nothing. `RandGibbsNoise` draws up to 1, which leaves a blank image.
const ALPHA: [f32; 2] = [0.3, 0.7];
/// Thickness of slices in voxels (`RandomAnisotropy`).
const THICKNESS: [f32; 2] = [1.5, 5.];
/// Largest standard deviation in voxels along each axis (`RandomBlur`: in mm).
const SIGMA: f32 = 2.;

/// An artefact with its numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum MrChange {
    /// What exceeds the channel's minimum is multiplied by the exponential of a polynomial of order 3 in the three coordinates, which are -1
    /// to 1 from end to end. Its 20 coefficients as TorchIO orders them: of the powers `(i, j, k)`, `i + j + k <= 3`, the last one fastest.
    BiasField { coefficients: Vec<f32> },
    /// K-space along `axis`, from the lowest frequency to the highest, of the channel as it lies before, between and after the movements. The
    /// part with the centre is that of the channel as it is.
    Motion { axis: usize, movements: Vec<Movement> },
    /// Each `ghosts`-th plane of k-space along `axis`, from the lowest frequency on, is reduced by the share `intensity`; not the central one.
    Ghosting { axis: usize, ghosts: usize, intensity: f32 },
    /// K-space is 0 beyond a distance of `(1 - alpha) max(shape) / sqrt(2)` from its centre.
    Gibbs { alpha: f32 },
    /// Along `axis` every `thickness`-th voxel is kept, and the others are interpolated between these.
    LowResolution { axis: usize, thickness: f32 },
    /// Gaussian; standard deviations in voxels.
    Blur { sigma: [f32; 3] },
}

/// A patient's movement, about the centre.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Movement {
    /// When, as a share of the scan.
    time: f32,
    /// About the three axes: `R = R2 R0 R1`.
    degrees: [f32; 3],
    /// In voxels. What lies at `x` comes from `R x + translation`.
    translation: [f32; 3],
}

fn between([low, high]: [f32; 2], rng: &mut Rng) -> f32 {
    low + rng.random::<f32>() * (high - low)
}

fn either_way(most: f32, rng: &mut Rng) -> f32 {
    between([-most, most], rng)
}

impl MrKind {
    /// Draws the numbers for a channel of this shape.
    pub fn draw(self, rank: Rank, shape: Shape, rng: &mut Rng) -> MrChange {
        let axis = |rng: &mut Rng| rng.random_range(rank.axes());
        match self {
            MrKind::BiasField => MrChange::BiasField { coefficients: powers().map(|_| either_way(COEFFICIENT, rng)).collect() },
            MrKind::Motion => {
                let axis = axis(rng);
                let movements = (1..=MOVEMENTS).map(|i| Movement::draw(i, rank, shape, rng)).collect();
                MrChange::Motion { axis, movements }
            }
            MrKind::Ghosting => MrChange::Ghosting {
                axis: axis(rng),
                ghosts: rng.random_range(GHOSTS[0]..=GHOSTS[1]),
                intensity: between(INTENSITY, rng),
            },
            MrKind::Gibbs => MrChange::Gibbs { alpha: between(ALPHA, rng) },
            MrKind::LowResolution => MrChange::LowResolution { axis: axis(rng), thickness: between(THICKNESS, rng) },
            MrKind::Blur => {
                let mut sigma = [0.; 3];
                rank.axes().for_each(|a| sigma[a] = between([0., SIGMA], rng));
                MrChange::Blur { sigma }
            }
        }
    }
}

impl Movement {
    /// The `i`-th one.
    fn draw(i: usize, rank: Rank, shape: Shape, rng: &mut Rng) -> Movement {
        let mut drawn = Movement { time: 0., degrees: [0.; 3], translation: [0.; 3] };
        drawn.time = (i as f32 + either_way(UNEVEN, rng)) / (MOVEMENTS + 1) as f32;
        // Images turn in their plane; a plane of a thin window would mostly turn out of it.
        let turns = if rank == Rank::Three { 0..3 } else { 0..1 };
        for axis in turns {
            let angle = either_way(DEGREES, rng);
            let [b, c] = others(axis).map(|a| shape[a]);
            drawn.degrees[axis] = if b.max(c) <= FLAT * b.min(c) { angle } else { 0. };
        }
        for a in rank.axes() {
            drawn.translation[a] = either_way(TRANSLATION.min(TRANSLATION_SHARE * shape[a] as f32), rng);
        }
        drawn
    }

    fn affine(&self) -> Affine {
        let about = |axis: usize| {
            let (sin, cos) = f64::from(self.degrees[axis]).to_radians().sin_cos();
            let [b, c] = [[1, 2], [2, 0], [0, 1]][axis];
            let mut matrix = [[0.; 3]; 3];
            matrix[axis][axis] = 1.;
            (matrix[b][b], matrix[b][c], matrix[c][b], matrix[c][c]) = (cos, -sin, sin, cos);
            matrix
        };
        let product = |a: [[f64; 3]; 3], b: [[f64; 3]; 3]| -> [[f64; 3]; 3] {
            std::array::from_fn(|i| std::array::from_fn(|j| (0..3).map(|k| a[i][k] * b[k][j]).sum()))
        };
        Affine { matrix: product(product(about(2), about(0)), about(1)), shift: self.translation.map(f64::from) }
    }
}

/// Powers of the bias field's terms.
fn powers() -> impl Iterator<Item = [usize; 3]> {
    let below = |n: usize| 0..=ORDER - n;
    below(0).flat_map(move |i| below(i).flat_map(move |j| below(i + j).map(move |k| [i, j, k])))
}

impl MrChange {
    /// Changes a channel, `[D, H, W]`, in place.
    pub fn apply(&self, channel: &mut [f32], shape: Shape) {
        assert_eq!(channel.len(), voxels(shape), "a channel of {shape:?}");
        match self {
            MrChange::BiasField { coefficients } => bias_field(channel, shape, coefficients),
            MrChange::Motion { axis, movements } => motion(channel, shape, *axis, movements),
            MrChange::Ghosting { axis, ghosts, intensity } => {
                let n = shape[*axis];
                let kept = |line: usize| if line.is_multiple_of(*ghosts) && line != n / 2 { 1. - intensity } else { 1. };
                kspace::filter(channel, shape, *axis, &kspace::even(n, kept));
            }
            MrChange::Gibbs { alpha } => kspace::cut(channel, shape, *alpha),
            MrChange::LowResolution { axis, thickness } => low_resolution(channel, shape, *axis, *thickness),
            MrChange::Blur { sigma } => (0..3).for_each(|a| blur::along(channel, shape, a, sigma[a])),
        }
    }
}

fn least(channel: &[f32]) -> f32 {
    channel.iter().copied().fold(f32::INFINITY, f32::min)
}

fn bias_field(channel: &mut [f32], shape: Shape, coefficients: &[f32]) {
    let place = |a: usize, x: usize| match shape[a] {
        1 => 0.,
        n => (2 * x) as f32 / (n - 1) as f32 - 1.,
    };
    // Zero of the signal, also of intensities that were centred.
    let zero = least(channel);
    for (row, line) in channel.chunks_exact_mut(shape[2]).enumerate() {
        let [x, y] = [place(0, row / shape[1]), place(1, row % shape[1])];
        let mut along = [0.; ORDER + 1];
        powers().zip(coefficients).for_each(|([i, j, k], c)| along[k] += c * x.powi(i as i32) * y.powi(j as i32));
        for (z, value) in line.iter_mut().enumerate() {
            let log = along.iter().rev().fold(0., |sum, c| sum * place(2, z) + c);
            *value = zero + (*value - zero) * log.exp();
        }
    }
}

fn motion(channel: &mut [f32], shape: Shape, axis: usize, movements: &[Movement]) {
    let (still, n, fill) = (channel.to_vec(), shape[axis], least(channel));
    // Parts of k-space end at the movements. The central part is of the channel as it is, which gives its own part, the first one, away.
    let ends: Vec<usize> = movements.iter().map(|m| (n as f32 * m.time) as usize).chain([n]).collect();
    let central = movements.iter().position(|m| m.time > 0.5).unwrap_or(movements.len());
    let mut moved = vec![0.; still.len()];
    for (i, movement) in movements.iter().enumerate() {
        let part = if i + 1 == central { 0 } else { i + 1 };
        let lines = if part == 0 { 0..ends[0] } else { ends[part - 1]..ends[part] };
        movement.affine().apply(&still, shape, fill, &mut moved);
        // Of what the movement changes, its part of k-space.
        moved.iter_mut().zip(&still).for_each(|(moved, still)| *moved -= still);
        kspace::filter(&mut moved, shape, axis, &kspace::even(n, |line| f32::from(lines.contains(&line))));
        channel.iter_mut().zip(&moved).for_each(|(value, moved)| *value += moved);
    }
}

fn low_resolution(channel: &mut [f32], shape: Shape, axis: usize, thickness: f32) {
    let (n, inner) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
    let (centre, thickness) = ((n as f64 - 1.) / 2., f64::from(thickness));
    let slices = ((n as f64 / thickness) as usize).max(1);
    let middle = (slices as f64 - 1.) / 2.;
    let kept: Vec<usize> =
        (0..slices).map(|j| ((centre + (j as f64 - middle) * thickness + 0.5).floor() as usize).min(n - 1)).collect();
    // For each voxel the two slices that it lies between, and the weight of the second.
    let mixed: Vec<(usize, usize, f32)> = (0..n)
        .map(|x| {
            let place = ((x as f64 - centre) / thickness + middle).clamp(0., (slices - 1) as f64);
            let low = place as usize;
            (kept[low], kept[(low + 1).min(slices - 1)], (place - low as f64) as f32)
        })
        .collect();
    for block in channel.chunks_exact_mut(n * inner) {
        let source = block.to_vec();
        for (to, &(a, b, weight)) in block.chunks_exact_mut(inner).zip(&mixed) {
            let [a, b] = [a, b].map(|x| &source[x * inner..][..inner]);
            to.iter_mut().zip(a).zip(b).for_each(|((to, a), b)| *to = a * (1. - weight) + b * weight);
        }
    }
}

#[cfg(test)]
mod tests;
