//! Which encoder a run has: `network` in its `config.json`.

use super::{DenseNet, DenseNetConfig, Encoder, Level, NormKind, UNet, UNetConfig};
use crate::dim::{Rank, Shape};
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
}

/// An encoder's architecture and shape.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "architecture", rename_all = "lowercase")]
pub enum EncoderConfig {
    UNet(UNetConfig),
    DenseNet121(DenseNetConfig),
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
        }
        .map_err(D::Error::custom)
    }
}

impl EncoderConfig {
    /// The encoder that these tensors are the weights of, by their names after `prefix` and shapes; `None`: of another one.
    pub fn of(tensors: &BTreeMap<String, Tensor>, prefix: &str) -> Option<Self> {
        match tensors.get(&format!("{prefix}conv0.weight")).map(Tensor::size).as_deref() {
            Some(&[_, in_channels, _, _]) => Some(EncoderConfig::DenseNet121(DenseNetConfig { in_channels, dropout: 0. })),
            _ => UNetConfig::of(tensors, prefix).map(EncoderConfig::UNet),
        }
    }

    pub fn architecture(&self) -> Architecture {
        match self {
            EncoderConfig::UNet(_) => Architecture::UNet,
            EncoderConfig::DenseNet121(_) => Architecture::DenseNet121,
        }
    }

    pub fn rank(&self) -> Rank {
        match self {
            EncoderConfig::UNet(config) => config.rank,
            EncoderConfig::DenseNet121(_) => Rank::Two,
        }
    }

    /// The encoder's pyramid, finest first.
    pub fn levels(&self) -> Vec<Level> {
        match self {
            EncoderConfig::UNet(config) => config.pyramid(),
            EncoderConfig::DenseNet121(_) => DenseNetConfig::levels(),
        }
    }

    /// Voxels of the input per voxel of the deepest map along each axis.
    pub fn reduction(&self) -> usize {
        self.levels().last().expect("an encoder has at least one level").reduction as usize
    }

    pub fn norm(&self) -> NormKind {
        match self {
            EncoderConfig::UNet(config) => config.norm,
            EncoderConfig::DenseNet121(_) => NormKind::Batch,
        }
    }

    /// Whether weights of one fit the other, but for the number of input channels.
    pub fn same_shape(&self, other: &EncoderConfig) -> bool {
        let shape = |config: &EncoderConfig| (config.architecture(), config.rank(), config.levels(), config.norm());
        shape(self) == shape(other)
    }

    /// Errors if instance normalisation would have the one voxel of a deepest map to normalise, which makes it 0.
    pub fn check_input(&self, input: Shape) -> Result<()> {
        let EncoderConfig::UNet(config @ UNetConfig { norm: NormKind::Instance, .. }) = self else { return Ok(()) };
        let left = |levels: usize| config.rank.axes().map(|a| input[a] >> (levels - 1)).product::<usize>();
        if left(config.levels) > 1 {
            return Ok(());
        }
        let side = 2 * self.reduction();
        let levels = (1..config.levels).rev().find(|&levels| left(levels) > 1);
        let fewer = levels.map_or(String::new(), |levels| format!("--levels {levels}, or "));
        bail!(
            "inputs of {input:?} voxels with {} levels: {}, and --norm instance makes a single one 0; it works with {fewer}inputs of {side} \
             voxels a side (a larger --window or --patch, or fewer cells in a task's grid), or with --norm batch",
            config.levels,
            if left(config.levels) == 0 { "no voxel is left in the deepest map" } else { "the deepest map is one voxel" }
        )
    }

    /// The same encoder, with all of it in training too.
    pub fn without_dropout(mut self) -> Self {
        match &mut self {
            EncoderConfig::UNet(config) => config.dropout = 0.,
            EncoderConfig::DenseNet121(config) => config.dropout = 0.,
        }
        self
    }

    /// The encoder with new weights, its variables under `vs`.
    pub fn build(&self, vs: nn::Path) -> Box<dyn Encoder> {
        match self.clone() {
            EncoderConfig::UNet(config) => Box::new(UNet::new(vs, config)),
            EncoderConfig::DenseNet121(config) => Box::new(DenseNet::new(vs, config)),
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
