//! Networks: building blocks, encoders and heads. Nothing here knows a task.

pub mod blocks;
pub mod calibrate;
pub mod decoder;
pub mod densenet;
pub mod encoder;
pub mod flags;
pub mod heads;
pub mod loss;
pub mod script;
pub mod unet;

use crate::dim::{Rank, Shape};
use script::ScriptModule;
use tch::{Tensor, no_grad};

pub use blocks::NormKind;
pub use decoder::Decoder;
pub use densenet::{DenseNet, DenseNetConfig};
pub use encoder::{Architecture, EncoderConfig};
pub use flags::EncoderFlags;
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Level {
    pub channels: i64,
    /// Input voxels per feature voxel along each spatial axis; the extent is `side / reduction`, rounded down unless the encoder
    /// says otherwise.
    pub reduction: i64,
}

/// A fully convolutional encoder; whoever builds on it reads its shape from [`Encoder::levels`].
pub trait Encoder {
    /// Architecture name, as in the exported description.
    fn name(&self) -> &'static str;
    fn rank(&self) -> Rank;
    fn in_channels(&self) -> i64;
    /// The pyramid, finest first.
    fn levels(&self) -> &[Level];
    /// Of every normalisation in it.
    fn norm(&self) -> NormKind;
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
        let mut shape = [1; 3];
        self.rank().axes().for_each(|a| shape[a] = input[a] / self.deepest().reduction as usize);
        shape
    }

    /// Encodes every view of a batch `[B, V, C, ...]` and returns the deepest maps, `[B * V, C', ...]`.
    fn encode_views(&self, views: &Tensor, mode: Mode) -> Tensor {
        self.forward(&views.flatten(0, 1), mode).pop().expect("an encoder has at least one level")
    }
}
