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
///
/// The input is always walked forwards, whatever is flipped: it comes from memory, where order is what speed depends on, while
/// `out` mostly stays in cache.
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
    // Output axis of each input axis, and where in `out` an index of an input axis leads.
    let mut axis = [0; 3];
    orientation.source.iter().enumerate().for_each(|(a, &source)| axis[source] = a);
    let stride = [size[1] * size[2], size[2], 1];
    let place = |source: usize, y: usize| {
        let a = axis[source];
        stride[a] * if orientation.flip[a] { size[a] - 1 - y } else { y }
    };

    let n = region.size[2];
    if axis[2] == 2 {
        for y0 in 0..region.size[0] {
            for y1 in 0..region.size[1] {
                let at = place(0, y0) + place(1, y1);
                let out = &mut out[at..at + n];
                S::convert(row([y0, y1, 0]), out);
                if orientation.flip[2] {
                    out.reverse();
                }
            }
        }
        return;
    }

    // Output rows run across input rows, along input axis `across`. A few rows are converted into a tile that stays in the
    // first-level cache, and written out a column at a time.
    let across = orientation.source[2];
    let other = 1 - across;
    let mut tile = vec![T::default(); TILE * n];
    for first in (0..region.size[across]).step_by(TILE) {
        let rows = TILE.min(region.size[across] - first);
        let start = if orientation.flip[2] { size[2] - first - rows } else { first };
        for y_other in 0..region.size[other] {
            let mut y = [0; 3];
            y[other] = y_other;
            for r in 0..rows {
                y[across] = first + r;
                let at = if orientation.flip[2] { rows - 1 - r } else { r };
                S::convert(row(y), &mut tile[at * n..][..n]);
            }
            let start = start + place(other, y_other);
            for column in 0..n {
                let at = start + place(2, column);
                let out = &mut out[at..at + rows];
                // The usual case with its length known to the compiler.
                if let Ok(out) = <&mut [T; TILE]>::try_from(&mut *out) {
                    out.iter_mut().enumerate().for_each(|(r, out)| *out = tile[r * n + column]);
                } else {
                    out.iter_mut().enumerate().for_each(|(r, out)| *out = tile[r * n + column]);
                }
            }
        }
    }
}
