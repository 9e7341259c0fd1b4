//! Rotation prediction (Taleb et al. 2020, section 3.4; Komodakis & Gidaris 2018): which of R right-angle rotations was
//! applied? Volumes have R = 10, images R = 4. Labels mean something because scans are RAS+.

use super::{Drawn, Head, MetricInfo, Task};
use crate::data::Scans;
use crate::dim::{Rank, Shape};
use crate::nn::Encoder;
use crate::nn::heads::HeadKind;
use crate::rng::Rng;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::nn;

// No doc comments on configurations' types: clap would take them for the command's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Rotation (rot)")]
pub struct RotationConfig {
    /// Network above the encoder
    #[arg(id = "rot-head", long = "rot-head", value_enum, default_value_t = Self::default().head)]
    pub head: HeadKind,
}

impl Default for RotationConfig {
    fn default() -> Self {
        RotationConfig { head: HeadKind::Big }
    }
}
