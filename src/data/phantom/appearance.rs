//! From tissues to voxel values: texture, partial volume, bias field and noise.

use super::field::{blur, smooth};
use super::geometry::Point;
use crate::dim::Shape;
use crate::rng::{Rng, normal, normal_pair};
use rand::Rng as _;

/// Noise of a modality.
#[derive(Clone, Copy, Debug)]
pub enum Noise {
    /// Magnitude of a complex signal with normal noise of this standard deviation in both parts (MR). Values are at least 0.
    Rician(f32),
    /// Normal noise of this standard deviation (CT), correlated over about a voxel.
    Gaussian(f32),
}

/// How one scan of a subject is made.
pub struct Scanner {
    /// Standard deviation of the blur, millimetres: partial volume.
    pub blur: f32,
    /// Standard deviation of the logarithm of the smooth gain field; 0 for none.
    pub bias: f32,
    /// Distance of the gain field's control points, millimetres.
    pub bias_knot: f32,
    pub noise: Noise,
}

impl Scanner {
    /// An MR scanner, drawn for signals around `level`.
    pub fn mr(level: f32, rng: &mut Rng) -> Scanner {
        Scanner {
            blur: rng.random_range(0.7..1.1),
            bias: rng.random_range(0.04..0.18),
            bias_knot: rng.random_range(90.0..160.0),
            noise: Noise::Rician(level * rng.random_range(0.015..0.05)),
        }
    }

    /// A CT scanner.
    pub fn ct(rng: &mut Rng) -> Scanner {
        Scanner {
            blur: rng.random_range(0.9..1.4),
            bias: 0.0,
            bias_knot: 1.0,
            noise: Noise::Gaussian(rng.random_range(9.0..24.0)),
        }
    }

    /// Turns a noise-free signal (row-major, of `shape`) into a scan, in place.
    pub fn acquire(&self, signal: &mut [f32], shape: Shape, spacing: Point, rng: &mut Rng) {
        blur(signal, shape, spacing.map(|s| (self.blur / s).max(0.45)));
        if self.bias > 0.0 {
            let gain = smooth(shape, spacing, self.bias_knot, rng);
            signal.iter_mut().zip(gain).for_each(|(v, g)| *v *= (self.bias * g).exp());
        }
        match self.noise {
            Noise::Rician(sd) => signal.iter_mut().for_each(|v| {
                let (real, imaginary) = normal_pair(rng);
                *v = (*v + sd * real).hypot(sd * imaginary);
            }),
            Noise::Gaussian(sd) => {
                let mut noise: Vec<f32> = signal.iter().map(|_| normal(rng)).collect();
                blur(&mut noise, shape, [0.6; 3]);
                // The blur takes variance away: about 1 / (2 sigma sqrt(pi)) an axis.
                let gain = sd * (2.0 * 0.6 * std::f32::consts::PI.sqrt()).powf(1.5);
                signal.iter_mut().zip(noise).for_each(|(v, n)| *v += gain * n);
            }
        }
    }
}

/// Slow variation of a tissue's signal within one scan: a factor for each voxel, about 1.
pub fn texture(shape: Shape, spacing: Point, amount: f32, rng: &mut Rng) -> Vec<f32> {
    let coarse = smooth(shape, spacing, 18.0, rng);
    let fine = smooth(shape, spacing, 6.0f32.max(2.0 * spacing[0]), rng);
    coarse.iter().zip(fine).map(|(c, f)| (1.0 + amount * (0.75 * c + 0.65 * f)).max(0.2)).collect()
}
