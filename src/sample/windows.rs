//! Whole windows of scans, as they are: what an encoder meets after its pretraining.

use crate::data::Scans;
use crate::dim::{Rank, Shape, voxels};
use crate::nn::calibrate::{SAMPLES, batch_size};
use crate::rng::{Stream, rng};
use crate::sample::patch::draw_window;
use crate::transform::spatial::Orientation;
use anyhow::Result;
use std::ops::Range;
use std::sync::Arc;
use tch::Tensor;

/// Windows of scans, as many of each as of any other.
pub struct Windows {
    pub scans: Arc<dyn Scans>,
    pub rank: Rank,
    pub shape: Shape,
    pub seed: u64,
}

impl Windows {
    /// Batches `[B, C, ...]`, float32 on the CPU, of at least [`SAMPLES`] windows in all; the same each time.
    pub fn batches(&self) -> impl Iterator<Item = Result<Tensor>> {
        let size = batch_size(voxels(self.shape));
        (0..SAMPLES).step_by(size as usize).map(move |first| self.batch(first..first + size))
    }

    fn batch(&self, positions: Range<u64>) -> Result<Tensor> {
        let (scans, channels) = (self.scans.as_ref(), self.scans.channels());
        let length = channels * voxels(self.shape);
        let count = positions.end - positions.start;
        let mut values = vec![0f32; count as usize * length];
        for (i, out) in positions.zip(values.chunks_exact_mut(length)) {
            // Of more scans than windows some, spread over all of them.
            let n = scans.len() as u64;
            let scan = (i * n.max(SAMPLES) / SAMPLES % n) as usize;
            let window = draw_window(scans, scan, self.rank, self.shape, &mut rng(self.seed, Stream::Window, 0, i))?;
            scans.read(scan, window, Orientation::IDENTITY, out)?;
        }
        let mut dims = vec![count as i64, channels as i64];
        dims.extend(self.rank.axes().map(|a| self.shape[a] as i64));
        Ok(Tensor::from_slice(&values).view(dims.as_slice()))
    }
}
