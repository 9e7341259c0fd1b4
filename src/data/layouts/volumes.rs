//! Files of several volumes.

use crate::data::scan::{Channel, Scan};
use crate::dim::voxels;
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

    /// Leaves one volume of a file's, where these are no channels, and tells whether there were others. Each of them is picked elsewhere.
    pub fn reduce(self, scan: &mut Scan) -> bool {
        let n = scan.channels.len();
        match self {
            Volumes::Mean if n > 1 => {
                let mut sums = vec![0f64; voxels(scan.shape)];
                for channel in scan.channels.drain(..) {
                    sums.iter_mut().zip(channel.into_floats()).for_each(|(sum, v)| *sum += f64::from(v));
                }
                scan.channels.push(Channel::float32(sums.into_iter().map(|sum| (sum / n as f64) as f32).collect()));
            }
            Volumes::First => scan.channels.truncate(1),
            _ => {}
        }
        scan.channels.len() < n
    }
}
