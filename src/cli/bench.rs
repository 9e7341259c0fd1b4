//! Hidden commands that `make bench` times beside other frameworks; each prints one JSON line.

use crate::data::store::Store;
use crate::data::{Arrays, Scans};
use crate::dim::{Rank, voxels};
use crate::machine;
use crate::patch::draw_window;
use crate::rng::{Stream, rng};
use crate::train::config::PretrainConfig;
use crate::train::means::Means;
use crate::train::trainer::Trainer;
use crate::transform::spatial::Orientation;
use anyhow::{Result, ensure};
use rand::Rng;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Scans of random voxels that the steps draw from.
const SCANS: usize = 16;
const WARMUP_STEPS: u64 = 3;

/// Time training steps on random volumes
#[derive(clap::Args)]
pub struct StepArgs {
    #[command(flatten)]
    settings: PretrainConfig,
    /// Timed steps, after a warm-up
    #[arg(long, default_value_t = 20)]
    steps: u64,
}

pub fn step(args: StepArgs) -> Result<()> {
    let mut config = args.settings;
    config.draws = Some(1 << 20);
    config.check()?;
    let window = config.window.unwrap_or(64);
    let device = config.device.resolve()?;
    let mut random = rng(config.seed, Stream::Train, 0, 0);
    let scans: Arc<dyn Scans> = Arc::new(Arrays {
        ids: (0..SCANS).map(|i| format!("random-{i}")).collect(),
        images: (0..SCANS)
            .map(|_| ndarray::Array4::from_shape_simple_fn((1, window, window, window), || random.random()))
            .collect(),
    });
    let mut trainer = Trainer::new(&config, device, Rank::Three, window, scans.clone(), scans)?;
    let mut batches = trainer.batches(0, 0);
    let mut means = Means::default();
    for step in 0..WARMUP_STEPS {
        trainer.step(0, step, &mut batches, &mut means)?;
    }
    // Fetching the losses waits for the device.
    trainer.flush(&mut means)?;
    let (started, waited) = (Instant::now(), batches.wait());
    for step in WARMUP_STEPS..WARMUP_STEPS + args.steps {
        trainer.step(0, step, &mut batches, &mut means)?;
    }
    trainer.flush(&mut means)?;
    let seconds = started.elapsed().as_secs_f64();
    let line = json!({
        "task": config.name(),
        "window": window,
        "batch": trainer.tasks[0].batch,
        "device": format!("{device:?}"),
        "bf16": trainer.bf16,
        "steps": args.steps,
        "seconds_per_step": seconds / args.steps as f64,
        "wait_share": (batches.wait() - waited).as_secs_f64() / seconds,
        "loss": means.get("loss"),
        "peak_memory_bytes": machine::peak_memory(),
    });
    println!("{line}");
    Ok(())
}

/// Time random crops with rotation and flip from a store
#[derive(clap::Args)]
pub struct SamplingArgs {
    #[arg(long, value_name = "STORE")]
    data: PathBuf,
    /// Side of the crop in voxels
    #[arg(long, default_value_t = 64)]
    crop: usize,
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    #[arg(long, default_value_t = 1)]
    threads: u64,
}

pub fn sampling(args: SamplingArgs) -> Result<()> {
    let store = Store::open(&args.data)?;
    ensure!(!store.is_empty(), "{}: no scans in it", args.data.display());
    let limit = Duration::from_secs_f64(args.seconds);
    let rank = Rank::of(store.shape(0));
    let work = |thread: u64| -> Result<u64> {
        let mut random = rng(0, Stream::Train, thread, 0);
        let mut out = vec![0f32; store.channels() * voxels(rank.cube(args.crop))];
        let (started, mut samples) = (Instant::now(), 0);
        while started.elapsed() < limit {
            let scan = random.random_range(0..store.len());
            let region = draw_window(&store, scan, rank, args.crop, &mut random)?;
            let mut orientation = Orientation::rotation(rank, random.random_range(0..Orientation::rotations(rank)));
            rank.axes().for_each(|a| orientation.flip[a] ^= random.random_bool(0.5));
            store.read(scan, region, orientation, &mut out)?;
            std::hint::black_box(&out);
            samples += 1;
        }
        Ok(samples)
    };
    let work = &work;
    let samples = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..args.threads).map(|t| scope.spawn(move || work(t))).collect();
        threads.into_iter().map(|t| t.join().expect("sampling does not panic")).sum::<Result<u64>>()
    })?;
    let line = json!({
        "crop": args.crop,
        "threads": args.threads,
        "samples": samples,
        "samples_per_second": samples as f64 / args.seconds,
    });
    println!("{line}");
    Ok(())
}
