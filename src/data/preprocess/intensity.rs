//! Foreground, bounding box and normalisation of intensities, channel by channel.

use super::{Intensity, Threshold};
use crate::data::number::{BLOCK, LANES, Number};
use crate::data::scan::{Channel, Floats};
use anyhow::{Result, bail, ensure};

/// Hounsfield units between air and tissue.
pub const AIR_BELOW: f32 = -500.0;
/// Of CT at least this share of the voxels is above air; other scans may have a background far below zero, and all else just above it.
pub const LEAST_TISSUE: f64 = 0.005;
/// Voxels this many times the range of the others away from it are no measurements..
const FAR: f64 = 1000.0;
/// ..if no more than one in so many is.
const RARE: usize = 10_000;
/// What one pass over a channel tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    pub min: f32,
    pub max: f32,
    pub mean: f64,
    /// Share of the voxels that are more than air, if these are Hounsfield units.
    pub above_air: f64,
    /// Voxels that are NaN or infinite; the other fields mean nothing unless it is 0.
    pub non_finite: usize,
}

/// A [`Summary`] in the making.
pub(super) struct Sums<T> {
    low: T,
    high: T,
    sum: f64,
    above_air: usize,
    non_finite: usize,
    n: usize,
}

impl<T: Number> Default for Sums<T> {
    fn default() -> Self {
        Sums { low: T::HIGHEST, high: T::LOWEST, sum: 0.0, above_air: 0, non_finite: 0, n: 0 }
    }
}

impl<T: Number> Sums<T> {
    /// Takes the next values; whole blocks, but for the last ones.
    pub fn add(&mut self, values: &[T]) {
        for block in values.chunks(BLOCK) {
            let [low, high] = T::range(block);
            (self.low, self.high) = (self.low.or_lower(low), self.high.or_higher(high));
            let sum = T::sum(block);
            self.sum += sum;
            // Most blocks need no counting.
            self.above_air += match low.into() > AIR_BELOW {
                true => block.len(),
                false => block.iter().filter(|&&v| v.into() > AIR_BELOW).count(),
            };
            if !sum.is_finite() {
                self.non_finite += block.iter().filter(|&&v| !v.into().is_finite()).count();
            }
        }
        self.n += values.len();
    }

    /// Of values that are not none.
    pub fn summary(&self) -> Summary {
        Summary {
            min: self.low.into(),
            max: self.high.into(),
            mean: self.sum / self.n as f64,
            above_air: self.above_air as f64 / self.n as f64,
            non_finite: self.non_finite,
        }
    }
}

/// Summary of a channel that is not empty.
fn summary(values: &[f32]) -> Summary {
    let mut sums = Sums::default();
    sums.add(values);
    sums.summary()
}

/// Intensity above which a voxel is foreground.
pub fn threshold(foreground: Threshold, channel: &Summary) -> f32 {
    match foreground {
        Threshold::Above { value } => value,
        Threshold::Auto if channel.min < AIR_BELOW && channel.above_air >= LEAST_TISSUE => AIR_BELOW,
        Threshold::Auto => (f64::from(channel.min) + (channel.mean - f64::from(channel.min)) / 2.0) as f32,
    }
}

/// Absurd values that were replaced.
#[derive(Debug, PartialEq)]
pub struct Outliers {
    pub voxels: usize,
    /// The one that was farthest from the others.
    pub worst: f32,
    /// Lowest and highest of the others.
    pub range: [f32; 2],
}

/// The channel with the nearest of all others in place of values that are absurdly far from them (a mistake of an export, a broken
/// interpolation), so that they do not decide what becomes of the others; `None` if there are none. Their share is tiny: otherwise they
/// may be what the scan shows.
pub fn without_outliers(channel: &Channel, summary: &Summary) -> Option<(Outliers, Channel)> {
    /// Values looked at for the range of most, and the share at each end that does not count.
    const SAMPLE: usize = 4096;
    const ENDS: usize = 64;
    let (n, mut buffer) = (channel.voxels(), vec![]);
    let sample = (0..n).step_by(n / SAMPLE + 1).map(|i| channel.floats(i..i + 1, &mut buffer)[0]);
    let mut sample: Vec<f32> = sample.filter(|v| v.is_finite()).collect();
    sample.sort_unstable_by(f32::total_cmp);
    let cut = sample.len() / ENDS;
    let (low, high) = (f64::from(*sample.get(cut)?), f64::from(*sample.get(sample.len() - 1 - cut)?));
    let margin = FAR * (high - low);
    let far = |v: f32| f64::from(v) > high + margin || f64::from(v) < low - margin;
    if margin == 0.0 || !far(summary.min) && !far(summary.max) {
        return None;
    }
    let mut values = channel.clone().into_floats();
    let voxels = values.iter().filter(|&&v| far(v)).count();
    // What is infinite is refused elsewhere.
    if voxels > (n / RARE).max(1) || values.iter().any(|&v| far(v) && v.is_infinite()) {
        return None;
    }
    let (mut range, mut worst, mut distance) = ([f32::INFINITY, f32::NEG_INFINITY], 0.0, -1.0);
    for &v in values.iter() {
        let away = (f64::from(v) - high).max(low - f64::from(v));
        if !far(v) {
            range = [range[0].min(v), range[1].max(v)];
        } else if away > distance {
            (worst, distance) = (v, away);
        }
    }
    values.iter_mut().for_each(|v| *v = v.clamp(range[0], range[1]));
    Some((Outliers { voxels, worst, range }, Channel::float32(values)))
}

/// Normalises one channel. Errors where that is undefined: a constant channel, or no foreground.
pub fn normalise(values: &mut [f32], intensity: Intensity, foreground: Threshold) -> Result<()> {
    let (shift, scale) = match intensity {
        Intensity::Window { lo, hi } => {
            let scale = 1.0 / (hi - lo);
            values.iter_mut().for_each(|v| *v = ((*v - lo) * scale).clamp(0.0, 1.0));
            return Ok(());
        }
        Intensity::MinMax => {
            let Summary { min, max, .. } = summary(values);
            ensure!(max > min, "constant: every voxel is {min}");
            (min, 1.0 / (f64::from(max) - f64::from(min)))
        }
        Intensity::ZScoreForeground => {
            let threshold = threshold(foreground, &summary(values));
            let Some((mean, deviation)) = foreground_moments(values, threshold) else {
                bail!("no foreground: no voxel is above {threshold}")
            };
            ensure!(deviation > 0.0, "constant foreground: every voxel above {threshold} is {mean}");
            (mean as f32, 1.0 / deviation)
        }
    };
    let scale = scale as f32;
    values.iter_mut().for_each(|v| *v = (*v - shift) * scale);
    Ok(())
}

/// Mean and population standard deviation of the values above a threshold.
fn foreground_moments(values: &[f32], threshold: f32) -> Option<(f64, f64)> {
    let sums = |value: &dyn Fn(f32) -> f32| -> (f64, usize) {
        let (mut sum, mut count) = (0.0, 0);
        for block in values.chunks(BLOCK) {
            let (mut sums, mut counts) = ([0.0f32; LANES], [0u32; LANES]);
            for lane in block.chunks(LANES) {
                for (k, &v) in lane.iter().enumerate() {
                    let inside = v > threshold;
                    sums[k] += if inside { value(v) } else { 0.0 };
                    counts[k] += u32::from(inside);
                }
            }
            sum += sums.iter().map(|&s| f64::from(s)).sum::<f64>();
            count += counts.iter().sum::<u32>() as usize;
        }
        (sum, count)
    };
    let (sum, count) = sums(&|v| v);
    if count == 0 {
        return None;
    }
    let mean = sum / count as f64;
    let centre = mean as f32;
    let (squares, _) = sums(&|v| (v - centre) * (v - centre));
    Some((mean, (squares / count as f64).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Stream, rng};
    use rand::Rng as _;

    #[test]
    fn summaries_and_moments_equal_their_definitions() {
        let mut random = rng(1, Stream::Train, 0, 0);
        for n in [1, 15, 16, 17, 1024, 5003] {
            let values: Vec<f32> = (0..n).map(|_| random.random_range(-3.0..100.0)).collect();
            let got = summary(&values);
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
            let sorted = {
                let mut sorted = values.clone();
                sorted.sort_by(f32::total_cmp);
                sorted
            };
            assert_eq!((got.min, got.max, got.non_finite), (sorted[0], sorted[n - 1], 0));
            assert!((got.mean - mean).abs() < 1e-4, "{} {mean}", got.mean);
            let above: Vec<f64> = values.iter().filter(|&&v| v > 10.0).map(|&v| f64::from(v)).collect();
            let Some((mean, deviation)) = foreground_moments(&values, 10.0) else {
                assert!(above.is_empty());
                continue;
            };
            let expected = above.iter().sum::<f64>() / above.len() as f64;
            let variance = above.iter().map(|v| (v - expected).powi(2)).sum::<f64>() / above.len() as f64;
            assert!((mean - expected).abs() < 1e-4 && (deviation - variance.sqrt()).abs() < 1e-4);
        }
        let mut values = vec![1.0f32; 40];
        (values[3], values[17], values[39]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
        assert_eq!(summary(&values).non_finite, 3);
    }

    #[test]
    fn each_normalisation_does_what_it_says() {
        let raw = [-1000.0, -600.0, 0.0, 40.0, 100.0, 1000.0];
        let done = |intensity, foreground| {
            let mut values = raw.to_vec();
            normalise(&mut values, intensity, foreground).unwrap();
            values
        };
        let near = |got: Vec<f32>, expected: [f32; 6]| {
            assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{got:?} {expected:?}");
        };
        near(done(Intensity::MinMax, Threshold::Auto), raw.map(|v| (v + 1000.0) / 2000.0));
        near(done(Intensity::Window { lo: -100.0, hi: 100.0 }, Threshold::Auto), [0.0, 0.0, 0.5, 0.7, 1.0, 1.0]);
        // CT: the foreground is what is above -500, here 0, 40, 100 and 1000.
        let deviation = (([0.0f32, 40.0, 100.0, 1000.0].map(|v| (v - 285.0).powi(2)).iter().sum::<f32>()) / 4.0).sqrt();
        near(done(Intensity::ZScoreForeground, Threshold::Auto), raw.map(|v| (v - 285.0) / deviation));
        near(done(Intensity::ZScoreForeground, Threshold::Above { value: 50.0 }), raw.map(|v| (v - 550.0) / 450.0));
        for intensity in [Intensity::MinMax, Intensity::ZScoreForeground] {
            assert!(normalise(&mut [3.0; 20], intensity, Threshold::Auto).is_err());
        }
        // Without negative air values: half-way between the minimum and the mean; also of a background far below zero that is no air.
        for (min, max, mean, above_air, expected) in
            [(10.0, 90.0, 30.0, 1.0, 20.0), (-1024.0, -932.0, -1000.0, 0.0, -1012.0), (-1024.0, 2000.0, -1000.0, 0.01, -500.0)]
        {
            let channel = Summary { min, max, mean, above_air, non_finite: 0 };
            assert_eq!(threshold(Threshold::Auto, &channel), expected);
        }
    }

    #[test]
    fn an_absurd_voxel_takes_the_nearest_value_and_real_ones_stay() {
        let mut random = rng(3, Stream::Train, 0, 0);
        let scan: Vec<f32> = (0..30_000).map(|_| random.random_range(0.0..100.0)).collect();
        let (low, high) = scan.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &v| (low.min(v), high.max(v)));
        for (absurd, nearest) in [(vec![1e30], high), (vec![-4e9, 2e5], low), (vec![f32::MAX, 3e6, 3e6], high)] {
            let mut values = scan.clone();
            absurd.iter().enumerate().for_each(|(n, &v)| values[7000 * n + 11] = v);
            let (found, channel) = without_outliers(&Channel::float32(values.clone()), &summary(&values)).unwrap();
            let values = channel.into_floats();
            assert_eq!((found.voxels, found.worst), (absurd.len(), absurd[0]));
            assert_eq!(values[11], nearest);
            assert!(values.iter().zip(&scan).filter(|(a, b)| a != b).count() <= absurd.len());
        }
        // Bright vessels or metal, many such voxels, a scan of few values, and what is refused elsewhere.
        let with =
            |n: usize, v: f32| scan.iter().enumerate().map(|(i, &old)| if i < n { v } else { old }).collect::<Vec<f32>>();
        for real in [
            scan.clone(),
            with(3, 90_000.0),
            with(40, 1e30),
            with(1, f32::NAN),
            with(1, f32::INFINITY),
            vec![0.0; 30_000],
            vec![],
        ] {
            let summary = summary(&real);
            assert!(without_outliers(&Channel::float32(real), &summary).is_none());
        }
    }
}
