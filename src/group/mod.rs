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

mod control;
pub mod launch;
mod reducer;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod work;

pub use control::{Status, agree, announce, announced, await_first, broadcast, ended, exchange, leave, left, sign_off};
pub use launch::{Launch, Member, NO_GLOO, NO_NCCL, VARIABLES, join, launched};
pub use reducer::Reducer;

use crate::ffi;
use crate::print::note;
use anyhow::{Result, ensure};
use std::cell::RefCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tch::{Device, Tensor};

/// A rank's place among the ranks of a run, and its connections to them.
#[derive(Clone)]
pub struct Group(Arc<Connected>);

struct Connected {
    rank: usize,
    /// Of this machine's, from 0.
    local_rank: usize,
    world: usize,
    raw: ffi::group::Group,
    store: Arc<ffi::group::Store>,
    /// Whether the store ends with this rank.
    serves: bool,
    control: control::State,
    /// Samples of the batch of all ranks, see [`with_batch`]; 0 outside of it.
    batch: AtomicU64,
}

/// The group of this process. Also seen from libtorch's threads, where a backward pass may compute a piece of the network again.
static PROCESS: Mutex<Option<Group>> = Mutex::new(None);

thread_local! {
    /// What this thread has in place of the process's group.
    static HERE: RefCell<Option<Option<Group>>> = const { RefCell::new(None) };
}

impl Group {
    /// Waits for all ranks to do the same over the same store.
    fn new(
        store: Arc<ffi::group::Store>,
        [rank, local_rank, world]: [usize; 3],
        limit: Duration,
        serves: bool,
    ) -> Result<Group> {
        let raw = ffi::group::Group::new(&store, rank, world, limit)?;
        let (control, batch) = (control::State::default(), AtomicU64::new(0));
        Ok(Group(Arc::new(Connected { rank, local_rank, world, raw, store, serves, control, batch })))
    }

    /// Of this process, from 0.
    pub fn rank(&self) -> usize {
        self.0.rank
    }

    /// Which of the GPUs that this process sees is its own.
    pub fn cuda_index(&self, visible: usize) -> Result<usize> {
        launch::cuda_index(self.rank(), self.0.local_rank, visible)
    }

    /// Number of ranks, at least 1.
    pub fn world(&self) -> usize {
        self.0.world
    }

    /// The rows of every rank, of which this one has `own`.
    fn rows(&self, own: i64) -> Result<Vec<i64>> {
        let batch = self.0.batch.load(Ordering::Relaxed);
        if batch == 0 {
            return self.told_rows(own);
        }
        let samples = |rank| {
            let share = share_of(batch, rank as u64, self.world() as u64);
            (share.end - share.start) as i64
        };
        let here = samples(self.rank());
        ensure!(here > 0 && own % here == 0, "{own} rows of {here} samples: expected as many of each");
        Ok((0..self.world()).map(|rank| own / here * samples(rank)).collect())
    }
}

/// The group of this process; `None` in one process, and within [`alone`].
pub fn current() -> Option<Group> {
    HERE.with_borrow(Clone::clone).unwrap_or_else(|| PROCESS.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// Runs `f` in this thread as if its process had this group.
fn within<T>(group: Option<Group>, f: impl FnOnce() -> T) -> T {
    /// Restores the group when the scope ends, also by a panic.
    struct Scope(Option<Option<Group>>);
    impl Drop for Scope {
        fn drop(&mut self) {
            HERE.set(self.0.take());
        }
    }
    let _restore = Scope(HERE.replace(Some(group)));
    f()
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
    within(None, f)
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

/// Runs `f`, the forward and the backward pass of a batch of `samples` samples over all ranks, of which this one has its [`share`]. Tensors
/// that are gathered in it have the same number of rows for each sample, so that ranks need not tell each other how many they have.
pub fn with_batch<T>(samples: u64, f: impl FnOnce() -> T) -> T {
    /// Restores the number when the scope ends, also by a panic.
    struct Scope(Group, u64);
    impl Drop for Scope {
        fn drop(&mut self) {
            self.0.0.batch.store(self.1, Ordering::Relaxed);
        }
    }
    let _restore = current().map(|group| {
        let before = group.0.batch.swap(samples, Ordering::Relaxed);
        Scope(group, before)
    });
    f()
}

/// How many rows all ranks have of a tensor that has `own` here, and which of them these are. Fails within [`attempt`].
pub fn rows(own: i64) -> (i64, Range<i64>) {
    let Some(group) = current() else { return (own, 0..own) };
    let rows = unwound(group.rows(own));
    let start = rows[..group.rank()].iter().sum();
    (rows.iter().sum(), start..start + own)
}

/// The rows (axis 0) of all ranks, in the order of ranks; ranks may have different numbers of rows, also none, but within [`with_batch`] as many
/// for each sample. Differentiable: the gradient of a rank's rows is the sum of what all ranks have for them. Fails within [`attempt`].
pub fn gather(x: &Tensor) -> Tensor {
    let Some(group) = current() else { return x.shallow_clone() };
    let gathered = || {
        ensure!(x.dim() > 0, "a number has no rows to gather");
        let rows = group.rows(x.size()[0])?;
        group.0.raw.gather(x, &rows)
    };
    unwound(gathered())
}

/// The sum over ranks of tensors of one shape; of float16 and bfloat16 it is taken in float32, and rounded. Differentiable: the gradient is the sum
/// of what all ranks have for it. Fails within [`attempt`].
pub fn sum(x: &Tensor) -> Tensor {
    match current() {
        None => x.shallow_clone(),
        Some(group) => unwound(group.0.raw.sum(x)),
    }
}

/// Why a collective failed on this rank; it unwinds through networks and losses, which give no results, up to [`attempt`].
struct Failed(anyhow::Error);

fn unwound<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| resume_unwind(Box::new(Failed(error))))
}

/// Runs `f`; a [`gather`] or [`sum`] in it that fails is an error of it. Elsewhere such a failure ends the thread, without a message.
pub fn attempt<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|payload| match payload.downcast::<Failed>() {
        Ok(failed) => Err(failed.0),
        Err(other) => resume_unwind(other),
    })
}

/// Lets tensors on this device travel; to be called once by all ranks, when each knows its own. Without NCCL those of GPUs travel over the CPU.
pub fn use_device(device: Device) -> Result<()> {
    let Some(group) = current().filter(|_| device.is_cuda()) else { return Ok(()) };
    if !ffi::group::has_nccl() {
        if group.rank() == 0 {
            note!("warning: {NO_NCCL}; gradients travel over the CPU, slowly");
        }
        return Ok(());
    }
    group.0.raw.use_nccl()
}

/// Why the first of this rank's collectives that failed did: from then on all fail. Of failures in a backward pass too.
pub fn lost() -> Option<String> {
    current().and_then(|group| group.0.raw.lost())
}
