//! `predict`: scans to labels in their own space.

use crate::data::layouts::Layout;
use crate::data::nifti::{write_classes, write_floats};
use crate::infer::{Window, default_batch};
use crate::predict::Inputs;
use crate::report::progress::Counter;
use crate::train::device::{DeviceChoice, Precision};
use crate::train::model::Model;
use crate::train::stop::Stop;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Segment scans with a fine-tuned network, into files that lie on the scans voxel by voxel
///
/// Every scan is preprocessed as those of the training, predicted window by window, and brought back: OUTPUT/ID.nii.gz has the
/// shape, affine and header of the input file and the label values of the training data.
#[derive(clap::Args)]
pub struct Args {
    /// A run of `finetune` (its best checkpoint), RUN/best, RUN/last, or a checkpoint's file
    #[arg(long, value_name = "RUN")]
    weights: PathBuf,
    /// A NIfTI file; several, separated by commas, one a channel in the network's order; a folder or CSV manifest; or a store
    #[arg(long, value_name = "PATH")]
    input: String,
    /// Folder of the predictions, made if it is not there
    #[arg(long, value_name = "FOLDER")]
    output: PathBuf,
    /// How the input is arranged [default: recognised by itself]
    #[arg(long, value_enum)]
    layout: Option<Layout>,
    /// Share of a window that its neighbour covers too, 0 or more and less than 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    overlap: f64,
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

/// How one scan ended.
enum Done {
    Written(Duration),
    Bad(String),
    Stopped,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let started = Instant::now();
    ensure!((0.0..1.0).contains(&args.overlap), "--overlap must be 0 or more and less than 1, found {}", args.overlap);
    if let Some(threads) = args.threads {
        tch::set_num_threads(threads.into());
    }
    let model = Model::load(&args.weights, args.device, args.precision)?;
    let inputs = Inputs::open(&args.input, args.layout, &model.channels, &model.settings)?;
    let ids = inputs.ids();
    claim(&args, &inputs)?;
    eprintln!("{}: {} scans, on {:?}, windows of {:?} voxels", args.input, ids.len(), model.device, model.patch);
    for problem in inputs.problems() {
        eprintln!("bad: {problem}");
    }

    let stop = Stop::on_signals()?;
    let counter = Counter::new("predict", ids.len(), console::user_attended_stderr());
    let (mut written, mut bad) = (0, inputs.problems().len());
    let mut stopped = false;
    for (scan, id) in ids.iter().enumerate() {
        match predict(&args, &model, &inputs, scan, &stop, &counter)? {
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

/// Predicts and writes one scan. The error is one of writing, which ends the run.
fn predict(args: &Args, model: &Model, inputs: &Inputs, scan: usize, stop: &Stop, counter: &Counter) -> Result<Done> {
    let started = Instant::now();
    let id = inputs.ids()[scan];
    let window = Window {
        rank: model.rank,
        patch: model.patch,
        overlap: args.overlap,
        batch_size: args.batch_size.map_or_else(|| default_batch(model.rank), usize::from),
        flips: args.flips,
        device: model.device,
    };
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
        Ok((header, scan.predict(&window, model.slices, &network, args.probabilities)?))
    });
    if stop.asked() {
        return Ok(Done::Stopped);
    }
    let (header, (classes, probabilities)) = match predicted {
        Ok(predicted) => predicted,
        Err(error) => return Ok(Done::Bad(format!("{error:#}"))),
    };
    let values: Vec<i64> = model.labels.iter().map(|l| l.value).collect();
    if let Some(probabilities) = probabilities {
        write_floats(&output(args, id, ".probabilities"), &header, probabilities.view())?;
    }
    write_classes(&output(args, id, ""), &header, classes.view(), &values)?;
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
    let probe = args.output.join(format!(".{}.tmp", std::process::id()));
    fs::create_dir_all(&args.output)
        .and_then(|()| fs::File::create(&probe))
        .and_then(|_| fs::remove_file(&probe))
        .with_context(|| format!("--output {}: cannot be written", args.output.display()))
}
