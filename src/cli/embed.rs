//! `embed`: scans to the features of a pretrained encoder, and what these say of the scans' classes.

use super::scans::{Done, ScanFlags, each_scan};
use super::statistics::StatisticsFlags;
use crate::data::store::{Store, is_store};
use crate::dim::Rank;
use crate::fs::{check_writable, write_atomic};
use crate::predict::embed::Embedder;
use crate::predict::inputs::Inputs;
use crate::predict::statistics::calibrate;
use crate::print::{note, say};
use crate::readout::cross::{Labelled, READOUTS, Readout, folds, score};
use crate::report::embeddings::{Embedding, Scored, scores_json, scores_text, write_csv, write_safetensors};
use crate::report::progress::Counter;
use crate::run::input::Input;
use crate::run::weights::{Pretrained, Transfer};
use crate::train::stop::Stop;
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tch::Tensor;

/// Write each scan's features, as a pretrained encoder sees it
///
/// OUT.csv has a row a scan: its id, its class if known, and the average of each channel of each level of the encoder's pyramid,
/// level0.channel0 (finest) on; OUT.safetensors has the same as a tensor a level, [scans, channels]. Scans are preprocessed as the
/// training's scans were; a store is taken as it is. The BatchNorm statistics of a pretraining run are estimated on windows of its training
/// scans, as `export` does. Where classes are known, OUT.json and the output have how well they are read out of the features, by a linear
/// map and by the nearest neighbours, in a cross-validation by subject.
#[derive(clap::Args)]
pub struct Args {
    /// Encoder: an exported .pt or .safetensors, a run (its best checkpoint), a run's checkpoint, or a .pth of nnU-Net, nnssl or torchvision
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    #[command(flatten)]
    scans: ScanFlags,
    /// Path without extension, e.g. runs/features
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Side in voxels above which a scan is cut into windows, whose features are averaged [default: 192, of images 2048]
    #[arg(long, value_name = "VOXELS")]
    window: Option<usize>,
    #[command(flatten)]
    statistics: StatisticsFlags,
}

pub fn run(args: Args) -> Result<ExitCode> {
    args.scans.set_threads();
    let name = args.out.file_name().with_context(|| format!("--out {}: names no file", args.out.display()))?;
    let file = |extension: &str| args.out.with_file_name(format!("{}.{extension}", name.to_string_lossy()));
    let files = ["csv", "safetensors", "json"].map(file);
    check_writable(&files).context("--out")?;
    for file in files.iter().filter(|file| file.exists()) {
        ensure!(args.scans.overwrite, "{}: already there; give another --out, or --overwrite", file.display());
        // The files of an export stand beside each other.
        let exported = ["safetensors", "json"].map(|extension| args.weights.with_extension(extension));
        let taken = |given: &&Path| matches!((given.canonicalize(), file.canonicalize()), (Ok(a), Ok(b)) if a == b);
        let given = [&args.weights, &exported[0], &exported[1], Path::new(&args.scans.input)];
        if let Some(given) = given.into_iter().find(taken) {
            bail!("--out {}: would replace {}", args.out.display(), given.display());
        }
    }
    let mut given = Pretrained::open(&args.weights)?;
    let windows = args.statistics.windows(&args.weights, given.run.as_ref())?;
    let (inputs, input, rank) = open(&args, &given)?;
    let device = args.scans.device.resolve()?;
    if let Some(windows) = windows {
        calibrate(&mut given, &windows, device)?;
    }
    let (embedder, loaded) = Embedder::new(&given, input, rank, args.window, device, args.scans.precision)?;
    loaded.adapted.iter().for_each(|(name, how)| note!("{}: {name}: {how}", args.weights.display()));
    loaded.warnings.iter().for_each(|warning| note!("warning: {}: {warning}", args.weights.display()));

    let stop = Stop::on_signals()?;
    let (mut embeddings, mut marks) = (Vec::new(), Vec::new());
    let each = |scan: usize, id: &str, counter: &Counter| {
        let image = inputs.marked_image(scan, &|line| counter.note(line));
        let embedded = image.and_then(|(image, marks)| Ok((embedder.embed(&image)?, marks)));
        if stop.asked() {
            return Ok(Done::Stopped);
        }
        match embedded {
            Ok((levels, of_scan)) => {
                embeddings.push(Embedding { id: id.to_owned(), class: inputs.class(scan), fold: None, levels });
                marks.push(of_scan);
            }
            Err(error) => return Ok(Done::Bad(format!("{error:#}"))),
        }
        Ok(Done::Finished)
    };
    let tally = each_scan("embed", &args.scans.input, &inputs, device, each)?;
    let classes = inputs.classes().unwrap_or_default();
    let scores = if tally.stopped { vec![] } else { scores(&mut embeddings, marks, classes.len()) };
    let [table, tensors, description] = &files;
    write_csv(table, &embeddings)?;
    write_safetensors(tensors, &embeddings)?;
    let text = json!({
        "weights": args.weights,
        "fingerprint": given.fingerprint(Transfer::Encoder)?,
        "input": args.scans.input,
        "levels": embedder.levels(),
        "classes": classes,
        "scores": scores_json(&scores),
        "warnings": loaded.warnings,
    });
    write_atomic(description, |file| Ok(serde_json::to_writer_pretty(file, &text)?))?;
    scores_text(&scores).iter().for_each(|line| say!("{line}"));
    tally.finish("embeddings", &table.display().to_string())
}

/// The scans, what they are like, and their rank.
fn open(args: &Args, given: &Pretrained) -> Result<(Inputs, Input, Rank)> {
    let path = Path::new(&args.scans.input);
    let slices = given.input.as_ref().and_then(|input| input.slices);
    if is_store(path) {
        ensure!(
            args.scans.reading().layout.is_none(),
            "--layout is for folders and manifests, found the store {}",
            path.display()
        );
        let store = Store::open(path)?.sliced(slices)?;
        let (input, rank) = (Input::of(&store), store.rank()?);
        let channels = (0..input.channels.len()).collect();
        return Ok((Inputs::Store { store: store.sliced(None)?, channels }, input, rank));
    }
    let mut input = given.input.clone().with_context(|| {
        format!(
            "{}: does not say how its scans were preprocessed, which {} needs; give a store as --input",
            args.weights.display(),
            args.scans.input
        )
    })?;
    // Encoders of any contrast take every channel alike.
    let any = !input.contrasts.is_empty();
    let wanted = if any { &[] } else { &input.channels[..] };
    let inputs = Inputs::open(&args.scans.input, args.scans.reading(), wanted, &input.preprocessing)?;
    if any {
        input.channels = inputs.channels();
    }
    Ok((inputs, input, given.config.rank()))
}

/// How well the known classes are read out of the features, where a cross-validation can say; sets the folds.
fn scores(embeddings: &mut [Embedding], marks: Vec<Vec<String>>, classes: usize) -> Vec<Scored> {
    let known = |(e, marks): (&Embedding, Vec<String>)| Some(Labelled { id: e.id.clone(), class: e.class?, marks });
    let scans: Vec<Labelled> = embeddings.iter().zip(marks).filter_map(known).collect();
    if scans.is_empty() {
        return vec![];
    }
    let folds = match folds(&scans) {
        Ok(folds) => folds,
        Err(reason) => {
            note!("no scores: {reason:#}");
            return vec![];
        }
    };
    let mut next = folds.iter();
    embeddings.iter_mut().filter(|e| e.class.is_some()).for_each(|e| e.fold = next.next().copied());
    let matrix = |level: &dyn Fn(&Embedding) -> Tensor| {
        Tensor::stack(&embeddings.iter().filter(|e| e.class.is_some()).map(level).collect::<Vec<_>>(), 0)
    };
    let deepest = matrix(&|e| e.levels.last().expect("an encoder has a level").shallow_clone());
    let all = matrix(&|e| Tensor::cat(&e.levels, 0));
    let confusion = |readout, x| score(readout, x, &scans, &folds, classes);
    let majority = Scored { features: None, readout: Readout::Majority, confusion: confusion(Readout::Majority, &deepest) };
    let on = |(name, x)| READOUTS.map(|readout| Scored { features: Some(name), readout, confusion: confusion(readout, x) });
    [majority].into_iter().chain([("deepest", &deepest), ("all", &all)].into_iter().flat_map(on)).collect()
}
