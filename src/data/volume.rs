//! A volume with its place in the world.

use crate::dim::{Shape, voxels};
use crate::transform::spatial::Orientation;
use anyhow::{Result, ensure};
use ndarray::Array4;

/// Voxel index (of the last three axes) to millimetres in RAS+ world space; row-major, as nibabel's `img.affine`.
pub type Affine = [[f64; 4]; 4];

/// Voxels `[C, i, j, k]` and the affine of `(i, j, k)`.
#[derive(Clone, Debug)]
pub struct Volume {
    pub data: Array4<f32>,
    pub affine: Affine,
}

impl Volume {
    pub fn channels(&self) -> usize {
        self.data.dim().0
    }

    /// Spatial extent `[i, j, k]`.
    pub fn shape(&self) -> Shape {
        let (_, i, j, k) = self.data.dim();
        [i, j, k]
    }

    /// Distance between neighbouring voxels along each axis, in millimetres.
    pub fn spacing(&self) -> [f64; 3] {
        spacing(&self.affine)
    }

    /// Number of voxels that are NaN or infinite.
    pub fn non_finite(&self) -> usize {
        self.data.iter().filter(|v| !v.is_finite()).count()
    }

    /// Where each axis points, e.g. `LAS`: towards the left, the front and the top. Agrees with `nibabel.aff2axcodes`.
    /// Errors on a singular affine.
    pub fn axis_codes(&self) -> Result<String> {
        axis_codes(&self.affine)
    }

    /// Brings the axes to the closest RAS+ order, as `nibabel.as_closest_canonical`: voxels are moved, never interpolated.
    /// Also returns the permutation; its inverse undoes it. Errors on a singular affine.
    pub fn to_ras(self) -> Result<(Volume, Orientation)> {
        let orientation = to_ras(&self.affine)?;
        Ok((self.permute(orientation), orientation))
    }

    /// Permutes and flips the axes; the affine follows, so that every voxel stays where it is in the world.
    pub fn permute(self, orientation: Orientation) -> Volume {
        if orientation == Orientation::IDENTITY {
            return self;
        }
        let shape = self.shape();
        let affine = permute_affine(&self.affine, shape, orientation);
        let data = self.data.as_standard_layout();
        let data = data.as_slice().expect("standard layout");
        let [o0, o1, o2] = orientation.output(shape);
        let mut out = Array4::zeros((self.channels(), o0, o1, o2));
        let strides = Strides::row_major(shape).oriented(shape, orientation);
        let n = voxels(shape).max(1);
        let to = out.as_slice_mut().expect("just made").chunks_exact_mut(n);
        for (from, to) in data.chunks_exact(n).zip(to) {
            gather(from, strides, [o0, o1, o2], to, &|v| v);
        }
        Volume { data: out, affine }
    }
}

/// Lengths of the affine's columns, in millimetres.
pub fn spacing(affine: &Affine) -> [f64; 3] {
    std::array::from_fn(|a| (0..3).map(|r| affine[r][a] * affine[r][a]).sum::<f64>().sqrt())
}

/// Errors unless what was read from `source` lies on the grid of `first`, both turned to RAS+: same shape, corners closer than a twentieth of
/// a voxel.
pub fn same_grid(first: &str, shape: Shape, affine: &Affine, source: &str, found: Shape, there: &Affine) -> Result<()> {
    ensure!(found == shape, "{source}: shape {found:?} (RAS+), expected {shape:?} as in {first}");
    let voxel = spacing(affine).into_iter().fold(f64::INFINITY, f64::min);
    let mut apart: f64 = 0.0;
    for corner in 0..8 {
        let x = [0, 1, 2].map(|a| if corner >> a & 1 == 1 { shape[a] as f64 - 1.0 } else { 0.0 });
        let difference = |r: usize| {
            let at = |m: &Affine| (0..3).map(|a| m[r][a] * x[a]).sum::<f64>() + m[r][3];
            at(affine) - at(there)
        };
        apart = apart.max((0..3).map(|r| difference(r).powi(2)).sum::<f64>().sqrt());
    }
    ensure!(
        apart <= 0.05 * voxel,
        "{source}: its corners are up to {apart:.3} mm from those of {first}, expected the same affine ({affine:?}, found {there:?})"
    );
    Ok(())
}

/// Where voxels of one grid lie on another: three rows of a matrix from indices on `grid` to indices on `other`. Errors on a singular affine.
pub fn index_in(grid: &Affine, other: &Affine) -> Result<[[f64; 4]; 3]> {
    let m: [[f64; 3]; 3] = std::array::from_fn(|r| std::array::from_fn(|c| other[r][c]));
    let scale = determinant(&m);
    ensure!(scale.is_finite() && scale != 0.0, "affine {other:?} is singular, expected three independent axes");
    Ok(std::array::from_fn(|r| {
        std::array::from_fn(|c| {
            let world = |a: usize| grid[a][c] - if c == 3 { other[a][3] } else { 0.0 };
            (0..3).map(|a| cofactor(&m, a, r) / scale * world(a)).sum()
        })
    }))
}

/// As [`Volume::axis_codes`].
pub fn axis_codes(affine: &Affine) -> Result<String> {
    let back = to_ras(affine)?;
    let letter = |axis: usize| {
        let world = (0..3).find(|&w| back.source[w] == axis).expect("a permutation");
        [["R", "A", "S"], ["L", "P", "I"]][back.flip[world] as usize][world]
    };
    Ok((0..3).map(letter).collect())
}

/// The permutation that brings voxels of this affine to the closest RAS+ order, by nibabel's rule: shears are removed, then
/// the axes choose their world axis in turn, the best aligned first. Errors on a singular affine.
pub fn to_ras(affine: &Affine) -> Result<Orientation> {
    let turn = rotation(affine)?;
    let strength = |axis: usize| (0..3).map(|w| turn[w][axis].powi(2)).fold(0.0, f64::max);
    let mut order = [0, 1, 2];
    order.sort_by(|&a, &b| strength(b).total_cmp(&strength(a)));
    let mut orientation = Orientation::IDENTITY;
    let mut free = vec![0, 1, 2];
    for axis in order {
        // The first of equals, as NumPy's argmax.
        let best = (0..free.len()).rev().max_by(|&a, &b| turn[free[a]][axis].abs().total_cmp(&turn[free[b]][axis].abs()));
        let world = free.remove(best.expect("three axes, three places"));
        orientation.source[world] = axis;
        orientation.flip[world] = turn[world][axis] < 0.0;
    }
    Ok(orientation)
}

/// Affine after a permutation of a volume of shape `shape`.
pub fn permute_affine(affine: &Affine, shape: Shape, orientation: Orientation) -> Affine {
    let mut out = *affine;
    for (new, old) in out.iter_mut().zip(affine) {
        for a in 0..3 {
            let (source, flip) = (orientation.source[a], orientation.flip[a]);
            new[a] = if flip { -old[source] } else { old[source] };
            if flip {
                new[3] += old[source] * (shape[source] as f64 - 1.0);
            }
        }
    }
    out
}

/// The orthogonal matrix closest to the affine's axes (the polar factor): the axes without spacing and shears; a reflection
/// stays one. Errors on an affine that is not finite or singular.
pub fn rotation(affine: &Affine) -> Result<[[f64; 3]; 3]> {
    let length = spacing(affine);
    let mut m: [[f64; 3]; 3] = std::array::from_fn(|r| std::array::from_fn(|c| affine[r][c] / length[c]));
    // Newton's iteration, M <- (M + M^-T) / 2, converges to the polar factor for every regular matrix. The test is written so
    // that NaN fails it.
    ensure!(
        affine.as_flattened().iter().all(|v| v.is_finite()) && determinant(&m).abs() > 1e-6,
        "affine {affine:?} is singular, expected three independent axes of finite, positive spacing"
    );
    for _ in 0..60 {
        let inverse = 1.0 / determinant(&m);
        let next: [[f64; 3]; 3] =
            std::array::from_fn(|r| std::array::from_fn(|c| (m[r][c] + cofactor(&m, r, c) * inverse) / 2.0));
        let change = (0..9).map(|i| (next[i / 3][i % 3] - m[i / 3][i % 3]).abs()).fold(0.0, f64::max);
        m = next;
        if change < 1e-15 {
            break;
        }
    }
    Ok(m)
}

fn cofactor(m: &[[f64; 3]; 3], r: usize, c: usize) -> f64 {
    let ([r1, r2], [c1, c2]) = ([(r + 1) % 3, (r + 2) % 3], [(c + 1) % 3, (c + 2) % 3]);
    m[r1][c1] * m[r2][c2] - m[r1][c2] * m[r2][c1]
}

/// Determinant of a 3 x 3 matrix.
pub fn determinant(m: &[[f64; 3]; 3]) -> f64 {
    (0..3).map(|c| m[0][c] * cofactor(m, 0, c)).sum()
}

/// Where the voxels of a grid lie in a buffer: voxel `x` at `base + x . step`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strides {
    pub base: usize,
    pub step: [isize; 3],
}

impl Strides {
    /// Last axis fastest.
    pub fn row_major(shape: Shape) -> Self {
        Strides { base: 0, step: [(shape[1] * shape[2]) as isize, shape[2] as isize, 1] }
    }

    /// First axis fastest, as in NIfTI files.
    pub fn column_major(shape: Shape) -> Self {
        Strides { base: 0, step: [1, shape[0] as isize, (shape[0] * shape[1]) as isize] }
    }

    /// The same voxels of a grid of `shape`, seen through a permutation.
    pub fn oriented(self, shape: Shape, orientation: Orientation) -> Self {
        let mut out = self;
        for a in 0..3 {
            let source = orientation.source[a];
            out.step[a] = self.step[source];
            if orientation.flip[a] {
                out.base = out.base.wrapping_add_signed(self.step[source] * (shape[source] as isize - 1));
                out.step[a] = -self.step[source];
            }
        }
        out
    }

    /// The same voxels with their axes in reverse, for a buffer whose first axis is fastest.
    pub fn reversed(self) -> Self {
        let [i, j, k] = self.step;
        Strides { base: self.base, step: [k, j, i] }
    }

    /// The voxels from place `k` of the third axis on.
    pub fn beginning_at(self, k: usize) -> Self {
        Strides { base: self.base.wrapping_add_signed(self.step[2] * k as isize), step: self.step }
    }

    fn at(&self, x: [usize; 3]) -> usize {
        (0..3).fold(self.base, |at, a| at.wrapping_add_signed(x[a] as isize * self.step[a]))
    }
}

/// `out[x] = f(src[x])` for the voxels of a grid, `out` row-major and `src` by `strides`. One step of `strides` is
/// 1 or -1; when its axis is not the last, the copy goes through small tiles so that both sides are read and written in runs.
pub(super) fn gather<T: Copy, U: Copy>(src: &[T], strides: Strides, shape: Shape, out: &mut [U], f: &impl Fn(T) -> U) {
    if voxels(shape) == 0 {
        return;
    }
    let [_, n1, n2] = shape;
    let unit = (0..3).rev().find(|&a| strides.step[a].abs() == 1).expect("one axis is contiguous");
    let backwards = strides.step[unit] < 0;
    // In the order of `src`.
    let run = |start: usize, n: usize| if backwards { &src[start + 1 - n..=start] } else { &src[start..start + n] };
    if unit == 2 {
        for (row, out) in out.chunks_exact_mut(n2).enumerate() {
            let from = run(strides.at([row / n1, row % n1, 0]), n2);
            if backwards {
                out.iter_mut().zip(from.iter().rev()).for_each(|(o, &v)| *o = f(v));
            } else {
                out.iter_mut().zip(from).for_each(|(o, &v)| *o = f(v));
            }
        }
        return;
    }
    let other = 1 - unit;
    let mut tile = Tile::filled(f(src[strides.base]));
    let mut x = [0; 3];
    for y in 0..shape[other] {
        x[other] = y;
        for u in (0..shape[unit]).step_by(SIDE) {
            let nu = SIDE.min(shape[unit] - u);
            for k in (0..n2).step_by(SIDE) {
                let nk = SIDE.min(n2 - k);
                for (column, values) in tile.lines().enumerate().take(nk) {
                    (x[unit], x[2]) = (u, k + column);
                    values.iter_mut().zip(run(strides.at(x), nu)).for_each(|(t, &v)| *t = f(v));
                }
                tile.transpose();
                for (row, values) in tile.lines().enumerate().take(nu) {
                    x[unit] = u + if backwards { nu - 1 - row } else { row };
                    let at = (x[0] * n1 + x[1]) * n2 + k;
                    // A whole row has a length that the compiler knows.
                    match (out[at..at + nk].first_chunk_mut::<SIDE>(), values.first_chunk()) {
                        (Some(out), Some(whole)) => *out = *whole,
                        _ => out[at..at + nk].copy_from_slice(&values[..nk]),
                    }
                }
            }
        }
    }
}

/// Side of a tile, a power of two: a line of bytes is one of the cache.
const SIDE: usize = 64;
const TILE: usize = SIDE * SIDE;

/// Lines of values, and room to transpose them.
struct Tile<T>([T; TILE], [T; TILE]);

impl<T: Copy> Tile<T> {
    fn filled(value: T) -> Self {
        Tile([value; TILE], [value; TILE])
    }

    fn lines(&mut self) -> impl Iterator<Item = &mut [T]> {
        self.0.chunks_exact_mut(SIDE)
    }

    /// Each riffle of the halves moves the highest bit of a place to its lowest; after those of the line all lines are columns.
    fn transpose(&mut self) {
        const { assert!(SIDE.ilog2().is_multiple_of(2)) };
        for _ in 0..SIDE.ilog2() / 2 {
            riffle(&self.0, &mut self.1);
            riffle(&self.1, &mut self.0);
        }
    }
}

fn riffle<T: Copy>(from: &[T; TILE], to: &mut [T; TILE]) {
    let (low, high) = from.split_at(TILE / 2);
    for ((to, low), high) in to.as_chunks_mut::<2>().0.iter_mut().zip(low).zip(high) {
        *to = [*low, *high];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn orientations() -> impl Strategy<Value = Orientation> {
        (Just([0, 1, 2]).prop_shuffle(), any::<[bool; 3]>()).prop_map(|(source, flip)| Orientation { source, flip })
    }

    proptest! {
        /// The definition in [`Orientation`]'s documentation, voxel by voxel; and a voxel stays where it is in the world.
        #[test]
        fn permuting_follows_the_definition_and_can_be_undone(
            orientation in orientations(),
            (c, i, j, k) in (1..3usize, 1..80usize, 1..40usize, 1..80usize),
            matrix in prop::array::uniform12(-3.0..3.0f64),
        ) {
            let mut affine = [[0.0; 4]; 4];
            affine.as_flattened_mut()[..12].copy_from_slice(&matrix);
            affine[3][3] = 1.0;
            let mut next = 0.0;
            let data = Array4::from_shape_simple_fn((c, i, j, k), || { next += 1.0; next });
            let volume = Volume { data, affine };
            let turned = volume.clone().permute(orientation);
            prop_assert_eq!(turned.shape(), orientation.output([i, j, k]));
            let world = |affine: &Affine, v: [usize; 3]| -> [f64; 3] {
                std::array::from_fn(|r| affine[r][3] + (0..3).map(|a| affine[r][a] * v[a] as f64).sum::<f64>())
            };
            for ((ch, x0, x1, x2), &value) in turned.data.indexed_iter() {
                let (x, mut y) = ([x0, x1, x2], [0; 3]);
                for ((source, flip), at) in orientation.source.into_iter().zip(orientation.flip).zip(x) {
                    y[source] = if flip { [i, j, k][source] - 1 - at } else { at };
                }
                prop_assert_eq!(value, volume.data[[ch, y[0], y[1], y[2]]]);
                let (p, q) = (world(&turned.affine, x), world(&volume.affine, y));
                prop_assert!((0..3).all(|r| (p[r] - q[r]).abs() < 1e-9));
            }
            let back = turned.permute(orientation.inverse());
            prop_assert_eq!(back.data, volume.data);
            prop_assert!(back.affine.as_flattened().iter().zip(affine.as_flattened()).all(|(a, b)| (a - b).abs() < 1e-9));
        }
    }

    #[test]
    fn the_polar_factor_undoes_scales_and_symmetric_shears() {
        // R = a rotation by 30 degrees about the third axis, reflected; A = R S with S symmetric positive definite.
        let (cos, sin) = (0.75f64.sqrt(), 0.5);
        let r = [[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, -1.0]];
        let s = [[1.0, 0.2, 0.1], [0.2, 1.0, 0.0], [0.1, 0.0, 1.0]];
        let length: [f64; 3] = std::array::from_fn(|c| (0..3).map(|a| s[a][c] * s[a][c]).sum::<f64>().sqrt());
        let product = |r_: usize, c: usize| (0..3).map(|a| r[r_][a] * s[a][c]).sum::<f64>();
        let affine = |unit: bool| -> Affine {
            std::array::from_fn(|i| {
                std::array::from_fn(|j| {
                    if i == 3 || j == 3 {
                        0.0
                    } else if unit {
                        product(i, j) / length[j]
                    } else {
                        40.0 * r[i][j]
                    }
                })
            })
        };
        let close = |m: [[f64; 3]; 3]| (0..9).all(|i| (m[i / 3][i % 3] - r[i / 3][i % 3]).abs() < 1e-12);
        assert!(close(rotation(&affine(false)).unwrap()));
        // Unequal column lengths change S; its polar factor is then orthogonal, a reflection, and near R.
        let m = rotation(&affine(true)).unwrap();
        assert!((determinant(&m) + 1.0).abs() < 1e-12 && (0..9).all(|i| (m[i / 3][i % 3] - r[i / 3][i % 3]).abs() < 0.05));
        for broken in [0.0, f64::NAN, f64::INFINITY] {
            let mut affine = affine(false);
            (0..3).for_each(|a| affine[a][1] = broken);
            assert!(rotation(&affine).unwrap_err().to_string().contains("singular"));
        }
    }
}
