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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    /// An item that is counted while it exists.
    struct Counted(usize, Arc<AtomicUsize>);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_sub(1, SeqCst);
        }
    }

    #[test]
    fn items_come_in_order_and_few_exist_at_a_time() {
        for threads in 1..=4 {
            let (alive, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let (alive_in, most_in) = (alive.clone(), most.clone());
            let loader = Loader::new(threads, 3, 5..105, move |i| {
                most_in.fetch_max(alive_in.fetch_add(1, SeqCst) + 1, SeqCst);
                // Uneven work, so that threads overtake each other.
                std::thread::sleep(Duration::from_micros((i as u64 * 7919) % 600));
                Ok(Counted(i * i, alive_in.clone()))
            });
            let items: Vec<usize> = loader.map(|item| item.unwrap().0).collect();
            assert_eq!(items, (5..105).map(|i| i * i).collect::<Vec<_>>());
            assert_eq!(alive.load(SeqCst), 0);
            let most = most.load(SeqCst);
            // One more may be in the consumer's hand.
            assert!(most <= 3 + threads + 1, "{most} items at once with {threads} threads");
        }
    }

    #[test]
    fn an_unhurried_consumer_bounds_the_workers() {
        let made = Arc::new(AtomicUsize::new(0));
        let count = made.clone();
        let mut loader = Loader::new(2, 3, 0..1000, move |i| {
            count.fetch_add(1, SeqCst);
            Ok(i)
        });
        assert_eq!(loader.next().unwrap().unwrap(), 0);
        let room = 1 + 3 + 2;
        while made.load(SeqCst) < room {
            std::thread::yield_now();
        }
        // Time enough for one too many.
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(made.load(SeqCst), room);
    }

    #[test]
    fn errors_and_panics_come_at_their_place_and_end_the_iteration() {
        for threads in 1..=4 {
            let make = |bad: usize, panics: bool| {
                move |i| {
                    anyhow::ensure!(i != bad || panics, "scan {i} is broken");
                    assert!(i != bad, "index {i} is wrong");
                    Ok(i)
                }
            };
            let items: Vec<_> = Loader::new(threads, 8, 0..50, make(17, false)).collect();
            assert_eq!(items.len(), 18);
            assert!(items[..17].iter().enumerate().all(|(i, item)| *item.as_ref().unwrap() == i));
            assert_eq!(items[17].as_ref().unwrap_err().to_string(), "scan 17 is broken");
            let error = Loader::new(threads, 8, 0..50, make(3, true)).nth(3).unwrap().unwrap_err().to_string();
            assert!(error.contains("item 3") && error.contains("panicked") && error.contains("index 3 is wrong"), "{error}");
        }
    }

    #[test]
    fn dropping_it_early_stops_the_threads() {
        let alive = Arc::new(AtomicUsize::new(0));
        let count = alive.clone();
        let mut loader = Loader::new(3, 4, 0..usize::MAX, move |i| {
            count.fetch_add(1, SeqCst);
            Ok(Counted(i, count.clone()))
        });
        drop(loader.next());
        drop(loader);
        assert_eq!(alive.load(SeqCst), 0);
        assert!(Loader::new(2, 2, 3..3, Ok).next().is_none());
    }

    #[test]
    fn waiting_is_counted() {
        let asked = Arc::new(AtomicUsize::new(0));
        let seen = asked.clone();
        let mut loader = Loader::new(1, 1, 0..2, move |i| {
            // The second item is made long after it is asked for, the first is ready before.
            while i == 1 && seen.load(SeqCst) == 0 {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(if i == 1 { 300 } else { 0 }));
            Ok(i)
        });
        while loader.shared.lock().ready.is_empty() {
            std::thread::yield_now();
        }
        loader.next().unwrap().unwrap();
        let before = loader.wait();
        asked.store(1, SeqCst);
        loader.next().unwrap().unwrap();
        let waited = loader.wait() - before;
        assert!(before < Duration::from_millis(100) && waited > Duration::from_millis(100), "{before:?}, then {waited:?}");
    }
}
