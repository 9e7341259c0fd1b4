//! The appearance model on a user's label map: one random intensity a label value, subject and contrast.

use super::appearance::{Scanner, texture};
use super::field::{Variation, Warp};
use super::geometry::Point;
use super::{MAX_SIZE, Phantom, brain, check_size, part, volume};
use crate::data::volume::{Affine, Volume};
use crate::dim::{Shape, voxels};
use crate::rng::Rng;
use anyhow::{Result, ensure};
use rand::Rng as _;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// Deformation that any label map takes, given its extent in millimetres.
fn variation(extent: f32) -> Variation {
    Variation {
        scale: (0.92, 1.04),
        stretch: 0.03,
        turn: 0.12,
        shift: 0.02 * extent,
        displacement: 0.014 * extent,
        knot: 0.22 * extent,
    }
}

/// A label map and the grid on which subjects are made of it.
pub struct LabelMap {
    /// Label values, `[D, H, W]` row-major, as indices into `values`.
    classes: Vec<u16>,
    shape: Shape,
    spacing: Point,
    /// Sorted label values.
    values: Vec<i32>,
    grid: Shape,
    grid_spacing: Point,
    affine: Affine,
}

impl LabelMap {
    /// Checks a label volume, `[1, D, H, W]` of whole numbers, and lays out the grid: a cube of `size` voxels around the whole
    /// map, or the map's own grid.
    pub fn new(map: &Volume, size: Option<usize>) -> Result<LabelMap> {
        let (channels, d, h, w) = map.data.dim();
        ensure!(channels == 1 && d > 1 && h > 1 && w > 1, "expected one 3D label map, found {channels} of {d}x{h}x{w}");
        let shape = [d, h, w];
        let mut values = BTreeSet::new();
        for &v in &map.data {
            ensure!(v.is_finite() && v.fract() == 0.0 && v.abs() < 1e6, "label values must be whole numbers, found {v}");
            values.insert(v as i32);
            ensure!(values.len() <= 2048, "more than 2048 label values: this is an image, not a label map");
        }
        let values: Vec<i32> = values.into_iter().collect();
        ensure!(values.iter().any(|&v| v != 0), "the label map holds background only");
        let classes = map.data.iter().map(|&v| values.partition_point(|&k| k < v as i32) as u16).collect();
        let spacing = map.spacing();
        ensure!(spacing.iter().all(|s| s.is_finite() && *s > 0.0), "voxel spacing must be positive, found {spacing:?} mm");
        let (grid, step) = match size {
            None => (shape, spacing),
            Some(size) => {
                check_size(size, MAX_SIZE)?;
                let extent = (0..3).map(|a| spacing[a] * shape[a] as f64).fold(0.0, f64::max);
                ([size; 3], [extent / size as f64; 3])
            }
        };
        // Same directions and centre, another step.
        let mut affine = map.affine;
        for row in affine.iter_mut().take(3) {
            for a in 0..3 {
                row[3] += row[a] * ((shape[a] - 1) as f64 - (grid[a] - 1) as f64 * step[a] / spacing[a]) / 2.0;
                row[a] *= step[a] / spacing[a];
            }
        }
        Ok(LabelMap {
            classes,
            shape,
            spacing: spacing.map(|s| s as f32),
            values,
            grid,
            grid_spacing: step.map(|s| s as f32),
            affine,
        })
    }

    /// The grid's shape.
    pub fn grid(&self) -> Shape {
        self.grid
    }

    /// Hash of all that the map contributes to a subject.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        self.shape.iter().chain(&self.grid).for_each(|n| hash.update((*n as u64).to_le_bytes()));
        self.spacing.iter().for_each(|s| hash.update(s.to_le_bytes()));
        self.affine.as_flattened().iter().for_each(|v| hash.update(v.to_le_bytes()));
        self.values.iter().for_each(|v| hash.update(v.to_le_bytes()));
        self.classes.iter().for_each(|c| hash.update(c.to_le_bytes()));
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Index into `values` at a point, millimetres from the centre along the voxel axes; background beyond the map.
    fn class(&self, p: Point, background: u16) -> u16 {
        let mut flat = 0;
        for (a, millimetres) in p.into_iter().enumerate() {
            let index = (millimetres / self.spacing[a] + (self.shape[a] - 1) as f32 / 2.0).round();
            if index < 0.0 || index >= self.shape[a] as f32 {
                return background;
            }
            flat = flat * self.shape[a] + index as usize;
        }
        self.classes[flat]
    }
}

/// One subject: the deformed map and its contrasts.
pub fn case(map: &LabelMap, contrasts: usize, part: impl Fn(u64) -> Rng) -> Phantom {
    let (shape, spacing) = (map.grid, map.grid_spacing);
    let extent = (0..3).map(|a| spacing[a] * shape[a] as f32).fold(f32::INFINITY, f32::min);
    let warp = Warp::draw(shape, spacing, &variation(extent), &mut part(part::WARP));
    // A map without a background value has its first value beyond its edges.
    let background = map.values.binary_search(&0).unwrap_or(0) as u16;
    let classes: Vec<u16> = warp.points().map(|p| map.class(p, background)).collect();
    let mut look = part(part::LOOK);
    let texture = texture(shape, spacing, 0.06, &mut part(part::TEXTURE));
    let mut images = Vec::with_capacity(contrasts);
    for (c, &name) in brain::CONTRASTS.iter().take(contrasts).enumerate() {
        let mean: Vec<f32> = map.values.iter().map(|&v| if v == 0 { 0.0 } else { look.random_range(60.0..950.0) }).collect();
        let mut signal: Vec<f32> = classes.iter().zip(&texture).map(|(&k, factor)| mean[k as usize] * factor).collect();
        let mut draws = part(part::SCAN + c as u64);
        Scanner::mr(600.0, &mut draws).acquire(&mut signal, shape, spacing, &mut draws);
        signal.iter_mut().zip(&classes).for_each(|(v, &k)| *v = if map.values[k as usize] == 0 { 0.0 } else { v.round() });
        images.push((name, volume(signal, shape, map.affine)));
    }
    debug_assert_eq!(classes.len(), voxels(shape));
    let label = classes.iter().map(|&k| map.values[k as usize] as f32).collect();
    Phantom { images, label: volume(label, shape, map.affine) }
}
