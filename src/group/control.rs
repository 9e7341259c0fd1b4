//! What ranks tell each other beside tensors: how each goes on, small data, and, by way of the store, what remains to be said when the
//! connections are gone.

use super::{Group, current};
use crate::ffi;
use anyhow::{Result, bail, ensure};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tch::Tensor;

/// How long ranks that still live are given to say so.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at the store.
const LOOK: Duration = Duration::from_millis(50);

/// Keys of the store, see also `P3D_ENDED` of `c10d.h`.
const ENDED: &str = "ended";
const SIGNED_OFF: &str = "signed-off";
const ANNOUNCED: &str = "announced";

fn left_key(rank: usize) -> String {
    format!("left/{rank}")
}

fn seen_key(rank: usize) -> String {
    format!("seen/{rank}")
}

fn read_key(rank: usize) -> String {
    format!("read/{rank}")
}

#[derive(Default)]
pub struct State {
    /// A failure was agreed on, or the ranks are not at the same point: nobody will answer any more.
    ended: AtomicBool,
    /// Ranks that did not answer.
    silent: Mutex<Vec<usize>>,
}

/// What a rank is at; the first number of the head that each control call begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
enum Call {
    Failed,
    Agree,
    Exchange,
    Broadcast,
    Gather,
}

impl Call {
    fn name(code: i64) -> String {
        let all = [Call::Failed, Call::Agree, Call::Exchange, Call::Broadcast, Call::Gather];
        all.iter().find(|call| **call as i64 == code).map_or("none".into(), |call| format!("{call:?}").to_lowercase())
    }
}

/// A failure that all ranks know of.
#[derive(Debug)]
struct Agreed(String);

impl std::fmt::Display for Agreed {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Agreed {}

impl Group {
    /// The heads of all ranks, which are all at the same call; a rank that has failed is an error for all, whatever they are at.
    fn meet(&self, call: Call, value: i64, print: i64, failure: &[u8]) -> Result<Vec<[i64; 2]>> {
        ensure!(!self.0.control.ended.load(Ordering::Relaxed), "the ranks have ended");
        let heads = self.0.raw.numbers([call as i64, value, print])?;
        let failed = |head: &[i64; 3]| head[0] == Call::Failed as i64;
        if let Some(first) = heads.iter().position(failed) {
            self.0.control.ended.store(true, Ordering::Relaxed);
            let lengths: Vec<i64> = heads.iter().map(|head| if failed(head) { head[1] } else { 0 }).collect();
            let messages = self.padded(failure, &lengths)?;
            bail!(Agreed(format!("rank {first}: {}", String::from_utf8_lossy(&messages[first]))));
        }
        if let Some(other) = heads.iter().position(|head| head[0] != call as i64) {
            self.0.control.ended.store(true, Ordering::Relaxed);
            let (here, there) = (Call::name(call as i64), Call::name(heads[other][0]));
            bail!("rank {} is at {here}, rank {other} at {there}: the ranks of a run must do the same", self.rank());
        }
        Ok(heads.into_iter().map(|[_, value, print]| [value, print]).collect())
    }

    /// The bytes of all ranks, of these lengths.
    fn padded(&self, own: &[u8], lengths: &[i64]) -> Result<Vec<Vec<u8>>> {
        let longest = lengths.iter().max().map_or(0, |&n| n as usize);
        if longest == 0 {
            return Ok(vec![Vec::new(); lengths.len()]);
        }
        let mut padded = own.to_vec();
        padded.resize(longest, 0);
        let all = self.0.raw.bytes(&padded)?;
        Ok(all.chunks(longest).zip(lengths).map(|(bytes, &n)| bytes[..n as usize].to_vec()).collect())
    }

    /// How many rows each rank has, of which this one has `own`.
    pub(super) fn told_rows(&self, own: i64) -> Result<Vec<i64>> {
        Ok(self.meet(Call::Gather, own, 0, &[])?.into_iter().map(|[rows, _]| rows).collect())
    }

    fn store(&self) -> &ffi::group::Store {
        &self.0.store
    }

    fn others(&self) -> impl Iterator<Item = usize> {
        let own = self.rank();
        (0..self.world()).filter(move |&rank| rank != own)
    }

    fn silent(&self) -> MutexGuard<'_, Vec<usize>> {
        self.0.control.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, key: &str) -> Result<bool> {
        Ok(self.store().get(key, Duration::ZERO)?.is_some())
    }

    /// See [`left`]. An error: the store is gone.
    pub(super) fn words(&self, patience: Duration) -> Result<Vec<String>> {
        self.store().set(&seen_key(self.rank()), &[])?;
        let end = Instant::now() + patience;
        let mut words = Vec::new();
        for rank in self.others() {
            loop {
                if let Some(message) = self.store().get(&left_key(rank), Duration::ZERO)? {
                    words.push(format!("rank {rank}: {}", String::from_utf8_lossy(&message)));
                } else if self.has(&seen_key(rank))? {
                    // It lives, and has nothing to say.
                } else if Instant::now() < end {
                    sleep(LOOK);
                    continue;
                } else {
                    self.silent().push(rank);
                    words.push(silent(rank));
                }
                break;
            }
        }
        Ok(words)
    }
}

fn silent(rank: usize) -> String {
    format!("rank {rank} does not answer: it was killed, or hangs, or its machine cannot be reached")
}

/// The bytes of every rank, in the order of ranks; they may differ in length. Over the CPU.
pub fn exchange(bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    let Some(group) = current() else { return Ok(vec![bytes.to_vec()]) };
    let heads = group.meet(Call::Exchange, bytes.len() as i64, 0, &[])?;
    group.padded(bytes, &heads.iter().map(|head| head[0]).collect::<Vec<_>>())
}

/// Makes these tensors, of the same shapes and kinds on all ranks, those of rank 0, in place.
pub fn broadcast(tensors: &[Tensor]) -> Result<()> {
    let Some(group) = current() else { return Ok(()) };
    let shapes: Vec<String> = tensors.iter().map(|t| format!("{:?} {:?}", t.size(), t.kind())).collect();
    let print = twox_hash::XxHash3_128::oneshot(shapes.join(",").as_bytes()) as i64;
    let heads = group.meet(Call::Broadcast, tensors.len() as i64, print, &[])?;
    if let Some(other) = heads.iter().position(|head| *head != heads[0]) {
        bail!("rank {other} has not the tensors of rank 0 to receive: {} of them, or other shapes", heads[other][0]);
    }
    group.0.raw.broadcast(tensors)
}

/// How a rank comes to a point where all agree on how to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    Fine,
    /// It was asked to stop.
    Stop,
    /// It cannot go on; of a group's rank the message begins with which, `rank 3: ...`.
    Failed(String),
}

/// What all ranks do next, the same on all: the lowest rank's failure, or a stop of any, or fine. Each step begins with it, before its
/// other collectives, when the samples are loaded; so does each save end with it. A failure also reaches the ranks that are in [`exchange`],
/// [`broadcast`] or, outside of [`with_batch`](super::with_batch), [`gather`](super::gather), as their error; those that wait for tensors it
/// does not reach, but [`leave`] does.
pub fn agree(own: Status) -> Result<Status> {
    let Some(group) = current() else { return Ok(own) };
    let heads = match &own {
        Status::Failed(message) => group.meet(Call::Failed, message.len() as i64, 0, message.as_bytes()),
        _ => group.meet(Call::Agree, (own == Status::Stop) as i64, 0, &[]),
    };
    match heads {
        Ok(heads) if heads.iter().any(|head| head[0] != 0) => Ok(Status::Stop),
        Ok(_) => Ok(Status::Fine),
        Err(error) => error.downcast::<Agreed>().map(|agreed| Status::Failed(agreed.0)),
    }
}

/// Whether ranks no longer wait for each other: a failure was agreed on, or this rank's group is [`lost`](super::lost). Calls that wait for
/// other ranks then fail.
pub fn ended() -> bool {
    current().is_some_and(|group| group.0.control.ended.load(Ordering::Relaxed) || group.0.raw.lost().is_some())
}

/// This rank ends wherever the others are: its message is for [`left`], and its connections close, so that whatever they wait for fails.
pub fn leave(message: &str) {
    if let Some(group) = current() {
        // Without the store the others still see the connections close.
        let _ = group.store().set(&left_key(group.rank()), message.as_bytes());
        let _ = group.store().set(ENDED, &[]);
        group.0.raw.close(message);
    }
}

/// After [`lost`](super::lost): what the other ranks have left, as `rank 3: ...`, and which of them do not answer, in the order of ranks. Those
/// that find the group lost must call it too; it waits for them, some seconds at most.
pub fn left() -> Vec<String> {
    current().map_or(Vec::new(), |group| group.words(PATIENCE).unwrap_or_else(|_| vec![silent(0)]))
}

/// Rank 0 has saved and said all; ends [`await_first`]. Where rank 0 serves the store it waits, some seconds at most, until the others have called that.
pub fn sign_off() {
    let Some(group) = current() else { return };
    let told = || -> Result<()> {
        group.store().set(SIGNED_OFF, &[])?;
        let end = Instant::now() + PATIENCE;
        let silent = group.silent().clone();
        for rank in group.others().filter(|rank| group.0.serves && !silent.contains(rank)) {
            // The store must not end before they have read it.
            group.store().get(&read_key(rank), end.saturating_duration_since(Instant::now()).max(LOOK))?;
        }
        Ok(())
    };
    // A rank that does not read it in time is gone.
    let _ = told();
}

/// Waits until rank 0 has signed off, or is seen to be gone, or the limit is over: false.
pub fn await_first(limit: Duration) -> bool {
    let Some(group) = current() else { return true };
    let told = group.store().get(SIGNED_OFF, limit).is_ok_and(|found| found.is_some());
    told && group.store().set(&read_key(group.rank()), &[]).is_ok()
}

/// Tells the others, who work on shared-out parts of something long, that they may leave off: this rank waits for them with a stop or a
/// failure.
pub fn announce() -> Result<()> {
    current().map_or(Ok(()), |group| group.store().set(ANNOUNCED, &[]))
}

/// Whether a rank has called [`announce`].
pub fn announced() -> Result<bool> {
    current().map_or(Ok(false), |group| group.has(ANNOUNCED))
}
