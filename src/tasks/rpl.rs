//! Relative patch location (Taleb et al. 2020, section 3; after Doersch et al. 2015): from which cell of the grid, seen from
//! the centre one, does the second patch come?

use super::views::Grid;
use super::{Amounts, Batch, Drawn, Head, MetricInfo, Outcome, Task, accuracy, classify, warn_of_touching_patches};
use crate::data::Scans;
use crate::dim::{Rank, Shape, Sides, voxels};
use crate::nn::heads::{DROPOUT, HeadKind, Mlp, Pool};
use crate::nn::{Encoder, Mode};
use crate::rng::Rng;
use crate::sample::patch::{JitteredGrid, draw_window};
use crate::transform::spatial::Orientation;
use anyhow::{Context, Result, ensure};
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::nn;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Relative patch location (rpl)")]
pub struct RplConfig {
    /// Cells along a side of the grid, or along each axis: odd numbers, so that there is a centre, 3 or more along one axis at least; 3,3,1
    /// leaves a thin axis whole
    #[arg(id = "rpl-grid", long = "rpl-grid", value_name = "N", default_value_t = Self::default().grid)]
    pub grid: Sides,
    /// Voxels by which a patch is smaller than its cell and moves in it [default: 3 at a window of 128, in proportion, at
    /// least 1]. 0 lets patches touch, so that matching edges solves the task: only for checking that
    #[arg(id = "rpl-jitter", long = "rpl-jitter", value_name = "VOXELS")]
    pub jitter: Option<Sides>,
    /// Network above the encoder
    #[arg(id = "rpl-head", long = "rpl-head", value_enum, default_value_t = Self::default().head)]
    pub head: HeadKind,
}

impl Default for RplConfig {
    fn default() -> Self {
        RplConfig { grid: Sides::all(3), jitter: None, head: HeadKind::Big }
    }
}

pub struct Rpl {
    config: RplConfig,
    grid: JitteredGrid,
    window: Shape,
    channels: usize,
}

impl Rpl {
    pub fn new(config: &RplConfig, window: Shape, channels: usize, rank: Rank) -> Result<Self> {
        let grid = JitteredGrid::new("rpl", window, rank, &config.grid, config.jitter.as_ref()).context("rpl")?;
        ensure!(
            grid.cells.n.iter().all(|n| n % 2 == 1) && grid.cells.count() > 1,
            "rpl: the grid needs an odd number of cells a side, 3 or more, to have a centre; found {}",
            config.grid
        );
        warn_of_touching_patches("rpl", &grid);
        Ok(Rpl { config: config.clone(), grid, window, channels })
    }

    fn rank(&self) -> Rank {
        self.grid.cells.rank
    }

    /// Cells of the grid but the centre.
    fn classes(&self) -> usize {
        self.grid.cells.count() - 1
    }

    fn centre(&self) -> usize {
        self.classes() / 2
    }

    /// The cell of a class: classes count the cells in row-major order and leave out the centre.
    fn cell(&self, class: usize) -> usize {
        class + (class >= self.centre()) as usize
    }
}

impl Task for Rpl {
    fn name(&self) -> &'static str {
        "rpl"
    }

    /// The centre, then the other patch.
    fn views(&self) -> usize {
        2
    }

    fn allows_mirror_zoom(&self) -> bool {
        true
    }

    fn view_shape(&self) -> Shape {
        self.grid.patch_shape()
    }

    fn grid(&self) -> Option<Grid> {
        let (rank, n, jitter) =
            (self.grid.cells.rank, self.grid.cells.n, self.config.jitter.is_some().then_some(self.grid.jitter));
        let window_for = Box::new(move |patch| JitteredGrid::window_for(rank, n, jitter, patch));
        Some(Grid { window: self.window, window_for })
    }

    fn targets(&self) -> usize {
        1
    }

    fn sample(&self, scans: &dyn Scans, scan: usize, rng: &mut Rng, out: &mut [f32]) -> Result<Drawn> {
        let window = draw_window(scans, scan, self.rank(), self.window, rng)?;
        let class = rng.random_range(0..self.classes());
        let patches = [self.centre(), self.cell(class)].map(|cell| self.grid.draw(cell, rng).shifted(window.start));
        for (patch, view) in patches.iter().zip(out.chunks_exact_mut(self.channels * voxels(self.view_shape()))) {
            scans.read(scan, *patch, Orientation::IDENTITY, view)?;
        }
        Ok(Drawn {
            targets: vec![class as i64],
            params: json!({ "window": window, "cell": self.cell(class), "patches": patches }),
        })
    }

    fn caption(&self, drawn: &Drawn) -> String {
        let index = self.grid.cells.index(self.cell(drawn.targets[0] as usize));
        format!("centre and cell {:?} of {}", &index[self.rank().axes()], self.config.grid)
    }

    fn head(&self, vs: &nn::Path, encoder: &dyn Encoder) -> Result<Box<dyn Head>> {
        let pool = Pool::new(self.config.head, encoder, self.view_shape())?;
        let mlp = Mlp::new(vs / "mlp", self.config.head.hidden(), DROPOUT, 2 * pool.features, self.classes() as i64);
        Ok(Box::new(RplHead { pool, mlp }))
    }

    fn amounts(&self) -> Amounts {
        Amounts { batch: 32, draws: 16, epochs: 15 }
    }

    fn metrics(&self) -> Vec<MetricInfo> {
        vec![accuracy(self.classes())]
    }
}

struct RplHead {
    pool: Pool,
    mlp: Mlp,
}

impl Head for RplHead {
    fn forward(&self, encoder: &dyn Encoder, batch: &Batch, mode: Mode) -> Outcome {
        let features = self.pool.forward(&encoder.encode_views(&batch.views, mode));
        let pairs = features.view([-1, 2 * self.pool.features]);
        classify(&self.mlp.forward(&pairs, mode), &batch.targets.flatten(0, -1))
    }
}
