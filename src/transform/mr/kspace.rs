//! Filters in k-space, whose lines are numbered from the lowest frequency to the highest: of `n` the one at `n / 2` is the mean.
//!
//! The image is real and so is what is kept of the result, so that a filter acts as the mean of itself and its mirror image about the
//! centre. With such an even filter two lines of an image travel as one complex line.

use crate::dim::{Shape, voxels};
use rustfft::{Fft, FftPlanner, num_complex::Complex};
use std::sync::Arc;

/// Complex lines that are gathered at a time: a stride across the volume for each would miss the cache.
const TOGETHER: usize = 16;

/// Number of a line in k-space of the `k`-th frequency of an FFT.
fn line(k: usize, n: usize) -> usize {
    (k + n / 2) % n
}

/// A filter along an axis of `n` voxels, in the FFT's order: what is kept of each line, made even.
pub fn even(n: usize, kept: impl Fn(usize) -> f32) -> Vec<f32> {
    (0..n).map(|k| (kept(line(k, n)) + kept(line((n - k) % n, n))) / 2.).collect()
}

/// Voxels between neighbours along an axis, and the first voxel of each line.
fn lines(shape: Shape, axis: usize) -> (usize, Vec<usize>) {
    let inner = shape[axis + 1..].iter().product::<usize>();
    let outer = shape[..axis].iter().product::<usize>();
    (inner, (0..outer).flat_map(|o| (0..inner).map(move |i| o * shape[axis] * inner + i)).collect())
}

/// Filters a channel, `[D, H, W]`, along an axis by what [`even`] gives, in place.
pub fn filter(channel: &mut [f32], shape: Shape, axis: usize, kept: &[f32]) {
    let n = shape[axis];
    let mut planner = FftPlanner::new();
    let (forward, inverse) = (planner.plan_fft_forward(n), planner.plan_fft_inverse(n));
    let kept: Vec<f32> = kept.iter().map(|kept| kept / n as f32).collect();
    let (stride, starts) = lines(shape, axis);
    let mut buffer = vec![Complex::ZERO; TOGETHER * n];
    for starts in starts.chunks(2 * TOGETHER) {
        let used = starts.len().div_ceil(2) * n;
        for x in 0..n {
            for (pair, starts) in starts.chunks(2).enumerate() {
                let [re, im] = [0, 1].map(|i| starts.get(i).map_or(0., |start| channel[start + x * stride]));
                buffer[pair * n + x] = Complex { re, im };
            }
        }
        forward.process(&mut buffer[..used]);
        for line in buffer[..used].chunks_exact_mut(n) {
            line.iter_mut().zip(&kept).for_each(|(value, kept)| *value *= kept);
        }
        inverse.process(&mut buffer[..used]);
        for x in 0..n {
            for (pair, starts) in starts.chunks(2).enumerate() {
                let value = buffer[pair * n + x];
                starts.iter().zip([value.re, value.im]).for_each(|(start, value)| channel[start + x * stride] = value);
            }
        }
    }
}

/// Transforms a volume along an axis, in place.
fn transform(volume: &mut [Complex<f32>], shape: Shape, axis: usize, fft: &Arc<dyn Fft<f32>>) {
    let n = shape[axis];
    if axis == 2 {
        return fft.process(volume);
    }
    let (stride, starts) = lines(shape, axis);
    let mut buffer = vec![Complex::ZERO; TOGETHER * n];
    for starts in starts.chunks(TOGETHER) {
        let buffer = &mut buffer[..starts.len() * n];
        for x in 0..n {
            starts.iter().enumerate().for_each(|(l, start)| buffer[l * n + x] = volume[start + x * stride]);
        }
        fft.process(buffer);
        for x in 0..n {
            starts.iter().enumerate().for_each(|(l, start)| volume[start + x * stride] = buffer[l * n + x]);
        }
    }
}

/// Leaves of k-space what lies within `(1 - alpha) max(shape) / sqrt(2)` lines of its centre, `(shape - 1) / 2`, as MONAI's `GibbsNoise`, and the mean.
pub fn cut(channel: &mut [f32], shape: Shape, alpha: f32) {
    let longest = shape.iter().copied().max().unwrap_or(1) as f64;
    let radius = (1. - f64::from(alpha)) * longest * std::f64::consts::FRAC_1_SQRT_2;
    // Squared distances from the centre along each axis, of each frequency and of its mirror image.
    let squared = |a: usize, mirror: bool| -> Vec<f64> {
        let n = shape[a];
        let distance = |k: usize| line(k, n) as f64 - (n as f64 - 1.) / 2.;
        (0..n).map(|k| distance(if mirror { (n - k) % n } else { k }).powi(2)).collect()
    };
    let squared = [false, true].map(|mirror| [0, 1, 2].map(|a| squared(a, mirror)));
    let mut volume: Vec<Complex<f32>> = channel.iter().map(|&re| Complex { re, im: 0. }).collect();
    let mut planner = FftPlanner::new();
    for a in (0..3).filter(|&a| shape[a] > 1) {
        transform(&mut volume, shape, a, &planner.plan_fft_forward(shape[a]));
    }
    // Of a few voxels the radius may leave out even the mean, without which the image is blank.
    let (scale, sum) = (0.5 / voxels(shape) as f32, volume[0]);
    for (row, values) in volume.chunks_exact_mut(shape[2]).enumerate() {
        for (z, value) in values.iter_mut().enumerate() {
            let within = |[x, y, depth]: &[Vec<f64>; 3]| (x[row / shape[1]] + y[row % shape[1]] + depth[z]).sqrt() <= radius;
            *value *= scale * squared.iter().filter(|squared| within(squared)).count() as f32;
        }
    }
    volume[0] = sum * (2. * scale);
    for a in (0..3).filter(|&a| shape[a] > 1) {
        transform(&mut volume, shape, a, &planner.plan_fft_inverse(shape[a]));
    }
    channel.iter_mut().zip(&volume).for_each(|(to, from)| *to = from.re);
}
