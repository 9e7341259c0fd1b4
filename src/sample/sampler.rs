//! From scans to batches: which scan a position of an epoch is, and how a batch is drawn. Everything depends on
//! (seed, epoch, position) only, so threads and timing change nothing.

use crate::data::Scans;
use crate::dim::Rank;
use crate::ffi;
use crate::rng::{Stream, rng};
use crate::sample::mirror_zoom::MirrorZoom;
use crate::tasks::{Batch, Task, sample_length, split_clean};
use anyhow::{Context, Result};
use half::{bf16, slice::HalfFloatSliceExt};
use rand::seq::SliceRandom;
use std::ops::Range;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Draws a task's samples from a set of scans.
#[derive(Clone)]
pub struct Sampler {
    pub task: Arc<dyn Task>,
    pub scans: Arc<dyn Scans>,
    pub rank: Rank,
    pub seed: u64,
    /// Tells the draws of jointly trained tasks apart.
    pub slot: u64,
    /// Of training scans before they are sampled.
    pub mirror_zoom: Option<MirrorZoom>,
    /// Give views in bfloat16, to which the first convolution would convert them: half as much to copy.
    pub bf16: bool,
}

/// A batch on the CPU, with the scans that it came from.
pub struct LoadedBatch {
    pub batch: Batch,
    pub scans: Vec<usize>,
}

impl Sampler {
    /// Training samples at these positions of an epoch. Each pass over the scans is a new shuffle.
    pub fn train(&self, epoch: u64, positions: Range<u64>) -> Result<LoadedBatch> {
        let n = self.scans.len() as u64;
        let mut shuffled: Option<(u64, Vec<usize>)> = None;
        let order = positions.clone().map(|position| {
            let pass = position / n;
            if shuffled.as_ref().is_none_or(|(p, _)| *p != pass) {
                let mut order: Vec<usize> = (0..n as usize).collect();
                order.shuffle(&mut rng(self.seed, Stream::Order, epoch, pass << 8 | self.slot));
                shuffled = Some((pass, order));
            }
            shuffled.as_ref().expect("set above").1[(position % n) as usize]
        });
        let order = order.collect();
        self.draw(order, positions, Stream::Train, epoch)
    }

    /// Validation samples at these positions: scan after scan, the same in every epoch.
    pub fn valid(&self, positions: Range<u64>) -> Result<LoadedBatch> {
        let n = self.scans.len() as u64;
        let order = positions.clone().map(|p| (p % n) as usize).collect();
        self.draw(order, positions, Stream::Valid, 0)
    }

    fn draw(&self, order: Vec<usize>, positions: Range<u64>, stream: Stream, epoch: u64) -> Result<LoadedBatch> {
        let (task, scans) = (&self.task, &self.scans);
        let length = sample_length(task.as_ref(), scans.channels());
        let mut views = vec![0f32; order.len() * length];
        let mut targets = Vec::with_capacity(order.len() * task.targets());
        for ((&scan, position), out) in order.iter().zip(positions).zip(views.chunks_exact_mut(length)) {
            let mut rng = rng(self.seed, stream, epoch, position << 8 | self.slot);
            let mut sample = || match &self.mirror_zoom {
                Some(mirror_zoom) if stream == Stream::Train && task.allows_mirror_zoom() => {
                    task.sample(&mirror_zoom.apply(scans.as_ref(), scan, self.rank, &mut rng)?, 0, &mut rng, out)
                }
                _ => task.sample(scans.as_ref(), scan, &mut rng, out),
            };
            let drawn = sample().with_context(|| format!("sampling {} for {}", scans.id(scan), task.name()))?;
            targets.extend(drawn.targets);
        }
        let b = order.len() as i64;
        let shape = task.view_shape();
        let dims = |views: usize| {
            let mut dims = vec![b, views as i64, scans.channels() as i64];
            dims.extend(self.rank.axes().map(|a| shape[a] as i64));
            dims
        };
        let float = |values: &[f32], dims: &[i64]| Tensor::from_data_size(bytemuck::cast_slice(values), dims, Kind::Float);
        let [views, clean] = split_clean(task.as_ref(), scans.channels(), views);
        let clean = (task.clean_views() > 0).then(|| float(&clean, &dims(task.clean_views())));
        let dims = dims(task.views());
        let batch = Batch {
            views: match self.bf16 {
                true => {
                    let mut rounded = vec![bf16::ZERO; views.len()];
                    rounded.convert_from_f32_slice(&views);
                    Tensor::from_data_size(bytemuck::cast_slice(&rounded), &dims, Kind::BFloat16)
                }
                false => float(&views, &dims),
            },
            clean,
            targets: Tensor::from_slice(&targets).reshape([b, task.targets() as i64]),
        };
        Ok(LoadedBatch { batch, scans: order })
    }
}

impl LoadedBatch {
    /// For a GPU in page-locked memory, so that copying overlaps with computing.
    pub fn pinned(mut self, device: Device) -> Result<Self> {
        if device.is_cuda() {
            ffi::pin(&mut self.batch.views)?;
            self.batch.clean.as_mut().map(ffi::pin).transpose()?;
            ffi::pin(&mut self.batch.targets)?;
        }
        Ok(self)
    }

    pub fn on(&self, device: Device) -> Batch {
        let to = |t: &Tensor| t.to_device_(device, t.kind(), true, false);
        Batch { views: to(&self.batch.views), clean: self.batch.clean.as_ref().map(to), targets: to(&self.batch.targets) }
    }
}
