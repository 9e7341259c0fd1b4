//! Windows, grids and patches: where in a scan a sample's voxels lie.

use crate::data::Scans;
use crate::dim::{Rank, Region, Shape, voxels};
use crate::rng::Rng;
use crate::transform::spatial::Orientation;
use anyhow::{Result, ensure};
use rand::Rng as _;
use std::ops::RangeInclusive;

/// Windows of a volume's slices that are drawn before one is taken with little in it.
const REDRAWS: usize = 8;
/// Share of a window's voxels, in some channel, that is not background in a slice with something in it.
const CONTENT: f64 = 0.1;

/// Draws a window of `side` voxels along every axis in use, uniformly over the positions inside the scan; along an axis not
/// in use it is one voxel thick. Errors if the scan is smaller.
///
/// A slice of a volume may hold next to nothing, and teach nothing. A window is drawn again, up to eight times, if in every
/// channel less than a tenth of its voxels differs from the lowest one. Where the background is noise, no window looks empty.
pub fn draw_window(scans: &dyn Scans, scan: usize, rank: Rank, side: usize, rng: &mut Rng) -> Result<Region> {
    let (shape, size) = (scans.shape(scan), rank.cube(side));
    ensure!(
        (0..3).all(|a| size[a] <= shape[a]),
        "{}: the scan has {shape:?} voxels, samples need a window of {size:?}",
        scans.id(scan)
    );
    let mut draw = || Region { start: std::array::from_fn(|a| rng.random_range(0..=shape[a] - size[a])), size };
    let mut window = draw();
    if rank == Rank::Two && shape[0] > 1 {
        let mut redraws = 0;
        while redraws < REDRAWS && !has_content(scans, scan, window)? {
            (window, redraws) = (draw(), redraws + 1);
        }
    }
    Ok(window)
}

/// Draws a box inside a window of `window` voxels a side: along every axis in use a side of `sides` and its place, uniformly.
pub fn draw_box(rank: Rank, window: usize, sides: RangeInclusive<usize>, rng: &mut Rng) -> Region {
    let mut region = Region::whole([1; 3]);
    for a in rank.axes() {
        region.size[a] = rng.random_range(sides.clone());
        region.start[a] = rng.random_range(0..=window - region.size[a]);
    }
    region
}

fn has_content(scans: &dyn Scans, scan: usize, window: Region) -> Result<bool> {
    let n = voxels(window.size);
    let mut values = vec![0f32; scans.channels() * n];
    scans.read(scan, window, Orientation::IDENTITY, &mut values)?;
    Ok(values.chunks_exact(n).any(|channel| {
        let background = channel.iter().copied().fold(f32::INFINITY, f32::min);
        channel.iter().filter(|&&v| v > background).count() as f64 >= CONTENT * n as f64
    }))
}

/// Largest window that is taken without being asked for: the paper's volumes and images.
pub fn max_window(rank: Rank) -> usize {
    match rank {
        Rank::Two => 224,
        Rank::Three => 128,
    }
}

/// Side of the window unless the user names one: the smallest extent of any scan along any axis in use, at most 128, for
/// images 224.
pub fn default_window(scans: &dyn Scans, rank: Rank) -> usize {
    let sides = (0..scans.len()).flat_map(|scan| rank.axes().map(move |a| scans.shape(scan)[a]));
    sides.fold(max_window(rank), usize::min)
}

/// A grid of `n` cells along every axis in use, from the window's first corner on; cell ids are row-major in `(i, j, k)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchGrid {
    pub rank: Rank,
    /// Cells a side.
    pub n: usize,
    /// Voxels between neighbouring cells' first corners.
    pub step: usize,
    /// Voxels along a cell's side.
    pub side: usize,
}

impl PatchGrid {
    /// Cells side by side; up to `n - 1` voxels at the window's end stay unused.
    pub fn cells(rank: Rank, window: usize, n: usize) -> Result<Self> {
        ensure!(n >= 1, "a grid needs at least 1 cell a side, found {n}");
        let side = window / n;
        ensure!(side >= 1, "a window of {window} voxels a side has no {n} cells a side");
        Ok(PatchGrid { rank, n, step: side, side })
    }

    /// Cells that overlap their neighbours by half.
    pub fn overlapping(rank: Rank, window: usize, n: usize) -> Result<Self> {
        ensure!(n >= 1, "a grid needs at least 1 cell a side, found {n}");
        let step = window / (n + 1);
        ensure!(step >= 1, "a window of {window} voxels a side has no {n} half-overlapping cells a side");
        Ok(PatchGrid { rank, n, step, side: 2 * step })
    }

    /// Number of cells.
    pub fn count(&self) -> usize {
        self.n.pow(self.rank.n() as u32)
    }

    /// Cell id to `(i, j, k)`, 0 along an axis not in use.
    pub fn index(&self, cell: usize) -> Shape {
        let (mut rest, mut index) = (cell, [0; 3]);
        for a in self.rank.axes().rev() {
            index[a] = rest % self.n;
            rest /= self.n;
        }
        index
    }

    /// A cell's voxels, relative to the window.
    pub fn region(&self, cell: usize) -> Region {
        Region { start: self.index(cell).map(|i| i * self.step), size: self.rank.cube(self.side) }
    }
}

/// Cells side by side. Their patches are random sub-crops that never touch: a patch is `jitter` voxels smaller than its
/// cell along every axis and lies 0 to `jitter - 1` voxels from its first corner, so at least one voxel separates neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JitteredGrid {
    pub cells: PatchGrid,
    /// Voxels; 0 makes every patch its whole cell, so that neighbours touch.
    pub jitter: usize,
}

impl JitteredGrid {
    /// `jitter: None` takes the paper's 3 voxels at a window of 128, in proportion, and at least 1.
    pub fn new(rank: Rank, window: usize, n: usize, jitter: Option<usize>) -> Result<Self> {
        let cells = PatchGrid::cells(rank, window, n)?;
        let jitter = jitter.unwrap_or(((3 * window + 64) / 128).max(1));
        ensure!(
            jitter < cells.side,
            "a window of {window} voxels with {n} cells a side has cells of {} voxels, which leaves no patch with a jitter of {jitter}",
            cells.side
        );
        Ok(JitteredGrid { cells, jitter })
    }

    pub fn patch_shape(&self) -> Shape {
        self.cells.rank.cube(self.cells.side - self.jitter)
    }

    /// Draws the patch of a cell, relative to the window.
    pub fn draw(&self, cell: usize, rng: &mut Rng) -> Region {
        let mut start = self.cells.region(cell).start;
        if self.jitter > 0 {
            self.cells.rank.axes().for_each(|a| start[a] += rng.random_range(0..self.jitter));
        }
        Region { start, size: self.patch_shape() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Arrays;
    use crate::rng::{Stream, rng};

    fn touch(a: &Region, b: &Region) -> bool {
        // Grown by one voxel, do they overlap?
        (0..3).all(|i| a.start[i] <= b.start[i] + b.size[i] && b.start[i] <= a.start[i] + a.size[i])
    }

    #[test]
    fn jittered_patches_stay_in_their_cells_and_never_touch() {
        let mut rng = rng(1, Stream::Train, 0, 0);
        for (rank, window, n, jitter) in [
            (Rank::Three, 128, 3, None),
            (Rank::Three, 64, 3, None),
            (Rank::Three, 20, 3, None),
            (Rank::Two, 97, 3, Some(5)),
            (Rank::Two, 64, 4, None),
        ] {
            let grid = JitteredGrid::new(rank, window, n, jitter).unwrap();
            let mut starts = std::collections::HashSet::new();
            for _ in 0..200 {
                let patches: Vec<Region> = (0..grid.cells.count()).map(|c| grid.draw(c, &mut rng)).collect();
                for (c, p) in patches.iter().enumerate() {
                    let cell = grid.cells.region(c);
                    assert!(
                        (0..3).all(|a| p.start[a] >= cell.start[a] && p.start[a] + p.size[a] <= cell.start[a] + cell.size[a])
                    );
                    assert!(p.fits(rank.cube(window)));
                    assert!(patches[..c].iter().all(|q| !touch(p, q)));
                }
                starts.insert(patches[0].start);
            }
            // Every offset occurs: at most 27 of them in 200 draws.
            assert_eq!(starts.len(), grid.jitter.pow(rank.n() as u32));
        }
        let whole = JitteredGrid::new(Rank::Three, 30, 3, Some(0)).unwrap();
        assert!(touch(&whole.draw(0, &mut rng), &whole.draw(1, &mut rng)));
    }

    #[test]
    fn slices_with_next_to_nothing_in_them_are_avoided() {
        // Slices 10 to 29 of 40 have something in a quarter of each, in one channel; slice 3 has one voxel.
        let mut image = ndarray::Array4::from_elem((2, 40, 16, 16), -1f32);
        image.slice_mut(ndarray::s![1, 10..30, ..8, ..8]).fill(0.5);
        image[[0, 3, 2, 2]] = 0.5;
        let scans = Arrays { ids: vec!["scan".into()], images: vec![image] };
        let draws = 2000;
        let starts = |rank, side| -> Vec<usize> {
            let mut rng = rng(1, Stream::Train, 0, 0);
            (0..draws).map(|_| draw_window(&scans, 0, rank, side, &mut rng).unwrap().start[0]).collect()
        };
        let drawn = starts(Rank::Two, 16);
        let empty = drawn.iter().filter(|s| !(10..30).contains(*s)).count();
        // One of 2^9 is left: 4 expected.
        assert!(empty < 20, "{empty} of {draws} empty");
        let each: Vec<usize> = (10..30).map(|s| drawn.iter().filter(|&&d| d == s).count()).collect();
        assert!(each.iter().all(|&n| (50..150).contains(&n)), "{each:?}");
        assert_eq!(drawn, starts(Rank::Two, 16));
        // Volumes are drawn as before.
        assert!(starts(Rank::Three, 2).iter().any(|s| *s < 8));
    }

    #[test]
    fn the_papers_sizes() {
        let grid = JitteredGrid::new(Rank::Three, 128, 3, None).unwrap();
        assert_eq!((grid.cells.side, grid.jitter, grid.patch_shape()), (42, 3, [39; 3]));
        assert_eq!(JitteredGrid::new(Rank::Two, 64, 3, None).unwrap().patch_shape(), [1, 19, 19]);
        assert!(JitteredGrid::new(Rank::Two, 9, 3, Some(3)).unwrap_err().to_string().contains("cells of 3 voxels"));
    }

    #[test]
    fn grids_are_row_major_and_stay_inside() {
        for rank in [Rank::Two, Rank::Three] {
            for grid in [PatchGrid::cells(rank, 31, 3).unwrap(), PatchGrid::overlapping(rank, 31, 4).unwrap()] {
                let n = grid.n;
                for cell in 0..grid.count() {
                    let [i, j, k] = grid.index(cell);
                    assert_eq!((i * n + j) * n + k, cell);
                    assert!(grid.region(cell).fits(rank.cube(31)));
                }
                let last = grid.region(1).start[2];
                assert_eq!(last, grid.step);
            }
        }
        let half = PatchGrid::overlapping(Rank::Three, 64, 3).unwrap();
        assert_eq!((half.step, half.side), (16, 32));
        assert!(PatchGrid::overlapping(Rank::Three, 3, 3).is_err());
        assert!(PatchGrid::cells(Rank::Three, 2, 3).is_err());
    }
}
