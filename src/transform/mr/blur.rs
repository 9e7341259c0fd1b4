//! Gaussian filter along an axis.

use crate::dim::Shape;

/// Half of the kernel, in standard deviations; SciPy's.
const TRUNCATE: f32 = 4.;

/// Along one axis of a channel, `[D, H, W]`, in place; `sigma` in voxels. Beyond its ends lies its mirror image, the end voxel twice.
pub fn along(channel: &mut [f32], shape: Shape, axis: usize, sigma: f32) {
    if sigma <= 0. {
        return;
    }
    let (n, inner) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
    let radius = (TRUNCATE * sigma + 0.5) as usize;
    let weight = |t: usize| (-0.5 * ((t as f64 - radius as f64) / f64::from(sigma)).powi(2)).exp();
    let sum: f64 = (0..=2 * radius).map(weight).sum();
    let kernel: Vec<f32> = (0..=2 * radius).map(|t| (weight(t) / sum) as f32).collect();
    let mirrored = |x: usize| {
        let x = (x as i64 - radius as i64).rem_euclid(2 * n as i64) as usize;
        if x < n { x } else { 2 * n - 1 - x }
    };
    let mut padded = vec![0.; (n + 2 * radius) * inner];
    for block in channel.chunks_exact_mut(n * inner) {
        for (x, row) in padded.chunks_exact_mut(inner).enumerate() {
            row.copy_from_slice(&block[mirrored(x) * inner..][..inner]);
        }
        block.fill(0.);
        for (t, weight) in kernel.iter().enumerate() {
            block.iter_mut().zip(&padded[t * inner..]).for_each(|(to, from)| *to += weight * from);
        }
    }
}
