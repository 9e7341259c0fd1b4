//! Resampling a box of a volume onto another grid, one axis at a time.

use crate::data::labelling::IGNORE;
use crate::data::scan::Floats;
use crate::dim::Shape;

/// One axis of a new grid over a box. Voxel centres are at whole numbers and a box of `n` voxels extends from -0.5 to `n - 0.5`;
/// the new grid has the same centre. A cube's grid has the same extent too, which is
/// `torch.nn.functional.interpolate(align_corners=False)`. Nothing is smoothed before downsampling, as there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Axis {
    /// First voxel of the box, and its extent.
    pub start: usize,
    pub n: usize,
    /// Voxels of the new grid.
    pub out: usize,
    /// Distance between new voxels, in old ones.
    pub step: f64,
}

/// Where an output voxel takes its value: `(1 - weight) * low + weight * high`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tap {
    pub low: usize,
    pub high: usize,
    pub weight: f32,
}

impl Axis {
    /// `out` voxels over the whole box.
    pub fn resize(start: usize, n: usize, out: usize) -> Axis {
        Axis { start, n, out, step: n as f64 / out as f64 }
    }

    /// Voxels of `mm` over a box of voxels of `from` millimetres; as many as cover it, rounded, at least one.
    pub fn respace(start: usize, n: usize, from: f64, mm: f64) -> Axis {
        let step = mm / from;
        Axis { start, n, out: ((n as f64 / step).round() as usize).max(1), step }
    }

    /// The way back: the box's voxels on the new grid, which is taken as the whole of a volume. Both have the same centre.
    pub fn inverse(&self) -> Axis {
        Axis { start: 0, n: self.out, out: self.n, step: 1.0 / self.step }
    }

    /// Position in the box of the first new voxel.
    pub fn first(&self) -> f64 {
        (self.n as f64 - 1.0 - (self.out as f64 - 1.0) * self.step) / 2.0
    }

    /// Positions beyond the outermost voxels take those voxels' values.
    fn positions(&self) -> impl Iterator<Item = f64> {
        let (first, step, last) = (self.first(), self.step, self.n as f64 - 1.0);
        (0..self.out).map(move |i| (first + i as f64 * step).clamp(0.0, last))
    }

    /// The new voxels whose centres lie in `n` voxels of the old axis from `start` on: the first of them, and how many.
    pub fn within(&self, start: usize, n: usize) -> (usize, usize) {
        let low = start as f64 - self.start as f64 - 0.5;
        let inside = |i: &usize| (low..low + n as f64).contains(&(self.first() + *i as f64 * self.step));
        let first = (0..self.out).find(inside).unwrap_or(0);
        (first, (first..self.out).take_while(inside).count())
    }

    pub(super) fn taps(&self) -> Vec<Tap> {
        let tap = |p: f64| {
            let low = p as usize;
            Tap { low, high: (low + 1).min(self.n - 1), weight: (p - low as f64) as f32 }
        };
        self.positions().map(tap).collect()
    }

    /// Input voxel nearest to each output voxel, and the one above it that is as near, or the same again; the small term keeps rounding
    /// errors of the position from deciding.
    fn nearest(&self) -> Vec<[usize; 2]> {
        const ERROR: f64 = 1e-9;
        let last = self.n - 1;
        let of = |p: f64| [p + 0.5 - ERROR, p + 0.5 + ERROR].map(|p| self.start + (p.max(0.) as usize).min(last));
        self.positions().map(of).collect()
    }
}

/// Shape of the new grid.
pub fn shape(axes: &[Axis; 3]) -> Shape {
    axes.map(|a| a.out)
}

/// `out = (1 - weight) * low + weight * high`.
pub(super) fn mix(low: &[f32], high: &[f32], weight: f32, out: &mut [f32]) {
    for ((out, &low), &high) in out.iter_mut().zip(low).zip(high) {
        *out = low + weight * (high - low);
    }
}

/// Linear interpolation of one channel `input` of `shape` into `out`. Works plane by plane: two input planes are mixed into one,
/// its rows into one row, its voxels into one voxel, so all but the first reading stays in cache.
pub fn linear<V: Floats + ?Sized>(input: &V, shape: Shape, axes: &[Axis; 3], out: &mut [f32]) {
    let taps = [axes[0].taps(), axes[1].taps(), axes[2].taps()];
    let [n1, n2] = [axes[1].n, axes[2].n];
    let mut plane = vec![0.0; n1 * n2];
    let mut line = vec![0.0; n2];
    let row = |d: usize, h: usize| {
        let at = ((axes[0].start + d) * shape[1] + axes[1].start + h) * shape[2] + axes[2].start;
        at..at + n2
    };
    let [mut low, mut high] = [vec![], vec![]];
    for (out, d) in out.chunks_exact_mut(axes[1].out * axes[2].out).zip(&taps[0]) {
        for (h, out) in plane.chunks_exact_mut(n2).enumerate() {
            let low = input.floats(row(d.low, h), &mut low);
            mix(low, input.floats(row(d.high, h), &mut high), d.weight, out);
        }
        for (out, h) in out.chunks_exact_mut(axes[2].out).zip(&taps[1]) {
            mix(&plane[h.low * n2..][..n2], &plane[h.high * n2..][..n2], h.weight, &mut line);
            for (out, w) in out.iter_mut().zip(&taps[2]) {
                *out = line[w.low] + w.weight * (line[w.high] - line[w.low]);
            }
        }
    }
}

/// Nearest neighbour, for labels. Half-way between voxels, as all new ones are where every second, fourth, ... is kept, it is the class that
/// most of the nearest have, as the image is their mean: one side of them would shift the label by half a voxel against it.
pub fn nearest(input: &[u8], shape: Shape, axes: &[Axis; 3], out: &mut [u8]) {
    let [d, h, w] = axes.map(|a| a.nearest());
    let rows = d.iter().flat_map(|d| h.iter().map(move |h| (d, h)));
    for (out, (d, h)) in out.chunks_exact_mut(w.len()).zip(rows) {
        let row = |i: usize| (d[i >> 1] * shape[1] + h[i & 1]) * shape[2];
        let rows = [0, 1, 2, 3].map(row);
        for (out, &[low, high]) in out.iter_mut().zip(&w) {
            let (first, alone) = (input[rows[0] + low], rows[0] == rows[3] && low == high);
            let all = || std::array::from_fn(|i| input[rows[i >> 1] + if i & 1 == 0 { low } else { high }]);
            *out = if alone { first } else { most_frequent(all()) };
        }
    }
}

/// Of several that are as frequent the highest class, so that a thin structure is kept as nnU-Net keeps it. What nobody labelled has no say,
/// or a coarser grid would lose most scribbles.
fn most_frequent(classes: [u8; 8]) -> u8 {
    let [first, ..] = classes;
    if classes == [first; 8] {
        return first;
    }
    let count = |class: u8| classes.iter().filter(|other| **other == class).count();
    let best = classes.into_iter().max_by_key(|&class| (class != IGNORE, count(class), class));
    best.unwrap_or(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dim::voxels;
    use crate::rng::{Stream, rng};
    use rand::Rng as _;

    /// Trilinear by its definition: each output voxel from its eight neighbours, in double precision.
    fn naive(input: &[f32], shape: Shape, axes: &[Axis; 3], x: [usize; 3]) -> f64 {
        let p = [0, 1, 2].map(|a| {
            let (n, m) = (axes[a].n as f64, axes[a].out as f64);
            ((x[a] as f64 + 0.5 - m / 2.0) * axes[a].step + n / 2.0 - 0.5).clamp(0.0, n - 1.0)
        });
        let mut value = 0.0;
        for corner in 0..8 {
            let (mut weight, mut at) = (1.0, 0);
            for a in 0..3 {
                let (floor, up) = (p[a].floor(), (corner >> a) & 1);
                weight *= if up == 1 { p[a] - floor } else { 1.0 - (p[a] - floor) };
                at = at * shape[a] + axes[a].start + (floor as usize + up).min(axes[a].n - 1);
            }
            value += weight * f64::from(input[at]);
        }
        value
    }

    #[test]
    fn separable_passes_equal_the_eight_neighbours() {
        let mut random = rng(1, Stream::Train, 0, 0);
        for _ in 0..30 {
            let shape = [0; 3].map(|_| random.random_range(1..20usize));
            let axes = [0, 1, 2].map(|a| {
                let n = random.random_range(1..=shape[a]);
                let start = random.random_range(0..=shape[a] - n);
                if random.random_bool(0.5) {
                    Axis::resize(start, n, random.random_range(1..25))
                } else {
                    Axis::respace(start, n, random.random_range(0.5..3.0), random.random_range(0.5..3.0))
                }
            });
            let input: Vec<f32> = (0..voxels(shape)).map(|_| random.random_range(-1.0..1.0)).collect();
            let mut out = vec![9.0; voxels(super::shape(&axes))];
            linear(&input[..], shape, &axes, &mut out);
            let indices = ndarray::indices((axes[0].out, axes[1].out, axes[2].out));
            for (x, &got) in indices.into_iter().zip(&out) {
                let expected = naive(&input, shape, &axes, [x.0, x.1, x.2]);
                assert!((f64::from(got) - expected).abs() < 1e-5, "{x:?} of {axes:?}: {got}, expected {expected}");
            }
        }
    }

    #[test]
    fn the_same_grid_changes_nothing_and_labels_take_the_nearest() {
        let input: Vec<f32> = (0..60).map(|i| (i * 37 % 61) as f32 / 7.0).collect();
        let same = [Axis::resize(0, 3, 3), Axis::respace(0, 4, 1.2, 1.2), Axis::resize(0, 5, 5)];
        let mut out = vec![0.0; 60];
        linear(&input[..], [3, 4, 5], &same, &mut out);
        assert_eq!(out, input);

        let label: Vec<u8> = (0..10).collect();
        let nearest_of = |out: usize| {
            let mut got = vec![0; out];
            nearest(&label, [1, 1, 10], &[Axis::resize(0, 1, 1), Axis::resize(0, 1, 1), Axis::resize(0, 10, out)], &mut got);
            got
        };
        // floor((i + 0.5) * n / out), exactly; that is the upper of two which are as near, and here the higher class.
        for out in 1..40 {
            let expected: Vec<u8> = (0..out).map(|i| ((2 * i + 1) * 10 / (2 * out)) as u8).collect();
            assert_eq!(nearest_of(out), expected, "{out}");
        }
    }

    #[test]
    fn labels_lie_where_the_image_does() {
        let mut random = rng(5, Stream::Train, 0, 0);
        for (shape, out) in [([8, 12, 6], [4, 6, 3]), ([8, 8, 8], [2, 4, 8]), ([9, 10, 4], [3, 5, 1]), ([7, 5, 6], [5, 4, 4])] {
            let axes: [Axis; 3] = std::array::from_fn(|a| Axis::resize(0, shape[a], out[a]));
            for _ in 0..20 {
                let label: Vec<u8> = (0..voxels(shape)).map(|_| [0, 0, 1, 2, IGNORE][random.random_range(0..5)]).collect();
                let of = |label: &[u8]| {
                    let mut found = vec![99; voxels(out)];
                    nearest(label, shape, &axes, &mut found);
                    found
                };
                let found = of(&label);
                // Of the voxels at the least distance, by the definition; then mirrored, as the image would be.
                for (i, x) in ndarray::indices((out[0], out[1], out[2])).into_iter().enumerate() {
                    let x = [x.0, x.1, x.2];
                    let p: [f64; 3] = std::array::from_fn(|a| (x[a] as f64 + 0.5) * shape[a] as f64 / out[a] as f64 - 0.5);
                    let distance = |v: usize| {
                        let at = [v / (shape[1] * shape[2]), v / shape[2] % shape[1], v % shape[2]];
                        (0..3).map(|a| (at[a] as f64 - p[a]).powi(2)).sum::<f64>()
                    };
                    let least = (0..label.len()).map(distance).fold(f64::INFINITY, f64::min);
                    let near: Vec<u8> = (0..label.len()).filter(|&v| distance(v) < least + 1e-6).map(|v| label[v]).collect();
                    let votes = |class: u8| near.iter().filter(|&&c| c == class).count();
                    let best = [0, 1, 2].into_iter().max_by_key(|&class| votes(class)).filter(|&class| votes(class) > 0);
                    let expected = best.unwrap_or(IGNORE);
                    assert_eq!(found[i], expected, "{x:?} of {shape:?} to {out:?}: {near:?}");
                }
                let reversed: Vec<u8> = label.iter().rev().copied().collect();
                assert!(of(&reversed).iter().rev().eq(&found));
            }
        }
    }
}
