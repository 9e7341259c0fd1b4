//! An allocator that counts, for binaries with one test, so that nothing else counts; how often a test damages files.

use proptest::prelude::ProptestConfig;
use proptest::strategy::Strategy;
use proptest::test_runner::{TestCaseResult, TestRunner};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

pub struct Counting {
    now: AtomicUsize,
    peak: AtomicUsize,
}

impl Counting {
    pub const fn new() -> Self {
        Counting { now: AtomicUsize::new(0), peak: AtomicUsize::new(0) }
    }

    /// Begins to look for the peak; bytes that are allocated now.
    pub fn start(&self) -> usize {
        let now = self.now.load(Relaxed);
        self.peak.store(now, Relaxed);
        now
    }

    /// Most bytes at a time since [`Counting::start`].
    pub fn peak(&self) -> usize {
        self.peak.load(Relaxed)
    }
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.peak.fetch_max(self.now.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        self.now.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(at, layout) }
    }
}

/// What a test counts: files that were read, and those that were refused.
#[derive(Default)]
pub struct Outcomes {
    pub read: Cell<u32>,
    pub refused: Cell<u32>,
}

/// Runs a test as often as FUZZ_EXECUTIONS says, or so often; not where FUZZ_ONLY names other formats. Both outcomes have to be common for it to mean something.
pub fn fuzz<S: Strategy>(name: &str, usual: u32, strategy: &S, test: impl Fn(S::Value, &Outcomes) -> TestCaseResult) {
    if std::env::var("FUZZ_ONLY").is_ok_and(|only| !name.contains(&only)) {
        return;
    }
    let cases = std::env::var("FUZZ_EXECUTIONS").map_or(usual, |n| n.parse().expect("FUZZ_EXECUTIONS: a number"));
    let config = ProptestConfig { cases, max_shrink_iters: 100, failure_persistence: None, ..ProptestConfig::default() };
    let outcomes = Outcomes::default();
    let run = TestRunner::new(config).run(strategy, |input| test(input, &outcomes));
    run.unwrap_or_else(|error| panic!("{name}: {error}"));
    let (read, refused) = (outcomes.read.get(), outcomes.refused.get());
    println!("fuzzed {name}: {cases} executions, {read} read, {refused} refused");
    assert!(read > cases / 50 && refused > cases / 50, "{name}: {read} read, {refused} refused");
}
