//! From scans to batches: which scan a position of an epoch is, and how a batch is drawn. Everything depends on
//! (seed, epoch, position) only, so threads and timing change nothing.

use crate::data::Scans;
use crate::dim::Rank;
use crate::ffi;
use crate::rng::{Stream, rng};
use crate::sample::mirror_zoom::MirrorZoom;
use crate::tasks::{self, Batch, Task, sample_length};
use anyhow::{Context, Result};
use rand::seq::SliceRandom;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use tch::{Device, Tensor};

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
        self.draw(self.order(epoch, positions.clone()), positions, Stream::Train, epoch)
    }

    /// The scans that training samples at these positions of an epoch come from.
    pub fn order(&self, epoch: u64, positions: Range<u64>) -> Vec<usize> {
        let n = self.scans.len() as u64;
        let scan = |position: u64| {
            shuffled([self.seed, epoch, (position / n) << 8 | self.slot, n], |order| order[(position % n) as usize])
        };
        positions.map(scan).collect()
    }

    /// Validation samples at these positions: scan after scan, the same in every epoch.
    pub fn valid(&self, positions: Range<u64>) -> Result<LoadedBatch> {
        let n = self.scans.len() as u64;
        let order = positions.clone().map(|p| (p % n) as usize).collect();
        self.draw(order, positions, Stream::Valid, 0)
    }

    fn draw(&self, order: Vec<usize>, positions: Range<u64>, stream: Stream, epoch: u64) -> Result<LoadedBatch> {
        let (task, scans) = (&self.task, &self.scans);
        // The files of all samples come at once, while the first is cut.
        order.iter().for_each(|&scan| scans.read_ahead(scan));
        let length = sample_length(task.as_ref(), scans.channels());
        let mut samples = vec![0f32; order.len() * length];
        let mut targets = Vec::with_capacity(order.len() * task.targets());
        for ((&scan, position), out) in order.iter().zip(positions).zip(samples.chunks_exact_mut(length)) {
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
        let batch = tasks::batch(task.as_ref(), self.rank, scans.channels(), &samples, &targets, self.bf16);
        Ok(LoadedBatch { batch, scans: order })
    }
}

/// Uses the shuffle of one pass over the scans: of a seed, an epoch, a pass with the task's slot, and the number of scans. A thread keeps its last
/// ones: an epoch of many scans has many batches.
fn shuffled<T>(key: [u64; 4], use_it: impl FnOnce(&[usize]) -> T) -> T {
    /// One a task of a joint training, and two where a batch lies in two passes.
    const KEPT: usize = 16;
    thread_local! {
        static LAST: RefCell<VecDeque<([u64; 4], Vec<usize>)>> = const { RefCell::new(VecDeque::new()) };
    }
    LAST.with_borrow_mut(|last| {
        if let Some(at) = last.iter().position(|(of, _)| *of == key) {
            return use_it(&last[at].1);
        }
        let [seed, epoch, pass, n] = key;
        let mut order: Vec<usize> = (0..n as usize).collect();
        order.shuffle(&mut rng(seed, Stream::Order, epoch, pass));
        last.truncate(KEPT - 1);
        last.push_front((key, order));
        use_it(&last[0].1)
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_the_same_whether_it_was_kept_or_not() {
        let keys = || (0..40).map(|i| [7, i % 3, i % 20, 30 + i % 2]);
        let all: Vec<Vec<usize>> = keys().chain(keys()).map(|key| shuffled(key, <[usize]>::to_vec)).collect();
        for (key, order) in keys().chain(keys()).zip(all) {
            let mut expected: Vec<usize> = (0..key[3] as usize).collect();
            expected.shuffle(&mut rng(key[0], Stream::Order, key[1], key[2]));
            assert_eq!(order, expected, "{key:?}");
        }
    }
}
