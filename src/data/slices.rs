//! Volumes read as stacks of slices, for networks of images: the slicing axis becomes the first one, the others keep their order.

use crate::dim::Region;
use crate::transform::spatial::Orientation;
use ndarray::ArrayView3;
use serde::{Deserialize, Serialize};

/// Planes that a volume is cut into. Stored axes are RAS+: left to right, posterior to anterior, inferior to superior; a slice's
/// rows and columns are the two that are left, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Slices {
    /// Across the first axis: rows from back to front, columns from bottom to top
    Sagittal,
    /// Across the second axis: rows from left to right, columns from bottom to top
    Coronal,
    /// Across the third axis: rows from left to right, columns from back to front
    Axial,
}

impl Slices {
    /// From the stored axes to slice, row, column.
    pub fn orientation(self) -> Orientation {
        let source = match self {
            Slices::Sagittal => [0, 1, 2],
            Slices::Coronal => [1, 0, 2],
            Slices::Axial => [2, 0, 1],
        };
        Orientation { source, ..Orientation::IDENTITY }
    }

    /// The planes across an axis of the stored volume.
    pub fn across(axis: usize) -> Self {
        [Slices::Sagittal, Slices::Coronal, Slices::Axial][axis]
    }

    /// Name, as the flag takes it.
    pub fn name(self) -> &'static str {
        match self {
            Slices::Sagittal => "sagittal",
            Slices::Coronal => "coronal",
            Slices::Axial => "axial",
        }
    }

    /// A box of the slices as a box of the stored volume.
    pub fn stored_region(self, region: Region) -> Region {
        let back = self.orientation().inverse();
        Region { start: back.output(region.start), size: back.output(region.size) }
    }

    /// `[slices, rows, columns]` in the volume's stored axes.
    pub fn to_stored<T>(self, slices: ArrayView3<T>) -> ArrayView3<T> {
        slices.permuted_axes(self.orientation().inverse().source)
    }
}
