//! Hidden commands that `make bench` times beside other frameworks; each prints one JSON line.

use crate::data::store::Store;
use crate::data::{Arrays, Scans};
use crate::dim::{Rank, voxels};
use crate::print::say;
use crate::rng::{Stream, rng};
use crate::run::means::Means;
use crate::sample::patch::draw_window;
use crate::train::pretrain::PretrainConfig;
use crate::transform::spatial::Orientation;
use anyhow::{Result, ensure};
use clap::Parser;
use rand::Rng;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Scans of random voxels that the steps draw from.
const SCANS: usize = 16;

/// Time training steps on random volumes or images; one line a step, then one with the share of time spent waiting for data
#[derive(clap::Args)]
pub struct StepArgs {
    #[arg(long)]
    task: String,
    /// As of pretrain
    #[arg(long, default_value = "unet")]
    encoder: String,
    /// As of pretrain
    #[arg(long)]
    norm: Option<String>,
    /// 3 for volumes, 2 for images
    #[arg(long, default_value_t = 3)]
    rank: u8,
    #[arg(long, default_value_t = 64)]
    window: usize,
    /// Samples a step
    #[arg(long, default_value_t = 2)]
    batch: u64,
    #[arg(long, default_value_t = 10)]
    steps: u64,
    #[arg(long, default_value_t = 1)]
    channels: usize,
    #[arg(long, default_value = "auto")]
    device: String,
    #[arg(long, default_value = "auto")]
    precision: String,
    #[arg(long)]
    checkpointing: bool,
}

/// The settings of `pretrain` on their own.
#[derive(Parser)]
struct PretrainFlags {
    #[command(flatten)]
    config: PretrainConfig,
}

pub fn step(args: StepArgs) -> Result<()> {
    let rank = Rank::try_from(args.rank).map_err(anyhow::Error::msg)?;
    let (window, batch) = (args.window.to_string(), args.batch.to_string());
    let optional = args.norm.iter().flat_map(|norm| ["--norm", norm]).chain(args.checkpointing.then_some("--checkpointing"));
    let flags = [
        ["--data", "-"],
        ["--task", &args.task],
        ["--encoder", &args.encoder],
        ["--window", &window],
        ["--batch-size", &batch],
        ["--device", &args.device],
        ["--precision", &args.precision],
        // An epoch longer than any benchmark.
        ["--draws", "1000000"],
    ];
    let flags = ["bench-step"].into_iter().chain(flags.into_iter().flatten()).chain(optional);
    let config = PretrainFlags::try_parse_from(flags)?.config;
    let device = config.train.device.resolve()?;
    let mut random = rng(config.train.seed, Stream::Train, 0, 0);
    let [d, h, w] = rank.cube(args.window);
    let shape = (args.channels, d, h, w);
    let scans: Arc<dyn Scans> = Arc::new(Arrays {
        ids: (0..SCANS).map(|i| format!("random-{i}")).collect(),
        images: (0..SCANS).map(|_| ndarray::Array4::from_shape_simple_fn(shape, || random.random())).collect(),
    });
    let mut trainer = config.trainer(device, rank, rank.cube(args.window), scans.clone(), scans)?;
    let mut batches = trainer.batches(0, 0);
    let mut means = Means::default();
    let started = Instant::now();
    for step in 0..args.steps {
        let step_started = Instant::now();
        trainer.step(0, step, &mut batches, &mut means)?;
        // Fetching the loss waits for the device.
        trainer.flush(&mut means)?;
        say!("{}", json!({ "seconds": step_started.elapsed().as_secs_f64() }));
    }
    let wait = batches.wait().as_secs_f64() / started.elapsed().as_secs_f64();
    say!("{}", json!({ "device": format!("{device:?}"), "bf16": trainer.bf16, "wait_share": wait, "loss": means.get("loss") }));
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
            let region = draw_window(&store, scan, rank, rank.cube(args.crop), &mut random)?;
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
    say!("{line}");
    Ok(())
}
