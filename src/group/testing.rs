//! Ranks as threads of a test.

use super::{Group, within};
use crate::ffi::group::Store;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Runs `f(rank)` on `world` ranks, each a thread that has its own group, and gives what each returned. libtorch's default generator is one for
/// all of them.
pub fn ranks<T: Send>(world: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    ranks_within(world, Duration::from_secs(60), f)
}

/// With this time limit on every collective.
pub fn ranks_within<T: Send>(world: usize, limit: Duration, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let store = Arc::new(Store::memory(limit));
    thread::scope(|scope| {
        let run = |rank| {
            let (store, f) = (store.clone(), &f);
            move || {
                let group =
                    Group::new(store, [rank, rank, world], limit, rank == 0).expect("Gloo connects threads of one process");
                within(Some(group), || f(rank))
            }
        };
        let threads: Vec<_> = (0..world).map(|rank| scope.spawn(run(rank))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank's assertions hold")).collect()
    })
}
