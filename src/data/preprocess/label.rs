//! A scan's label file: its values to classes, and the box that holds them.

use super::Plan;
use crate::data::labelling::{Labelling, is_foreground, whole_label};
use crate::data::layouts::Source;
use crate::data::volume::{Affine, same_grid};
use crate::dim::{Region, Shape, voxels};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// Labelled voxels beyond the box of the foreground. The stored box is widened to hold them, for training; a prediction, which knows no
/// label, does not reach them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outside {
    /// How many, in the scan.
    pub voxels: usize,
    /// Box of the foreground in the RAS+ scan.
    pub foreground: Region,
    /// The same box in the stored grid.
    pub stored: Region,
}

/// Classes of a label file's voxels, in RAS+ order. Errors on a value that is not listed.
pub(super) fn read(source: &Source, plan: &Plan, shape: Shape, affine: &Affine) -> Result<Vec<u8>> {
    let none = Labelling::default();
    let labels = plan.labels.as_ref().unwrap_or(&none);
    let (volume, _) = source.read_ras()?;
    ensure!(volume.channels() == 1, "{}: {} channels, expected a label of one", source.display(), volume.channels());
    same_grid("the image", shape, affine, &source.display(), volume.shape(), &volume.affine)?;
    let data = volume.data.as_slice().with_context(|| format!("{}: not contiguous", source.display()))?;

    // Owners' values are mostly small whole numbers: one look-up a voxel.
    let table: Vec<Option<u8>> = (0..256).map(|value| labels.class_of(value)).collect();
    let mut classes = Vec::with_capacity(voxels(shape));
    for &value in data {
        let class = whole_label(value).and_then(|whole| match usize::try_from(whole) {
            Ok(small) if small < table.len() => table[small],
            _ => labels.class_of(whole),
        });
        let Some(class) = class else {
            bail!("{}: label value {value}, expected one of {}", source.display(), labels.values())
        };
        classes.push(class);
    }
    Ok(classes)
}

/// The distinct values of a label file, sorted. Errors if they are no label.
pub(crate) fn values(source: &Source) -> Result<Vec<i64>> {
    let (volume, _) = source.read_ras()?;
    let mut values: Vec<i64> = vec![];
    let mut last = None;
    for &value in &volume.data {
        if last != Some(value.to_bits()) {
            last = Some(value.to_bits());
            let Some(whole) = whole_label(value) else {
                bail!("{}: value {value}, expected whole numbers in a label", source.display())
            };
            if !values.contains(&whole) {
                values.push(whole);
                ensure!(values.len() <= 256, "{}: more than 256 values, expected a label", source.display());
            }
        }
    }
    values.sort_unstable();
    Ok(values)
}

/// The smallest box that holds all voxels of the foreground's classes; `None` if there are none.
pub(super) fn labelled_box(classes: &[u8], shape: Shape) -> Option<Region> {
    let mut inside = shape.map(|n| vec![false; n]);
    for (row, classes) in classes.chunks_exact(shape[2]).enumerate().filter(|(_, row)| row.iter().any(|&c| is_foreground(c))) {
        inside[0][row / shape[1]] = true;
        inside[1][row % shape[1]] = true;
        inside[2].iter_mut().zip(classes).for_each(|(inside, &class)| *inside |= is_foreground(class));
    }
    Region::around(&inside)
}

/// How many voxels of the foreground's classes lie outside of a box.
pub(super) fn outside(classes: &[u8], shape: Shape, of: Region) -> usize {
    let labelled = |classes: &[u8]| classes.iter().filter(|&&class| is_foreground(class)).count();
    let [planes, rows, columns] = of.ranges();
    let inside = planes.flat_map(|d| rows.clone().map(move |h| (d * shape[1] + h) * shape[2]));
    labelled(classes) - inside.map(|row| labelled(&classes[row + columns.start..row + columns.end])).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_box_holds_every_labelled_voxel_and_what_is_outside_of_another_is_counted() {
        let shape = [4, 5, 6];
        assert_eq!(labelled_box(&[0; 120], shape), None);
        let mut classes = vec![0; 120];
        for (d, h, w) in [(1, 4, 2), (3, 2, 5), (1, 2, 2)] {
            classes[(d * 5 + h) * 6 + w] = 7;
        }
        let found = labelled_box(&classes, shape).unwrap();
        assert_eq!(found, Region { start: [1, 2, 2], size: [3, 3, 4] });
        assert_eq!(outside(&classes, shape, found), 0);
        assert_eq!(outside(&classes, shape, Region { start: [1, 2, 2], size: [2, 2, 4] }), 2);
    }
}
