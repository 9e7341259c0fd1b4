//! Distances between the surfaces of two masks.
//!
//! The surface of a mask is the mask minus its erosion: its voxels with a neighbour (6 in a volume, 4 in an image) outside it.
//! What lies beyond the border is background, so a mask that touches the border has a surface there. Distances run between
//! voxel centres, in millimetres. MONAI (`get_mask_edges`, then `compute_hausdorff_distance(percentile=95)`,
//! `compute_average_surface_distance(symmetric=True)` and `compute_surface_dice`) defines them alike, and the tests compare with it.

use crate::dim::{Region, Shape, voxels};
use rayon::prelude::*;

/// Distances between the surfaces of two masks, in millimetres: of each surface voxel of one to the nearest of the other, and back,
/// each in rising order.
pub struct Surfaces([Vec<f64>; 2]);

/// Relative slack of a tolerance: spacings are read as 32-bit floats, and a voxel just as far as the tolerance is within it.
const SLACK: f64 = 1e-6;

impl Surfaces {
    /// Of masks of `shape`, whose voxels are `spacing` millimetres apart; `None` if one is empty. An axis of extent 1 has no
    /// neighbours: an image is treated as 2D whichever axis it lacks.
    pub fn of(truth: &[bool], prediction: &[bool], shape: Shape, spacing: [f64; 3]) -> Option<Surfaces> {
        debug_assert!(truth.len() == voxels(shape) && prediction.len() == voxels(shape));
        // Outside the box of both masks there is only background: nothing is lost by cutting it off.
        let region = bounding_box([truth, prediction], shape)?;
        let axes = shape.map(|n| n > 1);
        let [truth, prediction] = [truth, prediction].map(|mask| surface(&crop(mask, shape, region), region.size, axes));
        if !truth.contains(&true) || !prediction.contains(&true) {
            return None;
        }
        Some(Surfaces([(&truth, &prediction), (&prediction, &truth)].map(|(from, to)| {
            let mut distances = distances(from, to, region.size, spacing);
            distances.sort_unstable_by(f64::total_cmp);
            distances
        })))
    }

    /// The larger of the two directions' 95th percentiles, interpolated linearly, as NumPy does by default.
    pub fn hd95(&self) -> f64 {
        let [there, back] = self.0.each_ref().map(|distances| percentile(distances, 0.95));
        there.max(back)
    }

    /// Mean over the surface voxels of both masks together: the average symmetric surface distance.
    pub fn asd(&self) -> f64 {
        self.all().sum::<f64>() / self.all().count() as f64
    }

    /// Share of the surface voxels of both masks together that are at most `tolerance` millimetres away: the normalised surface
    /// Dice, in [0, 1].
    ///
    /// Source: Nikolov et al., *Deep learning to achieve clinically applicable segmentation of head and neck anatomy for
    /// radiotherapy* (2018), with voxels in the place of surface elements, as in MONAI.
    pub fn within(&self, tolerance: f64) -> f64 {
        let tolerance = tolerance * (1.0 + SLACK);
        self.all().filter(|distance| *distance <= tolerance).count() as f64 / self.all().count() as f64
    }

    fn all(&self) -> impl Iterator<Item = f64> {
        self.0.iter().flatten().copied()
    }
}

/// The smallest box that holds both masks; `None` if both are empty.
fn bounding_box(masks: [&[bool]; 2], shape: Shape) -> Option<Region> {
    let (mut low, mut high) = (shape, [0; 3]);
    for mask in masks {
        for (row, voxels) in mask.chunks_exact(shape[2]).enumerate() {
            let Some(first) = voxels.iter().position(|&v| v) else { continue };
            let last = voxels.iter().rposition(|&v| v).unwrap_or(first);
            for (a, from, to) in [(0, row / shape[1], row / shape[1]), (1, row % shape[1], row % shape[1]), (2, first, last)] {
                low[a] = low[a].min(from);
                high[a] = high[a].max(to + 1);
            }
        }
    }
    (high[0] > 0).then(|| Region { start: low, size: std::array::from_fn(|a| high[a] - low[a]) })
}

fn crop(mask: &[bool], shape: Shape, Region { start, size }: Region) -> Vec<bool> {
    let mut out = Vec::with_capacity(voxels(size));
    for x in start[0]..start[0] + size[0] {
        for y in start[1]..start[1] + size[1] {
            let at = (x * shape[1] + y) * shape[2] + start[2];
            out.extend_from_slice(&mask[at..at + size[2]]);
        }
    }
    out
}

/// The mask minus its erosion along the given axes; outside is background.
fn surface(mask: &[bool], [d, h, w]: Shape, axes: [bool; 3]) -> Vec<bool> {
    let mut out = vec![false; mask.len()];
    for row in 0..d * h {
        let (x, y) = (row / h, row % h);
        let inner = (!axes[0] || (x > 0 && x + 1 < d)) && (!axes[1] || (y > 0 && y + 1 < h));
        for z in 0..w {
            let at = row * w + z;
            out[at] = mask[at]
                && !(inner
                    && (!axes[0] || (mask[at - h * w] && mask[at + h * w]))
                    && (!axes[1] || (mask[at - w] && mask[at + w]))
                    && (!axes[2] || (z > 0 && z + 1 < w && mask[at - 1] && mask[at + 1])));
        }
    }
    out
}

/// Distance of every voxel of `from` to the nearest of `to`, neither empty, in row-major order.
///
/// The exact Euclidean distance transform, one axis at a time: a sweep along the last axis, the lower envelope of parabolas
/// along the middle one (Felzenszwalb & Huttenlocher 2012); along the first axis only the voxels asked for are searched,
/// outwards, until nothing nearer can come.
fn distances(from: &[bool], to: &[bool], size: Shape, spacing: [f64; 3]) -> Vec<f64> {
    let [d, h, w] = size;
    let plane = h * w;
    // Squared distance to the nearest voxel of the same plane.
    let mut flat = vec![f64::INFINITY; to.len()];
    flat.par_chunks_mut(plane).zip(to.par_chunks(plane)).filter(|(_, to)| to.contains(&true)).for_each(|(flat, to)| {
        flat.chunks_exact_mut(w).zip(to.chunks_exact(w)).for_each(|(flat, to)| sweep(to, spacing[2], flat));
        let mut hull = Vec::with_capacity(h);
        let mut column = vec![0.0; h];
        for z in 0..w {
            (0..h).for_each(|y| column[y] = flat[y * w + z]);
            envelope(&column, spacing[1], &mut hull, |y, value| flat[y * w + z] = value);
        }
    });
    let nearest = |at: usize| {
        let (x, rest) = (at / plane, at % plane);
        let mut best = f64::INFINITY;
        for step in 0..d {
            let apart = (step as f64 * spacing[0]).powi(2);
            if apart >= best {
                break;
            }
            let below = x.checked_sub(step);
            let above = Some(x + step).filter(|&x| x < d);
            for x in below.into_iter().chain(above) {
                best = best.min(flat[x * plane + rest] + apart);
            }
        }
        best.sqrt()
    };
    (0..from.len()).into_par_iter().filter(|&at| from[at]).map(nearest).collect()
}

/// Squared distance of each voxel of a row to the row's nearest `true`; infinite without one.
fn sweep(row: &[bool], spacing: f64, out: &mut [f64]) {
    let mut last = None;
    for (z, &set) in row.iter().enumerate() {
        last = if set { Some(z) } else { last };
        out[z] = last.map_or(f64::INFINITY, |last| (z - last) as f64);
    }
    let mut next = None;
    for (z, &set) in row.iter().enumerate().rev() {
        next = if set { Some(z) } else { next };
        let ahead = next.map_or(f64::INFINITY, |next| (next - z) as f64);
        out[z] = (out[z].min(ahead) * spacing).powi(2);
    }
}

/// For each position `y` of a column, `min over q of values[q] + (spacing (y - q))^2`. `hull` is scratch space: the parabolas of
/// the lower envelope, each with where it begins.
fn envelope(values: &[f64], spacing: f64, hull: &mut Vec<(usize, f64)>, mut put: impl FnMut(usize, f64)) {
    hull.clear();
    let place = |q: usize| q as f64 * spacing;
    for (q, &value) in values.iter().enumerate().filter(|(_, value)| value.is_finite()) {
        let mut start = f64::NEG_INFINITY;
        while let Some(&(p, from)) = hull.last() {
            start = (value - values[p]) / (2.0 * (place(q) - place(p))) + (place(q) + place(p)) / 2.0;
            if start > from {
                break;
            }
            hull.pop();
            start = f64::NEG_INFINITY;
        }
        hull.push((q, start));
    }
    if hull.is_empty() {
        return;
    }
    let mut on = 0;
    for y in 0..values.len() {
        while hull.get(on + 1).is_some_and(|&(_, start)| start < place(y)) {
            on += 1;
        }
        let q = hull[on].0;
        put(y, values[q] + (y.abs_diff(q) as f64 * spacing).powi(2));
    }
}

/// Percentile (`share` in [0, 1]) of at least one value in rising order, interpolated linearly between neighbours.
fn percentile(values: &[f64], share: f64) -> f64 {
    let place = share * (values.len() - 1) as f64;
    let low = values[place as usize];
    let high = values.get(place as usize + 1).copied().unwrap_or(low);
    low + (high - low) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn coordinates(at: usize, [_, h, w]: Shape) -> [usize; 3] {
        [at / (h * w), at / w % h, at % w]
    }

    /// Surface voxels by the definition: some neighbour along an axis longer than 1 is background or outside.
    fn naive_surface(mask: &[bool], shape: Shape) -> Vec<[usize; 3]> {
        let holds = |x: [i64; 3]| {
            let inside = (0..3).all(|a| (0..shape[a] as i64).contains(&x[a]));
            inside && mask[(x[0] as usize * shape[1] + x[1] as usize) * shape[2] + x[2] as usize]
        };
        let voxels = (0..mask.len()).filter(|&at| mask[at]).map(|at| coordinates(at, shape));
        let outer = |x: &[usize; 3]| {
            (0..3).filter(|&a| shape[a] > 1).any(|a| {
                [-1, 1].into_iter().any(|step| {
                    let mut y = x.map(|v| v as i64);
                    y[a] += step;
                    !holds(y)
                })
            })
        };
        voxels.filter(|x| outer(x)).collect()
    }

    const TOLERANCE: f64 = 2.0;

    /// HD95, average distance and surface Dice.
    fn found(truth: &[bool], prediction: &[bool], shape: Shape, spacing: [f64; 3]) -> Option<[f64; 3]> {
        Surfaces::of(truth, prediction, shape, spacing).map(|s| [s.hd95(), s.asd(), s.within(TOLERANCE)])
    }

    /// Every pair of surface voxels; percentiles of sorted distances.
    fn naive(truth: &[bool], prediction: &[bool], shape: Shape, spacing: [f64; 3]) -> Option<[f64; 3]> {
        let [a, b] = [truth, prediction].map(|mask| naive_surface(mask, shape));
        if a.is_empty() || b.is_empty() {
            return None;
        }
        let apart = |x: &[usize; 3], y: &[usize; 3]| {
            (0..3).map(|i| (spacing[i] * (x[i] as f64 - y[i] as f64)).powi(2)).sum::<f64>().sqrt()
        };
        let directed = |from: &[[usize; 3]], to: &[[usize; 3]]| {
            let nearest = from.iter().map(|x| to.iter().map(|y| apart(x, y)).fold(f64::INFINITY, f64::min));
            let mut sorted: Vec<f64> = nearest.collect();
            sorted.sort_by(f64::total_cmp);
            let (place, top) = (0.95 * (sorted.len() - 1) as f64, sorted.len() - 1);
            let (low, high) = (sorted[place.floor() as usize], sorted[(place.floor() as usize + 1).min(top)]);
            (low + (high - low) * (place - place.floor()), sorted)
        };
        let ((p, there), (q, back)) = (directed(&a, &b), directed(&b, &a));
        let all: Vec<f64> = there.into_iter().chain(back).collect();
        let near = all.iter().filter(|d| **d <= TOLERANCE * (1.0 + SLACK)).count();
        Some([p.max(q), all.iter().sum::<f64>() / all.len() as f64, near as f64 / all.len() as f64])
    }

    fn close(a: Option<[f64; 3]>, b: Option<[f64; 3]>) -> bool {
        match (a, b) {
            (Some(a), Some(b)) => a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9),
            (a, b) => a == b,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Sparse to full masks of two densities in every rank, so empty ones, single voxels and the border all occur.
        #[test]
        fn distances_agree_with_every_pair(
            shape in prop::array::uniform3(prop_oneof![Just(1usize), 2..9usize]),
            spacing in prop::array::uniform3(0.2..5.0f64),
            densities in prop::array::uniform2(prop::sample::select(vec![0.0, 0.01, 0.1, 0.5, 0.9, 1.0])),
            values in prop::collection::vec(0.0..1.0f64, 2 * 512),
        ) {
            let n = voxels(shape);
            let mask = |i: usize| values[i * 512..][..n].iter().map(|v| *v < densities[i]).collect::<Vec<_>>();
            let (truth, prediction) = (mask(0), mask(1));
            let found = found(&truth, &prediction, shape, spacing);
            let expected = naive(&truth, &prediction, shape, spacing);
            prop_assert!(close(found, expected), "{found:?}, expected {expected:?}");
        }
    }

    #[test]
    fn two_voxels_are_as_far_apart_as_their_centres() {
        let shape = [4, 6, 8];
        let single = |x: [usize; 3]| (0..voxels(shape)).map(|at| coordinates(at, shape) == x).collect::<Vec<_>>();
        let found = Surfaces::of(&single([0, 1, 7]), &single([3, 5, 0]), shape, [2.0, 0.5, 3.0]).unwrap();
        let expected = (6.0f64.powi(2) + 2.0f64.powi(2) + 21.0f64.powi(2)).sqrt();
        assert!((found.hd95() - expected).abs() < 1e-12 && (found.asd() - expected).abs() < 1e-12);
        // Just as far as the tolerance is within it, whatever the 32-bit float of a header makes of 0.1 mm.
        let near = Surfaces::of(&single([0, 0, 0]), &single([0, 0, 1]), shape, [1.0, 1.0, 0.1f32 as f64]).unwrap();
        assert!((near.within(0.1), near.within(0.0999)) == (1.0, 0.0));
        let empty = vec![false; voxels(shape)];
        assert!(Surfaces::of(&single([0, 0, 0]), &empty, shape, [1.0; 3]).is_none());
        assert!(Surfaces::of(&empty, &empty, shape, [1.0; 3]).is_none());
    }
}
