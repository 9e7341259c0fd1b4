//! A channel that lies on another grid than the first one, such as a FLAIR beside a T1.

use crate::data::scan::Scan;
use crate::data::volume::{Volume, index_in, spacing};
use crate::dim::{Shape, voxels};
use anyhow::{Context, Result, ensure};
use ndarray::Array4;
use rayon::prelude::*;

/// Share of the first channel's voxels that another one must cover; with less they are hardly of one place.
const LEAST_COVERED: f64 = 0.25;
/// Voxels up to which the outermost ones reach beyond their centres.
const EDGE: f64 = 0.5;

/// The volume, read from `source`, on the grid of `first`: interpolated linearly, and outside of it the lowest value of each channel.
/// Errors if the two hardly overlap.
pub fn onto(first: &Scan, volume: &Volume, source: &str, of_first: &str) -> Result<Volume> {
    let (shape, from) = (first.shape, volume.shape());
    let place = index_in(&first.affine, &volume.affine).with_context(|| source.to_owned())?;
    let at = |x: [usize; 3]| {
        let index: [f64; 3] = std::array::from_fn(|r| place[r][3] + (0..3).map(|a| place[r][a] * x[a] as f64).sum::<f64>());
        let inside = (0..3).all(|a| (-EDGE..=from[a] as f64 - 1. + EDGE).contains(&index[a]));
        inside.then_some(index)
    };
    let data = volume.data.as_slice().context("voxels are not contiguous")?;
    let mut out = Array4::zeros((volume.channels(), shape[0], shape[1], shape[2]));
    let plane = (shape[1] * shape[2]).max(1);
    let to = out.as_slice_mut().context("just made")?.chunks_exact_mut(voxels(shape).max(1));
    let mut covered = 0;
    for (values, to) in data.chunks_exact(voxels(from).max(1)).zip(to) {
        let lowest = values.iter().copied().fold(f32::INFINITY, f32::min);
        let of_plane = |(i, to): (usize, &mut [f32])| {
            let mut inside = 0;
            for (p, value) in to.iter_mut().enumerate() {
                *value = match at([i, p / shape[2], p % shape[2]]) {
                    Some(index) => {
                        inside += 1;
                        interpolated(values, from, index)
                    }
                    None => lowest,
                };
            }
            inside
        };
        covered = to.par_chunks_exact_mut(plane).enumerate().map(of_plane).sum();
    }
    let share = covered as f64 / voxels(shape).max(1) as f64;
    ensure!(
        share >= LEAST_COVERED,
        "{source}: covers {:.0} % of {of_first} ({from:?} voxels of {:?} mm beside {shape:?} of {:?} mm), expected a channel of the same \
         place; register the two, or leave one out with --channels",
        100. * share,
        spacing(&volume.affine),
        spacing(&first.affine)
    );
    Ok(Volume { data: out, affine: first.affine })
}

/// Between the eight voxels around an index; the outermost ones are continued.
fn interpolated(values: &[f32], shape: Shape, index: [f64; 3]) -> f32 {
    let mut low = [0; 3];
    let mut share = [0.; 3];
    for a in 0..3 {
        let x = index[a].clamp(0., (shape[a] - 1) as f64);
        low[a] = (x as usize).min(shape[a].saturating_sub(2));
        share[a] = x - low[a] as f64;
    }
    let mut sum = 0.;
    for corner in 0..8 {
        let (mut at, mut weight) = (0, 1.);
        for a in 0..3 {
            let up = corner >> a & 1;
            at = at * shape[a] + (low[a] + up).min(shape[a] - 1);
            weight *= if up == 1 { share[a] } else { 1. - share[a] };
        }
        // A voxel without weight may be NaN.
        if weight > 0. {
            sum += weight * f64::from(values[at]);
        }
    }
    sum as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(shape: Shape, step: f64, start: f64) -> Volume {
        let mut affine = [[0.; 4]; 4];
        (0..3).for_each(|a| (affine[a][a], affine[a][3]) = (step, start));
        affine[3][3] = 1.;
        let world = |i: usize| start + step * i as f64;
        let value = |(_, i, j, k): (usize, usize, usize, usize)| (world(i) + 10. * world(j) + 100. * world(k)) as f32;
        Volume { data: Array4::from_shape_fn((1, shape[0], shape[1], shape[2]), value), affine }
    }

    #[test]
    fn what_is_linear_in_the_world_stays_so_within_the_volume() {
        let (volume, other) = (ramp([6, 7, 8], 1., 2.), ramp([8, 8, 8], 1.5, 0.5));
        let first = volume.clone().into();
        let found = onto(&first, &other, "b", "a").unwrap();
        for (a, b) in found.data.iter().zip(&volume.data) {
            assert!((a - b).abs() < 1e-3, "{a}, expected {b}");
        }
        // Beyond half a voxel around it there is nothing to interpolate.
        let small = onto(&first, &ramp([4, 7, 8], 1., 2.), "b", "a").unwrap();
        let lowest = small.data[[0, 0, 0, 0]];
        assert!(small.data.slice(ndarray::s![0, 4.., .., ..]).iter().all(|&v| v == lowest));
        let message = onto(&first, &ramp([6, 7, 8], 1., 7.), "b", "a").unwrap_err().to_string();
        assert!(message.contains("b: covers 2 % of a"), "{message}");
    }
}
