//! Networks: building blocks, encoders and heads. Nothing here knows a task.

pub mod blocks;
pub mod calibrate;
pub mod conv_norm;
pub mod decoder;
pub mod densenet;
pub mod encoder;
pub mod flags;
pub mod heads;
pub mod limits;
pub mod loss;
pub mod norm;
pub mod plainconv;
pub mod resenc;
pub mod script;
pub mod stages;
pub mod step;
pub mod unet;

use crate::dim::{PerAxis, Rank, Shape};
use script::ScriptModule;
use serde::{Serialize, Serializer};
use tch::{Tensor, no_grad};

pub use decoder::{Decoder, DecoderKind};
pub use densenet::{DenseNet, DenseNetConfig};
pub use encoder::{Architecture, EncoderConfig};
pub use flags::EncoderFlags;
pub use norm::NormKind;
pub use plainconv::PlainConv;
pub use resenc::ResEnc;
pub use stages::StagesConfig;
pub use unet::{UNet, UNetConfig};

/// How a network computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Batch statistics and dropout; all of it learns.
    Train,
    /// The encoder computes as in evaluation and gets no gradients; what stands above it trains.
    Frozen,
    /// Running statistics, no dropout.
    Eval,
}

impl Mode {
    /// Whether what stands above the encoder trains.
    pub fn trains_head(self) -> bool {
        self != Mode::Eval
    }
}

/// One level of an encoder's feature pyramid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Level {
    pub channels: i64,
    /// Input voxels per feature voxel along each spatial axis; the extent is `side / reduction`, rounded down unless the encoder
    /// says otherwise. In JSON one number where all axes have the same.
    #[serde(serialize_with = "one_or_each")]
    pub reduction: PerAxis,
}

fn one_or_each<S: Serializer>(reduction: &PerAxis, to: S) -> Result<S::Ok, S::Error> {
    match reduction.common() {
        Some(n) => n.serialize(to),
        None => reduction.serialize(to),
    }
}

impl Level {
    /// Extent of the level's map for an input of this shape, rounded down.
    pub fn extent(&self, input: Shape) -> Shape {
        let mut extent = [1; 3];
        self.reduction.rank().axes().for_each(|a| extent[a] = input[a] / self.reduction.along(a));
        extent
    }

    /// Rounded up, as strided convolutions do.
    pub fn extent_rounded_up(&self, input: Shape) -> Shape {
        let mut extent = [1; 3];
        self.reduction.rank().axes().for_each(|a| extent[a] = input[a].div_ceil(self.reduction.along(a)));
        extent
    }
}

/// A fully convolutional encoder; whoever builds on it reads its shape from [`Encoder::levels`].
pub trait Encoder {
    fn rank(&self) -> Rank;
    fn in_channels(&self) -> i64;
    /// The pyramid, finest first.
    fn levels(&self) -> &[Level];
    /// Of every normalisation in it.
    fn norm(&self) -> NormKind;
    /// The decoder that belongs to it.
    fn decoder(&self) -> DecoderKind<'_> {
        DecoderKind::UNet
    }
    /// `[B, C, D, H, W]` (images `[B, C, H, W]`) to one tensor a level, finest first. `train`: with batch statistics and dropout.
    fn features(&self, x: &Tensor, train: bool) -> Vec<Tensor>;
    /// The same network as TorchScript.
    fn script(&self) -> ScriptModule;

    /// [`Encoder::features`] as the mode asks for them.
    fn forward(&self, x: &Tensor, mode: Mode) -> Vec<Tensor> {
        match mode {
            Mode::Train => self.features(x, true),
            Mode::Frozen => no_grad(|| self.features(x, false)),
            Mode::Eval => self.features(x, false),
        }
    }

    fn deepest(&self) -> Level {
        *self.levels().last().expect("an encoder has at least one level")
    }

    /// Extent of the deepest feature map for an input of this shape; a side of 0 means that the input is too small.
    fn deepest_shape(&self, input: Shape) -> Shape {
        self.deepest().extent(input)
    }

    /// Encodes every view of a batch `[B, V, C, ...]` and returns the deepest maps, `[B * V, C', ...]`.
    fn encode_views(&self, views: &Tensor, mode: Mode) -> Tensor {
        self.forward(&views.flatten(0, 1), mode).pop().expect("an encoder has at least one level")
    }
}
