//! Windows, grids and patches: where in a scan a sample's voxels lie.

use crate::data::Scans;
use crate::dim::{Rank, Region, Shape, Sides, voxels};
use crate::rng::Rng;
use crate::transform::spatial::Orientation;
use anyhow::{Result, bail, ensure};
use rand::Rng as _;
use std::ops::RangeInclusive;

/// Windows of a volume's slices that are drawn before one is taken with little in it.
const REDRAWS: usize = 8;
/// Share of a window's voxels, in some channel, that is not background in a slice with something in it.
const CONTENT: f64 = 0.1;

/// Draws a window of `size` voxels, uniformly over the positions inside the scan. Errors if the scan is smaller.
///
/// A slice of a volume may hold next to nothing, and teach nothing. A window is drawn again, up to eight times, if in every
/// channel less than a tenth of its voxels differs from the lowest one. Where the background is noise, no window looks empty.
pub fn draw_window(scans: &dyn Scans, scan: usize, rank: Rank, size: Shape, rng: &mut Rng) -> Result<Region> {
    let shape = scans.shape(scan);
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

/// Draws a box inside a window of this shape: along every axis in use a side of `sides` and its place, uniformly.
pub fn draw_box(rank: Rank, window: Shape, sides: &[RangeInclusive<usize>; 3], rng: &mut Rng) -> Region {
    let mut region = Region::whole([1; 3]);
    for a in rank.axes() {
        region.size[a] = rng.random_range(sides[a].clone());
        region.start[a] = rng.random_range(0..=window[a] - region.size[a]);
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

/// A grid of cells from the window's first corner on; cell ids are row-major in `(i, j, k)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchGrid {
    pub rank: Rank,
    /// Cells along each axis.
    pub n: Shape,
    /// Voxels between neighbouring cells' first corners.
    pub step: Shape,
    /// Voxels along a cell's sides.
    pub side: Shape,
}

impl PatchGrid {
    /// Cells side by side; up to `n - 1` voxels at the window's end stay unused.
    pub fn cells(rank: Rank, window: Shape, n: Shape) -> Result<Self> {
        let side = divided(rank, window, n, 0, "")?;
        Ok(PatchGrid { rank, n, step: side, side })
    }

    /// Cells that overlap their neighbours by half; a single one is as long as the window.
    pub fn overlapping(rank: Rank, window: Shape, n: Shape) -> Result<Self> {
        let step = divided(rank, window, n, 1, "half-overlapping ")?;
        let mut side = [1; 3];
        rank.axes().for_each(|a| side[a] = 2 * step[a]);
        Ok(PatchGrid { rank, n, step, side })
    }

    /// Number of cells.
    pub fn count(&self) -> usize {
        voxels(self.n)
    }

    /// Cell id to `(i, j, k)`, 0 along an axis not in use.
    pub fn index(&self, cell: usize) -> Shape {
        let (mut rest, mut index) = (cell, [0; 3]);
        for a in self.rank.axes().rev() {
            index[a] = rest % self.n[a];
            rest /= self.n[a];
        }
        index
    }

    /// A cell's voxels, relative to the window.
    pub fn region(&self, cell: usize) -> Region {
        let index = self.index(cell);
        Region { start: std::array::from_fn(|a| index[a] * self.step[a]), size: self.side }
    }
}

/// The window's sides divided by `n + more`. Errors, naming the cells as `kind`, where nothing is left.
fn divided(rank: Rank, window: Shape, n: Shape, more: usize, kind: &str) -> Result<Shape> {
    ensure!(n.iter().all(|n| *n >= 1), "a grid needs at least 1 cell a side, found {}", Sides::of(rank, n));
    let mut parts = [1; 3];
    rank.axes().for_each(|a| parts[a] = window[a] / (n[a] + more));
    let [sides, cells] = [window, n].map(|shape| Sides::of(rank, shape));
    ensure!(parts.iter().all(|part| *part >= 1), "a window of {sides} voxels a side has no {cells} {kind}cells a side");
    Ok(parts)
}

/// The paper's 3 voxels along a side of 128, in proportion, and at least 1.
fn jitter_of(side: usize) -> usize {
    ((3 * side + 64) / 128).max(1)
}

/// Cells side by side. Their patches are random sub-crops that never touch: a patch is `jitter` voxels smaller than its
/// cell along every axis and lies 0 to `jitter - 1` voxels from its first corner, so at least one voxel separates neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JitteredGrid {
    pub cells: PatchGrid,
    /// Voxels along each axis in use; 0 makes every patch as long as its cell, so that neighbours touch.
    pub jitter: Shape,
}

impl JitteredGrid {
    /// `jitter: None` follows the window. `task`: whose flags say it.
    pub fn new(task: &str, window: Shape, rank: Rank, n: &Sides, jitter: Option<&Sides>) -> Result<Self> {
        let flag = |name: &str| format!("{task}-{name}");
        let n = n.shape(&flag("grid"), rank)?;
        let cells = PatchGrid::cells(rank, window, n)?;
        let given = jitter.map(|jitter| jitter.shape(&flag("jitter"), rank)).transpose()?;
        let mut jitter = [0; 3];
        rank.axes().for_each(|a| jitter[a] = given.map_or(jitter_of(window[a]), |given| given[a]));
        if let Some(a) = rank.axes().find(|&a| jitter[a] >= cells.side[a]) {
            let [window, cells_a_side] = [window, n].map(|shape| Sides::of(rank, shape));
            bail!(
                "a window of {window} voxels with {cells_a_side} cells a side has cells of {} voxels, which leaves no patch with a jitter of {}",
                cells.side[a],
                jitter[a]
            );
        }
        Ok(JitteredGrid { cells, jitter })
    }

    /// The smallest window with patches of at least this shape; `jitter`: where it does not follow the window.
    pub fn window_for(rank: Rank, n: Shape, jitter: Option<Shape>, patch: Shape) -> Shape {
        let mut window = [1; 3];
        for a in rank.axes() {
            let of = |side: usize| (side / n[a]).saturating_sub(jitter.map_or(jitter_of(side), |jitter| jitter[a]));
            window[a] = (n[a] * patch[a]..).find(|&side| of(side) >= patch[a]).unwrap_or(patch[a]);
        }
        window
    }

    pub fn patch_shape(&self) -> Shape {
        std::array::from_fn(|a| self.cells.side[a] - self.jitter[a])
    }

    /// Whether neighbouring patches may touch.
    pub fn touches(&self) -> bool {
        self.cells.rank.axes().any(|a| self.cells.n[a] > 1 && self.jitter[a] == 0)
    }

    /// Draws the patch of a cell, relative to the window.
    pub fn draw(&self, cell: usize, rng: &mut Rng) -> Region {
        let mut start = self.cells.region(cell).start;
        self.cells.rank.axes().filter(|&a| self.jitter[a] > 0).for_each(|a| start[a] += rng.random_range(0..self.jitter[a]));
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
            (Rank::Three, "128", "3", None),
            (Rank::Three, "64", "3", None),
            (Rank::Three, "20", "3", None),
            (Rank::Three, "60,128,20", "3,5,1", None),
            (Rank::Three, "40,40,9", "3,3,1", Some("3,2,1")),
            (Rank::Two, "97", "3", Some("5")),
            (Rank::Two, "64", "4", None),
            (Rank::Two, "64,30", "4,2", None),
        ] {
            let sides = |text: &str| text.parse::<Sides>().unwrap();
            let (window, jitter) = (sides(window).shape("window", rank).unwrap(), jitter.map(sides));
            let grid = JitteredGrid::new("jig", window, rank, &sides(n), jitter.as_ref()).unwrap();
            assert!(!grid.touches());
            let mut starts = std::collections::HashSet::new();
            for _ in 0..200 {
                let patches: Vec<Region> = (0..grid.cells.count()).map(|c| grid.draw(c, &mut rng)).collect();
                for (c, p) in patches.iter().enumerate() {
                    let cell = grid.cells.region(c);
                    assert!(
                        (0..3).all(|a| p.start[a] >= cell.start[a] && p.start[a] + p.size[a] <= cell.start[a] + cell.size[a])
                    );
                    assert!(p.fits(window) && p.size == grid.patch_shape());
                    assert!(patches[..c].iter().all(|q| !touch(p, q)));
                }
                starts.insert(patches[0].start);
            }
            // Every offset occurs: at most 27 of them in 200 draws.
            assert_eq!(starts.len(), rank.axes().map(|a| grid.jitter[a]).product::<usize>());
        }
        let grid = |jitter: &str| {
            let (n, jitter) = ("3,3,1".parse().unwrap(), jitter.parse().unwrap());
            JitteredGrid::new("jig", [30, 30, 12], Rank::Three, &n, Some(&jitter)).unwrap()
        };
        // Along an axis of one cell there is no neighbour to touch.
        assert!(grid("0").touches() && grid("1,0,1").touches() && !grid("1,1,0").touches());
        let whole = grid("0");
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
        let starts = |rank: Rank, side| -> Vec<usize> {
            let mut rng = rng(1, Stream::Train, 0, 0);
            (0..draws).map(|_| draw_window(&scans, 0, rank, rank.cube(side), &mut rng).unwrap().start[0]).collect()
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
        let grid = |window: usize, rank: Rank, n: usize, jitter: Option<usize>| {
            JitteredGrid::new("rpl", rank.cube(window), rank, &Sides::all(n), jitter.map(Sides::all).as_ref())
        };
        let papers = grid(128, Rank::Three, 3, None).unwrap();
        assert_eq!((papers.cells.side, papers.jitter, papers.patch_shape()), ([42; 3], [3; 3], [39; 3]));
        assert_eq!(grid(64, Rank::Two, 3, None).unwrap().patch_shape(), [1, 19, 19]);
        assert!(grid(9, Rank::Two, 3, Some(3)).unwrap_err().to_string().contains("cells of 3 voxels"));
    }

    #[test]
    fn the_window_for_a_patch_is_the_smallest() {
        for (n, jitter, patch) in [("3", None, 16), ("3", None, 32), ("3,2,1", None, 8), ("3,3,1", Some("5,0,2"), 7)] {
            let jitter: Option<Sides> = jitter.map(|jitter: &str| jitter.parse().unwrap());
            let shape = |sides: &Sides| sides.shape("", Rank::Three).unwrap();
            let n: Sides = n.parse().unwrap();
            let window = JitteredGrid::window_for(Rank::Three, shape(&n), jitter.as_ref().map(shape), [patch; 3]);
            let patches = |window| JitteredGrid::new("rpl", window, Rank::Three, &n, jitter.as_ref()).unwrap().patch_shape();
            assert!(patches(window).iter().all(|&side| side >= patch));
            for a in 0..3 {
                let mut less = window;
                less[a] -= 1;
                assert!(patches(less)[a] < patch, "{window:?}");
            }
        }
    }

    #[test]
    fn grids_are_row_major_and_stay_inside() {
        for (rank, window, n) in [
            (Rank::Two, [1, 31, 31], [1, 3, 3]),
            (Rank::Three, [31; 3], [4; 3]),
            (Rank::Three, [31, 50, 8], [3, 2, 1]),
            (Rank::Two, [1, 31, 9], [1, 5, 2]),
        ] {
            for grid in [PatchGrid::cells(rank, window, n).unwrap(), PatchGrid::overlapping(rank, window, n).unwrap()] {
                assert_eq!(grid.count(), n.iter().product::<usize>());
                for cell in 0..grid.count() {
                    let [i, j, k] = grid.index(cell);
                    assert_eq!((i * n[1] + j) * n[2] + k, cell);
                    assert!(grid.region(cell).fits(window));
                    assert_eq!(grid.region(cell).start, [i * grid.step[0], j * grid.step[1], k * grid.step[2]]);
                }
            }
        }
        let half = PatchGrid::overlapping(Rank::Three, [64, 64, 10], [3, 3, 1]).unwrap();
        assert_eq!((half.step, half.side), ([16, 16, 5], [32, 32, 10]));
        assert!(PatchGrid::overlapping(Rank::Three, [3; 3], [3; 3]).is_err());
        let refused = PatchGrid::cells(Rank::Three, [9, 9, 2], [3; 3]).unwrap_err().to_string();
        assert!(refused.contains("9,9,2") && refused.contains("3 cells"), "{refused}");
    }
}
