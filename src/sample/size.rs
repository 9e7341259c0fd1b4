//! How large windows and patches are unless the user names a size, and which scans are smaller.

use crate::data::Scans;
use crate::dim::{Rank, Shape, Sides, millimetres, voxels};
use crate::print::note;
use crate::sample::padded::extended;
use anyhow::{Result, bail};

/// A window may be so many times as long as the longest scan along an axis: in anything longer, most would be padding.
const MOST_PADDED: usize = 2;
/// Sides whose ratio is below this become equal where turns that keep the window's shape are wanted.
const ALIKE: usize = 2;

/// Side of a cube, or a square, of as many voxels as a window has that nobody asked for: the paper's volumes and images.
fn largest(rank: Rank) -> usize {
    match rank {
        Rank::Two => 224,
        Rank::Three => 128,
    }
}

/// Side of the cube or square that nnU-Net begins with, before it is clipped and reduced.
fn first(rank: Rank) -> usize {
    match rank {
        Rank::Two => 2048,
        Rank::Three => 256,
    }
}

/// The middle one, of an even number the mean of the two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let n = values.len();
    (values[(n - 1) / 2] + values[n / 2]) / 2.
}

/// Median extent of the scans in voxels, and size of their voxels in mm, along each axis.
fn medians(scans: &dyn Scans) -> (Shape, [f64; 3]) {
    let over = |of: &dyn Fn(usize) -> f64| median((0..scans.len()).map(of).collect());
    (
        std::array::from_fn(|a| over(&|scan| scans.shape(scan)[a] as f64) as usize),
        std::array::from_fn(|a| over(&|scan| scans.spacing(scan)[a])),
    )
}

/// Window for these scans, as nnU-Net plans a patch (`default_experiment_planner.py`, 2.8): of the same millimetres along every axis, clipped
/// to the median scan, then made smaller along the axis that is longest in relation to it, until it is small enough. nnU-Net estimates the
/// network's memory; here it has at most as many voxels as a cube of 128, an image of 224 pixels a side.
///
/// A median scan that is a cube stays one, whatever its voxels: `--size` has stretched them.
pub fn planned(scans: &dyn Scans, rank: Rank) -> Shape {
    let (median, spacing) = medians(scans);
    let (axes, n) = (rank.axes(), rank.n() as f64);
    let mut window = median;
    (0..axes.start).for_each(|a| window[a] = 1);
    if axes.clone().any(|a| median[a] != median[axes.start]) {
        let of_voxels: f64 = axes.clone().map(|a| spacing[a]).product::<f64>().powf(1. / n);
        for a in axes.clone() {
            let side = (first(rank) as f64 * of_voxels / spacing[a]).round();
            window[a] = window[a].min((side as usize).max(1));
        }
    }
    let ratio = |window: Shape, a: usize| window[a] as f64 / median[a] as f64;
    while voxels(window) > voxels(rank.cube(largest(rank))) {
        let longest = axes.clone().max_by(|&a, &b| ratio(window, a).total_cmp(&ratio(window, b)));
        window[longest.unwrap_or(axes.start)] -= 1;
    }
    window
}

/// With sides of similar length made equal, the smallest of them, so that more turns keep the shape.
pub fn evened(rank: Rank, window: Shape) -> Shape {
    let mut order: Vec<usize> = rank.axes().collect();
    order.sort_by_key(|&a| window[a]);
    let (mut evened, mut least) = (window, window[order[0]]);
    for a in order {
        if window[a] >= ALIKE * least {
            least = window[a];
        }
        evened[a] = least;
    }
    evened
}

/// Says what was chosen, and from what, where scans are not all the same cube.
pub fn note_planned(flag: &str, scans: &dyn Scans, rank: Rank, window: Shape) {
    let shape = scans.shape(0);
    let cube = rank.axes().all(|a| shape[a] == shape[rank.axes().start]);
    if cube && (0..scans.len()).all(|scan| scans.shape(scan) == shape) {
        return;
    }
    let (median, spacing) = medians(scans);
    note!(
        "--{flag} {}: from the median scan of {} voxels of {} mm",
        Sides::of(rank, window),
        rank.words(median),
        millimetres(&spacing[rank.axes()])
    );
}

/// Says which scans are smaller, and what is done about it.
pub fn note_padded(flag: &str, scans: &dyn Scans, rank: Rank, window: Shape) {
    let small = |scan: &usize| extended(scans.shape(*scan), window).0 != scans.shape(*scan);
    let (mut small, all) = ((0..scans.len()).filter(small), scans.len());
    if let Some(first) = small.next() {
        note!(
            "--{flag} {}: {} of {all} scans are smaller (e.g. {}, {} voxels); they lie in the middle of background, each channel's smallest value",
            Sides::of(rank, window),
            1 + small.count(),
            scans.id(first),
            rank.words(scans.shape(first))
        );
    }
}

/// Errors where most of a window would be padding along an axis, whatever the scan.
pub fn check(flag: &str, scans: &dyn Scans, rank: Rank, window: Shape) -> Result<()> {
    for a in rank.axes() {
        let Some(longest) = (0..scans.len()).max_by_key(|&scan| scans.shape(scan)[a]) else { continue };
        let extent = scans.shape(longest)[a];
        if window[a] > MOST_PADDED * extent {
            bail!(
                "--{flag} {}: {} voxels along axis {a}, where no scan has more than {extent} ({}); expected at most {}, twice as many",
                Sides::of(rank, window),
                window[a],
                scans.id(longest),
                MOST_PADDED * extent
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dim::Region;
    use crate::transform::spatial::Orientation;

    /// Shapes and spacings alone.
    struct Sizes(Vec<(Shape, [f64; 3])>);

    impl Scans for Sizes {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn id(&self, _: usize) -> &str {
            "scan"
        }
        fn channels(&self) -> usize {
            1
        }
        fn shape(&self, scan: usize) -> Shape {
            self.0[scan].0
        }
        fn spacing(&self, scan: usize) -> [f64; 3] {
            self.0[scan].1
        }
        fn read(&self, _: usize, _: Region, _: Orientation, _: &mut [f32]) -> Result<()> {
            unreachable!("sizes have no voxels")
        }
    }

    const MM: [f64; 3] = [1.; 3];

    #[test]
    fn cubes_stay_the_cubes_that_they_were() {
        for side in [7, 64, 127, 128, 129, 130, 160, 256, 301] {
            for spacing in [MM, [1., 1., 4.], [0.5, 3., 1.]] {
                let planned = planned(&Sizes(vec![([side; 3], spacing); 3]), Rank::Three);
                assert_eq!(planned, [side.min(128); 3], "{side} {spacing:?}");
            }
            assert_eq!(planned(&Sizes(vec![([1, side, side], MM); 2]), Rank::Two), [1, side.min(224), side.min(224)]);
        }
    }

    #[test]
    fn windows_follow_the_median_scan_as_nnunet_plans_them() {
        // In NumPy, with nnU-Net's lines: p = [min(round(i), m) for i, m in zip(1/s * (256**3 / prod(1/s)) ** (1/3), median)], then
        // while prod(p) > 128**3: p[argsort(p / median)[-1]] -= 1
        for (scans, expected) in [
            (vec![([512, 512, 40], [0.8, 0.8, 5.]); 3], [302, 301, 23]),
            // One thin scan shrinks nobody's window.
            (vec![([512, 512, 200], MM), ([512, 512, 200], MM), ([512, 512, 9], [1., 1., 5.])], [176, 175, 68]),
            (vec![([240, 240, 155], MM); 2], [148, 148, 95]),
            (vec![([35, 51, 35], MM), ([34, 50, 36], MM), ([35, 49, 38], MM)], [35, 50, 36]),
        ] {
            let found = planned(&Sizes(scans.clone()), Rank::Three);
            let room = 128usize.pow(3);
            assert!(voxels(found) <= room, "{found:?}");
            assert_eq!(found, expected, "{scans:?}");
        }
    }

    #[test]
    fn similar_sides_are_made_equal() {
        for (window, expected) in [
            ([35, 51, 35], [35; 3]),
            ([128, 128, 64], [128, 128, 64]),
            ([100, 60, 40], [100, 40, 40]),
            ([30, 140, 100], [30, 100, 100]),
            ([64; 3], [64; 3]),
        ] {
            assert_eq!(evened(Rank::Three, window), expected);
        }
        assert_eq!(evened(Rank::Two, [1, 150, 224]), [1, 150, 150]);
    }

    #[test]
    fn a_window_of_padding_is_refused_with_the_largest_scan() {
        let scans = Sizes(vec![([20, 30, 9], MM), ([25, 30, 10], MM)]);
        assert!(check("window", &scans, Rank::Three, [50, 60, 20]).is_ok());
        let error = check("patch", &scans, Rank::Three, [48, 48, 21]).unwrap_err().to_string();
        for part in ["--patch 48,48,21", "21 voxels along axis 2", "more than 10", "at most 20"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
