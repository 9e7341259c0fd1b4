//! Files of a store that are mapped, few at a time: what a process holds does not grow with the scans that it has read.

use super::file::Mapped;
use anyhow::Result;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most that is mapped at a time; one file in any case.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub files: usize,
    pub bytes: u64,
}

impl Default for Limits {
    /// Pages of mapped files count as a process's memory, though the system takes them back when it needs to.
    fn default() -> Limits {
        Limits { files: 1024, bytes: 1 << 30 }
    }
}

pub struct Cache {
    files: Vec<Mutex<Option<Arc<Mapped>>>>,
    order: Mutex<Order>,
    limits: Limits,
}

/// Mapped files with their bytes; the oldest is given back first.
#[derive(Default)]
struct Order {
    files: VecDeque<(usize, u64)>,
    bytes: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cache {
    pub fn new(files: usize, limits: Limits) -> Cache {
        Cache { files: (0..files).map(|_| Mutex::default()).collect(), order: Mutex::default(), limits }
    }

    /// The file of a number, mapped by `open` unless it is.
    pub fn get(&self, file: usize, open: impl FnOnce() -> Result<Mapped>) -> Result<Arc<Mapped>> {
        let mut slot = lock(&self.files[file]);
        if let Some(mapped) = &*slot {
            return Ok(mapped.clone());
        }
        let mapped = Arc::new(open()?);
        *slot = Some(mapped.clone());
        drop(slot);
        self.make_room(file, mapped.bytes());
        Ok(mapped)
    }

    fn make_room(&self, file: usize, bytes: u64) {
        let mut order = lock(&self.order);
        order.files.push_back((file, bytes));
        order.bytes += bytes;
        let mut out = vec![];
        while order.files.len() > 1 && (order.files.len() > self.limits.files || order.bytes > self.limits.bytes) {
            let (oldest, bytes) = order.files.pop_front().expect("more than one");
            order.bytes -= bytes;
            out.push(oldest);
        }
        drop(order);
        out.into_iter().for_each(|oldest| *lock(&self.files[oldest]) = None);
    }

    /// Files and bytes that are mapped.
    #[cfg(test)]
    pub fn held(&self) -> (usize, u64) {
        let held: Vec<u64> = self.files.iter().filter_map(|file| lock(file).as_ref().map(|mapped| mapped.bytes())).collect();
        (held.len(), held.iter().sum())
    }
}
