//! Copying a box out of a volume while its axes are permuted and flipped and its values converted.

use crate::dim::{Region, Shape};
use crate::transform::spatial::Orientation;
use half::f16;
use half::slice::HalfFloatSliceExt;

/// A stored voxel that becomes a `T`, a row at a time.
pub trait Stored<T>: Copy {
    fn convert(row: &[Self], out: &mut [T]);
}

impl Stored<f32> for f16 {
    fn convert(row: &[f16], out: &mut [f32]) {
        row.convert_to_f32_slice(out);
    }
}

impl<T: Copy> Stored<T> for T {
    fn convert(row: &[T], out: &mut [T]) {
        out.copy_from_slice(row);
    }
}

/// Input rows that are turned at a time: 16 `f32` of output are one cache line.
const TILE: usize = 16;

/// Copies `region` of `input` (of `shape`), turned by `orientation`, into `out` (of `orientation.output(region.size)`).
/// The caller has checked that the region fits and that both slices have those sizes.
pub fn turn<S: Stored<T>, T: Copy + Default>(
    input: &[S],
    shape: Shape,
    region: Region,
    orientation: Orientation,
    out: &mut [T],
) {
    let size = orientation.output(region.size);
    if out.is_empty() {
        return;
    }
    let row = |y: Shape| {
        let first = ((region.start[0] + y[0]) * shape[1] + region.start[1] + y[1]) * shape[2] + region.start[2];
        &input[first..first + region.size[2]]
    };
    let place = |axis: usize, x: usize| if orientation.flip[axis] { size[axis] - 1 - x } else { x };

    if orientation.source[2] == 2 {
        for (x, out) in out.chunks_exact_mut(size[2]).enumerate() {
            let x = [x / size[1], x % size[1]];
            let mut y = [0; 3];
            for (axis, &x) in x.iter().enumerate() {
                y[orientation.source[axis]] = place(axis, x);
            }
            S::convert(row(y), out);
            if orientation.flip[2] {
                out.reverse();
            }
        }
        return;
    }

    // Output rows run across input rows: input axis `across` is output axis 2, and the input's rows lie along output axis
    // `along`. A few rows are converted into a tile that stays in the first-level cache, and written out a column at a time.
    let across = orientation.source[2];
    let along = if orientation.source[0] == 2 { 0 } else { 1 };
    let other = 1 - along;
    let stride = if along == 0 { [size[1] * size[2], size[2]] } else { [size[2], size[1] * size[2]] };
    let n = size[along];
    let mut tile = vec![T::default(); TILE * n];
    for x_other in 0..size[other] {
        let mut y = [0; 3];
        y[orientation.source[other]] = place(other, x_other);
        for first in (0..size[2]).step_by(TILE) {
            let rows = TILE.min(size[2] - first);
            for (r, tile) in tile.chunks_exact_mut(n).take(rows).enumerate() {
                y[across] = place(2, first + r);
                S::convert(row(y), tile);
            }
            for column in 0..n {
                let at = x_other * stride[1] + place(along, column) * stride[0] + first;
                if let Ok(out) = <&mut [T; TILE]>::try_from(&mut out[at..at + rows]) {
                    for (r, out) in out.iter_mut().enumerate() {
                        *out = tile[r * n + column];
                    }
                } else {
                    for (r, out) in out[at..at + rows].iter_mut().enumerate() {
                        *out = tile[r * n + column];
                    }
                }
            }
        }
    }
}
