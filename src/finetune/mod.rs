//! Fine-tuning: a downstream task on labelled scans, from a pretrained encoder or from scratch, and its scores on the test
//! side (method 6).

pub mod config;
pub mod downstream;
pub mod sides;
pub mod test;

use crate::data::Scans;
use crate::data::store::Store;
use crate::dim::{PerAxis, voxels};
use crate::fs::check_folder;
use crate::group::{self, work};
use crate::metrics::brats;
use crate::metrics::regions::Regions;
use crate::nn::EncoderConfig;
use crate::predict::model::DownstreamConfig;
use crate::print::{self, note};
use crate::run::folder::{Run, check_folders, object};
use crate::run::input::{Input, check_planned};
use crate::run::record::RESULT;
use crate::run::seen::{self, Seen};
use crate::run::split::choose_split;
use crate::run::weights::Pretrained;
use crate::sample::padded::Padded;
use crate::sample::size;
use crate::settings;
use crate::train::config::RESUMABLE;
use crate::train::session::{Best, Course, Ended, Session};
use crate::train::stop::Stop;
use crate::train::trainer::{Setup, Trainer};
use anyhow::{Context, Result, ensure};
use config::{Arm, DownstreamKind, FinetuneConfig};
use serde_json::{Value, json};
use sides::sides;
use std::path::Path;

/// Steps an epoch unless the user says otherwise: the same for every label fraction, so that fewer labels do not mean less
/// training.
const STEPS: u64 = 50;

/// The network of a run with these settings, `None` if it depends on weights that are not there yet, as `weights` says. Errors if they
/// contradict each other, the store or the weights, as far as that shows without a split.
pub fn check(config: &FinetuneConfig, weights: bool) -> Result<Option<EncoderConfig>> {
    config.check()?;
    let store = config.open_store()?;
    downstream::check(config, store.index())?;
    if !config.random() && !weights {
        return Ok(None);
    }
    let given = (!config.random()).then(|| Pretrained::open(&config.weights)).transpose()?;
    let network = network(config, &store, given.as_ref())?;
    downstream::check_shapes(config, &store, &network)?;
    if let Some(given) = given {
        let target = downstream::variables(config, &store, &network)?;
        given.load_into(&target, &Input::of(&store), config.transfer)?;
    }
    Ok(Some(network))
}

/// Trains until the last epoch or a signal, then scores the best epoch on the test side, as one process or as one of several ranks. `resume`:
/// the folder of the run to continue.
pub fn finetune(config: &FinetuneConfig, resume: Option<&Path>) -> Result<Ended> {
    config.check()?;
    work::together(|| train_and_test(config, resume), |ended| matches!(ended, Ended::Finished))
}

fn train_and_test(config: &FinetuneConfig, resume: Option<&Path>) -> Result<Ended> {
    if group::is_first() {
        check_folders(config.train.out.as_deref(), resume)?;
    }
    let stop = Stop::on_signals()?;
    let store = config.open_store()?;
    downstream::check(config, store.index())?;
    if let (Some(Regions::Brats), Some(assumed)) =
        (config.regions, brats::assumption(store.index().labels.as_deref().unwrap_or_default()))
    {
        note!("{}: --regions brats: {assumed}; --labels of preprocess names them", config.train.data.display());
    }
    let device = config.train.device.resolve()?;
    group::use_device(device)?;
    check_planned(&store)?;
    let input = Input::of(&store);
    config.train.check_ranks(&settings::resolved(config), &input)?;
    let reopen = |dir| Run::of_first(|| Run::reopen(dir, settings::resolved(config), &RESUMABLE, &input));
    let run = resume.map(reopen).transpose()?;
    let own = run.as_ref().map(Run::split_file);
    let file = own.as_deref().or(config.train.split.as_deref());
    let (needs, test) = (config.task.needs(), config.test_side());
    let split = choose_split(file, &store, needs, config.train.val_fraction, test, config.train.seed)?;
    let sides = sides(config, &store, &split)?;
    // A run that goes on has its weights in its checkpoint, unless it was killed before the first.
    let given = match config.random() || !group::is_first() || run.as_ref().is_some_and(Run::has_checkpoint) {
        true => None,
        false => Some(Pretrained::open(&config.weights)?),
    };
    let encoder = match &run {
        Some(run) => run.network()?,
        None => work::of_first(|| network(config, &store, given.as_ref()))?,
    };
    if run.is_none() && given.is_none() {
        config.network.note_spacing(&encoder, input.mean_spacing);
    }
    // As it began, whatever is the default now.
    let mut begun = config.clone();
    if let Some(run) = &run
        && config.task == DownstreamKind::Segmentation
        && config.segmentation.patch.is_empty()
    {
        begun.segmentation.patch = run.patch()?;
    }
    let (task, downstream) = downstream::build(&begun, &store, &sides.train, &encoder)?;
    let view = task.view_shape();
    if config.task == DownstreamKind::Segmentation {
        if begun.segmentation.patch.is_empty() {
            size::note_planned("patch", &store, encoder.rank(), view);
        }
        size::note_padded("patch", &store, encoder.rank(), view);
    }
    let epochs = config.train.epochs.unwrap_or(task.amounts().epochs);
    let mut resolved = config.clone();
    (resolved.train.epochs, resolved.arm) = (Some(epochs), Some(config.arm()));
    if config.train.draws.is_none() {
        resolved.train.steps.get_or_insert(STEPS);
    }
    let encoder_training = config.given(epochs)?;
    if let (Arm::Warmup, Some(training)) = (config.arm(), &encoder_training) {
        // Written down: with more epochs later they stay.
        resolved.frozen_epochs = Some(training.frozen_epochs);
        resolved.unfreeze_warmup_epochs = Some(training.unfreeze_warmup_epochs);
    }
    if let DownstreamConfig::Classification { classification, .. } = &downstream {
        resolved.classification = classification.clone();
    }
    let name = task.name();
    let trainer = Trainer::new(Setup {
        config: &resolved.train,
        device,
        tasks: vec![(task, 1.)],
        encoder: encoder.clone(),
        train: Padded::around(sides.train.clone(), view),
        valid: sides.valid.clone(),
        mirror_zoom: None,
        given: encoder_training,
    })?;
    if let Some(run) = &run
        && work::of_first(|| run.is_complete(epochs))?
    {
        run.note_complete(epochs, &format!("its scores are in {}", run.dir.join(RESULT).display()));
        return Ok(Ended::Finished);
    }
    let batch = trainer.tasks[0].batch;
    resolved.train.batch_size = Some(batch);
    // Batch normalisation of one value has no variance: its running one becomes NaN, and every prediction background.
    let deepest = trainer.network.encoder.deepest_shape(view);
    ensure!(
        batch as usize * voxels(deepest) > 1,
        "--batch-size 1 and a patch of {view:?}: the deepest level would normalise a single voxel; give larger ones"
    );
    let (mut pretrained, mut report) = (Value::Null, String::new());
    if let Some(given) = &given {
        let mut loaded = given.load_into(&trainer.network.vs.variables(), &input, config.transfer)?;
        loaded.warnings.extend(given.origin.as_ref().and_then(|origin| origin.patch_warning(view, input.slices.is_some())));
        loaded.warnings.extend(seen::warnings(given.seen.as_ref(), &store, &split, config.other_people));
        report = format!("{}: {loaded}", config.weights.display());
        note!("{}", report.trim_end());
        pretrained = json!({
            "file": config.weights,
            "fingerprint": given.fingerprint(config.transfer)?,
            "pretext": config.weights_name.as_ref().unwrap_or(&given.about.pretext),
            "unlabelled": given.about.fraction,
            "warnings": loaded.warnings,
        });
    }
    let run = Run::of_first(|| match run {
        Some(run) => {
            let same = given.is_none()
                || run.description()?.get("pretrained").and_then(|p| p.get("fingerprint")) == pretrained.get("fingerprint");
            ensure!(same, "{}: not the weights that {} was started with", config.weights.display(), run.dir.display());
            Ok(run)
        }
        None => {
            let parts = json!({ "network": encoder, "input": input, "downstream": downstream, "pretrained": pretrained });
            let out = config.train.out.as_deref();
            let seen = Seen::of(&sides.train, &sides.valid);
            let seen = if let Some(given) = given { seen.after(given.seen) } else { seen };
            Run::create(out, name, settings::resolved(&resolved), &split, &seen, object(parts))
        }
    })?;
    if let (true, Some(targets)) = (config.task != DownstreamKind::Segmentation, store.targets()) {
        note!("{}", targets.describe());
    }
    if group::is_first() {
        run.keep_load_report(&report)?;
        check_folder(&test::folder(&run))?;
    }
    note!(
        "{}: {name} from {}, arm {}, on {}{device:?} in {}, {} training, {} validation and {} test scans, {} of {view:?} voxels, {} steps an \
         epoch",
        run.dir.display(),
        config.weights.display(),
        json!(config.arm()).as_str().unwrap_or_default(),
        work::processes(),
        if trainer.bf16 { "bf16" } else { "fp32" },
        sides.train.len(),
        sides.valid.len(),
        sides.test.len(),
        if config.task == DownstreamKind::Segmentation { "patches" } else { "whole scans" },
        trainer.steps
    );
    // Of a run that goes on they are in its checkpoint. The other ranks get those of the first.
    let calibrated = if !group::is_first() || run.has_checkpoint() { 0 } else { trainer.calibrate()? };
    if calibrated > 0 {
        note!("BatchNorm statistics of what is fixed at first: estimated on {calibrated} training samples");
    }
    let metric = format!("{name}.{}", trainer.tasks[0].task.selects());
    let save_minutes = config.train.save_minutes;
    let course = Course { name: name.to_owned(), val_draws: 1, save_minutes, best: Best::Metric, probe: None };
    let mut session = Session::open(run.clone(), trainer, course, stop.clone())?;
    let mut ended = session.train()?;
    drop(session);
    if let Ended::Finished = ended {
        ended = test::test(config, &run, &split, &sides, &metric, &stop)?;
    }
    if let Ended::Stopped = ended {
        note!(
            "stopped and saved; continue with: {}",
            print::command_line(["finetune", "--resume", &run.dir.to_string_lossy()])
        );
    }
    Ok(ended)
}

/// The encoder: that of the weights, or the one asked for.
fn network(config: &FinetuneConfig, store: &Store, given: Option<&Pretrained>) -> Result<EncoderConfig> {
    let (flags, rank) = (&config.network, store.rank()?);
    let flags = match given {
        Some(given) => flags.of_weights(&given.config, rank, &given.file).with_context(|| config.train.data_name())?,
        None => flags.fitted(rank, &[downstream::input_shape(config, store, rank, PerAxis::all(rank, 1))?])?,
    };
    flags.config(rank, store.channels() as i64, config.train.dropout)
}
