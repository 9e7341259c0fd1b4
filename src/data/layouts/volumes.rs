//! Files of several volumes.

use crate::data::volume::Volume;
use ndarray::Axis;
use serde::{Deserialize, Serialize};

/// What becomes of a file of several volumes, such as a series over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Volumes {
    /// Every volume is a channel
    #[default]
    Channels,
    /// Every volume is a scan of its own
    Each,
    /// The mean of the volumes is the scan
    Mean,
    /// The first volume is the scan
    First,
}

impl Volumes {
    pub fn are_channels(&self) -> bool {
        matches!(self, Volumes::Channels)
    }

    /// Leaves one volume of a file's, where these are no channels. Each of them is picked elsewhere.
    pub fn reduce(self, volume: &mut Volume) {
        match self {
            Volumes::Mean if volume.channels() > 1 => {
                let sum = volume.data.map_axis(Axis(0), |values| values.iter().map(|&v| f64::from(v)).sum::<f64>());
                let n = volume.channels() as f64;
                volume.data = sum.mapv(|v| (v / n) as f32).insert_axis(Axis(0));
            }
            Volumes::First if volume.channels() > 1 => volume.data = volume.data.select(Axis(0), &[0]),
            _ => {}
        }
    }
}
