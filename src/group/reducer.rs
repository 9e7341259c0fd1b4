use super::current;
use crate::ffi;
use anyhow::Result;
use tch::Tensor;

/// Bytes of gradients that travel together, as in PyTorch's DistributedDataParallel: enough that a network's latency does not count, few
/// enough that the first leave early.
const BUCKET_BYTES: usize = 25 << 20;

/// Forms the mean over ranks of gradients, in buckets that travel while the backward pass still runs. Without a group it does nothing.
///
/// In each optimizer step: [`Reducer::arm`] before the *last* backward pass (of several tasks and micro-batches), and [`Reducer::finish`] after
/// it, before the gradients are used.
pub struct Reducer {
    raw: Option<ffi::group::Reducer>,
    counts: [usize; 2],
}

impl Reducer {
    /// Of these parameters, in the same order on all ranks: best that in which the network uses them.
    pub fn new(parameters: &[Tensor]) -> Result<Reducer> {
        Reducer::in_buckets(parameters, BUCKET_BYTES)
    }

    /// A bucket is closed when it holds this many bytes.
    pub(super) fn in_buckets(parameters: &[Tensor], bytes: usize) -> Result<Reducer> {
        let raw = current().map(|group| ffi::group::Reducer::new(&group.0.raw, parameters, bytes)).transpose()?;
        Ok(Reducer { raw, counts: [0; 2] })
    }

    /// The next backward pass is the last one before [`Reducer::finish`]: a bucket leaves as soon as all of its gradients are there.
    /// Parameters that do not require a gradient now, the same on all ranks, are left out.
    pub fn arm(&mut self) -> Result<()> {
        self.raw.as_mut().map_or(Ok(()), |raw| raw.arm())
    }

    /// Reduces what has not left yet, and waits. A parameter that has a gradient on no rank stays without.
    pub fn finish(&mut self) -> Result<()> {
        if let Some(raw) = &mut self.raw {
            self.counts = raw.finish()?;
        }
        Ok(())
    }

    /// Buckets of the last step, and how many of them left while its backward pass still ran.
    pub fn buckets(&self) -> [usize; 2] {
        self.counts
    }
}
