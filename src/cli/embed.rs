//! `embed`: scans to the features of a pretrained encoder, and what these say of the scans' classes or quantities.

use super::scans::{Done, ScanFlags, TableFlags, each_scan};
use super::statistics::StatisticsFlags;
use crate::data::layouts::Reading;
use crate::data::layouts::columns::WantedColumns;
use crate::data::store::targets::{GRADE, Known, Targets, Values};
use crate::data::store::{Store, is_store};
use crate::dim::Rank;
use crate::fs::{check_writable, write_atomic};
use crate::predict::embed::Embedder;
use crate::predict::inputs::Inputs;
use crate::predict::statistics::calibrate;
use crate::print::{note, say};
use crate::readout::cross::{CrossValidation, READOUTS, Readout, Scan};
use crate::readout::truth::Truth;
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
/// scans, as `export` does. Where classes are known, or a quantity that --column names, OUT.json and the output have how well they are read
/// out of the features, by a linear map and by the nearest neighbours, in a cross-validation by subject.
#[derive(clap::Args)]
pub struct Args {
    /// Encoder: an exported .pt or .safetensors, a run (its best checkpoint), a run's checkpoint, or a .pth of nnU-Net, nnssl or torchvision
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    #[command(flatten)]
    scans: ScanFlags,
    /// Column with a class or a quantity of each whole scan, e.g. age, of the store or of a table beside the scans: it is read out of the
    /// features. Names, grades and up to 10 whole numbers are classes [default: the grades of photographs, or a store's only column of classes]
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    #[command(flatten)]
    table: TableFlags,
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
    let targets = match &args.column {
        Some(column) => Some(asked(&inputs, column).with_context(|| args.scans.input.clone())?),
        None => Targets::usual(&inputs),
    };
    let device = args.scans.device.resolve()?;
    if let Some(windows) = windows {
        calibrate(&mut given, &windows, device)?;
    }
    let (embedder, loaded) = Embedder::new(&given, input, rank, args.window, device, args.scans.precision)?;
    loaded.adapted.iter().for_each(|(name, how)| note!("{}: {name}: {how}", args.weights.display()));
    loaded.warnings.iter().for_each(|warning| note!("warning: {}: {warning}", args.weights.display()));

    let stop = Stop::on_signals()?;
    let (mut embeddings, mut of_scans) = (Vec::new(), Vec::new());
    let each = |scan: usize, id: &str, counter: &Counter| {
        let image = inputs.marked_image(scan, &|line| counter.note(line));
        let embedded = image.and_then(|(image, marks)| Ok((embedder.embed(&image)?, marks)));
        if stop.asked() {
            return Ok(Done::Stopped);
        }
        match embedded {
            Ok((levels, marks)) => {
                let targets = targets.as_ref();
                let class = targets.and_then(|targets| targets.class(scan));
                let value = targets.and_then(|targets| targets.number(scan));
                embeddings.push(Embedding { id: id.to_owned(), class, value, fold: None, levels });
                of_scans.push((scan, marks));
            }
            Err(error) => return Ok(Done::Bad(format!("{error:#}"))),
        }
        Ok(Done::Finished)
    };
    let tally = each_scan("embed", &args.scans.input, &inputs, device, each)?;
    let scores = match &targets {
        Some(targets) if !tally.stopped => scores(&mut embeddings, of_scans, targets),
        _ => vec![],
    };
    let classes = match targets.as_ref().map(|targets| &targets.values) {
        Some(Values::Classes { names, .. }) => &names[..],
        _ => &[],
    };
    let [table, tensors, description] = &files;
    write_csv(table, &embeddings)?;
    write_safetensors(tensors, &embeddings)?;
    let mut text = json!({
        "weights": args.weights,
        "fingerprint": given.fingerprint(Transfer::Encoder)?,
        "input": args.scans.input,
        "levels": embedder.levels(),
        "classes": classes,
        "scores": scores_json(&scores),
        "warnings": loaded.warnings,
    });
    if let Some(Targets { column, .. }) = targets.as_ref().filter(|_| args.column.is_some()) {
        (text["column"], text["unit"]) = (json!(column.name), json!(column.unit));
    }
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
        ensure!(!args.table.is_given(), "--table and --id-column are for folders, found the store {}", path.display());
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
    // Photographs have grades without a column of that name.
    let optional = args.column.as_ref().is_some_and(|name| name.eq_ignore_ascii_case(GRADE));
    let columns = WantedColumns { optional, ..args.table.wanted(args.column.as_slice()) };
    let reading = Reading { columns, ..args.scans.reading() };
    let inputs = Inputs::open(&args.scans.input, reading, wanted, &input.preprocessing)?;
    if any {
        input.channels = inputs.channels();
    }
    Ok((inputs, input, given.config.rank()))
}

/// What is asked for. Errors where no cross-validation can say how well it is read out, as far as that shows before scans are read.
fn asked(inputs: &Inputs, column: &str) -> Result<Targets> {
    let targets = Targets::recognised(inputs, Some(column))?;
    note!("{}", targets.describe());
    let known = |&scan: &usize| targets.class(scan).is_some() || targets.number(scan).is_some();
    let known: Vec<usize> = (0..inputs.scans()).filter(known).collect();
    let scans: Vec<Scan> = known.iter().map(|&scan| Scan { id: inputs.scan(scan).0.to_owned(), marks: vec![] }).collect();
    CrossValidation::new(&scans, Truth::of(&targets, known.into_iter())).with_context(|| format!("--column {column}"))?;
    Ok(targets)
}

/// How well what is known is read out of the features, where a cross-validation can say; sets the folds. `embedded`: each embedding's
/// scan, and by what it is known again.
fn scores(embeddings: &mut [Embedding], embedded: Vec<(usize, Vec<String>)>, targets: &Targets) -> Vec<Scored> {
    let truth = Truth::of(targets, embedded.iter().map(|(scan, _)| *scan));
    let known = |(e, (_, marks)): (&Embedding, (usize, Vec<String>))| e.is_known().then(|| Scan { id: e.id.clone(), marks });
    let scans: Vec<Scan> = embeddings.iter().zip(embedded).filter_map(known).collect();
    if scans.is_empty() {
        return vec![];
    }
    let cross = match CrossValidation::new(&scans, truth) {
        Ok(cross) => cross,
        Err(reason) => {
            note!("no scores: {reason:#}");
            return vec![];
        }
    };
    let mut next = cross.folds().iter();
    embeddings.iter_mut().filter(|e| e.is_known()).for_each(|e| e.fold = next.next().copied());
    let matrix = |level: &dyn Fn(&Embedding) -> Tensor| {
        Tensor::stack(&embeddings.iter().filter(|e| e.is_known()).map(level).collect::<Vec<_>>(), 0)
    };
    let deepest = matrix(&|e| e.levels.last().expect("an encoder has a level").shallow_clone());
    let all = matrix(&|e| Tensor::cat(&e.levels, 0));
    let scored = |features, readout, x| Scored { features, readout, score: cross.score(readout, x) };
    let on = |(name, x)| READOUTS.map(|readout| scored(Some(name), readout, x));
    let baseline = scored(None, Readout::Baseline, &deepest);
    [baseline].into_iter().chain([("deepest", &deepest), ("all", &all)].into_iter().flat_map(on)).collect()
}
