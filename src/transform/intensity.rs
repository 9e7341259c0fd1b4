//! IntensityChange transforms.

use crate::rng::Rng;
use rand::Rng as _;
use serde::{Deserialize, Serialize};

/// Contrast and brightness: `y = mean + contrast (x - mean) + shift * range`, with the mean and the range (largest minus
/// smallest value) of the channel before. On data in [0, 1] the shift is in units of intensity; on z-scored data or a crop it is the
/// same share of what is there. Nothing is clamped: values may leave [0, 1], and no detail is lost to saturation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntensityChange {
    pub contrast: f32,
    pub shift: f32,
}

/// IntensityRanges that [`IntensityRanges::draw`] draws from, uniformly.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntensityRanges {
    /// Smallest and largest contrast.
    pub contrast: [f32; 2],
    /// Largest shift, up or down, as a share of the range of intensities.
    pub shift: f32,
}

impl IntensityRanges {
    pub fn draw(&self, rng: &mut Rng) -> IntensityChange {
        let contrast = self.contrast[0] + rng.random::<f32>() * (self.contrast[1] - self.contrast[0]);
        IntensityChange { contrast, shift: self.shift * (2. * rng.random::<f32>() - 1.) }
    }
}

/// Statistics of one channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stats {
    pub mean: f32,
    pub min: f32,
    pub max: f32,
}

impl Stats {
    /// Of a channel with at least one value.
    pub fn of(channel: &[f32]) -> Self {
        // Partial sums per lane vectorise; the order is fixed, so the result is too.
        const LANES: usize = 16;
        let (mut sum, mut min, mut max) = ([0f64; LANES], [f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
        for chunk in channel.chunks(LANES) {
            for (lane, &x) in chunk.iter().enumerate() {
                sum[lane] += f64::from(x);
                min[lane] = if x < min[lane] { x } else { min[lane] };
                max[lane] = if x > max[lane] { x } else { max[lane] };
            }
        }
        Stats {
            mean: (sum.iter().sum::<f64>() / channel.len() as f64) as f32,
            min: min.into_iter().fold(f32::INFINITY, f32::min),
            max: max.into_iter().fold(f32::NEG_INFINITY, f32::max),
        }
    }
}

impl IntensityChange {
    /// Changes a channel in place; `stats` are those of the channel before any padding.
    pub fn apply(&self, stats: Stats, channel: &mut [f32]) {
        let offset = stats.mean * (1. - self.contrast) + self.shift * (stats.max - stats.min);
        channel.iter_mut().for_each(|x| *x = *x * self.contrast + offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Stream, rng};

    #[test]
    fn agrees_with_the_formula() {
        let mut rng = rng(1, Stream::Train, 0, 0);
        let ranges = IntensityRanges { contrast: [0.5, 1.5], shift: 0.125 };
        for n in [1, 15, 16, 1000] {
            let x: Vec<f32> = (0..n).map(|_| 20. * rng.random::<f32>() - 5.).collect();
            let t = ranges.draw(&mut rng);
            assert!((0.5..=1.5).contains(&t.contrast) && t.shift.abs() <= 0.125);
            let mut y = x.clone();
            t.apply(Stats::of(&x), &mut y);
            let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
            let mut sorted = x.clone();
            sorted.sort_by(f32::total_cmp);
            let shift = f64::from(t.shift) * f64::from(sorted[n - 1] - sorted[0]);
            for (x, y) in x.iter().zip(y) {
                let expected = mean + f64::from(t.contrast) * (f64::from(*x) - mean) + shift;
                assert!((f64::from(y) - expected).abs() < 1e-5);
            }
        }
    }
}
