//! What the tasks share that give a window back as it was: the decoder above the encoder, and the error of what it gives.

use super::{Batch, Picture};
use crate::dim::Shape;
use crate::ffi;
use crate::nn::{Decoder, Encoder, Mode, step};
use anyhow::{Context, Result};
use tch::{Kind, Tensor, nn, no_grad};

/// Variance, in the store's units, below which a window counts as blank: there is no error relative to that of its mean.
const BLANK: f64 = 1e-4;

/// U-Net decoder that gives every channel of the input again.
pub struct Restorer {
    decoder: Decoder,
}

impl Restorer {
    /// Its variables lie under `decoder`. Errors if the encoder's maps do not fit into windows of this shape.
    pub fn new(vs: &nn::Path, encoder: &dyn Encoder, window: Shape) -> Result<Self> {
        Decoder::check_input(encoder, window).context("--window")?;
        Ok(Restorer { decoder: Decoder::new(vs / "decoder", encoder, encoder.in_channels(), false).silent() })
    }

    /// Windows `[B, C, ...]` restored, of the same extent, float32.
    pub fn forward(&self, encoder: &dyn Encoder, x: &Tensor, mode: Mode) -> Tensor {
        self.decoder.forward(encoder.forward(x, mode), mode).remove(0).to_kind(Kind::Float)
    }
}

/// Inputs `[B, C, ...]` of a batch of single views.
pub fn inputs(batch: &Batch) -> Tensor {
    batch.views.squeeze_dim(1)
}

/// What shall come out, as [`inputs`], float32.
pub fn targets(batch: &Batch) -> Tensor {
    batch.clean.as_ref().expect("a task that restores has a clean view").squeeze_dim(1)
}

/// Squared error, summed over the step, as a share of that of each window's and channel's mean: 1 for a network that has learnt nothing
/// but the mean, 0 for a perfect one, whatever the intensities' scale. All `[B, C, ...]`, float32, outside of autocast; `mask`,
/// `[B, 1, ...]` of 0 and 1, says which voxels count.
pub fn relative_error(restored: &Tensor, clean: &Tensor, mask: Option<&Tensor>) -> Tensor {
    let mean = no_grad(|| {
        let axes: Vec<i64> = (2..clean.dim() as i64).collect();
        let over = |x: &Tensor| x.sum_dim_intlist(axes.as_slice(), true, Kind::Float);
        match mask {
            Some(mask) => over(&(clean * mask)) / over(mask).clamp_min(1.),
            None => clean.mean_dim(axes.as_slice(), true, Kind::Float),
        }
    });
    share(restored, &mean, clean, mask)
}

/// Squared error as a share of that of `other`, as [`relative_error`].
pub fn share(restored: &Tensor, other: &Tensor, clean: &Tensor, mask: Option<&Tensor>) -> Tensor {
    let of_other = no_grad(|| {
        let voxels = match mask {
            Some(mask) => mask.sum(Kind::Float) * clean.size()[1],
            None => Tensor::from(clean.numel() as f32).to_device(clean.device()),
        };
        let [error, voxels] = step::sums([squared_error(other, clean, mask), voxels]);
        error.maximum(&(voxels * BLANK))
    });
    let [error] = step::sums([squared_error(restored, clean, mask)]);
    error / of_other
}

/// Squared error over the batch's voxels that count.
fn squared_error(a: &Tensor, b: &Tensor, mask: Option<&Tensor>) -> Tensor {
    let square = (a - b).square();
    match mask {
        Some(mask) => square * mask,
        None => square,
    }
    .sum(Kind::Float)
}

/// The restored window, with a note on its error, and on where the network is trained to restore.
pub fn picture(restored: &Tensor, clean: &Tensor, mask: Option<&Tensor>, trained: &str) -> Picture {
    let part = if mask.is_some() { "where masked" } else { "of all voxels" };
    let caption = |channel| {
        let of = |t: &Tensor| t.narrow(1, channel, 1);
        let error = relative_error(&of(restored), &of(clean), mask).double_value(&[]);
        format!("prediction{trained}: error {part} {error:.2} (the mean's is 1)")
    };
    Picture::new((0..clean.size()[1]).map(caption).collect(), restored, None)
}

/// Runs in float32: a squared difference of bfloat16 numbers is noise.
pub fn in_float32<T>(batch: &Batch, f: impl FnOnce() -> T) -> T {
    ffi::without_autocast(batch.views.device(), f)
}
