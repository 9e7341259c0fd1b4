//! Which encoder a run has: `network` in its `config.json`.

use super::stages::{self, Preset};
use super::{DenseNet, DenseNetConfig, Encoder, Level, NormKind, PlainConv, ResEnc, StagesConfig, UNet, UNetConfig};
use crate::dim::{PerAxis, Rank, Shape, voxels};
use anyhow::{Result, bail};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use tch::{Tensor, nn};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lower")]
pub enum Architecture {
    /// The contracting half of a U-Net, for volumes and images
    UNet,
    /// DenseNet-121 as torchvision has it, for images
    DenseNet121,
    /// nnU-Net's plain encoder, MONAI's DynUNet: strided convolutions
    PlainConv,
    /// nnU-Net's residual encoder with half the features of resenc-m
    #[serde(rename = "resenc-s")]
    #[value(name = "resenc-s")]
    ResEncS,
    /// nnU-Net's residual encoder with 1 or 2 blocks a level
    #[serde(rename = "resenc-m")]
    #[value(name = "resenc-m")]
    ResEncM,
    /// nnU-Net's residual encoder as in its ResEnc presets, 1 to 6 blocks a level
    #[serde(rename = "resenc-l")]
    #[value(name = "resenc-l")]
    ResEncL,
}

impl Architecture {
    /// Of nnU-Net's encoders.
    pub fn preset(self) -> Option<Preset> {
        match self {
            Architecture::UNet | Architecture::DenseNet121 => None,
            Architecture::PlainConv => Some(stages::PLAIN),
            Architecture::ResEncS => Some(stages::RESIDUAL_S),
            Architecture::ResEncM => Some(stages::RESIDUAL_M),
            Architecture::ResEncL => Some(stages::RESIDUAL_L),
        }
    }
}

/// An encoder's architecture and shape.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "architecture", rename_all = "lowercase")]
pub enum EncoderConfig {
    UNet(UNetConfig),
    DenseNet121(DenseNetConfig),
    /// One of nnU-Net's, by the preset that its shape began from.
    #[serde(untagged)]
    NnUNet {
        architecture: Architecture,
        #[serde(flatten)]
        stages: StagesConfig,
    },
}

/// Runs from before there was a choice name no architecture: theirs is the U-Net.
impl<'de> Deserialize<'de> for EncoderConfig {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut map = Map::deserialize(from)?;
        let architecture = match map.remove("architecture") {
            Some(name) => Architecture::deserialize(name).map_err(D::Error::custom)?,
            None => Architecture::UNet,
        };
        let config = Value::Object(map);
        match architecture {
            Architecture::UNet => serde_json::from_value(config).map(EncoderConfig::UNet),
            Architecture::DenseNet121 => serde_json::from_value(config).map(EncoderConfig::DenseNet121),
            _ => {
                let stages: StagesConfig = serde_json::from_value(config).map_err(D::Error::custom)?;
                stages.check().map_err(D::Error::custom)?;
                Ok(EncoderConfig::NnUNet { architecture, stages })
            }
        }
        .map_err(D::Error::custom)
    }
}

impl EncoderConfig {
    /// The encoder that these tensors are the weights of, by their names after `prefix` and shapes; `None`: of another one.
    pub fn of(tensors: &BTreeMap<String, Tensor>, prefix: &str) -> Option<Self> {
        if let Some(stages) = ResEnc::shape_of(tensors, prefix) {
            let named = [Architecture::ResEncS, Architecture::ResEncM].into_iter();
            let mut named = named.filter(|name| name.preset().is_some_and(|preset| preset.is_of(&stages)));
            let architecture = named.next().unwrap_or(Architecture::ResEncL);
            return Some(EncoderConfig::NnUNet { architecture, stages });
        }
        if let Some(stages) = PlainConv::shape_of(tensors, prefix) {
            return Some(EncoderConfig::NnUNet { architecture: Architecture::PlainConv, stages });
        }
        match tensors.get(&format!("{prefix}conv0.weight")).map(Tensor::size).as_deref() {
            Some(&[_, in_channels, _, _]) => Some(EncoderConfig::DenseNet121(DenseNetConfig { in_channels, dropout: 0. })),
            _ => UNetConfig::of(tensors, prefix).map(EncoderConfig::UNet),
        }
    }

    pub fn architecture(&self) -> Architecture {
        match self {
            EncoderConfig::UNet(_) => Architecture::UNet,
            EncoderConfig::DenseNet121(_) => Architecture::DenseNet121,
            EncoderConfig::NnUNet { architecture, .. } => *architecture,
        }
    }

    /// Of nnU-Net's encoders.
    pub fn stages(&self) -> Option<&StagesConfig> {
        match self {
            EncoderConfig::UNet(_) | EncoderConfig::DenseNet121(_) => None,
            EncoderConfig::NnUNet { stages, .. } => Some(stages),
        }
    }

    pub fn rank(&self) -> Rank {
        match self {
            EncoderConfig::UNet(config) => config.rank,
            EncoderConfig::DenseNet121(_) => Rank::Two,
            EncoderConfig::NnUNet { stages, .. } => stages.rank,
        }
    }

    /// The encoder's pyramid, finest first.
    pub fn levels(&self) -> Vec<Level> {
        match self {
            EncoderConfig::UNet(config) => config.pyramid(),
            EncoderConfig::DenseNet121(_) => DenseNetConfig::levels(),
            EncoderConfig::NnUNet { stages, .. } => stages.levels(),
        }
    }

    /// Voxels of the input per voxel of the deepest map along each axis.
    pub fn reduction(&self) -> PerAxis {
        self.levels().last().expect("an encoder has at least one level").reduction
    }

    pub fn norm(&self) -> NormKind {
        match self {
            EncoderConfig::UNet(config) => config.norm,
            EncoderConfig::DenseNet121(_) => NormKind::Batch,
            EncoderConfig::NnUNet { .. } => NormKind::Instance,
        }
    }

    /// Whether weights of one fit the other, but for the number of input channels.
    pub fn same_shape(&self, other: &EncoderConfig) -> bool {
        let shape = |config: &EncoderConfig| {
            let stages = config.stages().map(|s| (s.blocks.clone(), s.kernels.clone()));
            (config.architecture(), config.rank(), config.levels(), config.norm(), stages)
        };
        shape(self) == shape(other)
    }

    /// Extent of a level's map for an input of this shape; a side of 0 means that the input is too small.
    fn extent(&self, level: &Level, input: Shape) -> Shape {
        if self.stages().is_some() { level.extent_rounded_up(input) } else { level.extent(input) }
    }

    /// Errors if instance normalisation would have the one voxel of a deepest map to normalise, which makes it 0.
    pub fn check_input(&self, input: Shape) -> Result<()> {
        if self.norm() == NormKind::Batch {
            return Ok(());
        }
        let levels = self.levels();
        let left = |n: usize| voxels(self.extent(&levels[n - 1], input));
        if left(levels.len()) > 1 {
            return Ok(());
        }
        let side = 2 * self.reduction().common_multiple();
        let fewer = (1..levels.len()).rev().find(|&n| left(n) > 1);
        let fewer = fewer.map_or(String::new(), |n| format!("--levels {n}, or "));
        let batch = if self.stages().is_none() { ", or with --norm batch" } else { "" };
        bail!(
            "inputs of {input:?} voxels with {} levels: {}, and instance normalisation makes a single one 0; it works with {fewer}inputs of \
             {side} voxels a side (a larger --window or --patch, or fewer cells in a task's grid){batch}",
            levels.len(),
            if left(levels.len()) == 0 { "no voxel is left in the deepest map" } else { "the deepest map is one voxel" }
        )
    }

    /// Whether it fits inputs of this shape, also where a decoder needs sides that are multiples of its reduction.
    pub fn fits(&self, input: Shape) -> bool {
        let reduction = self.reduction();
        let whole = std::array::from_fn(|a| input[a] / reduction.along(a) * reduction.along(a));
        self.check_input(whole).is_ok()
    }

    /// The same encoder, with all of it in training too.
    pub fn without_dropout(mut self) -> Self {
        match &mut self {
            EncoderConfig::UNet(config) => config.dropout = 0.,
            EncoderConfig::DenseNet121(config) => config.dropout = 0.,
            EncoderConfig::NnUNet { stages, .. } => stages.dropout = 0.,
        }
        self
    }

    /// The encoder with new weights, its variables under `vs`.
    pub fn build(&self, vs: nn::Path) -> Box<dyn Encoder> {
        match self.clone() {
            EncoderConfig::UNet(config) => Box::new(UNet::new(vs, config)),
            EncoderConfig::DenseNet121(config) => Box::new(DenseNet::new(vs, config)),
            EncoderConfig::NnUNet { architecture: Architecture::PlainConv, stages } => Box::new(PlainConv::new(vs, stages)),
            EncoderConfig::NnUNet { stages, .. } => Box::new(ResEnc::new(vs, stages)),
        }
    }
}

impl From<UNetConfig> for EncoderConfig {
    fn from(config: UNetConfig) -> Self {
        EncoderConfig::UNet(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::EncoderFlags;
    use serde_json::json;

    #[test]
    fn configurations_without_an_architecture_are_those_of_a_unet() {
        let old = json!({ "rank": 3, "in_channels": 4, "filters": 16, "levels": 5, "dropout": 0.0 });
        let read = |value: &Value| serde_json::from_value::<EncoderConfig>(value.clone());
        let unet = EncoderConfig::from(UNetConfig::paper(Rank::Three, 4));
        assert_eq!(read(&old).unwrap(), unet);
        let densenet = EncoderConfig::DenseNet121(DenseNetConfig { in_channels: 3, dropout: 0.5 });
        for config in [unet, densenet] {
            let written = serde_json::to_value(&config).unwrap();
            assert_eq!(written["architecture"], serde_json::to_value(config.architecture()).unwrap());
            assert_eq!(read(&written).unwrap(), config);
        }
        for (key, value) in [("growth", json!(1)), ("architecture", json!("vgg"))] {
            let mut changed = old.clone();
            changed[key] = value;
            assert!(read(&changed).is_err(), "{key}");
        }
    }

    #[test]
    fn instance_norm_never_has_a_single_voxel_to_normalise() {
        let flags = |norm, levels| EncoderFlags { norm: Some(norm), levels, ..EncoderFlags::default() };
        let fitted = |norm, levels, rank: Rank, sides: &[usize]| {
            let inputs: Vec<Shape> = sides.iter().map(|&side| rank.cube(side)).collect();
            let config = flags(norm, levels).fitted(rank, &inputs).unwrap().config(rank, 1, 0.).unwrap();
            (config.levels().len(), inputs.iter().all(|&input| config.check_input(input).is_ok()))
        };
        // The smallest input decides; one side of two voxels is enough; what is asked for stays, and is refused.
        for rank in [Rank::Two, Rank::Three] {
            for (sides, levels) in [(&[32][..], 5), (&[31], 4), (&[64, 15], 3), (&[9], 3), (&[5], 2), (&[2], 1)] {
                assert_eq!(fitted(NormKind::Instance, None, rank, sides), (levels, true), "{sides:?}");
                assert_eq!(fitted(NormKind::Instance, Some(levels), rank, sides), (levels, true));
                assert_eq!(fitted(NormKind::Instance, Some(levels + 1), rank, sides), (levels + 1, false));
                assert_eq!(fitted(NormKind::Batch, None, rank, sides), (5, true));
            }
        }
        let five = flags(NormKind::Instance, Some(5)).config(Rank::Three, 1, 0.).unwrap();
        assert!(five.check_input([16, 16, 32]).is_ok());
        let message = five.check_input([15, 31, 31]).unwrap_err().to_string();
        for part in ["[15, 31, 31]", "5 levels", "--levels 4", "32 voxels", "--window", "--norm batch"] {
            assert!(message.contains(part), "{part}: {message}");
        }
    }
}
