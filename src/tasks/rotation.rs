//! Rotation prediction (Taleb et al. 2020, section 3; after Gidaris et al. 2018): which right-angle rotation was applied?
//! Volumes have 10 classes, images 4 ([`Orientation::rotation`]). Labels mean something because scans are in RAS+.

use super::{Amounts, Batch, Drawn, Head, MetricInfo, Outcome, Task, accuracy, classify};
use crate::data::Scans;
use crate::dim::{Rank, Shape};
use crate::nn::heads::{DROPOUT, HeadKind, Mlp, Pool};
use crate::nn::{Encoder, Mode};
use crate::rng::Rng;
use crate::sample::patch::draw_window;
use crate::transform::spatial::Orientation;
use anyhow::{Result, ensure};
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::nn;

// A doc comment on a configuration's type would become the command's help.
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

pub struct Rotation {
    config: RotationConfig,
    rank: Rank,
    window: usize,
}

impl Rotation {
    pub fn new(config: &RotationConfig, window: usize, rank: Rank) -> Result<Self> {
        ensure!(window >= 2, "rot: a window of {window} voxels a side looks the same in every rotation");
        Ok(Rotation { config: config.clone(), rank, window })
    }
}

impl Task for Rotation {
    fn name(&self) -> &'static str {
        "rot"
    }

    fn allows_mirror_zoom(&self) -> bool {
        true
    }

    fn view_shape(&self) -> Shape {
        self.rank.cube(self.window)
    }

    fn targets(&self) -> usize {
        1
    }

    fn sample(&self, scans: &dyn Scans, scan: usize, rng: &mut Rng, out: &mut [f32]) -> Result<Drawn> {
        let window = draw_window(scans, scan, self.rank, self.window, rng)?;
        let class = rng.random_range(0..Orientation::rotations(self.rank));
        scans.read(scan, window, Orientation::rotation(self.rank, class), out)?;
        Ok(Drawn { targets: vec![class as i64], params: json!({ "window": window, "class": class }) })
    }

    fn caption(&self, drawn: &Drawn) -> String {
        match (drawn.targets[0], self.rank) {
            (0, _) => "not rotated".into(),
            (class, Rank::Two) => format!("{} degrees", class * 90),
            (class, Rank::Three) => format!("{} degrees about axis {}", ((class - 1) % 3 + 1) * 90, (class - 1) / 3),
        }
    }

    fn head(&self, vs: &nn::Path, encoder: &dyn Encoder) -> Result<Box<dyn Head>> {
        let pool = Pool::new(self.config.head, encoder, self.view_shape())?;
        let classes = Orientation::rotations(self.rank) as i64;
        Ok(Box::new(RotationHead {
            pool,
            mlp: Mlp::new(vs / "mlp", self.config.head.hidden(), DROPOUT, pool.features, classes),
        }))
    }

    fn amounts(&self) -> Amounts {
        Amounts { batch: 4, draws: 2, epochs: 15 }
    }

    fn metrics(&self) -> Vec<MetricInfo> {
        vec![accuracy(Orientation::rotations(self.rank))]
    }
}

struct RotationHead {
    pool: Pool,
    mlp: Mlp,
}

impl Head for RotationHead {
    fn forward(&self, encoder: &dyn Encoder, batch: &Batch, mode: Mode) -> Outcome {
        let features = self.pool.forward(&encoder.encode_views(&batch.views, mode));
        classify(&self.mlp.forward(&features, mode), &batch.targets.flatten(0, -1))
    }
}
