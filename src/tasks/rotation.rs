//! Rotation prediction (Taleb et al. 2020, section 3; after Gidaris et al. 2018): which right-angle rotation was applied?
//! Volumes have 10 classes, images 4 ([`Orientation::rotation`]); fewer where the window has unequal sides, of which only turns that keep its
//! shape are taken. Labels mean something because scans are in RAS+.

use super::{Amounts, Batch, Drawn, Head, MetricInfo, Outcome, Task, accuracy, classify};
use crate::data::Scans;
use crate::data::slices::Slices;
use crate::dim::{Rank, Shape, Sides};
use crate::nn::heads::{DROPOUT, HeadKind, Mlp, Pool};
use crate::nn::{Encoder, Mode};
use crate::print::note;
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
    /// Planes of volumes in which scans are turned, separated by commas [default: all]. Where voxels are longer along an axis, a turn out of
    /// the plane across it shows by their stretching
    #[arg(id = "rot-planes", long = "rot-planes", value_enum, value_delimiter = ',', value_name = "PLANE,...")]
    pub planes: Vec<Slices>,
}

impl Default for RotationConfig {
    fn default() -> Self {
        RotationConfig { head: HeadKind::Big, planes: vec![] }
    }
}

pub struct Rotation {
    config: RotationConfig,
    rank: Rank,
    window: Shape,
    /// The class of [`Orientation::rotation`] for each of the task's, "not rotated" first.
    turns: Vec<usize>,
}

/// Ratio of a voxel's sides from which its stretching is said.
const STRETCHED: f64 = 1.25;

impl Rotation {
    pub fn new(config: &RotationConfig, window: Shape, rank: Rank) -> Result<Self> {
        let named = Sides::of(rank, window);
        let enough = rank.axes().all(|a| window[a] >= 2);
        ensure!(
            enough,
            "rot: a window of {named} voxels has a side of one voxel, which no turn keeps; scans of one slice go with --slices"
        );
        ensure!(
            rank == Rank::Three || config.planes.is_empty(),
            "rot: --rot-planes is for volumes; images turn in their own plane"
        );
        let wanted = |class: usize| {
            let plane = Orientation::axis_of(class).map(Slices::across);
            config.planes.is_empty() || plane.is_none_or(|plane| config.planes.contains(&plane))
        };
        let keeps = |class: &usize| Orientation::rotation(rank, *class).output(window) == window;
        let asked: Vec<usize> = (0..Orientation::rotations(rank)).filter(|&class| wanted(class)).collect();
        let turns: Vec<usize> = asked.iter().copied().filter(keeps).collect();
        if turns.len() < asked.len() {
            let turned: Vec<String> = turns.iter().map(|&class| name(rank, class)).collect();
            let (n, of) = (turns.len(), asked.len());
            note!("rot: {n} of {of} classes, the turns that keep a window of {named} voxels: {}", turned.join("; "));
        }
        Ok(Rotation { config: config.clone(), rank, window, turns })
    }
}

/// A class of [`Orientation::rotation`] in words.
fn name(rank: Rank, class: usize) -> String {
    match (Orientation::axis_of(class), rank) {
        (None, _) => "not rotated".into(),
        (_, Rank::Two) => format!("{} degrees", class * 90),
        (Some(axis), Rank::Three) => format!("{} degrees about axis {axis}", ((class - 1) % 3 + 1) * 90),
    }
}

/// What a person must know whose voxels of this size in mm are turned in all planes.
pub fn note_spacing(config: &RotationConfig, rank: Rank, spacing: [f64; 3]) {
    let [shortest, longest] = [f64::min, f64::max].map(|choose| spacing.into_iter().reduce(choose).unwrap_or(1.));
    if rank == Rank::Two || !config.planes.is_empty() || longest < STRETCHED * shortest {
        return;
    }
    // The plane across the axis that is least like the two others.
    let alike = |axis: usize| (spacing[(axis + 1) % 3] / spacing[(axis + 2) % 3]).ln().abs();
    let plane = Slices::across((0..3).min_by(|&a, &b| alike(a).total_cmp(&alike(b))).unwrap_or(2)).name();
    let size = crate::dim::millimetres(&spacing);
    note!(
        "rot: voxels of {size} mm on average, whose stretching gives turns out of the {plane} plane away: --rot-planes {plane} leaves them out"
    );
}

impl Task for Rotation {
    fn name(&self) -> &'static str {
        "rot"
    }

    fn allows_mirror_zoom(&self) -> bool {
        true
    }

    fn view_shape(&self) -> Shape {
        self.window
    }

    fn targets(&self) -> usize {
        1
    }

    fn sample(&self, scans: &dyn Scans, scan: usize, rng: &mut Rng, out: &mut [f32]) -> Result<Drawn> {
        let window = draw_window(scans, scan, self.rank, self.window, rng)?;
        let class = rng.random_range(0..self.turns.len());
        scans.read(scan, window, Orientation::rotation(self.rank, self.turns[class]), out)?;
        Ok(Drawn { targets: vec![class as i64], params: json!({ "window": window, "class": class }) })
    }

    fn caption(&self, drawn: &Drawn) -> String {
        name(self.rank, self.turns[drawn.targets[0] as usize])
    }

    fn head(&self, vs: &nn::Path, encoder: &dyn Encoder) -> Result<Box<dyn Head>> {
        let pool = Pool::new(self.config.head, encoder, self.view_shape())?;
        let classes = self.turns.len() as i64;
        Ok(Box::new(RotationHead {
            pool,
            mlp: Mlp::new(vs / "mlp", self.config.head.hidden(), DROPOUT, pool.features, classes),
        }))
    }

    fn amounts(&self) -> Amounts {
        Amounts { batch: 4, draws: 2, epochs: 15 }
    }

    fn metrics(&self) -> Vec<MetricInfo> {
        vec![accuracy(self.turns.len())]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::rng;
    use crate::tasks::tests::scans;

    #[test]
    fn only_turns_that_keep_the_window_are_taken() {
        use Slices::{Axial, Coronal, Sagittal};
        for (rank, window, planes, turns) in [
            (Rank::Three, [5; 3], vec![], vec![0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
            (Rank::Three, [5, 5, 3], vec![], vec![0, 2, 5, 7, 8, 9]),
            (Rank::Three, [3, 5, 5], vec![], vec![0, 1, 2, 3, 5, 8]),
            (Rank::Three, [3, 4, 5], vec![], vec![0, 2, 5, 8]),
            (Rank::Three, [5; 3], vec![Axial], vec![0, 7, 8, 9]),
            (Rank::Three, [5; 3], vec![Coronal, Sagittal], vec![0, 1, 2, 3, 4, 5, 6]),
            (Rank::Three, [3, 5, 5], vec![Axial], vec![0, 8]),
            (Rank::Two, [1, 5, 5], vec![], vec![0, 1, 2, 3]),
            (Rank::Two, [1, 5, 4], vec![], vec![0, 2]),
        ] {
            let task = Rotation::new(&RotationConfig { planes, ..Default::default() }, window, rank).unwrap();
            assert_eq!(task.turns, turns, "{window:?}");
            assert_eq!(task.metrics()[0].chance, Some(1. / turns.len() as f64));
            let scans = scans(window.map(|n| if n == 1 { 1 } else { n + 1 }));
            let mut seen = std::collections::BTreeSet::new();
            for seed in 0..60 {
                let mut out = vec![f32::NAN; 2 * window.iter().product::<usize>()];
                let drawn = task.sample(&scans, 0, &mut rng(seed, crate::rng::Stream::Train, 0, 0), &mut out).unwrap();
                let class = drawn.targets[0] as usize;
                seen.insert(class);
                // numpy.rot90 by its definition, about the axis and as often as the caption says.
                let region: crate::dim::Region = serde_json::from_value(drawn.params["window"].clone()).unwrap();
                let [r0, r1, r2] = region.ranges();
                let mut view = scans.images[0].slice(ndarray::s![.., r0, r1, r2]).to_owned();
                let (axis, times) = match turns[class] {
                    0 => (0, 0),
                    turn => ((turn - 1) / 3, (turn - 1) % 3 + 1),
                };
                for _ in 0..times {
                    let (a, b) = [(2, 3), (1, 3), (1, 2)][axis];
                    view.swap_axes(a, b);
                    view.invert_axis(ndarray::Axis(a));
                }
                assert_eq!(view.shape()[1..], window, "{window:?} class {class}");
                assert_eq!(view.iter().copied().collect::<Vec<_>>(), out, "{window:?} class {class}");
                let said = if class == 0 { "not rotated".into() } else { format!("{} degrees", times * 90) };
                assert!(task.caption(&drawn).starts_with(&said), "{}", task.caption(&drawn));
            }
            assert_eq!(seen.len(), turns.len());
        }
        let planes = RotationConfig { planes: vec![Axial], ..Default::default() };
        let error = Rotation::new(&planes, [1, 5, 5], Rank::Two).err().unwrap().to_string();
        assert!(error.contains("--rot-planes"), "{error}");
    }
}
