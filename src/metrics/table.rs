//! The metrics of a predicted mask, in one table: whatever writes, averages or shows scores goes through it.

use super::overlap::Counts;
use super::surface::Surfaces;
use anyhow::{Result, ensure};

/// What a metric reads: one true and one predicted mask.
pub struct Measured {
    pub counts: Counts,
    /// `None` if a mask is empty.
    pub surfaces: Option<Surfaces>,
    /// Of the normalised surface Dice, in millimetres.
    pub tolerance: f64,
}

pub struct MaskMetric {
    pub name: &'static str,
    /// Of its values; appended to the name in files.
    pub unit: Option<&'static str>,
    /// `None` where it is undefined.
    pub of: fn(&Measured) -> Option<f64>,
    /// What the BraTS challenge of 2023 gives where both masks are empty, and where one is and the metric undefined.
    pub both_empty: Option<f64>,
    pub one_empty: Option<f64>,
    /// Shown after the point.
    pub digits: usize,
}

/// Tolerance of the normalised surface Dice unless the user says otherwise, in millimetres.
pub const NSD_TOLERANCE_MM: f64 = 2.0;

/// Errors if `--nsd-tolerance` is no distance.
pub fn check_tolerance(tolerance: f64) -> Result<()> {
    ensure!(tolerance.is_finite() && tolerance > 0.0, "--nsd-tolerance must be above 0 mm, found {tolerance}");
    Ok(())
}

/// HD95 of BraTS where one mask is empty: about the diagonal of its 240 x 240 x 155 mm.
const BRATS_MISSED_MM: f64 = 374.0;

/// Where Dice, which cases are ranked and summed up by, stands in [`METRICS`].
pub const DICE: usize = 0;

/// One entry a metric. Of two empty masks each is undefined; of one empty mask, the overlaps and the surface Dice are 0, distances
/// undefined.
pub const METRICS: [MaskMetric; 5] = [
    MaskMetric { name: "dice", unit: None, of: |m| m.counts.dice(), both_empty: Some(1.0), one_empty: None, digits: 4 },
    MaskMetric { name: "jaccard", unit: None, of: |m| m.counts.jaccard(), both_empty: Some(1.0), one_empty: None, digits: 4 },
    MaskMetric {
        name: "hd95",
        unit: Some("mm"),
        of: |m| m.surfaces.as_ref().map(Surfaces::hd95),
        both_empty: Some(0.0),
        one_empty: Some(BRATS_MISSED_MM),
        digits: 2,
    },
    MaskMetric {
        name: "asd",
        unit: Some("mm"),
        of: |m| m.surfaces.as_ref().map(Surfaces::asd),
        both_empty: None,
        one_empty: None,
        digits: 2,
    },
    MaskMetric { name: "nsd", unit: None, of: surface_dice, both_empty: Some(1.0), one_empty: None, digits: 4 },
];

impl MaskMetric {
    /// In files: `hd95_mm`.
    pub fn column(&self) -> String {
        self.unit.map_or(self.name.into(), |unit| format!("{}_{unit}", self.name))
    }

    /// For a reader: `hd95 mm`.
    pub fn title(&self) -> String {
        self.unit.map_or(self.name.into(), |unit| format!("{} {unit}", self.name))
    }
}

fn surface_dice(m: &Measured) -> Option<f64> {
    match &m.surfaces {
        Some(surfaces) => Some(surfaces.within(m.tolerance)),
        None => (m.counts.truth + m.counts.prediction > 0).then_some(0.0),
    }
}
