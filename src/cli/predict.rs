//! `predict`: scans to labels in their own space.

use crate::data::layouts::{LabelValue, Layout};
use crate::data::nifti::{write_classes, write_floats};
use crate::dim::Shape;
use crate::infer::{Window, default_batch};
use crate::predict::Inputs;
use crate::report::classes::Predictions;
use crate::report::progress::Counter;
use crate::tasks::classification::Outputs;
use crate::train::device::{DeviceChoice, Precision};
use crate::train::model::{Downstream, Model};
use crate::train::stop::Stop;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Segment or classify scans with a fine-tuned network
///
/// Every scan is preprocessed as those of the training. Segmentations are predicted window by window and brought back: OUTPUT/ID.nii.gz lies
/// on the scan voxel by voxel, with the shape, affine and header of the input file and the label values of the training data.
/// Classifications are one table, OUTPUT/predictions.csv: a row a scan with its class and the probability of each.
#[derive(clap::Args)]
pub struct Args {
    /// A run of `finetune` (its best checkpoint), RUN/best, RUN/last, or a checkpoint's file
    #[arg(long, value_name = "RUN")]
    weights: PathBuf,
    /// A NIfTI file or photograph; several, separated by commas, one a channel in the network's order; a folder or CSV manifest; or a store
    #[arg(long, value_name = "PATH")]
    input: String,
    /// Folder of the predictions, made if it is not there
    #[arg(long, value_name = "FOLDER")]
    output: PathBuf,
    /// How the input is arranged [default: recognised by itself]
    #[arg(long, value_enum)]
    layout: Option<Layout>,
    /// Share of a window that its neighbour covers too, 0 or more and less than 1 [default: 0.5]
    #[arg(long, value_name = "SHARE")]
    overlap: Option<f64>,
    /// Windows a forward pass [default: 1, in 2D 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    batch_size: Option<u16>,
    /// Average over all combinations of mirrored axes: 8 times the work (images: 4 times)
    #[arg(long)]
    flips: bool,
    /// Also write OUTPUT/ID.probabilities.nii.gz: 4D, a channel a class
    #[arg(long)]
    probabilities: bool,
    /// Replace predictions that are there
    #[arg(long)]
    overwrite: bool,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    #[arg(long, value_enum, default_value = "auto")]
    precision: Precision,
    /// Threads of an operation on the CPU, 1 to 1024 [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// Overlap of neighbouring windows unless the user says otherwise.
const OVERLAP: f64 = 0.5;

/// How one scan ended.
enum Done {
    Written(Duration),
    Bad(String),
    Stopped,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let overlap = args.overlap.unwrap_or(OVERLAP);
    ensure!((0.0..1.0).contains(&overlap), "--overlap must be 0 or more and less than 1, found {overlap}");
    if let Some(threads) = args.threads {
        tch::set_num_threads(threads.into());
    }
    let model = Model::load(&args.weights, args.device, args.precision)?;
    let inputs = Inputs::open(&args.input, args.layout, &model.channels, &model.settings)?;
    match &model.downstream {
        Downstream::Segmentation { labels, patch, .. } => segment(&args, &model, labels, *patch, &inputs),
        Downstream::Classification { classes, shape, classification } => {
            ensure!(
                args.overlap.is_none() && args.batch_size.is_none() && !args.probabilities,
                "{}: classifies whole scans and always writes probabilities; --overlap, --batch-size and --probabilities are for \
                 segmentations",
                args.weights.display()
            );
            classify(&args, &model, classes, *shape, classification.outputs, &inputs)
        }
    }
}

/// Every scan to a label in its own space.
fn segment(args: &Args, model: &Model, labels: &[LabelValue], patch: Shape, inputs: &Inputs) -> Result<ExitCode> {
    let started = Instant::now();
    let ids = inputs.ids();
    claim(args, inputs)?;
    eprintln!("{}: {} scans, on {:?}, windows of {patch:?} voxels", args.input, ids.len(), model.device);
    for problem in inputs.problems() {
        eprintln!("bad: {problem}");
    }

    let stop = Stop::on_signals()?;
    let counter = Counter::new("predict", ids.len(), console::user_attended_stderr());
    let window = Window {
        rank: model.rank,
        patch,
        overlap: args.overlap.unwrap_or(OVERLAP),
        batch_size: args.batch_size.map_or_else(|| default_batch(model.rank), usize::from),
        flips: args.flips,
        device: model.device,
    };
    let values: Vec<i64> = labels.iter().map(|l| l.value).collect();
    let (mut written, mut bad) = (0, inputs.problems().len());
    let mut stopped = false;
    for (scan, id) in ids.iter().enumerate() {
        match predict(args, model, &window, &values, inputs, scan, &stop, &counter)? {
            Done::Written(took) => {
                written += 1;
                counter.note(&format!("{id}: {:.1} s", took.as_secs_f64()));
            }
            Done::Bad(reason) => {
                bad += 1;
                counter.note(&format!("bad: {id}: {reason}"));
            }
            Done::Stopped => stopped = true,
        }
        if stopped {
            break;
        }
        counter.inc(id);
    }
    drop(counter);
    let output = args.output.display();
    if stopped {
        eprintln!("interrupted: {written} of {} predictions are in {output}", ids.len());
        return Ok(ExitCode::from(super::STOPPED));
    }
    ensure!(bad == 0, "{bad} scans cannot be used; {written} predictions are in {output}");
    println!("{output}: {written} predictions in {:.1} s", started.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

/// Every scan to a row of one table; where classes are known, also scores.
fn classify(
    args: &Args,
    model: &Model,
    classes: &[String],
    shape: Shape,
    outputs: Outputs,
    inputs: &Inputs,
) -> Result<ExitCode> {
    let started = Instant::now();
    let (ids, table) = (inputs.ids(), args.output.join("predictions.csv"));
    ensure!(args.overwrite || !table.exists(), "{}: already there; give another --output, or --overwrite", table.display());
    probe(&args.output)?;
    eprintln!("{}: {} scans, on {:?}", args.input, ids.len(), model.device);
    for problem in inputs.problems() {
        eprintln!("bad: {problem}");
    }
    let stop = Stop::on_signals()?;
    let counter = Counter::new("predict", ids.len(), console::user_attended_stderr());
    let mut predictions = Predictions::new(classes);
    let (mut written, mut bad) = (0, inputs.problems().len());
    for (scan, id) in ids.iter().enumerate() {
        let predict = || {
            let image = inputs.image(scan)?;
            let (_, d, h, w) = image.dim();
            ensure!([d, h, w] == shape, "{:?} voxels, expected {shape:?} as in training", [d, h, w]);
            let image = image.as_standard_layout();
            model.classify(image.as_slice().context("not contiguous")?, shape, outputs, args.flips)
        };
        match predict() {
            Ok((class, probabilities)) => {
                predictions.add(id, inputs.class(scan), class, &probabilities);
                written += 1;
            }
            Err(error) => {
                bad += 1;
                counter.note(&format!("bad: {id}: {error:#}"));
            }
        }
        if stop.asked() {
            break;
        }
        counter.inc(id);
    }
    drop(counter);
    predictions.write(&table)?;
    if stop.asked() {
        eprintln!("interrupted: {written} of {} predictions are in {}", ids.len(), table.display());
        return Ok(ExitCode::from(super::STOPPED));
    }
    if let Some(confusion) = predictions.confusion() {
        let scores = args.output.join("scores.json");
        predictions.write_scores(&scores, &confusion)?;
        println!("{}: {confusion}", scores.display());
    }
    ensure!(bad == 0, "{bad} scans cannot be used; {written} predictions are in {}", table.display());
    println!("{}: {written} predictions in {:.1} s", table.display(), started.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

/// Predicts and writes one scan, class `k` as `values[k]`. The error is one of writing, which ends the run.
#[allow(clippy::too_many_arguments)]
fn predict(
    args: &Args,
    model: &Model,
    window: &Window,
    values: &[i64],
    inputs: &Inputs,
    scan: usize,
    stop: &Stop,
    counter: &Counter,
) -> Result<Done> {
    let started = Instant::now();
    let id = inputs.ids()[scan];
    let network = |x: &tch::Tensor| {
        ensure!(!stop.asked(), "interrupted");
        model.forward(x)
    };
    let predicted = inputs.load(scan).and_then(|scan| {
        if scan.made_header {
            counter.note(&format!(
                "{id}: its source file is not there any more: a new header, with the affine that the store keeps"
            ));
        }
        let header = scan.header.clone();
        Ok((header, scan.predict(window, model.slices, &network, args.probabilities)?))
    });
    if stop.asked() {
        return Ok(Done::Stopped);
    }
    let (header, (classes, probabilities)) = match predicted {
        Ok(predicted) => predicted,
        Err(error) => return Ok(Done::Bad(format!("{error:#}"))),
    };
    if let Some(probabilities) = probabilities {
        write_floats(&output(args, id, ".probabilities"), &header, probabilities.view())?;
    }
    write_classes(&output(args, id, ""), &header, classes.view(), values)?;
    Ok(Done::Written(started.elapsed()))
}

fn output(args: &Args, id: &str, kind: &str) -> PathBuf {
    args.output.join(format!("{id}{kind}.nii.gz"))
}

/// Makes sure, before hours of work, that the predictions can be written and replace nothing that they must not.
fn claim(args: &Args, inputs: &Inputs) -> Result<()> {
    let mut there = vec![];
    for (scan, id) in inputs.ids().into_iter().enumerate() {
        let kinds = if args.probabilities { &["", ".probabilities"][..] } else { &[""] };
        for path in kinds.iter().map(|kind| output(args, id, kind)).filter(|path| path.exists()) {
            let same = |source: &&Path| matches!((source.canonicalize(), path.canonicalize()), (Ok(a), Ok(b)) if a == b);
            if let Some(source) = inputs.sources(scan).into_iter().find(same) {
                bail!("--output {}: would replace the input {}", args.output.display(), source.display());
            }
            there.push(path);
        }
    }
    if let (Some(first), false) = (there.first(), args.overwrite) {
        bail!("{}: already there, with {} others; give another --output, or --overwrite", first.display(), there.len() - 1);
    }
    probe(&args.output)
}

/// Makes the folder and sees whether files can be written there.
fn probe(folder: &Path) -> Result<()> {
    let file = folder.join(format!(".{}.tmp", std::process::id()));
    fs::create_dir_all(folder)
        .and_then(|()| fs::File::create(&file))
        .and_then(|_| fs::remove_file(&file))
        .with_context(|| format!("--output {}: cannot be written", folder.display()))
}
