//! From scans as their owners distribute them to a store: orientation, grid, intensities.

use serde::{Deserialize, Serialize};

/// Everything that decides the stored voxels. A store holds one value of it; another value makes another store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub grid: Grid,
    pub foreground: Foreground,
    pub intensity: Intensity,
    pub dtype: Dtype,
}

/// The grid onto which the foreground box is resampled: images linearly, labels to the nearest voxel.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Grid {
    /// A cube of this side in voxels, whatever the box's aspect: the paper's protocol.
    Cube { side: usize },
    /// A spacing in millimetres along the RAS+ axes.
    Spacing { mm: [f64; 3] },
}

/// What counts as foreground, channel by channel.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Foreground {
    /// Above -500 where the channel's minimum is below -500 (CT in HU: air and padding are left out); otherwise above
    /// `minimum + (mean - minimum) / 2`.
    Auto,
    /// Above this intensity, in the scan's own unit.
    Above { value: f32 },
}

/// How a channel's intensities are normalised, computed on the stored grid.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Intensity {
    /// The channel's minimum becomes 0, its maximum 1.
    MinMax,
    /// Mean 0 and standard deviation 1 over the channel's foreground; the background is shifted and scaled alike.
    ZScoreForeground,
    /// `lo..hi` (HU) becomes 0..1, clipped.
    Window { lo: f32, hi: f32 },
}

/// Type of the stored image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    F16,
    F32,
}
