//! The processes of a run on several devices: one rank each, over PyTorch's own c10d.
//!
//! A process has at most one group, which is ambient: layers and heads call [`gather`] and [`sum`] without having it passed down. Without a
//! group (one process, or within [`alone`]) they give their input back, and nothing else here does or costs anything.
//!
//! Every rank computes the loss of the *whole* step from its own share of the samples: where rows of other ranks matter it gathers them, and
//! numerators and denominators it sums. The gradient of a parameter is then the *mean* over ranks of the ranks' gradients, which
//! [`Reducer`] forms.
//!
//! Collectives are matched by the order in which they are called: all ranks call the same ones, in the same order, from one thread at a time.
//! Each has a time limit. After one has failed (a rank is gone, the network is down) the group is [`lost`], and every later one
//! fails at once.

use anyhow::Result;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use tch::Tensor;

/// A rank's place among the ranks of a run.
#[derive(Clone, Debug)]
pub struct Group {
    rank: usize,
    world: usize,
}

impl Group {
    /// Of this process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks, at least 1.
    pub fn world(&self) -> usize {
        self.world
    }
}

/// The group of this process; `None` in one process, and within [`alone`].
pub fn current() -> Option<Group> {
    None
}

/// Number of ranks: 1 without a group.
pub fn world() -> usize {
    current().map_or(1, |group| group.world())
}

/// From 0; 0 without a group.
pub fn rank() -> usize {
    current().map_or(0, |group| group.rank())
}

/// Whether this rank writes files and prints.
pub fn is_first() -> bool {
    rank() == 0
}

/// Runs `f` without the group, as one process: [`gather`] and [`sum`] are the identity in it and no rank waits for another.
pub fn alone<T>(f: impl FnOnce() -> T) -> T {
    f()
}

/// This rank's share of `0..n`: contiguous, in the order of ranks, of sizes that differ by at most one.
pub fn share(n: u64) -> Range<u64> {
    share_of(n, rank() as u64, world() as u64)
}

/// The share of `0..n` that is a rank's.
pub fn share_of(n: u64, rank: u64, world: u64) -> Range<u64> {
    // In this order nothing overflows.
    let start = |rank: u64| (n / world) * rank + (n % world).min(rank);
    start(rank)..start(rank + 1)
}

/// The rows (axis 0) of all ranks, in the order of ranks; ranks may have different numbers of rows, also none. Differentiable: the gradient of a
/// rank's rows is the sum of what all ranks have for them. Fails within [`attempt`].
pub fn gather(x: &Tensor) -> Tensor {
    x.shallow_clone()
}

/// The sum over ranks of tensors of one shape, in their own kind (give float32 where float16 or bfloat16 would be too coarse).
/// Differentiable: the gradient is the sum of what all ranks have for it. Fails within [`attempt`].
pub fn sum(x: &Tensor) -> Tensor {
    x.shallow_clone()
}

/// Why a collective failed on this rank; it unwinds through networks and losses, which give no results, up to [`attempt`].
struct Failed(anyhow::Error);

/// Runs `f`; a [`gather`] or [`sum`] in it that fails is an error of it. Elsewhere such a failure is a panic.
pub fn attempt<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|payload| match payload.downcast::<Failed>() {
        Ok(failed) => Err(failed.0),
        Err(other) => resume_unwind(other),
    })
}

/// Why the first of this rank's collectives that failed did: from then on all fail. Of failures in a backward pass too.
pub fn lost() -> Option<String> {
    None
}

/// The bytes of every rank, in the order of ranks; they may differ in length. For control: over the CPU.
pub fn exchange(bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    Ok(vec![bytes.to_vec()])
}

/// Makes these tensors, of the same shapes and kinds on all ranks, those of rank 0, in place.
pub fn broadcast(_tensors: &[Tensor]) -> Result<()> {
    Ok(())
}

/// How a rank comes to a point where all agree on how to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    Fine,
    /// It was asked to stop.
    Stop,
    /// It cannot go on; of another rank the message begins with which, `rank 3: ...`.
    Failed(String),
}

/// What all ranks do next, the same on all: the lowest rank's failure, or a stop of any, or fine. Each step begins with it, before its
/// other collectives, when the samples are loaded; so does each save end with it.
pub fn agree(own: Status) -> Result<Status> {
    Ok(own)
}

/// Leaves a message for the ranks whose collectives will fail because this one ends outside of [`agree`]; see [`left`].
pub fn leave(_message: &str) {}

/// The messages that other ranks have left, as `rank 3: ...`, in the order of ranks.
pub fn left() -> Vec<String> {
    Vec::new()
}

/// Forms the mean over ranks of gradients, in buckets that travel while the backward pass still runs.
///
/// In each optimizer step: [`Reducer::arm`] before the *last* backward pass (of several tasks and micro-batches), and [`Reducer::finish`] after
/// it, before the gradients are used.
pub struct Reducer;

impl Reducer {
    /// Of these parameters, in the same order on all ranks.
    pub fn new(_parameters: &[Tensor]) -> Result<Reducer> {
        Ok(Reducer)
    }

    /// The next backward pass is the last one before [`Reducer::finish`]: a bucket leaves as soon as all of its gradients are there.
    /// Parameters that do not require a gradient now, the same on all ranks, are left out.
    pub fn arm(&mut self) -> Result<()> {
        Ok(())
    }

    /// Reduces what has not left yet, and waits. A parameter that has a gradient on no rank stays without.
    pub fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_contiguous_cover_all_and_differ_by_at_most_one() {
        for n in [0, 1, 7, 8, 9, 1000, u64::MAX] {
            for world in [1, 2, 3, 8] {
                let shares: Vec<Range<u64>> = (0..world).map(|rank| share_of(n, rank, world)).collect();
                assert_eq!((shares[0].start, shares[world as usize - 1].end), (0, n));
                assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start), "{shares:?}");
                assert!(shares.iter().all(|s| s.end - s.start - n / world <= 1), "{shares:?}");
            }
        }
    }

    #[test]
    fn a_failure_is_an_error_and_a_panic_stays_one() {
        let failed = attempt(|| -> Result<()> { resume_unwind(Box::new(Failed(anyhow::anyhow!("rank 1 is gone")))) });
        assert_eq!(failed.unwrap_err().to_string(), "rank 1 is gone");
        let panicked = catch_unwind(|| attempt(|| -> Result<()> { resume_unwind(Box::new("no failure of the group")) }));
        assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"no failure of the group"));
    }
}
