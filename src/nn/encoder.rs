//! Which encoder a run has: `network` in its `config.json`.

use super::stages::{self, Preset};
use super::{DenseNet, DenseNetConfig, Encoder, Level, NormKind, PlainConv, ResEnc, StagesConfig, UNet, UNetConfig, limits};
use crate::dim::{PerAxis, Rank, Shape, voxels};
use anyhow::{Context, Result, bail, ensure};
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
        let config = match architecture {
            Architecture::UNet => serde_json::from_value(config).map(EncoderConfig::UNet),
            Architecture::DenseNet121 => serde_json::from_value(config).map(EncoderConfig::DenseNet121),
            _ => serde_json::from_value(config).map(|stages| EncoderConfig::NnUNet { architecture, stages }),
        }
        .map_err(D::Error::custom)?;
        config.check().map_err(D::Error::custom)?;
        Ok(config)
    }
}

impl EncoderConfig {
    /// The encoder that these tensors are the weights of, by their names after `prefix` and shapes. Errors if they are of another one.
    pub fn of(tensors: &BTreeMap<String, Tensor>, prefix: &str) -> Result<Self> {
        let config = Self::named(tensors, prefix).context("another architecture; no encoder in it")?;
        config.check_held(tensors, prefix)?;
        Ok(config)
    }

    /// Errors unless these tensors can be its weights, by how many numbers they hold: a small file shall not ask for much memory.
    pub fn check_held(&self, tensors: &BTreeMap<String, Tensor>, prefix: &str) -> Result<()> {
        self.check()?;
        let held: usize = tensors.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, tensor)| tensor.numel()).sum();
        let weights = self.weights();
        ensure!(
            weights <= held as u128,
            "an encoder as it describes has at least {weights} weights, it holds {held}: the file is not whole, or of another encoder"
        );
        Ok(())
    }

    /// Errors if it has more levels, channels or weights than a network can have.
    pub fn check(&self) -> Result<()> {
        match self {
            EncoderConfig::UNet(config) => config.check()?,
            EncoderConfig::DenseNet121(config) => limits::within("input channels", &limits::CHANNELS, [config.in_channels])?,
            EncoderConfig::NnUNet { stages, .. } => stages.check()?,
        }
        limits::check_weights(self.weights())
    }

    /// Of its convolutions, at least; none are counted of an encoder that has always the same.
    fn weights(&self) -> u128 {
        match self {
            EncoderConfig::UNet(config) => config.weights(),
            EncoderConfig::DenseNet121(_) => 0,
            EncoderConfig::NnUNet { stages, .. } => stages.weights(),
        }
    }

    fn named(tensors: &BTreeMap<String, Tensor>, prefix: &str) -> Option<Self> {
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
        let side = self.reduction().times(&PerAxis::all(self.rank(), 2)).words();
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
        self.check_input(self.reduction().whole(input)).is_ok()
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

    fn nnunet(flags: &EncoderFlags, rank: Rank) -> EncoderConfig {
        flags.config(rank, 2, 0.).unwrap()
    }

    #[test]
    fn nnunets_encoders_are_read_back_from_their_description_and_known_by_their_tensors() {
        let sides = |text: &[&str]| text.iter().map(|sides| sides.parse().unwrap()).collect();
        let small = EncoderFlags { filters: Some(2), levels: Some(3), ..EncoderFlags::default() };
        let thick = EncoderFlags { kernels: sides(&["3x3x1"]), strides: sides(&["1x1x1", "2x2x1"]), ..small.clone() };
        for architecture in [Architecture::PlainConv, Architecture::ResEncS, Architecture::ResEncM, Architecture::ResEncL] {
            for (flags, rank) in [(&small, Rank::Two), (&small, Rank::Three), (&thick, Rank::Three)] {
                let config = nnunet(&EncoderFlags { encoder: Some(architecture), ..flags.clone() }, rank);
                let written = serde_json::to_value(&config).unwrap();
                assert_eq!(written["architecture"], json!(architecture));
                assert_eq!(serde_json::from_value::<EncoderConfig>(written.clone()).unwrap(), config);
                for (key, value) in
                    [("features", json!([2, 4])), ("kernels", json!([[3], [3], [3]])), ("blocks", json!([1, 1, 0]))]
                {
                    let mut wrong = written.clone();
                    wrong[key] = value;
                    assert!(serde_json::from_value::<EncoderConfig>(wrong).is_err(), "{key}");
                }
                let vs = nn::VarStore::new(tch::Device::Cpu);
                let encoder = config.build(&vs.root() / "encoder");
                assert_eq!(encoder.levels(), config.levels());
                let found = EncoderConfig::of(&vs.variables().into_iter().collect(), "encoder.").unwrap();
                // Of other features than its preset's, a residual one may be any.
                let EncoderConfig::NnUNet { stages, .. } = &found else { panic!("{found:?}") };
                assert_eq!(Some(stages), config.stages());
                assert!(found.architecture().preset().is_some());
            }
        }
        let levels = serde_json::to_value(
            nnunet(&EncoderFlags { encoder: Some(Architecture::PlainConv), ..thick }, Rank::Three).levels(),
        );
        let reductions: Vec<Value> =
            levels.unwrap().as_array().unwrap().iter().map(|level| level["reduction"].clone()).collect();
        assert_eq!(reductions, [json!(1), json!([2, 2, 1]), json!([4, 4, 2])]);
    }

    #[test]
    fn presets_are_known_by_their_features_and_blocks() {
        for (architecture, last, blocks) in [
            (Architecture::ResEncS, 160, [1, 2, 2, 2, 2, 2]),
            (Architecture::ResEncM, 320, [1, 2, 2, 2, 2, 2]),
            (Architecture::ResEncL, 320, [1, 3, 4, 6, 6, 6]),
        ] {
            let config = nnunet(&EncoderFlags { encoder: Some(architecture), ..EncoderFlags::default() }, Rank::Three);
            let stages = config.stages().unwrap();
            assert_eq!((stages.features[5], &stages.blocks[..]), (last, &blocks[..]));
            let known = [Architecture::ResEncS, Architecture::ResEncM, Architecture::ResEncL]
                .map(|a| a.preset().unwrap().is_of(stages));
            let at = known.iter().position(|known| *known).unwrap();
            assert_eq!(
                (known.iter().filter(|known| **known).count(), known[at]),
                (1, architecture.preset().unwrap().is_of(stages))
            );
        }
    }

    #[test]
    fn weights_decide_for_nnunets_encoders_too() {
        let given = |change: fn(&mut EncoderFlags)| {
            let mut flags = EncoderFlags::default();
            change(&mut flags);
            flags
        };
        let flags = given(|flags| {
            (flags.encoder, flags.filters, flags.levels) = (Some(Architecture::ResEncM), Some(4), Some(3));
            flags.kernels = vec!["1x3x3".parse().unwrap()];
        });
        let found = nnunet(&flags, Rank::Three);
        let of_weights = |flags: &EncoderFlags| flags.of_weights(&found, Rank::Three, std::path::Path::new("weights.pt"));
        for flags in [EncoderFlags::default(), flags.clone(), of_weights(&flags).unwrap()] {
            assert_eq!(nnunet(&of_weights(&flags).unwrap(), Rank::Three), found);
        }
        for (change, says) in [
            (given(|f| f.encoder = Some(Architecture::ResEncL)), "resenc-m"),
            (given(|f| f.levels = Some(4)), "--levels 4: weights.pt has 3"),
            (given(|f| f.filters = Some(8)), "--filters 8: weights.pt has 4"),
            (given(|f| f.features = vec![4, 8, 15]), "--features 4,8,15: weights.pt has 4,8,16"),
            (given(|f| f.blocks = vec![1, 2]), "--blocks 1,2: weights.pt has 1,2,2"),
            (given(|f| f.kernels = vec!["3x3x3".parse().unwrap()]), "--kernels 3x3x3,3x3x3,3x3x3: weights.pt has 1x3x3,"),
            (
                given(|f| f.strides = vec!["1x1x1".parse().unwrap(), "2x2x2".parse().unwrap()]),
                "--strides 1x1x1,2x2x2,2x2x2: weights.pt has 1x1x1,1x2x2,2x2x2",
            ),
            (given(|f| f.norm = Some(NormKind::Batch)), "--norm batch: weights.pt has instance"),
            (
                given(|f| f.kernels = ["1x3x3", "3x3x3", "3x3x3", "3x3x3"].map(|sides| sides.parse().unwrap()).to_vec()),
                "--kernels names 4 levels, weights.pt has 3",
            ),
            (
                given(|f| f.strides = ["1x1x1", "1x2x2", "2x2x2", "2x2x2"].map(|sides| sides.parse().unwrap()).to_vec()),
                "--strides names 4 levels, weights.pt has 3",
            ),
        ] {
            let message = of_weights(&change).unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
        }
    }

    #[test]
    fn strided_convolutions_round_up_and_are_as_deep_as_decoders_allow() {
        let flags = EncoderFlags { encoder: Some(Architecture::ResEncS), filters: Some(2), ..EncoderFlags::default() };
        for (side, levels) in [(64, 6), (63, 5), (32, 5), (20, 4)] {
            let input = Rank::Three.cube(side);
            let fitted = flags.fitted(Rank::Three, &[input]).unwrap();
            assert_eq!(nnunet(&fitted, Rank::Three).levels().len(), levels);
        }
        // What is asked for may have the one voxel more that rounding up leaves.
        let six = nnunet(&EncoderFlags { levels: Some(6), ..flags.clone() }, Rank::Three);
        assert!(six.check_input([33, 32, 32]).is_ok() && six.check_input([32; 3]).is_err());
        let four = nnunet(&EncoderFlags { levels: Some(4), ..flags }, Rank::Three);
        let encoder = four.build(nn::VarStore::new(tch::Device::Cpu).root());
        let x = Tensor::randn([1, 2, 19, 17, 9], (tch::Kind::Float, tch::Device::Cpu));
        let map = tch::no_grad(|| encoder.features(&x, false)).pop().unwrap();
        assert_eq!(map.size()[2..], encoder.deepest_shape([19, 17, 9]).map(|n| n as i64));
    }
}
