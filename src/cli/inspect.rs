use crate::data::Scans;
use crate::data::slices::Slices;
use crate::data::store::Store;
use crate::dim::voxels;
use crate::fs::{check_writable, write_atomic_path};
use crate::nn::EncoderFlags;
use crate::print::say;
use crate::report::sheet::{Panel, write_sheet};
use crate::rng::{Stream, rng};
use crate::tasks::{self, Drawn, Task, TaskConfigs, TaskKind, sample_length, split_clean};
use anyhow::{Context, Result, ensure};
use ndarray::ArrayView3;
use rand::seq::SliceRandom;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Most pictures of one sample; a sample with more views than fit shows its first channel only.
const MAX_PANELS: usize = 16;

/// Samples on the sheet at most; the batch holds all.
const MAX_DRAWN: usize = 16;

/// Write what the network sees: pictures and the exact batch
///
/// Writes TASK.png, a sheet of every view's mid slices with the labels (the first 16 samples), and TASK.safetensors: `views` [N, V, C, D, H, W]
/// float32, `clean` (where the task has a target of voxels) the same, `targets` [N, T] int64, and, as JSON under the metadata key `inspect`, the settings and for every sample the scan's
/// id, the caption and each number that was drawn, enough to cut the sample again.
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
    /// Folder to write into
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seed of all draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Side in voxels of the window a sample is cut from [default: the smallest side of any scan, at most 128, in 2D 224]
    #[arg(long, value_name = "VOXELS")]
    window: Option<usize>,
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
    let encoder = EncoderFlags::default().config(rank, store.channels() as i64, 0.)?;
    let window = args.window.unwrap_or_else(|| tasks::default_window(&[args.task], &store, rank, encoder.reduction()));
    let task = tasks::build(args.task, &args.tasks, window, store.channels(), rank, args.seed)?;

    let mut order: Vec<usize> = (0..store.len()).collect();
    order.shuffle(&mut rng(args.seed, Stream::Inspect, 0, 0));
    let length = sample_length(&*task, store.channels());
    let mut views = vec![0f32; args.n * length];
    let mut samples = Vec::with_capacity(args.n);
    for (i, out) in views.chunks_exact_mut(length).enumerate() {
        let scan = order[i % order.len()];
        let mut rng = rng(args.seed, Stream::Inspect, 1, i as u64);
        let drawn = task.sample(&store, scan, &mut rng, out).with_context(|| format!("{}: sample {i}", store.id(scan)))?;
        samples.push((scan, drawn));
    }

    let description = json!({
        "task": task.name(),
        "window": window,
        "rank": rank,
        "slices": args.slices,
        "seed": args.seed,
        "settings": serde_json::to_value(&args.tasks)?.get(task.name()),
        "channels": store.index().channels,
        "samples": samples.iter().map(|(scan, drawn)| json!({
            "scan": store.id(*scan),
            "caption": task.caption(drawn),
            "params": drawn.params,
        })).collect::<Vec<_>>(),
    });
    write_batch(&batch, &*task, store.channels(), &views, &samples, description.to_string())?;
    draw(&sheet, &*task, &store, &views, &samples)?;
    say!("{} samples of {}: {} and {}", args.n, task.name(), batch.display(), sheet.display());
    Ok(())
}

fn write_batch(
    path: &Path,
    task: &dyn Task,
    channels: usize,
    views: &[f32],
    samples: &[(usize, Drawn)],
    description: String,
) -> Result<()> {
    let [d, h, w] = task.view_shape();
    let shape = |views: usize| vec![samples.len(), views, channels, d, h, w];
    let [seen, clean] = split_clean(task, channels, views.to_vec());
    let targets: Vec<i64> = samples.iter().flat_map(|(_, drawn)| drawn.targets.iter().copied()).collect();
    let mut tensors = vec![
        ("views", TensorView::new(Dtype::F32, shape(task.views()), bytemuck::cast_slice(&seen))?),
        ("targets", TensorView::new(Dtype::I64, vec![samples.len(), task.targets()], bytemuck::cast_slice(&targets))?),
    ];
    if task.clean_views() > 0 {
        tensors.push(("clean", TensorView::new(Dtype::F32, shape(task.clean_views()), bytemuck::cast_slice(&clean))?));
    }
    let metadata = [("inspect".to_string(), description)].into();
    write_atomic_path(path, |temporary| Ok(safetensors::serialize_to_file(tensors, Some(metadata), temporary)?))
}

fn draw(path: &Path, task: &dyn Task, store: &Store, views: &[f32], samples: &[(usize, Drawn)]) -> Result<()> {
    let names = &store.index().channels;
    let all = task.views() + task.clean_views();
    let shown = if all * names.len() <= MAX_PANELS { names.len() } else { 1 };
    let size = voxels(task.view_shape());
    let mut images = views.chunks_exact(size).map(|image| ArrayView3::from_shape(task.view_shape(), image));
    let drawn = &samples[..samples.len().min(MAX_DRAWN)];
    let maps: Vec<Vec<f32>> =
        drawn.iter().map(|(_, drawn)| drawn.targets.iter().map(|&class| class as f32).collect()).collect();
    let mut rows = Vec::with_capacity(drawn.len());
    for ((scan, drawn), map) in drawn.iter().zip(&maps) {
        let mut row = Vec::new();
        for view in 0..all {
            for (channel, name) in names.iter().enumerate() {
                let image = images.next().context("one image a view and channel")??;
                if channel < shown {
                    let caption = match row.len() {
                        0 => format!("{}, {name}: {}", store.id(*scan), task.caption(drawn)),
                        _ if view >= task.views() => format!("target, {name}"),
                        _ => format!("view {view}, {name}"),
                    };
                    row.push(Panel { image, caption, window: None });
                }
            }
        }
        if let Some(classes) = task.voxel_classes() {
            let image = ArrayView3::from_shape(task.view_shape(), map)?;
            let caption = format!("target, classes 0 (black) to {} (white)", classes - 1);
            row.push(Panel { image, caption, window: Some([0., (classes - 1) as f32]) });
        }
        rows.push(row);
    }
    let part =
        if samples.len() > rows.len() { format!(", first {} of {} samples", rows.len(), samples.len()) } else { String::new() };
    write_sheet(path, &format!("{}: what the network sees{part}", task.name()), &rows)
}
