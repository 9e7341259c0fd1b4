use crate::data::Scans;
use crate::data::slices::Slices;
use crate::data::store::Store;
use crate::dim::Sides;
use crate::fs::{check_writable, write_atomic_path};
use crate::nn::EncoderFlags;
use crate::print::say;
use crate::rng::{Stream, rng};
use crate::run::input::Input;
use crate::run::weights::Pretrained;
use crate::sample::padded::Padded;
use crate::sample::size;
use crate::tasks::{self, Drawn, Picture, Task, TaskConfigs, TaskKind, sample_length, split_clean};
use anyhow::{Context, Result, ensure};
use rand::seq::SliceRandom;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod draw;
mod network;

/// A sample with what was drawn and what a network makes of it.
struct Sample {
    scan: usize,
    drawn: Drawn,
    pictures: Vec<Picture>,
}

/// Write what the network sees: pictures and the exact batch
///
/// Writes TASK.png, a sheet of every view's mid slices with the labels (the first 16 samples), and TASK.safetensors: `views` [N, V, C, D, H, W]
/// float32, `clean` (where voxels are restored: what shall come out) the same, `targets` [N, T] int64, with --weights `prediction`
/// [N, C, D, H, W], and, as JSON under the metadata key `inspect`, the settings and for every sample the scan's id, the caption and each
/// number that was drawn, enough to cut the sample again.
#[derive(clap::Args)]
pub struct Args {
    /// Store made by `pretext3d preprocess`
    #[arg(long, value_name = "STORE")]
    data: PathBuf,
    /// Pretext task; long names work as well, such as rotation for rot
    #[arg(long, value_enum)]
    task: TaskKind,
    /// Samples, each of another scan as far as there are enough
    #[arg(long, default_value_t = 4)]
    n: usize,
    /// Show what this network makes of the samples, of tasks with a decoder: a pretraining run's folder, a checkpoint in it, or its export.
    /// The task's own flags must be those of the run
    #[arg(long, value_name = "RUN|FILE")]
    weights: Option<PathBuf>,
    /// Folder to write into
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seed of all draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Side in voxels of the window a sample is cut from, or one along each axis, as pretrain takes it [default: as pretrain has it]
    #[arg(long, value_name = "VOXELS")]
    window: Option<Sides>,
    /// Read volumes as 2D slices
    #[arg(long, value_enum, value_name = "PLANE")]
    slices: Option<Slices>,
    #[command(flatten)]
    tasks: TaskConfigs,
}

pub fn run(args: Args) -> Result<()> {
    ensure!(args.n >= 1, "--n: at least 1 sample, found 0");
    let [batch, sheet] =
        ["safetensors", "png"].map(|extension| args.out.join(format!("{}.{extension}", tasks::joined_names(&[args.task]))));
    check_writable([&batch, &sheet]).context("--out")?;
    let store = Store::open(&args.data)?.sliced(args.slices)?;
    let rank = store.rank()?;
    let given = args.weights.as_deref().map(Pretrained::open).transpose()?;
    let window = match (&args.window, &given) {
        (Some(window), _) => window.shape("window", rank)?,
        (None, Some(given)) => tasks::default_window(&[args.task], &store, rank, [Ok(given.config.clone())])?,
        (None, None) => tasks::default_window(&[args.task], &store, rank, EncoderFlags::default().networks(rank))?,
    };
    let task = tasks::build(args.task, &args.tasks, window, store.channels(), rank, args.seed)?;

    size::check("window", &store, rank, window)?;
    let scans = Padded::around(Arc::new(store.clone()), window);
    let network = given.map(|given| network::load(&given, &*task, rank, &Input::of(&store))).transpose()?;

    let mut order: Vec<usize> = (0..store.len()).collect();
    order.shuffle(&mut rng(args.seed, Stream::Inspect, 0, 0));
    let length = sample_length(&*task, store.channels());
    let mut views = vec![0f32; args.n * length];
    let mut samples = Vec::with_capacity(args.n);
    for (i, out) in views.chunks_exact_mut(length).enumerate() {
        let scan = order[i % order.len()];
        let mut rng = rng(args.seed, Stream::Inspect, 1, i as u64);
        let drawn = task.sample(&*scans, scan, &mut rng, out).with_context(|| format!("{}: sample {i}", store.id(scan)))?;
        let pictures = match &network {
            Some(network) => {
                network::pictures(network, &*task, &tasks::batch(&*task, rank, store.channels(), out, &drawn.targets, false))?
            }
            None => vec![],
        };
        samples.push(Sample { scan, drawn, pictures });
    }

    let description = json!({
        "task": task.name(),
        "window": Sides::of(rank, window),
        "rank": rank,
        "slices": args.slices,
        "seed": args.seed,
        "settings": serde_json::to_value(&args.tasks)?.get(task.name()),
        "channels": store.index().channels,
        "samples": samples.iter().map(|sample| json!({
            "scan": store.id(sample.scan),
            "caption": task.caption(&sample.drawn),
            "params": sample.drawn.params,
        })).collect::<Vec<_>>(),
    });
    write_batch(&batch, &*task, store.channels(), &views, &samples, description.to_string())?;
    draw::draw(&sheet, &*task, &store, &views, &samples)?;
    say!("{} samples of {}: {} and {}", args.n, task.name(), batch.display(), sheet.display());
    Ok(())
}

fn write_batch(
    path: &Path,
    task: &dyn Task,
    channels: usize,
    views: &[f32],
    samples: &[Sample],
    description: String,
) -> Result<()> {
    let [d, h, w] = task.view_shape();
    let shape = |views: usize| vec![samples.len(), views, channels, d, h, w];
    let [seen, clean] = split_clean(task, channels, views);
    let targets: Vec<i64> = samples.iter().flat_map(|sample| sample.drawn.targets.iter().copied()).collect();
    let predictions: Vec<f32> =
        samples.iter().filter_map(|s| s.pictures.first()).flat_map(|p| p.image.iter().copied()).collect();
    let mut tensors = vec![
        ("views", TensorView::new(Dtype::F32, shape(task.views()), bytemuck::cast_slice(&seen))?),
        ("targets", TensorView::new(Dtype::I64, vec![samples.len(), task.targets()], bytemuck::cast_slice(&targets))?),
    ];
    if task.clean_views() > 0 {
        tensors.push(("clean", TensorView::new(Dtype::F32, shape(task.clean_views()), bytemuck::cast_slice(&clean))?));
    }
    if !predictions.is_empty() {
        let shape = vec![samples.len(), predictions.len() / (samples.len() * d * h * w), d, h, w];
        tensors.push(("prediction", TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(&predictions))?));
    }
    let metadata = [("inspect".to_string(), description)].into();
    write_atomic_path(path, |temporary| Ok(safetensors::serialize_to_file(tensors, Some(metadata), temporary)?))
}
