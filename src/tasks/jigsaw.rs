//! Jigsaw puzzle (Taleb et al. 2020, section 3; after Noroozi & Favaro 2016): the patches of a grid are shuffled by one of P
//! fixed permutations; which one?
//!
//! Every patch goes through the encoder by itself, so shuffling the patches or their features is the same. A sample therefore
//! carries its patches once, in grid order, and several permutations to shuffle the features by: many labelled puzzles for one
//! encoding, where the reference has one.

use super::views::Grid;
use super::{Amounts, Batch, Drawn, Head, MetricInfo, Outcome, Task, accuracy, classify, warn_of_touching_patches};
use crate::data::Scans;
use crate::dim::{Rank, Shape, Sides, voxels};
use crate::nn::heads::{DROPOUT, HeadKind, Mlp, Pool};
use crate::nn::{Encoder, Mode};
use crate::rng::{Rng, Stream, rng};
use crate::sample::patch::{JitteredGrid, draw_window};
use crate::transform::spatial::Orientation;
use anyhow::{Context, Result, ensure};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Tensor, nn};

/// Random starts of the search for one of `n` patches' permutations: a start takes about `n^2` steps.
const fn starts(n: usize) -> usize {
    1 + 3000 / (n * n)
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Jigsaw (jig)")]
pub struct JigsawConfig {
    /// Cells along a side of the grid, or along each axis, 2 or more along one axis at least; 3,3,1 leaves a thin axis whole
    #[arg(id = "jig-grid", long = "jig-grid", value_name = "N", default_value_t = Self::default().grid)]
    pub grid: Sides,
    /// Voxels by which a patch is smaller than its cell and moves in it [default: 3 at a window of 128, in proportion, at
    /// least 1]. 0 lets patches touch, so that matching edges solves the task: only for checking that
    #[arg(id = "jig-jitter", long = "jig-jitter", value_name = "VOXELS")]
    pub jitter: Option<Sides>,
    /// Permutations to tell apart, 2 or more
    #[arg(id = "jig-permutations", long = "jig-permutations", value_name = "P", default_value_t = Self::default().permutations)]
    pub permutations: usize,
    /// Puzzles made of each sample, 1 to P: different permutations applied to the features of one encoding. Few make the
    /// large head slow to learn
    #[arg(id = "jig-shuffles", long = "jig-shuffles", value_name = "K", default_value_t = Self::default().shuffles)]
    pub shuffles: usize,
    /// Network above the encoder
    #[arg(id = "jig-head", long = "jig-head", value_enum, default_value_t = Self::default().head)]
    pub head: HeadKind,
}

impl Default for JigsawConfig {
    fn default() -> Self {
        JigsawConfig { grid: Sides::all(3), jitter: None, permutations: 100, shuffles: 32, head: HeadKind::Big }
    }
}

/// `count` permutations of `0..n` that differ pairwise, chosen one after the other for a large Hamming distance to those chosen
/// before (Noroozi & Favaro 2016, algorithm 1, with a local search in place of listing all `n!`). `p[slot]` is the cell whose
/// patch lies in the slot. A function of its arguments alone.
pub fn permutations(count: usize, n: usize, seed: u64) -> Result<Vec<Vec<usize>>> {
    let possible = (1..=n).try_fold(1usize, |f, i| f.checked_mul(i)).unwrap_or(usize::MAX);
    ensure!(
        (2..=possible).contains(&count),
        "jig: {count} permutations asked for; {n} patches have {possible}, and the task needs at least 2"
    );
    let mut rng = rng(seed, Stream::Permutations, 0, 0);
    let mut chosen: Vec<Vec<usize>> = Vec::with_capacity(count);
    // holders[slot * n + cell]: which of the chosen have that cell in that slot.
    let mut holders: Vec<Vec<usize>> = vec![Vec::new(); n * n];
    while chosen.len() < count {
        let mut best: Option<(u64, Vec<usize>)> = None;
        for _ in 0..starts(n) {
            let mut candidate: Vec<usize> = (0..n).collect();
            candidate.shuffle(&mut rng);
            let cost = improve(&mut candidate, &holders, chosen.len());
            if best.as_ref().is_none_or(|(lowest, _)| cost < *lowest) {
                best = Some((cost, candidate));
            }
        }
        let (_, permutation) = best.expect("at least one start");
        // Only when most of all permutations are taken does the search end on one of them; new starts then find the others.
        if !chosen.contains(&permutation) {
            permutation.iter().enumerate().for_each(|(slot, &cell)| holders[slot * n + cell].push(chosen.len()));
            chosen.push(permutation);
        }
    }
    Ok(chosen)
}

/// Exchanges slots as long as that lowers the cost, the sum over the chosen permutations of (slots in common)^4: the power
/// keeps the smallest distance large, not only the mean.
fn improve(candidate: &mut [usize], holders: &[Vec<usize>], chosen: usize) -> u64 {
    let n = candidate.len();
    let mut common = vec![0u32; chosen];
    for (slot, &cell) in candidate.iter().enumerate() {
        holders[slot * n + cell].iter().for_each(|&c| common[c] += 1);
    }
    let cost = |common: &[u32]| common.iter().map(|&m| u64::from(m).pow(4)).sum::<u64>();
    let mut lowest = cost(&common);
    loop {
        let before = lowest;
        for i in 0..n {
            for j in i + 1..n {
                let (a, b) = (candidate[i], candidate[j]);
                let leave = [i * n + a, j * n + b];
                let enter = [i * n + b, j * n + a];
                leave.iter().flat_map(|&h| &holders[h]).for_each(|&c| common[c] -= 1);
                enter.iter().flat_map(|&h| &holders[h]).for_each(|&c| common[c] += 1);
                let changed = cost(&common);
                if changed < lowest {
                    lowest = changed;
                    candidate.swap(i, j);
                } else {
                    enter.iter().flat_map(|&h| &holders[h]).for_each(|&c| common[c] -= 1);
                    leave.iter().flat_map(|&h| &holders[h]).for_each(|&c| common[c] += 1);
                }
            }
        }
        if lowest == before {
            return lowest;
        }
    }
}

pub struct Jigsaw {
    config: JigsawConfig,
    grid: JitteredGrid,
    window: Shape,
    channels: usize,
    permutations: Vec<Vec<usize>>,
}

impl Jigsaw {
    pub fn new(config: &JigsawConfig, window: Shape, channels: usize, rank: Rank, seed: u64) -> Result<Self> {
        let grid = JitteredGrid::new("jig", window, rank, &config.grid, config.jitter.as_ref()).context("jig")?;
        ensure!(grid.cells.count() > 1, "jig: the grid needs 2 or more cells a side, found {}", config.grid);
        warn_of_touching_patches("jig", &grid);
        let permutations = permutations(config.permutations, grid.cells.count(), seed)?;
        ensure!(
            (1..=config.permutations).contains(&config.shuffles),
            "jig: --jig-shuffles {} different permutations a sample, but --jig-permutations {}",
            config.shuffles,
            config.permutations
        );
        Ok(Jigsaw { config: config.clone(), grid, window, channels, permutations })
    }
}

impl Task for Jigsaw {
    fn name(&self) -> &'static str {
        "jig"
    }

    /// One patch a cell, in grid order.
    fn views(&self) -> usize {
        self.grid.cells.count()
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

    /// Ids of the permutations that the features are shuffled by.
    fn targets(&self) -> usize {
        self.config.shuffles
    }

    fn sample(&self, scans: &dyn Scans, scan: usize, rng: &mut Rng, out: &mut [f32]) -> Result<Drawn> {
        let window = draw_window(scans, scan, self.grid.cells.rank, self.window, rng)?;
        let views = out.chunks_exact_mut(self.channels * voxels(self.view_shape()));
        let mut patches = Vec::with_capacity(self.views());
        for (cell, view) in views.enumerate() {
            let patch = self.grid.draw(cell, rng).shifted(window.start);
            scans.read(scan, patch, Orientation::IDENTITY, view)?;
            patches.push(patch);
        }
        let ids = rand::seq::index::sample(rng, self.permutations.len(), self.config.shuffles).into_vec();
        let shuffles: Vec<&Vec<usize>> = ids.iter().map(|&id| &self.permutations[id]).collect();
        Ok(Drawn {
            targets: ids.iter().map(|&id| id as i64).collect(),
            params: json!({ "window": window, "patches": patches, "permutations": shuffles }),
        })
    }

    fn caption(&self, drawn: &Drawn) -> String {
        let ids: Vec<String> = drawn.targets.iter().take(6).map(i64::to_string).collect();
        let more = if ids.len() < drawn.targets.len() { ", ..." } else { "" };
        format!("in grid order; {} puzzles by permutations {}{more}", drawn.targets.len(), ids.join(", "))
    }

    fn head(&self, vs: &nn::Path, encoder: &dyn Encoder) -> Result<Box<dyn Head>> {
        let pool = Pool::new(self.config.head, encoder, self.view_shape())?;
        let slots = self.grid.cells.count();
        let table: Vec<i64> = self.permutations.iter().flatten().map(|&cell| cell as i64).collect();
        let table = Tensor::from_slice(&table).view([-1, slots as i64]).to_device(vs.device());
        let mlp = Mlp::new(
            vs / "mlp",
            self.config.head.hidden(),
            DROPOUT,
            slots as i64 * pool.features,
            self.permutations.len() as i64,
        );
        Ok(Box::new(JigsawHead { pool, mlp, table }))
    }

    fn amounts(&self) -> Amounts {
        Amounts { batch: 4, draws: 2, epochs: 20 }
    }

    fn metrics(&self) -> Vec<MetricInfo> {
        vec![accuracy(self.permutations.len())]
    }
}

struct JigsawHead {
    pool: Pool,
    mlp: Mlp,
    /// `[P, slots]`, the permutations.
    table: Tensor,
}

impl JigsawHead {
    /// Features `[B, cells, F]` in grid order and permutation ids `[B, K]` to shuffled, concatenated features `[B * K, cells * F]`.
    fn shuffle(&self, features: &Tensor, ids: &Tensor) -> Tensor {
        let (b, cells, f) = features.size3().expect("three axes");
        let order = self.table.to_device(ids.device()).index_select(0, &ids.flatten(0, -1)).view([b, -1, 1]);
        features.gather(1, &order.expand([-1, -1, f], false), false).view([-1, cells * f])
    }
}

impl Head for JigsawHead {
    fn forward(&self, encoder: &dyn Encoder, batch: &Batch, mode: Mode) -> Outcome {
        let features = self.pool.forward(&encoder.encode_views(&batch.views, mode));
        let features = features.view([batch.views.size()[0], batch.views.size()[1], self.pool.features]);
        let puzzles = self.shuffle(&features, &batch.targets);
        classify(&self.mlp.forward(&puzzles, mode), &batch.targets.flatten(0, -1))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{batch, encoder, scans};
    use super::*;
    use tch::Device;

    /// Smallest and mean Hamming distance over all pairs.
    fn distances(set: &[Vec<usize>]) -> (usize, f64) {
        let mut all = Vec::new();
        for (i, p) in set.iter().enumerate() {
            all.extend(set[..i].iter().map(|q| p.iter().zip(q).filter(|(a, b)| a != b).count()));
        }
        (*all.iter().min().unwrap(), all.iter().sum::<usize>() as f64 / all.len() as f64)
    }

    #[test]
    fn permutations_lie_far_apart() {
        // The reference's set for volumes: minimum 19, mean 26.0.
        for (seed, n, least, mean) in [(0, 27, 25, 26.1), (1, 27, 25, 26.1), (0, 9, 6, 8.0), (1, 9, 6, 8.0)] {
            let set = permutations(100, n, seed).unwrap();
            for p in &set {
                let mut sorted = p.clone();
                sorted.sort();
                assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            }
            let found = distances(&set);
            assert!(found.0 >= least && found.1 > mean, "{n}: {found:?}");
            assert_eq!(set, permutations(100, n, seed).unwrap());
        }
        assert_ne!(permutations(100, 27, 0).unwrap(), permutations(100, 27, 1).unwrap());
        // All there are.
        assert!(distances(&permutations(24, 4, 0).unwrap()).0 >= 2);
        assert!(permutations(25, 4, 0).unwrap_err().to_string().contains("4 patches have 24"));
    }

    #[test]
    fn shuffling_features_is_shuffling_patches() {
        tch::manual_seed(3);
        for rank in [Rank::Two, Rank::Three] {
            let task = Jigsaw::new(&JigsawConfig { shuffles: 5, ..Default::default() }, rank.cube(27), 2, rank, 1).unwrap();
            let (batch, drawn) = batch(&task, &scans(rank.cube(30)), rank, 2);
            let vs = nn::VarStore::new(Device::Cpu);
            let encoder = encoder(&vs, rank);
            let pool = Pool::new(HeadKind::Big, &encoder, task.view_shape()).unwrap();
            let table: Vec<i64> = task.permutations.iter().flatten().map(|&c| c as i64).collect();
            let table = Tensor::from_slice(&table).view([100, -1]);
            let mlp = Mlp::new(vs.root() / "mlp", HeadKind::Big.hidden(), DROPOUT, task.views() as i64 * pool.features, 100);
            let head = JigsawHead { pool, mlp, table };

            let features = head.pool.forward(&encoder.encode_views(&batch.views, Mode::Eval)).view([2, -1, pool.features]);
            let ours = head.shuffle(&features, &batch.targets);
            for (b, drawn) in drawn.iter().enumerate() {
                for (k, &id) in drawn.targets.iter().enumerate() {
                    let patches: Vec<Tensor> =
                        task.permutations[id as usize].iter().map(|&cell| batch.views.get(b as i64).get(cell as i64)).collect();
                    let shuffled = Tensor::stack(&patches, 0).unsqueeze(0);
                    let naive = pool.forward(&encoder.encode_views(&shuffled, Mode::Eval)).flatten(0, -1);
                    let difference = (ours.get((b * 5 + k) as i64) - naive).abs().max();
                    assert!(f64::try_from(difference).unwrap() < 1e-5);
                }
            }
        }
    }
}
