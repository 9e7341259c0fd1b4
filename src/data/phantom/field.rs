//! Random fields: smooth ones on a grid, band-limited ones at any point.

use super::geometry::{Point, dot, sub};
use crate::dim::{Shape, voxels};
use crate::rng::{Rng, normal, normal_pair};
use rand::Rng as _;
use std::f32::consts::TAU;

/// Weights of the four control points around a position at fraction `t` of its cell (uniform cubic B-spline).
fn spline(t: f32) -> [f32; 4] {
    let s = 1.0 - t;
    [s * s * s, 3.0 * t * t * t - 6.0 * t * t + 4.0, 3.0 * s * s * s - 6.0 * s * s + 4.0, t * t * t].map(|w| w / 6.0)
}

/// Smooth Gaussian field on a grid, row-major, mean 0 and standard deviation about 1: a cubic B-spline through normal control
/// points `knot` millimetres apart. `spacing` is the grid's, in millimetres.
pub fn smooth(shape: Shape, spacing: Point, knot: f32, rng: &mut Rng) -> Vec<f32> {
    let cells: Vec<usize> = (0..3).map(|a| (shape[a] as f32 * spacing[a] / knot).ceil().max(1.0) as usize).collect();
    let mut size = [cells[0] + 3, cells[1] + 3, cells[2] + 3];
    // A B-spline averages its control points: the mean over a cell of the sum of squared weights is 151/315 an axis.
    let gain = (315.0f32 / 151.0).powf(1.5);
    let mut field: Vec<f32> = (0..voxels(size)).map(|_| gain * normal(rng)).collect();
    for axis in (0..3).rev() {
        let (outer, inner): (usize, usize) = (size[..axis].iter().product(), size[axis + 1..].iter().product());
        let (from, to) = (size[axis], shape[axis]);
        let mut out = vec![0.0; outer * to * inner];
        for x in 0..to {
            let position = (x as f32 + 0.5) * cells[axis] as f32 / to as f32;
            let cell = (position as usize).min(cells[axis] - 1);
            let weights = spline(position - cell as f32);
            for o in 0..outer {
                let row = &mut out[(o * to + x) * inner..][..inner];
                for (k, &w) in weights.iter().enumerate() {
                    let source = &field[(o * from + cell + k) * inner..][..inner];
                    row.iter_mut().zip(source).for_each(|(r, s)| *r += w * s);
                }
            }
        }
        size[axis] = to;
        field = out;
    }
    field
}

/// Gaussian blur in place; `sigma` in voxels along each axis, edges repeated.
pub fn blur(data: &mut [f32], shape: Shape, sigma: Point) {
    for axis in 0..3 {
        let reach = (3.0 * sigma[axis]).ceil() as usize;
        if sigma[axis] < 0.1 || shape[axis] == 1 {
            continue;
        }
        let mut kernel: Vec<f32> =
            (0..=2 * reach).map(|k| (-0.5 * ((k as f32 - reach as f32) / sigma[axis]).powi(2)).exp()).collect();
        let total: f32 = kernel.iter().sum();
        kernel.iter_mut().for_each(|k| *k /= total);
        let (outer, inner): (usize, usize) = (shape[..axis].iter().product(), shape[axis + 1..].iter().product());
        let n = shape[axis];
        let mut block = vec![0.0; n * inner];
        for o in 0..outer {
            let data = &mut data[o * n * inner..][..n * inner];
            block.copy_from_slice(data);
            data.fill(0.0);
            for x in 0..n {
                let row = &mut data[x * inner..][..inner];
                for (k, &w) in kernel.iter().enumerate() {
                    let source = (x + k).saturating_sub(reach).min(n - 1);
                    row.iter_mut().zip(&block[source * inner..][..inner]).for_each(|(r, s)| *r += w * s);
                }
            }
        }
    }
}

/// Band-limited field, defined at every point: a sum of plane waves in random directions, mean 0, standard deviation 1.
pub struct Waves(Vec<(Point, f32)>);

impl Waves {
    /// `count` waves of lengths between `from` and `to` millimetres.
    pub fn draw(count: usize, from: f32, to: f32, rng: &mut Rng) -> Waves {
        let wave = |rng: &mut Rng| {
            let (x, y) = normal_pair(rng);
            let z = normal(rng);
            let k = TAU / rng.random_range(from..to) / (x * x + y * y + z * z).sqrt().max(1e-6);
            ([k * x, k * y, k * z], rng.random_range(0.0..TAU))
        };
        Waves((0..count).map(|_| wave(rng)).collect())
    }

    fn amplitude(&self) -> f32 {
        (2.0 / self.0.len() as f32).sqrt()
    }

    pub fn value(&self, p: Point) -> f32 {
        let sum: f32 = self.0.iter().map(|(k, phase)| (dot(*k, p) + phase).sin()).sum();
        self.amplitude() * sum
    }

    /// Value and gradient per millimetre.
    pub fn value_gradient(&self, p: Point) -> (f32, Point) {
        let (mut value, mut gradient) = (0.0, [0.0; 3]);
        for (k, phase) in &self.0 {
            let (sin, cos) = (dot(*k, p) + phase).sin_cos();
            value += sin;
            (0..3).for_each(|a| gradient[a] += k[a] * cos);
        }
        let amplitude = self.amplitude();
        (amplitude * value, gradient.map(|g| amplitude * g))
    }
}

/// How far a subject may differ from the template.
pub struct Variation {
    /// Size: overall factor, from..to, and the standard deviation of a further factor along each axis.
    pub scale: (f32, f32),
    pub stretch: f32,
    /// Largest turn about each axis, radians, and shift, millimetres.
    pub turn: f32,
    pub shift: f32,
    /// Standard deviation of the smooth displacement and distance of its control points, millimetres.
    pub displacement: f32,
    pub knot: f32,
}

/// Map from the voxels of one subject's grid to template space: affine, then a smooth displacement.
pub struct Warp {
    shape: Shape,
    spacing: Point,
    rows: [Point; 3],
    shift: Point,
    displacement: [Vec<f32>; 3],
}

impl Warp {
    pub fn draw(shape: Shape, spacing: Point, variation: &Variation, rng: &mut Rng) -> Warp {
        let [a, b, c] = [0; 3].map(|_| rng.random_range(-variation.turn..=variation.turn));
        let scale = rng.random_range(variation.scale.0..=variation.scale.1);
        // Pulling back: a larger subject reads the template at a smaller step.
        let step = [0; 3].map(|_| 1.0 / (scale * (1.0 + variation.stretch * normal(rng).clamp(-2.0, 2.0))));
        let shift = [0; 3].map(|_| rng.random_range(-variation.shift..=variation.shift));
        let ((sa, ca), (sb, cb), (sc, cc)) = (a.sin_cos(), b.sin_cos(), c.sin_cos());
        let mut rows = [
            [cb * cc, -cb * sc, sb],
            [ca * sc + sa * sb * cc, ca * cc - sa * sb * sc, -sa * cb],
            [sa * sc - ca * sb * cc, sa * cc + ca * sb * sc, ca * cb],
        ];
        rows.iter_mut().zip(step).for_each(|(row, s)| row.iter_mut().for_each(|v| *v *= s));
        let displacement = [0; 3].map(|_| {
            let mut field = smooth(shape, spacing, variation.knot, rng);
            field.iter_mut().for_each(|v| *v *= variation.displacement);
            field
        });
        Warp { shape, spacing, rows, shift, displacement }
    }

    /// Template point, in millimetres from the template's centre, for each voxel in row-major order.
    pub fn points(&self) -> impl Iterator<Item = Point> + '_ {
        let [d, h, w] = self.shape;
        (0..d * h * w).map(move |v| {
            let index = [v / (h * w), v / w % h, v % w];
            let p: Point = std::array::from_fn(|a| (index[a] as f32 - (self.shape[a] - 1) as f32 / 2.0) * self.spacing[a]);
            let p = sub(p, self.shift);
            std::array::from_fn(|a| dot(self.rows[a], p) + self.displacement[a][v])
        })
    }
}
