//! `predict`: scans to labels in their own space.

use super::scans::{Done, ScanFlags, Tally, each_scan};
use crate::data::formats::dicom::{Referenced, Segment};
use crate::data::formats::{write_classes, write_floats};
use crate::data::labelling::Labelling;
use crate::data::layouts::Reading;
use crate::data::layouts::columns::WantedColumns;
use crate::data::store::targets::{GRADE, Known};
use crate::dim::Shape;
use crate::fs::{check_folder, check_writable};
use crate::metrics::agreement::Confusion;
use crate::metrics::errors::Errors;
use crate::predict::ensemble::Ensemble;
use crate::predict::inputs::Inputs;
use crate::predict::model::{DownstreamConfig, Model};
use crate::predict::window::{Forward, Window, default_batch};
use crate::print::say;
use crate::report::classes::Predictions;
use crate::report::progress::Counter;
use crate::report::quantities::Quantities;
use crate::tasks::segmentation::SegmentationConfig;
use crate::train::stop::Stop;
use crate::transform::mirror::MirrorAxis;
use anyhow::{Context, Result, bail, ensure};
use ndarray::Array4;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Segment or classify scans with a fine-tuned network, or predict a quantity of each
///
/// Every scan is preprocessed as the training's scans were. Segmentations are predicted window by window and brought back: OUTPUT/ID.nii.gz lies
/// on the scan voxel by voxel, with the shape, affine and header of the input file and the label values of the training data. Of NRRD,
/// MetaImage and MGH scans it is a file of their format: ID.nrrd, ID.mha, ID.mgz.
/// Of whole scans the predictions are one table, OUTPUT/predictions.csv: a row a scan with its class and the probability of each, or with
/// its quantity. Where the truth is known, from the column that the network was trained on, OUTPUT/scores.json has the scores.
#[derive(clap::Args)]
pub struct Args {
    /// A run of `finetune` (its best checkpoint), RUN/best, RUN/last, a checkpoint's file, or an export of one (.pt, .safetensors); of
    /// several, e.g. the folds of a cross-validation, the mean of their probabilities, of quantities the mean
    #[arg(long, value_name = "RUN", required = true, num_args = 1..)]
    weights: Vec<PathBuf>,
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
    /// Average over all combinations of mirrored axes, those named (separated by commas) or all: 8 times the work for three axes, 4 for
    /// two. Classes whose names differ in left and right alone are exchanged back; with a class that has a side and no counterpart, left
    /// and right do not change places
    #[arg(long, value_name = "AXIS,...", value_enum, value_delimiter = ',', num_args = 0..=1, default_missing_value = "all")]
    flips: Option<Vec<MirrorAxis>>,
    /// Also write OUTPUT/ID.probabilities.nii.gz (or the scan's ending): a channel a class, of regions a channel a region
    #[arg(long)]
    probabilities: bool,
    /// Also write OUTPUT/ID.seg.dcm of DICOM series, a DICOM Segmentation object with one segment a class or region. It is patient data: it
    /// has the name, id, birth date and study of the series' files
    #[arg(long)]
    seg: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let overlap = args.overlap.unwrap_or(SegmentationConfig::default().overlap);
    ensure!((0.0..1.0).contains(&overlap), "--overlap must be 0 or more and less than 1, found {overlap}");
    args.scans.set_threads();
    check_folder(&args.output).context("--output")?;
    let ensemble = Ensemble::load(&args.weights, args.scans.device, args.scans.precision)?;
    let model = ensemble.first();
    // Runs of earlier versions know grades only.
    let column = model.downstream.column().map_or(GRADE.to_owned(), |column| column.name.clone());
    let names: Vec<String> = Some(column.clone()).filter(|column| column != GRADE).into_iter().collect();
    let columns = WantedColumns { names: &names, optional: true, ..WantedColumns::default() };
    let reading = Reading { columns, ..args.scans.reading() };
    let inputs = Inputs::open(&args.scans.input, reading, &model.channels, &model.settings)?;
    let mirroring = args.flips.as_deref().map(|axes| ensemble.mirroring(axes)).transpose()?;
    let stop = Stop::on_signals()?;
    match &model.downstream {
        DownstreamConfig::Segmentation { patch, .. } => {
            claim(&args, &inputs)?;
            let labelling = model.downstream.labelling();
            let window = Window {
                rank: model.rank,
                patch: *patch,
                overlap,
                batch_size: args.batch_size.map_or_else(|| default_batch(model.rank), usize::from),
                mirroring,
                decoding: labelling.decoding(),
                device: model.device,
            };
            let values = labelling.labels.iter().map(|l| l.value).collect();
            let segmenter = Segmenter { args: &args, ensemble: &ensemble, window, values, labelling, stop: &stop };
            let each = |scan: usize, id: &str, counter: &Counter| segmenter.predict(&inputs, scan, id, counter);
            each_scan("predict", &args.scans.input, &inputs, model.device, each)?
                .finish("predictions", &args.output.display().to_string())
        }
        DownstreamConfig::Classification { classes, shape, classification, .. } => {
            let whole = Whole { args: &args, model, inputs: &inputs, shape: *shape, stop: &stop };
            let mut predictions = Predictions::new(classes);
            let known = |scan| {
                let value = inputs.value(scan, &column)?.to_string();
                classes.iter().position(|class| *class == value).and_then(|class| u8::try_from(class).ok())
            };
            let tally = whole.each(|scan, id, image| {
                let (class, probabilities) = ensemble.classify(image, *shape, classification.outputs(), mirroring.as_ref())?;
                predictions.add(id, known(scan), class, &probabilities);
                Ok(())
            })?;
            predictions.write(&whole.table())?;
            whole.finish(tally, predictions.confusion(), &|confusion: &Confusion, scores| {
                predictions.write_scores(scores, confusion)?;
                Ok(confusion.to_string())
            })
        }
        DownstreamConfig::Regression { column: quantity, standard, shape, .. } => {
            let whole = Whole { args: &args, model, inputs: &inputs, shape: *shape, stop: &stop };
            let mut predictions = Quantities::new(quantity, standard.mean);
            let tally = whole.each(|scan, id, image| {
                let predicted = ensemble.estimate(image, *shape, mirroring.as_ref())?;
                predictions.add(id, inputs.number(scan, &column), predicted);
                Ok(())
            })?;
            predictions.write(&whole.table())?;
            whole.finish(tally, predictions.errors(), &|errors: &Errors, scores| {
                predictions.write_scores(scores, errors)?;
                Ok(predictions.summary(errors))
            })
        }
    }
}

/// Predictions of whole scans, which become one table, with scores where the truth is known.
struct Whole<'a> {
    args: &'a Args,
    model: &'a Model,
    inputs: &'a Inputs,
    shape: Shape,
    stop: &'a Stop,
}

impl Whole<'_> {
    fn table(&self) -> PathBuf {
        self.args.output.join("predictions.csv")
    }

    fn scores(&self) -> PathBuf {
        self.args.output.join("scores.json")
    }

    /// Runs `predict` for each scan, with its number, its id and its image `[C, D, H, W]`.
    fn each(&self, mut predict: impl FnMut(usize, &str, &[f32]) -> Result<()>) -> Result<Tally> {
        let (args, inputs) = (self.args, self.inputs);
        ensure!(
            args.overlap.is_none() && args.batch_size.is_none() && !args.probabilities && !args.seg,
            "{}: takes scans whole and writes one table; --overlap, --batch-size, --probabilities and --seg are for segmentations",
            self.model.file.display()
        );
        let files = [self.table(), self.scores()];
        check_writable(&files).context("--output")?;
        if let Some(file) = files.iter().find(|file| file.exists()) {
            ensure!(args.scans.overwrite, "{}: already there; give another --output, or --overwrite", file.display());
        }
        let each = |scan: usize, id: &str, counter: &Counter| {
            let done = self
                .image(scan, counter)
                .and_then(|image| predict(scan, id, image.as_standard_layout().as_slice().context("not contiguous")?));
            Ok(match done {
                _ if self.stop.asked() => Done::Stopped,
                Ok(()) => Done::Finished,
                Err(error) => Done::Bad(format!("{error:#}")),
            })
        };
        each_scan("predict", &args.scans.input, inputs, self.model.device, each)
    }

    fn image(&self, scan: usize, counter: &Counter) -> Result<Array4<f32>> {
        let image = self.inputs.image(scan, &|line| counter.note(line))?;
        let (_, d, h, w) = image.dim();
        ensure!([d, h, w] == self.shape, "{:?} voxels, expected {:?} as in training", [d, h, w], self.shape);
        Ok(image)
    }

    /// Writes the scores, if there are any, and says what `write` gives of them.
    fn finish<S>(&self, tally: Tally, scores: Option<S>, write: &dyn Fn(&S, &Path) -> Result<String>) -> Result<ExitCode> {
        let file = self.scores();
        match scores {
            Some(scores) => {
                let summary = write(&scores, &file)?;
                say!("{}: {summary}", file.display());
            }
            // Scores of an earlier prediction would be taken for this one's.
            None if file.exists() => fs::remove_file(&file).with_context(|| file.display().to_string())?,
            None => {}
        }
        tally.finish("predictions", &self.table().display().to_string())
    }
}

struct Segmenter<'a> {
    args: &'a Args,
    ensemble: &'a Ensemble,
    window: Window,
    /// Class `k` is written as `values[k]`.
    values: Vec<i64>,
    labelling: Labelling,
    stop: &'a Stop,
}

impl<'a> Segmenter<'a> {
    /// Predicts and writes one scan.
    fn predict(&self, inputs: &Inputs, scan: usize, id: &str, counter: &Counter) -> Result<Done> {
        let started = Instant::now();
        let (args, model) = (self.args, self.ensemble.first());
        let series = args.seg.then(|| Referenced::new(inputs.series(scan)?)).transpose();
        let series = match series {
            Ok(series) => series,
            Err(error) => return Ok(Done::Bad(format!("{error:#}"))),
        };
        let predicted = inputs.load(scan, &|line| counter.note(line)).and_then(|scan| {
            if scan.made_header {
                counter.note(&format!(
                    "{id}: its source file is not there any more: a new header, with the affine that the store keeps"
                ));
            }
            if let Some(memory) = scan.memory(&self.window, model.slices, self.labelling.outputs().len(), args.probabilities) {
                counter.note(&format!("{id}: {memory}"));
            }
            let windows = scan.windows(&self.window, model.slices) * self.window.mirror_images() * self.ensemble.models().len();
            let parts = counter.parts("windows", windows);
            let forward = |model: &'a Model| {
                let parts = &parts;
                move |x: &tch::Tensor| {
                    ensure!(!self.stop.asked(), "interrupted");
                    let logits = model.forward(x);
                    parts.inc(x.size()[0] as u64);
                    logits
                }
            };
            let networks: Vec<_> = self.ensemble.models().iter().map(forward).collect();
            let networks: Vec<Forward> = networks.iter().map(|network| network as Forward).collect();
            let header = scan.header.clone();
            let folder = args.probabilities.then_some(args.output.as_path());
            Ok((header, scan.predict(&self.window, model.slices, &networks, folder)?))
        });
        if self.stop.asked() {
            return Ok(Done::Stopped);
        }
        let (header, brought) = match predicted {
            Ok(predicted) => predicted,
            Err(error) => return Ok(Done::Bad(format!("{error:#}"))),
        };
        if let Some(probabilities) = &brought.probabilities {
            let path = output(args, id, ".probabilities", header.format.written);
            write_floats(&path, &header, self.labelling.outputs().len(), &mut |output, k, out| {
                probabilities.slice(output, k, out)
            })?;
        }
        let path = output(args, id, "", header.format.written);
        write_classes(&path, &header, &mut |k, out| brought.slice(k, out), &self.values)?;
        if let Some(series) = series {
            let masks = self.labelling.masks();
            let segments: Vec<Segment> = masks.into_iter().map(|(name, classes)| Segment { name, classes }).collect();
            series.write(&output(args, id, SEGMENTATION, ""), &segments, &mut |k, out| brought.slice(k, out))?;
        }
        counter.note(&format!("{id}: {:.1} s", started.elapsed().as_secs_f64()));
        Ok(Done::Finished)
    }
}

/// What the names of DICOM Segmentation objects end in.
const SEGMENTATION: &str = ".seg.dcm";

/// `ending`: that of the scan's format.
fn output(args: &Args, id: &str, kind: &str, ending: &str) -> PathBuf {
    args.output.join(format!("{id}{kind}{ending}"))
}

/// Makes sure, before hours of work, that the predictions replace nothing that they must not.
fn claim(args: &Args, inputs: &Inputs) -> Result<()> {
    let mut there = vec![];
    for (scan, id) in inputs.ids().into_iter().enumerate() {
        let ending = inputs.written(scan);
        let mut paths = vec![output(args, id, "", ending)];
        if args.probabilities {
            paths.push(output(args, id, ".probabilities", ending));
        }
        if args.seg {
            inputs.series(scan).context("--seg")?;
            paths.push(output(args, id, SEGMENTATION, ""));
        }
        for path in paths.into_iter().filter(|path| path.exists()) {
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
