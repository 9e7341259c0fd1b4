//! `predict`: scans to labels in their own space.

use super::scans::{Done, ScanFlags, each_scan};
use crate::data::formats::{write_classes, write_floats};
use crate::dim::Shape;
use crate::fs::{check_folder, check_writable};
use crate::predict::inputs::Inputs;
use crate::predict::model::{DownstreamConfig, Model};
use crate::predict::window::{Window, default_batch};
use crate::print::say;
use crate::report::classes::Predictions;
use crate::report::progress::Counter;
use crate::tasks::classification::Outputs;
use crate::tasks::segmentation::SegmentationConfig;
use crate::train::stop::Stop;
use crate::transform::mirror::Mirroring;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Segment or classify scans with a fine-tuned network
///
/// Every scan is preprocessed as the training's scans were. Segmentations are predicted window by window and brought back: OUTPUT/ID.nii.gz lies
/// on the scan voxel by voxel, with the shape, affine and header of the input file and the label values of the training data. Of NRRD,
/// MetaImage and MGH scans it is a file of their format: ID.nrrd, ID.mha, ID.mgz.
/// Classifications are one table, OUTPUT/predictions.csv: a row a scan with its class and the probability of each.
#[derive(clap::Args)]
pub struct Args {
    /// A run of `finetune` (its best checkpoint), RUN/best, RUN/last, or a checkpoint's file
    #[arg(long, value_name = "RUN")]
    weights: PathBuf,
    #[command(flatten)]
    scans: ScanFlags,
    /// Folder of the predictions, made if it is not there
    #[arg(long, value_name = "FOLDER")]
    output: PathBuf,
    /// Share of a window that its neighbour covers too, 0 or more and less than 1 [default: 0.5]
    #[arg(long, value_name = "SHARE")]
    overlap: Option<f64>,
    /// Windows a forward pass [default: 1, in 2D 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    batch_size: Option<u16>,
    /// Average over all combinations of mirrored axes: 8 times the work (images: 4 times). Classes whose names differ in left and right
    /// alone are exchanged back; with a class that has a side and no counterpart, left and right do not change places
    #[arg(long)]
    flips: bool,
    /// Also write OUTPUT/ID.probabilities.nii.gz (or the scan's ending): a channel a class
    #[arg(long)]
    probabilities: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let overlap = args.overlap.unwrap_or(SegmentationConfig::default().overlap);
    ensure!((0.0..1.0).contains(&overlap), "--overlap must be 0 or more and less than 1, found {overlap}");
    args.scans.set_threads();
    check_folder(&args.output).context("--output")?;
    let model = Model::load(&args.weights, args.scans.device, args.scans.precision)?;
    let inputs = Inputs::open(&args.scans.input, args.scans.reading(), &model.channels, &model.settings)?;
    let mirroring = args.flips.then(|| model.mirroring()).transpose()?;
    let stop = Stop::on_signals()?;
    match &model.downstream {
        DownstreamConfig::Segmentation { labels, patch, .. } => {
            claim(&args, &inputs)?;
            let window = Window {
                rank: model.rank,
                patch: *patch,
                overlap,
                batch_size: args.batch_size.map_or_else(|| default_batch(model.rank), usize::from),
                mirroring,
                device: model.device,
            };
            let values = labels.iter().map(|l| l.value).collect();
            let segmenter = Segmenter { args: &args, model: &model, window, values, stop: &stop };
            let each = |scan: usize, id: &str, counter: &Counter| segmenter.predict(&inputs, scan, id, counter);
            each_scan("predict", &args.scans.input, &inputs, model.device, each)?
                .finish("predictions", &args.output.display().to_string())
        }
        DownstreamConfig::Classification { classes, shape, classification } => {
            ensure!(
                args.overlap.is_none() && args.batch_size.is_none() && !args.probabilities,
                "{}: classifies whole scans and always writes probabilities; --overlap, --batch-size and --probabilities are for \
                 segmentations",
                args.weights.display()
            );
            let [table, scores] = ["predictions.csv", "scores.json"].map(|name| args.output.join(name));
            check_writable([&table, &scores]).context("--output")?;
            if let Some(file) = [&table, &scores].into_iter().find(|file| file.exists()) {
                ensure!(args.scans.overwrite, "{}: already there; give another --output, or --overwrite", file.display());
            }
            let mut predictions = Predictions::new(classes);
            let each = |scan: usize, id: &str, counter: &Counter| {
                match classify(mirroring.as_ref(), &model, *shape, classification.outputs, &inputs, scan, counter) {
                    _ if stop.asked() => return Ok(Done::Stopped),
                    Ok((class, probabilities)) => predictions.add(id, inputs.class(scan), class, &probabilities),
                    Err(error) => return Ok(Done::Bad(format!("{error:#}"))),
                }
                Ok(Done::Finished)
            };
            let tally = each_scan("predict", &args.scans.input, &inputs, model.device, each)?;
            predictions.write(&table)?;
            match predictions.confusion() {
                Some(confusion) => {
                    predictions.write_scores(&scores, &confusion)?;
                    say!("{}: {confusion}", scores.display());
                }
                // Scores of an earlier prediction would be taken for this one's.
                None if scores.exists() => fs::remove_file(&scores).with_context(|| scores.display().to_string())?,
                None => {}
            }
            tally.finish("predictions", &table.display().to_string())
        }
    }
}

/// Class and probabilities of one scan.
fn classify(
    mirroring: Option<&Mirroring>,
    model: &Model,
    shape: Shape,
    outputs: Outputs,
    inputs: &Inputs,
    scan: usize,
    counter: &Counter,
) -> Result<(u8, Vec<f32>)> {
    let image = inputs.image(scan, &|line| counter.note(line))?;
    let (_, d, h, w) = image.dim();
    ensure!([d, h, w] == shape, "{:?} voxels, expected {shape:?} as in training", [d, h, w]);
    let image = image.as_standard_layout();
    model.classify(image.as_slice().context("not contiguous")?, shape, outputs, mirroring)
}

struct Segmenter<'a> {
    args: &'a Args,
    model: &'a Model,
    window: Window,
    /// Class `k` is written as `values[k]`.
    values: Vec<i64>,
    stop: &'a Stop,
}

impl Segmenter<'_> {
    /// Predicts and writes one scan.
    fn predict(&self, inputs: &Inputs, scan: usize, id: &str, counter: &Counter) -> Result<Done> {
        let started = Instant::now();
        let (args, model) = (self.args, self.model);
        let network = |x: &tch::Tensor| {
            ensure!(!self.stop.asked(), "interrupted");
            model.forward(x)
        };
        let predicted = inputs.load(scan, &|line| counter.note(line)).and_then(|scan| {
            if scan.made_header {
                counter.note(&format!(
                    "{id}: its source file is not there any more: a new header, with the affine that the store keeps"
                ));
            }
            if let Some(memory) = scan.memory(&self.window, model.slices, self.values.len(), args.probabilities) {
                counter.note(&format!("{id}: {memory}"));
            }
            let header = scan.header.clone();
            Ok((header, scan.predict(&self.window, model.slices, &network, args.probabilities)?))
        });
        if self.stop.asked() {
            return Ok(Done::Stopped);
        }
        let (header, (classes, probabilities)) = match predicted {
            Ok(predicted) => predicted,
            Err(error) => return Ok(Done::Bad(format!("{error:#}"))),
        };
        if let Some(probabilities) = probabilities {
            write_floats(&output(args, id, ".probabilities", header.format.written), &header, probabilities.view())?;
        }
        write_classes(&output(args, id, "", header.format.written), &header, classes.view(), &self.values)?;
        counter.note(&format!("{id}: {:.1} s", started.elapsed().as_secs_f64()));
        Ok(Done::Finished)
    }
}

/// `ending`: that of the scan's format.
fn output(args: &Args, id: &str, kind: &str, ending: &str) -> PathBuf {
    args.output.join(format!("{id}{kind}{ending}"))
}

/// Makes sure, before hours of work, that the predictions replace nothing that they must not.
fn claim(args: &Args, inputs: &Inputs) -> Result<()> {
    let mut there = vec![];
    for (scan, id) in inputs.ids().into_iter().enumerate() {
        let kinds = if args.probabilities { &["", ".probabilities"][..] } else { &[""] };
        let ending = inputs.written(scan);
        for path in kinds.iter().map(|kind| output(args, id, kind, ending)).filter(|path| path.exists()) {
            let same = |source: &&Path| matches!((source.canonicalize(), path.canonicalize()), (Ok(a), Ok(b)) if a == b);
            if let Some(source) = inputs.sources(scan).into_iter().find(same) {
                bail!("--output {}: would replace the input {}", args.output.display(), source.display());
            }
            there.push(path);
        }
    }
    if let (Some(first), false) = (there.first(), args.scans.overwrite) {
        bail!("{}: already there, with {} others; give another --output, or --overwrite", first.display(), there.len() - 1);
    }
    Ok(())
}
