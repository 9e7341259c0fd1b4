//! What tasks of whole scans share: a network on the average of the encoder's deepest map.

use crate::data::Scans;
use crate::dim::{Region, Shape, voxels};
use crate::nn::blocks::global_average;
use crate::nn::heads::Mlp;
use crate::nn::script::ScriptModule;
use crate::nn::{Encoder, Mode};
use crate::rng::Rng;
use crate::transform::augment::{Augmentation, Augmenter};
use crate::transform::spatial::Orientation;
use anyhow::{Result, ensure};
use tch::{Device, Tensor, nn};

/// Width of the hidden layer.
const HIDDEN: i64 = 1024;

/// The one shape that all scans must have, since they are taken whole. Errors name two that differ.
pub fn common_shape(scans: &dyn Scans) -> Result<Shape> {
    let shape = scans.shape(0);
    if let Some(other) = (0..scans.len()).find(|&s| scans.shape(s) != shape) {
        anyhow::bail!(
            "classification and regression take scans whole, of one shape: {} has {shape:?} voxels and {} {:?}; preprocess with --size",
            scans.id(0),
            scans.id(other),
            scans.shape(other)
        );
    }
    Ok(shape)
}

/// Reads a scan of this shape into `out` and changes it in a way that is drawn.
pub fn sample(
    scans: &dyn Scans,
    scan: usize,
    shape: Shape,
    augmenter: &Augmenter,
    rng: &mut Rng,
    out: &mut [f32],
) -> Result<Augmentation> {
    ensure!(scans.shape(scan) == shape, "{:?} voxels, expected {shape:?}", scans.shape(scan));
    scans.read(scan, Region::whole(shape), Orientation::IDENTITY, out)?;
    let augmentation = augmenter.draw(scans.channels(), shape, rng);
    augmentation.apply(out, None, shape)?;
    Ok(augmentation)
}

/// A scan as the network takes it, `[1, C, ...]`.
pub fn input(scans: &dyn Scans, scan: usize, encoder: &dyn Encoder, device: Device) -> Result<Tensor> {
    let shape = scans.shape(scan);
    let mut dims = vec![1, scans.channels() as i64];
    dims.extend(encoder.rank().axes().map(|a| shape[a] as i64));
    Ok(Tensor::from_slice(&scans.whole(scan)?).reshape(dims).to_device(device))
}

/// One hidden layer above the average of the deepest map.
pub struct WholeHead {
    mlp: Mlp,
}

impl WholeHead {
    /// `dropout`: before the outputs.
    pub fn new(vs: &nn::Path, encoder: &dyn Encoder, dropout: f64, outputs: i64) -> Self {
        WholeHead { mlp: Mlp::new(vs / "head" / "mlp", &[HIDDEN], dropout, encoder.deepest().channels, outputs) }
    }

    /// Outputs `[B, outputs]` of inputs `[B, C, ...]`.
    pub fn forward(&self, encoder: &dyn Encoder, x: &Tensor, mode: Mode) -> Tensor {
        let map = encoder.forward(x, mode).pop().expect("an encoder has at least one level");
        self.mlp.forward(&global_average(&map), mode)
    }

    /// The same above the encoder as TorchScript, from its pyramid.
    pub fn script(&self) -> ScriptModule {
        let source = "def forward(self, pyramid: List[Tensor]) -> Tensor:\n    return self.mlp.forward(torch.mean(torch.flatten(pyramid[-1], 2), 2))\n";
        ScriptModule::new(source).child("mlp", self.mlp.script())
    }
}

/// Errors if scans of this shape are smaller than the encoder can pool.
pub fn check_size(encoder: &dyn Encoder, shape: Shape) -> Result<()> {
    ensure!(
        voxels(encoder.deepest_shape(shape)) > 0,
        "scans of {shape:?} voxels are too small: the encoder pools every side by {}",
        encoder.deepest().reduction.words()
    );
    Ok(())
}
