//! Resampling spatial transforms: flips, rotation by any angle and zoom, composed into one affine map and sampled once.

use crate::dim::{Rank, Shape, voxels};
use crate::rng::Rng;
use anyhow::{Result, ensure};
use rand::Rng as _;
use serde::{Deserialize, Serialize};

/// How values between voxels are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Trilinear; voxels beyond the border count as `fill`.
    Linear,
    /// The nearest voxel, for labels: no value appears that was not there.
    Nearest,
}

/// Flips, then a rotation, then a zoom, all about the centre `(shape - 1) / 2`; the shape stays.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resample {
    /// Axes to reverse.
    pub flip: [bool; 3],
    /// Axis of the rotation; images (`D = 1`) turn about axis 0.
    pub axis: usize,
    /// Angle in degrees, positive from the lower towards the higher of the two other axes.
    pub degrees: f32,
    /// Magnification along each axis of the output; above 1 the borders are cropped, below 1 they are filled.
    pub zoom: [f32; 3],
}

/// ResampleRanges that [`ResampleRanges::draw`] draws from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResampleRanges {
    /// Probability of a flip, for each axis.
    pub flip: f64,
    /// Probability that the angle is a multiple of 90 degrees; otherwise it is uniform in `[-degrees, degrees)`.
    pub right_angle: f64,
    /// Largest angle, 0 to 180.
    pub degrees: f32,
    /// Smallest and largest zoom, drawn uniformly for each axis.
    pub zoom: [f32; 2],
}

/// Longer side of a plane to the shorter one from which a window is turned less in it, so that it shows much the same part of the scan, and
/// from which it is not turned in it at all (nnU-Net's `ANISO_THRESHOLD`).
const LONG: usize = 2;
pub(super) const FLAT: usize = 3;
/// Largest angle of what is turned less: nnU-Net's for volumes.
const LONG_DEGREES: f32 = 30.;

impl ResampleRanges {
    /// Draws a transform of windows of this shape about a random axis; for images in the plane only.
    pub fn draw(&self, rank: Rank, window: Shape, rng: &mut Rng) -> Resample {
        let mut drawn = Resample::IDENTITY;
        for a in rank.axes() {
            drawn.flip[a] = rng.random_bool(self.flip);
            drawn.zoom[a] = self.zoom[0] + rng.random::<f32>() * (self.zoom[1] - self.zoom[0]);
        }
        let sides = |axis: usize| {
            let [b, c] = others(axis).map(|a| window[a]);
            (b.min(c), b.max(c))
        };
        let about = if rank == Rank::Three { 0..3 } else { 0..1 };
        let about: Vec<usize> = about.filter(|&axis| sides(axis).1 <= FLAT * sides(axis).0).collect();
        if about.is_empty() {
            return drawn;
        }
        drawn.axis = about[if rank == Rank::Three { rng.random_range(0..about.len()) } else { 0 }];
        let (short, long) = sides(drawn.axis);
        // A quarter turn of unequal sides, or much of one, shows what lies beside the window.
        let (right, degrees) = if long >= LONG * short { (180., self.degrees.min(LONG_DEGREES)) } else { (90., self.degrees) };
        drawn.degrees = match rng.random_bool(self.right_angle) {
            true => right * (rng.random_range(0..4) % (360. / right) as i32) as f32,
            false => degrees * (2. * rng.random::<f32>() - 1.),
        };
        drawn
    }
}

/// Source coordinates are 32.32 fixed point: cheap to split into index and fraction, exact at right angles, and the same on
/// every machine.
const ONE: i64 = 1 << 32;

/// The two axes of the plane that turns about an axis.
pub(super) fn others(axis: usize) -> [usize; 2] {
    [[1, 2], [0, 2], [0, 1]][axis]
}

/// A box of voxels that a resampling reads, relative to the first voxel of what it writes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Source {
    pub start: [i64; 3],
    pub size: Shape,
}

impl Source {
    /// What is written is as large, and lies in the same place.
    pub fn same(shape: Shape) -> Self {
        Source { start: [0; 3], size: shape }
    }
}

impl Resample {
    pub const IDENTITY: Resample = Resample { flip: [false; 3], axis: 0, degrees: 0., zoom: [1.; 3] };

    /// `M` of `source - centre = M (output - centre)`, in voxels; exact at multiples of 90 degrees.
    pub fn matrix(&self) -> [[f64; 3]; 3] {
        let (sin, cos) = match self.degrees.rem_euclid(360.) {
            0. => (0., 1.),
            90. => (1., 0.),
            180. => (0., -1.),
            270. => (-1., 0.),
            degrees => f64::from(degrees).to_radians().sin_cos(),
        };
        let [b, c] = others(self.axis);
        let mut matrix = [[0.; 3]; 3];
        matrix[self.axis][self.axis] = 1.;
        (matrix[b][b], matrix[b][c], matrix[c][b], matrix[c][c]) = (cos, sin, -sin, cos);
        for (row, flip) in matrix.iter_mut().zip(self.flip) {
            for (m, zoom) in row.iter_mut().zip(self.zoom) {
                *m /= if flip { -f64::from(zoom) } else { f64::from(zoom) };
            }
        }
        matrix
    }

    /// Whether values between voxels are read; flips alone are exact.
    pub fn resamples(&self) -> bool {
        self.degrees != 0. || self.zoom != [1.; 3]
    }

    /// All voxels that an output of this shape takes part of.
    pub fn reach(&self, shape: Shape) -> Source {
        let (matrix, centre) = (self.matrix(), shape.map(|n| (n as f64 - 1.) / 2.));
        let radius = |a: usize| (0..3).map(|b| matrix[a][b].abs() * centre[b]).sum::<f64>();
        let start = std::array::from_fn(|a| (centre[a] - radius(a)).floor() as i64);
        Source { start, size: std::array::from_fn(|a| ((centre[a] + radius(a)).ceil() as i64 - start[a] + 1) as usize) }
    }

    /// Transforms `input`, `[C, D, H, W]` with `C` the length of `fill`, into `out` of the same shape. `fill` is, per channel,
    /// the value of what lies outside. Errors on lengths that disagree, a zoom outside 0.01-100, a rotation of an image out of its
    /// plane.
    pub fn apply(
        &self,
        input: &[f32],
        shape: Shape,
        interpolation: Interpolation,
        fill: &[f32],
        out: &mut [f32],
    ) -> Result<()> {
        self.apply_from(input, Source::same(shape), shape, interpolation, fill, out)
    }

    /// As [`Resample::apply`], from another box than the one that is written.
    pub fn apply_from(
        &self,
        input: &[f32],
        source: Source,
        shape: Shape,
        interpolation: Interpolation,
        fill: &[f32],
        out: &mut [f32],
    ) -> Result<()> {
        self.rows(input, source, shape, interpolation, fill, out, trilinear)
    }

    /// As [`Resample::apply`], of a label `[D, H, W]`: the nearest voxel, `outside` for what lies outside.
    pub fn apply_label(&self, input: &[u8], shape: Shape, outside: u8, out: &mut [u8]) -> Result<()> {
        self.apply_label_from(input, Source::same(shape), shape, outside, out)
    }

    /// As [`Resample::apply_label`], from another box than the one that is written.
    pub fn apply_label_from(&self, input: &[u8], source: Source, shape: Shape, outside: u8, out: &mut [u8]) -> Result<()> {
        self.rows(input, source, shape, Interpolation::Nearest, &[outside], out, |voxels, _| voxels[0])
    }

    /// `mix` joins the eight neighbours, by the weights of the higher ones.
    #[allow(clippy::too_many_arguments)]
    fn rows<T: Copy>(
        &self,
        input: &[T],
        source: Source,
        shape: Shape,
        interpolation: Interpolation,
        fill: &[T],
        out: &mut [T],
        mix: impl Fn([T; 8], [f32; 3]) -> T,
    ) -> Result<()> {
        let (from, n) = (voxels(source.size), voxels(shape));
        ensure!(
            from > 0 && input.len() == fill.len() * from && out.len() == fill.len() * n,
            "resampling {} channels of {:?} to {shape:?}: input of {}, output of {} values",
            fill.len(),
            source.size,
            input.len(),
            out.len()
        );
        ensure!(self.axis < 3, "rotation axis must be 0, 1 or 2, found {}", self.axis);
        ensure!(self.degrees.is_finite(), "rotation angle is {}", self.degrees);
        ensure!(self.zoom.iter().all(|z| (0.01..=100.).contains(z)), "zoom must lie in 0.01-100, found {:?}", self.zoom);
        ensure!(
            shape[0] > 1 || (self.axis == 0 && self.zoom[0] == 1.),
            "an image of {shape:?} turns about axis 0 and keeps its depth, found {self:?}"
        );
        Affine { matrix: self.matrix(), shift: [0.; 3] }.rows(input, source, shape, interpolation, fill, out, mix);
        Ok(())
    }
}

/// `source - centre = matrix (output - centre) + shift`, in voxels; the centre is `(shape - 1) / 2`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    pub matrix: [[f64; 3]; 3],
    pub shift: [f64; 3],
}

impl Affine {
    /// One channel, `[D, H, W]`, into another one of the same shape; linear, `fill` is the value of what lies outside.
    pub fn apply(&self, input: &[f32], shape: Shape, fill: f32, out: &mut [f32]) {
        self.rows(input, Source::same(shape), shape, Interpolation::Linear, &[fill], out, trilinear);
    }

    /// As [`Resample::rows`], whose checks have been passed.
    #[allow(clippy::too_many_arguments)]
    fn rows<T: Copy>(
        &self,
        input: &[T],
        source: Source,
        shape: Shape,
        interpolation: Interpolation,
        fill: &[T],
        out: &mut [T],
        mix: impl Fn([T; 8], [f32; 3]) -> T,
    ) {
        let (from, n) = (voxels(source.size), voxels(shape));
        let Affine { matrix, shift } = self;
        let centre = shape.map(|n| (n as f64 - 1.) / 2.);
        let fixed = |x: f64| (x * ONE as f64).round() as i64;
        let step: [i64; 3] = std::array::from_fn(|a| fixed(matrix[a][2]));
        let mut row = SourceRow::new(source.size, shape[2], interpolation);
        for x0 in 0..shape[0] {
            for x1 in 0..shape[1] {
                let offset = [x0 as f64 - centre[0], x1 as f64 - centre[1], -centre[2]];
                let place = |a: usize| centre[a] + shift[a] + matrix[a].iter().zip(offset).map(|(m, x)| m * x).sum::<f64>();
                let base = std::array::from_fn(|a| fixed(place(a)) - source.start[a] * ONE);
                row.locate(base, step);
                let start = (x0 * shape[1] + x1) * shape[2];
                for ((input, out), &fill) in input.chunks_exact(from).zip(out.chunks_exact_mut(n)).zip(fill) {
                    row.sample(input, fill, &mut out[start..start + shape[2]], &mix);
                }
            }
        }
    }
}

/// Where the voxels of one output row (along the last axis) come from; shared by the channels.
struct SourceRow {
    shape: Shape,
    /// Voxels of the output row.
    width: usize,
    interpolation: Interpolation,
    /// Offsets in memory of the next voxel along each axis, 0 along an axis of one voxel.
    stride: Shape,
    base: [i64; 3],
    step: [i64; 3],
    /// Output voxels touched by the source at all.
    near: std::ops::Range<usize>,
    /// Output voxels whose neighbours all lie in the source: no checks needed.
    inside: std::ops::Range<usize>,
    /// For each voxel of `inside`: memory offset of its lowest neighbour and the weights of the higher ones.
    index: Vec<usize>,
    weight: [Vec<f32>; 3],
}

impl SourceRow {
    fn new(shape: Shape, width: usize, interpolation: Interpolation) -> Self {
        let stride = [shape[1] * shape[2], shape[2], 1];
        SourceRow {
            shape,
            width,
            interpolation,
            stride: std::array::from_fn(|a| if shape[a] > 1 { stride[a] } else { 0 }),
            base: [0; 3],
            step: [0; 3],
            near: 0..0,
            inside: 0..0,
            index: vec![0; width],
            weight: std::array::from_fn(|_| vec![0.; width]),
        }
    }

    fn locate(&mut self, mut base: [i64; 3], step: [i64; 3]) {
        if self.interpolation == Interpolation::Nearest {
            // Then the integer part is the nearest voxel.
            base = base.map(|b| b + ONE / 2);
        }
        (self.base, self.step) = (base, step);
        let last = self.shape.map(|n| (n as i64 - 1) * ONE);
        (self.near, self.inside) = (0..self.width, 0..self.width);
        for a in 0..3 {
            let (near, inside) = match self.interpolation {
                Interpolation::Linear => ((1 - ONE, last[a] + ONE - 1), (0, last[a])),
                Interpolation::Nearest => ((0, last[a] + ONE - 1), (0, last[a] + ONE - 1)),
            };
            self.near = between(base[a], step[a], near, &self.near);
            self.inside = between(base[a], step[a], inside, &self.inside);
        }
        let inside = self.inside.clone();
        self.index[inside.clone()].fill(0);
        for a in 0..3 {
            let highest = match self.interpolation {
                // The last voxel is reached as the higher neighbour with weight 1.
                Interpolation::Linear => self.shape[a].saturating_sub(2) as i64,
                Interpolation::Nearest => self.shape[a] as i64 - 1,
            };
            let (stride, base, step) = (self.stride[a], base[a], step[a]);
            let mut y = base + step * inside.start as i64;
            for (index, weight) in self.index[inside.clone()].iter_mut().zip(&mut self.weight[a][inside.clone()]) {
                let i = (y >> 32).min(highest);
                *index += i as usize * stride;
                *weight = fraction(y - i * ONE);
                y += step;
            }
        }
    }

    fn sample<T: Copy>(&self, input: &[T], fill: T, out: &mut [T], mix: &impl Fn([T; 8], [f32; 3]) -> T) {
        let (near, inside) = (self.near.clone(), self.inside.clone());
        if near.is_empty() {
            return out.fill(fill);
        }
        out[..near.start].fill(fill);
        out[near.end..].fill(fill);
        let border = if inside.is_empty() { near.end..near.end } else { inside.clone() };
        for x in (near.start..border.start).chain(border.end..near.end) {
            out[x] = self.at_border(input, fill, x, mix);
        }
        let index = &self.index[inside.clone()];
        if self.interpolation == Interpolation::Nearest {
            return out[inside].iter_mut().zip(index).for_each(|(out, &i)| *out = input[i]);
        }
        let [w0, w1, w2] = [0, 1, 2].map(|a| &self.weight[a][inside.clone()]);
        let [s0, s1, s2] = self.stride;
        for ((((out, &i), &w0), &w1), &w2) in out[inside].iter_mut().zip(index).zip(w0).zip(w1).zip(w2) {
            // One slice for all eight neighbours: one bounds check instead of eight.
            let v = &input[i..=i + s0 + s1 + s2];
            *out = mix([v[0], v[s2], v[s1], v[s1 + s2], v[s0], v[s0 + s2], v[s0 + s1], v[s0 + s1 + s2]], [w0, w1, w2]);
        }
    }

    /// Value of output voxel `x`, some of whose neighbours may lie outside.
    fn at_border<T: Copy>(&self, input: &[T], fill: T, x: usize, mix: &impl Fn([T; 8], [f32; 3]) -> T) -> T {
        let y: [i64; 3] = std::array::from_fn(|a| self.base[a] + self.step[a] * x as i64);
        let neighbour = |n: usize| {
            let mut index = 0;
            for (a, y) in y.iter().enumerate() {
                let i = (y >> 32) + (n >> (2 - a) & 1) as i64;
                if !(0..self.shape[a] as i64).contains(&i) {
                    return fill;
                }
                index += i as usize * self.stride[a];
            }
            input[index]
        };
        match self.interpolation {
            Interpolation::Linear => mix(std::array::from_fn(neighbour), y.map(|y| fraction(y & (ONE - 1)))),
            Interpolation::Nearest => neighbour(0),
        }
    }
}

/// Weight of the higher neighbour, for a distance of 0 to [`ONE`] from the lower; 24 bits, as many as a float holds.
fn fraction(distance: i64) -> f32 {
    (distance >> 8) as i32 as f32 * (1. / (1 << 24) as f32)
}

/// `v` in row-major order of the three axes, `w` the weights of the higher neighbours. Exact where the weights are 0 or 1.
fn trilinear(v: [f32; 8], w: [f32; 3]) -> f32 {
    let mix = |a: f32, b: f32, w: f32| a * (1. - w) + b * w;
    let plane = |v: &[f32]| mix(mix(v[0], v[1], w[2]), mix(v[2], v[3], w[2]), w[1]);
    mix(plane(&v[..4]), plane(&v[4..]), w[0])
}

/// The `x` of `range` with `low <= base + step x <= high`.
fn between(base: i64, step: i64, (low, high): (i64, i64), range: &std::ops::Range<usize>) -> std::ops::Range<usize> {
    let (start, end) = (range.start as i64, range.end as i64);
    let (first, last) = match step {
        0 if (low..=high).contains(&base) => (start, end - 1),
        0 => return range.start..range.start,
        1.. => (-(base - low).div_euclid(step), (high - base).div_euclid(step)),
        _ => (-(high - base).div_euclid(-step), (base - low).div_euclid(-step)),
    };
    let first = first.clamp(start, end);
    first as usize..(last + 1).clamp(first, end) as usize
}

#[cfg(test)]
mod tests;
