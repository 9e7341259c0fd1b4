//! Shape of nnU-Net's encoders: stages of convolutions, of which the first one strides where others pool.

use super::blocks::ConvShape;
use super::{EncoderFlags, Level, limits, step};
use crate::dim::{PerAxis, Rank};
use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tch::Tensor;

/// Stages unless the user names a number.
pub const STAGES: usize = 6;

/// Shape of an encoder with a stage a level, finest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StagesConfig {
    pub rank: Rank,
    pub in_channels: i64,
    /// Channels of each stage's map.
    pub features: Vec<i64>,
    /// Convolutions of each stage of a plain encoder, residual blocks of each stage of a residual one.
    pub blocks: Vec<usize>,
    /// Sides of each stage's kernels, `[D, H, W]`, images `[H, W]`.
    pub kernels: Vec<PerAxis>,
    /// Of the first convolution of each stage; 1 in the first stage.
    pub strides: Vec<PerAxis>,
    /// Dropout probability after each stage, 0 for none.
    pub dropout: f64,
}

/// What an encoder of a name has unless flags say otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// Features of the first stage, doubled at each further one up to a limit.
    filters: i64,
    /// Blocks of each stage; those after have as many as the last.
    blocks: &'static [usize],
}

pub const PLAIN: Preset = Preset { filters: 32, blocks: &[2] };
/// nnU-Net's own.
pub const RESIDUAL_L: Preset = Preset { filters: 32, blocks: &[1, 3, 4, 6] };
/// With fewer blocks.
pub const RESIDUAL_M: Preset = Preset { filters: 32, blocks: &[1, 2] };
/// With half the features of that.
pub const RESIDUAL_S: Preset = Preset { filters: 16, blocks: &[1, 2] };

impl Preset {
    /// nnU-Net stops at 320, in images at 512, ten and sixteen times its first features.
    fn features(rank: Rank, filters: i64, stages: usize) -> Vec<i64> {
        let most = filters * if rank == Rank::Two { 16 } else { 10 };
        std::iter::successors(Some(filters), |n| Some((2 * n).min(most))).take(stages).collect()
    }

    fn blocks(&self, stages: usize) -> Vec<usize> {
        (0..stages).map(|i| self.blocks[i.min(self.blocks.len() - 1)]).collect()
    }

    /// The shape with what flags change. Errors if they contradict each other or the rank.
    pub fn config(&self, flags: &EncoderFlags, rank: Rank, in_channels: i64, dropout: f64) -> Result<StagesConfig> {
        let stages = flags.stages();
        let features = match &flags.features[..] {
            [] => Self::features(rank, flags.filters.unwrap_or(self.filters), stages),
            features => features.to_vec(),
        };
        let blocks = if flags.blocks.is_empty() { self.blocks(stages) } else { flags.blocks.clone() };
        for (flag, found) in [("features", features.len()), ("blocks", blocks.len())] {
            ensure!(found == stages, "--{flag} has {found} numbers, expected one for each of {stages} levels");
        }
        for (flag, given, then) in [("kernels", &flags.kernels, 3), ("strides", &flags.strides, 2)] {
            if let Some(sides) = given.iter().find(|sides| sides.rank() != rank) {
                let (n, example) = (rank.n(), PerAxis::all(rank, then));
                bail!("--{flag} {sides}: expected {n} numbers a level for {n}D data, such as {example}");
            }
            ensure!(given.len() <= stages, "--{flag} names {} levels, the encoder has {stages}", given.len());
        }
        let kernels = all_kernels(&flags.kernels, rank, stages);
        let strides = all_strides(&flags.strides, &kernels);
        let config = StagesConfig { rank, in_channels, features, blocks, kernels, strides, dropout };
        Ok(config)
    }

    /// Whether an encoder of this name has these features and blocks.
    pub fn is_of(&self, config: &StagesConfig) -> bool {
        let stages = config.features.len();
        config.features == Self::features(config.rank, self.filters, stages) && config.blocks == self.blocks(stages)
    }
}

/// Kernels of all stages, of which the first ones are given.
pub fn all_kernels(given: &[PerAxis], rank: Rank, stages: usize) -> Vec<PerAxis> {
    (0..stages).map(|i| given.get(i).copied().unwrap_or(PerAxis::all(rank, 3))).collect()
}

/// Strides of all stages, of which the first ones are given: the others are 2 along each axis that the kernels of the next finer level are
/// longer than 1, as nnU-Net plans them.
pub fn all_strides(given: &[PerAxis], kernels: &[PerAxis]) -> Vec<PerAxis> {
    let into = |i: usize| {
        let halved = |n: &i64| if i > 0 && *n > 1 { 2 } else { 1 };
        let strides: Vec<i64> = kernels[i.saturating_sub(1)].values().iter().map(halved).collect();
        PerAxis::try_from(strides).expect("a number for each axis of a kernel")
    };
    (0..kernels.len()).map(|i| given.get(i).copied().unwrap_or_else(|| into(i))).collect()
}

/// Kernels and strides of the first of so many levels as nnU-Net plans them for voxels of this size in mm, up to the last level that is not
/// the same along every axis: an axis is left out while its voxels are twice as long as the shortest, or longer. None for a size that no
/// voxel has.
pub fn planned(spacing: [f64; 3], levels: usize) -> [Vec<PerAxis>; 2] {
    let (mut spacing, mut kernels) = (spacing, Vec::new());
    let sound = spacing.iter().all(|mm| mm.is_finite() && *mm > 0.);
    while sound && kernels.len() < levels {
        let shortest = spacing.iter().copied().fold(f64::INFINITY, f64::min);
        let near = spacing.map(|n| n < 2. * shortest);
        if near == [true; 3] {
            break;
        }
        let kernel = near.map(|near| if near { 3 } else { 1 });
        kernels.push(PerAxis::try_from(kernel.to_vec()).expect("three sides"));
        spacing = std::array::from_fn(|a| if near[a] { 2. * spacing[a] } else { spacing[a] });
    }
    if kernels.is_empty() {
        return [vec![], vec![]];
    }
    let mut strides = all_strides(&[], &all_kernels(&kernels, Rank::Three, levels));
    strides.truncate(kernels.len() + 1);
    [kernels, strides]
}

impl StagesConfig {
    /// Errors unless there is a shape for every stage that a network can have.
    pub fn check(&self) -> Result<()> {
        let stages = self.features.len();
        let lengths = [self.blocks.len(), self.kernels.len(), self.strides.len()];
        ensure!(
            stages > 0 && lengths == [stages; 3],
            "features, blocks, kernels and strides are of {stages}, {}, {} and {} levels, expected as many of each",
            lengths[0],
            lengths[1],
            lengths[2]
        );
        limits::within("levels", &limits::LEVELS, [stages])?;
        limits::within("input channels", &limits::CHANNELS, [self.in_channels])?;
        limits::within("--features", &limits::CHANNELS, self.features.iter().copied())?;
        limits::within("--blocks", &limits::BLOCKS, self.blocks.iter().copied())?;
        ensure!(
            self.kernels.iter().chain(&self.strides).all(|sides| sides.rank() == self.rank),
            "kernels and strides must have {} numbers a level",
            self.rank.n()
        );
        let even = self.kernels.iter().find(|kernel| kernel.values().iter().any(|n| n % 2 == 0));
        ensure!(even.is_none(), "--kernels {}: sides must be odd", even.expect("found"));
        ensure!(
            self.strides[0].common() == Some(1),
            "--strides {}: the first level keeps the resolution of the input, expected {}",
            self.strides[0],
            PerAxis::all(self.rank, 1)
        );
        let sides = self.kernels.iter().flat_map(PerAxis::values);
        limits::within("sides of --kernels", &(1..=limits::KERNEL), sides.copied())?;
        // Before the product, which could overflow.
        let reduction = (0..self.rank.n()).map(|a| self.strides.iter().fold(1, |n: i64, s| n.saturating_mul(s.values()[a])));
        limits::within("the product of an axis's --strides", &(1..=limits::REDUCTION), reduction)
    }

    /// Weights of all convolutions, but for the 1x1x1 ones of skips.
    pub fn weights(&self) -> u128 {
        let of = |i: usize| {
            let (outputs, kernel) = (self.features[i], self.kernels[i].values());
            let rest = (self.blocks[i] - 1) as u128;
            limits::weights(self.inputs(i), outputs, kernel) + rest * limits::weights(outputs, outputs, kernel)
        };
        (0..self.features.len()).map(of).sum()
    }

    /// The pyramid, finest first.
    pub fn levels(&self) -> Vec<Level> {
        let mut reduction = PerAxis::all(self.rank, 1);
        let level = |(&channels, stride): (&i64, &PerAxis)| {
            reduction = reduction.times(stride);
            Level { channels, reduction }
        };
        self.features.iter().zip(&self.strides).map(level).collect()
    }

    /// Of a stage's first convolution of what enters the stage, `inputs` channels.
    pub fn first_conv(&self, stage: usize, inputs: i64) -> ConvShape {
        ConvShape { inputs, outputs: self.features[stage], kernel: self.kernels[stage], stride: self.strides[stage] }
    }

    /// Channels that enter a stage of an encoder without a stem.
    pub fn inputs(&self, stage: usize) -> i64 {
        if stage == 0 { self.in_channels } else { self.features[stage - 1] }
    }

    /// TorchScript from `x` to the pyramid. `calls`: what each stage makes of `x`.
    pub fn script(&self, calls: impl Iterator<Item = String>) -> String {
        let dropout = match self.dropout {
            0. => String::new(),
            p => format!("    x = torch.dropout(x, {p}, self.training)\n"),
        };
        let stages: String = calls.map(|call| format!("    x = {call}\n{dropout}    pyramid.append(x)\n")).collect();
        format!("    pyramid: List[Tensor] = []\n{stages}    return pyramid\n")
    }

    /// A stage's map with the dropout of training.
    pub fn drop_out(&self, map: Tensor, train: bool) -> Tensor {
        if self.dropout > 0. { step::dropout(&map, self.dropout, train) } else { map }
    }

    /// The shape of which these tensors are the weights, not yet checked. `first`: name of the input's convolution; `conv`: name of a
    /// convolution by its stage and block. Weights hold no strides: these are those of [`all_strides`].
    pub fn of(tensors: &BTreeMap<String, Tensor>, first: &str, conv: &dyn Fn(usize, usize) -> String) -> Option<Self> {
        let dims = |name: &str| tensors.get(name).map(Tensor::size);
        let in_channels = *dims(first)?.get(1)?;
        let (mut features, mut blocks, mut kernels) = (Vec::new(), Vec::new(), Vec::<PerAxis>::new());
        while let Some(dims) = dims(&conv(features.len(), 0)) {
            kernels.push(PerAxis::try_from(dims.get(2..)?.to_vec()).ok()?);
            blocks.push((1..).take_while(|block| tensors.contains_key(&conv(features.len(), *block))).count() + 1);
            features.push(dims[0]);
        }
        let rank = kernels.first()?.rank();
        let strides = all_strides(&[], &kernels);
        Some(StagesConfig { rank, in_channels, features, blocks, kernels, strides, dropout: 0. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thick_slices_are_planned_as_nnunet_plans_them() {
        let text = |sides: &[PerAxis]| sides.iter().map(PerAxis::to_string).collect::<Vec<_>>().join(",");
        for (spacing, kernels, strides) in [
            ([1., 1., 1.], "", ""),
            ([1., 1.9, 1.2], "", ""),
            ([0.8, 0.8, 5.], "3x3x1,3x3x1", "1x1x1,2x2x1,2x2x1"),
            ([3., 0.5, 1.], "1x3x1,1x3x3", "1x1x1,1x2x1,1x2x2"),
        ] {
            let [found_kernels, found_strides] = planned(spacing, STAGES);
            assert_eq!((text(&found_kernels).as_str(), text(&found_strides).as_str()), (kernels, strides), "{spacing:?}");
        }
        // No more than an encoder has levels, and nothing for sizes that are none.
        for levels in 1..=8 {
            let planned = planned([0.5, 0.5, 20.], levels);
            assert_eq!(planned.map(|sides| sides.len()), [levels.min(5), levels.min(6)]);
        }
        for spacing in [0., -1., f64::NAN, f64::INFINITY] {
            assert_eq!(planned([1., spacing, 1.], STAGES), [vec![], vec![]], "{spacing}");
        }
    }
}
