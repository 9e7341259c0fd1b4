//! Items made ahead by worker threads and handed over strictly in order.

use anyhow::{Result, anyhow};
use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Iterates over `make(i)` for `i` in a range, in order, whatever the timing of the threads that make them. At most
/// `prefetch + threads` items exist beside those handed over. After an error (a panic in `make` is one) the iteration ends.
/// Dropping it stops the threads.
pub struct Loader<T> {
    shared: Arc<Shared<T>>,
    workers: Vec<JoinHandle<()>>,
    wait: Duration,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    made: Condvar,
    taken: Condvar,
    /// Items that may exist: being made or ready.
    capacity: usize,
}

struct State<T> {
    /// Next item to make.
    next: usize,
    /// Next item to hand over.
    due: usize,
    end: usize,
    ready: BTreeMap<usize, Result<T>>,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims the next item to make, when there is room for it; `None` when there is nothing left.
    fn claim(&self) -> Option<usize> {
        let full = |s: &mut State<T>| s.next < s.end && s.next - s.due >= self.capacity;
        let mut state = self.taken.wait_while(self.lock(), full).unwrap_or_else(PoisonError::into_inner);
        (state.next < state.end).then(|| {
            state.next += 1;
            state.next - 1
        })
    }

    fn work(&self, make: &(impl Fn(usize) -> Result<T> + ?Sized)) {
        while let Some(item) = self.claim() {
            let made = catch_unwind(AssertUnwindSafe(|| make(item))).unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<&str>().map(|s| s.to_string()).or_else(|| panic.downcast_ref().cloned());
                Err(anyhow!("item {item}: the worker panicked: {}", text.unwrap_or_else(|| "no message".into())))
            });
            let mut state = self.lock();
            if item < state.end {
                state.ready.insert(item, made);
            }
            drop(state);
            self.made.notify_one();
        }
    }
}

impl<T: Send + 'static> Loader<T> {
    /// Starts `threads` workers (at least one) that stay up to `prefetch` items ahead.
    pub fn new(
        threads: usize,
        prefetch: usize,
        items: Range<usize>,
        make: impl Fn(usize) -> Result<T> + Send + Sync + 'static,
    ) -> Loader<T> {
        let threads = threads.max(1);
        let state = State { next: items.start, due: items.start, end: items.end.max(items.start), ready: BTreeMap::new() };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            made: Condvar::new(),
            taken: Condvar::new(),
            capacity: prefetch + threads,
        });
        let make = Arc::new(make);
        let workers = (0..threads)
            .map(|_| {
                let (shared, make) = (shared.clone(), make.clone());
                std::thread::spawn(move || shared.work(&*make))
            })
            .collect();
        Loader { shared, workers, wait: Duration::ZERO }
    }
}

impl<T> Loader<T> {
    /// Time the consumer has been blocked, in total.
    pub fn wait(&self) -> Duration {
        self.wait
    }
}

impl<T> Iterator for Loader<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        let start = Instant::now();
        let state = self.shared.lock();
        let missing = |s: &mut State<T>| s.due < s.end && !s.ready.contains_key(&s.due);
        let mut state = self.shared.made.wait_while(state, missing).unwrap_or_else(PoisonError::into_inner);
        self.wait += start.elapsed();
        let due = state.due;
        if due == state.end {
            return None;
        }
        let item = state.ready.remove(&due)?;
        state.due += 1;
        if item.is_err() {
            state.end = state.due;
            state.ready.clear();
        }
        drop(state);
        self.shared.taken.notify_all();
        Some(item)
    }
}

impl<T> Drop for Loader<T> {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            state.end = state.due;
            state.ready.clear();
        }
        self.shared.taken.notify_all();
        for worker in self.workers.drain(..) {
            // Panics in `make` are caught; there is nothing else to learn from a worker.
            let _ = worker.join();
        }
    }
}
