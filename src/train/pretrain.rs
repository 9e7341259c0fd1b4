//! Pretraining: one or several pretext tasks on unlabelled scans, then the export of the encoder.

use super::config::{RESUMABLE, TrainConfig};
use super::probe::{Probe, ProbeConfig};
use super::session::{Best, Course, Ended, Session};
use super::stop::Stop;
use super::trainer::{Setup, Trainer};
use crate::data::Scans;
use crate::data::names::some;
use crate::data::split::Split;
use crate::data::store::Store;
use crate::dim::{Rank, Shape, Sides};
use crate::group::{self, work};
use crate::nn::{EncoderConfig, EncoderFlags};
use crate::predict::export;
use crate::print::{self, note};
use crate::run::folder::{Run, check_folders, object};
use crate::run::input::{Input, check_planned};
use crate::run::record::{self, PretrainResult, RESULT};
use crate::run::seen::Seen;
use crate::run::split::{Needs, TestSide, choose_split, scans_of};
use crate::run::weights::{Pretrained, Transfer};
use crate::sample::mirror_zoom::MirrorZoom;
use crate::sample::padded::Padded;
use crate::sample::size;
use crate::sample::windows::Windows;
use crate::settings;
use crate::tasks::cpc::default_grid;
use crate::tasks::{self, Task, TaskConfigs, TaskKind, joined_names, rotation};
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch::Device;

#[derive(Clone, Debug, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
pub struct PretrainConfig {
    /// Pretext task, or several, separated by commas, trained jointly on the one encoder
    #[arg(long, value_enum, value_delimiter = ',', required = true)]
    pub task: Vec<TaskKind>,
    /// Weight of each task's loss, in their order [default: 1 each]
    #[arg(long, value_delimiter = ',', value_name = "W")]
    pub task_weights: Vec<f64>,
    #[command(flatten)]
    #[serde(flatten)]
    pub train: TrainConfig,
    /// Samples drawn from each validation scan, the same in every epoch
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub val_draws: u64,
    /// Side in voxels of the window that a sample is cut from, or one along each axis: left to right, back to front, bottom to top, such as
    /// 128,128,32, in 2D rows, columns; smaller scans are padded [default: the median scan, of larger ones as many voxels as 128^3, in 2D
    /// 224^2, in shape as nnU-Net plans patches; for rot with similar sides made equal; for tasks with a decoder the largest multiples within
    /// it of what the encoder pools by]
    #[arg(long, value_name = "VOXELS")]
    pub window: Option<Sides>,
    #[command(flatten)]
    #[serde(flatten)]
    pub network: EncoderFlags,
    /// Start from this encoder (.pt, .safetensors, a run's checkpoint, or a .pth of nnU-Net, nnssl or torchvision) instead of random weights
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    pub init: Option<PathBuf>,
    /// Which epoch's encoder is the best one [default: that of the metric; of mae, vf, gen and simclr the last]
    #[arg(long, value_enum, help_heading = "Output")]
    pub best: Option<Best>,
    /// Where the best encoder goes when the run ends: PATH.pt, PATH.safetensors, PATH.json [default: weights/<task>]
    #[arg(long, value_name = "PATH", help_heading = "Output")]
    pub weights: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    pub probe: ProbeConfig,
    #[command(flatten)]
    #[serde(flatten)]
    pub mirror_zoom: MirrorZoom,
    #[command(flatten)]
    #[serde(flatten)]
    pub tasks: TaskConfigs,
}

impl PretrainConfig {
    /// Checks ranges that the parser cannot.
    pub fn check(&self) -> Result<()> {
        self.train.check()?;
        self.mirror_zoom.check()?;
        self.probe.check()?;
        ensure!(self.best != Some(Best::Probe) || self.probe.probe.is_some(), "--best probe needs --probe");
        ensure!(
            self.mirror_zoom.is_off() || self.train.slices.is_none(),
            "--mirror and --zoom change whole scans and do not go with --slices"
        );
        ensure!(self.val_draws > 0, "--val-draws must be at least 1");
        self.network.check()?;
        ensure!(
            (1..self.task.len()).all(|i| !self.task[..i].contains(&self.task[i])),
            "--task names a task twice: {:?}",
            self.task
        );
        ensure!(
            self.task_weights.is_empty() || self.task_weights.len() == self.task.len(),
            "--task-weights has {} numbers for {} tasks",
            self.task_weights.len(),
            self.task.len()
        );
        ensure!(
            self.task_weights.iter().all(|w| *w > 0. && w.is_finite()),
            "--task-weights must be above 0, found {:?}",
            self.task_weights
        );
        Ok(())
    }

    /// Builds tasks and network for windows of this shape; smaller scans are padded.
    pub fn trainer(
        &self,
        device: Device,
        rank: Rank,
        window: Shape,
        train: Arc<dyn Scans>,
        valid: Arc<dyn Scans>,
    ) -> Result<Trainer> {
        let (channels, dropout) = (train.channels(), self.train.dropout);
        let encoder = |flags: &EncoderFlags| flags.config(rank, channels as i64, dropout);
        let norm = encoder(&self.network)?.norm();
        let mut configs = self.tasks.clone();
        configs.cpc.grid.get_or_insert_with(|| default_grid(rank, window, norm));
        let mut tasks: Vec<(Arc<dyn Task>, f64)> = Vec::new();
        for (slot, &kind) in self.task.iter().enumerate() {
            let task = tasks::build(kind, &configs, window, channels, rank, self.train.seed)?;
            tasks.push((task.into(), self.task_weights.get(slot).copied().unwrap_or(1.)));
        }
        let views: Vec<Shape> = tasks.iter().map(|(task, _)| task.view_shape()).collect();
        let encoder = encoder(&self.network.fitted(rank, &views)?)?;
        ensure!(
            self.mirror_zoom.is_off() || tasks.iter().any(|(task, _)| task.allows_mirror_zoom()),
            "--mirror and --zoom are not for {}, which have augmentation of their own",
            self.name()
        );
        let mirror_zoom = Some(self.mirror_zoom.clone()).filter(|change| !change.is_off());
        let [train, valid] = [train, valid].map(|scans| Padded::around(scans, window));
        Trainer::new(Setup { config: &self.train, device, tasks, encoder, train, valid, mirror_zoom, given: None })
    }

    /// With the network of the weights that it starts from. Errors if flags or scans ask for another one.
    fn of_weights(&self, encoder: &EncoderConfig, file: &Path, rank: Rank) -> Result<PretrainConfig> {
        let network = self.network.of_weights(encoder, rank, file).with_context(|| self.train.data_name())?;
        Ok(PretrainConfig { network, ..self.clone() })
    }

    /// Short name of the run's tasks: `rot`, or `rot-rpl-jig` for a joint run.
    pub fn name(&self) -> String {
        joined_names(&self.task)
    }
}

/// The network of a run with these settings. Errors if they contradict each other or the store, as far as that shows without a split.
pub fn check(config: &PretrainConfig) -> Result<EncoderConfig> {
    config.check()?;
    let store = Store::open(&config.train.data)?.sliced(config.train.slices)?;
    let mut config = config.clone();
    if let Some(init) = &config.init {
        config = config.of_weights(&Pretrained::open(init)?.config, init, store.rank()?)?;
    }
    let (rank, window) = geometry(&config, &store)?;
    let scans = Arc::new(store.clone());
    let encoder = config.trainer(Device::Cpu, rank, window, scans.clone(), scans)?.network.config;
    // Whom a split holds out is not known here.
    Probe::open(&config.probe, &store, &Split::default(), &encoder, Device::Cpu, false)?;
    Ok(encoder)
}

/// Trains until the last epoch or a signal, as one process or as one of several ranks. `resume`: the folder of the run to continue.
pub fn pretrain(config: &PretrainConfig, resume: Option<&Path>) -> Result<Ended> {
    config.check()?;
    work::together(|| train(config, resume), |ended| matches!(ended, Ended::Finished))
}

fn train(config: &PretrainConfig, resume: Option<&Path>) -> Result<Ended> {
    let prefix = config.weights.clone().unwrap_or_else(|| Path::new("weights").join(config.name()));
    if group::is_first() {
        check_folders(config.train.out.as_deref(), resume)?;
        export::files(&prefix).context("--weights")?;
    }
    let stop = Stop::on_signals()?;
    let store = Store::open(&config.train.data)?.sliced(config.train.slices)?;
    let device = config.train.device.resolve()?;
    group::use_device(device)?;

    check_planned(&store)?;
    let input = Input::of(&store);
    config.train.check_ranks(&settings::resolved(config), &input)?;
    let resumable: Vec<&str> = RESUMABLE.into_iter().chain(["weights"]).collect();
    let reopen = |dir| Run::of_first(|| Run::reopen(dir, settings::resolved(config), &resumable, &input));
    let run = resume.map(reopen).transpose()?;
    let own = run.as_ref().map(Run::split_file);
    let file = own.as_deref().or(config.train.split.as_deref());
    let split = choose_split(file, &store, Needs::Nothing, config.train.val_fraction, TestSide::Share(0.), config.train.seed)?;
    let train = Arc::new(store.subset(&scans_of(&store, &split.fraction(config.train.fraction)?))?);
    let valid = Arc::new(store.subset(&scans_of(&store, &split.val))?);
    let (scans, held_out) = (train.len(), valid.len());
    let seen = Seen::of(&train, &valid);
    // A run that goes on has its weights in its checkpoint, unless it was killed before the first.
    let init = config.init.as_ref().filter(|_| group::is_first() && !run.as_ref().is_some_and(Run::has_checkpoint));
    let init = init.map(|file| Pretrained::open(file)).transpose()?;
    let begun_with = work::of_first(|| Ok(init.as_ref().map(|init| init.config.clone())))?;
    let mut config = config.clone();
    if let Some(run) = &run {
        // As it began, whatever is the default now.
        config.network = config.network.of_weights(&run.network()?, store.rank()?, &run.config_file())?;
    } else if let (Some(encoder), Some(file)) = (&begun_with, &config.init) {
        config = config.of_weights(encoder, file, store.rank()?)?;
    }
    let (rank, window) = geometry(&config, &store)?;
    if config.window.is_none() {
        size::note_planned("window", &store, rank, window);
    }
    size::note_padded("window", &store, rank, window);
    let windows = Windows { scans: Padded::around(train.clone(), window), rank, shape: window, seed: config.train.seed };
    let trainer = config.trainer(device, rank, window, train, valid)?;
    if let Some(run) = &run
        && work::of_first(|| run.is_complete(trainer.epochs))?
    {
        let again = print::command_line(["export", "--run", &run.dir.to_string_lossy()]);
        run.note_complete(trainer.epochs, &format!("its weights are written again by: {again}"));
        return Ok(Ended::Finished);
    }
    if run.is_none() && init.is_none() {
        config.network.note_spacing(&trainer.network.config, input.mean_spacing);
    }
    if run.is_none() && config.task.contains(&TaskKind::Rot) {
        rotation::note_spacing(&config.tasks.rot, rank, input.mean_spacing);
    }
    let last = trainer.tasks.iter().any(|run| run.task.last_is_best());
    let best = config.best.unwrap_or(if last { Best::Last } else { Best::Metric });
    let probe = match group::is_first() {
        true => Probe::open(&config.probe, &store, &split, &trainer.network.config, device, trainer.bf16)?,
        false => None,
    };
    let probed = probe.as_ref().map(Probe::probed);
    let (mut report, mut warnings) = (String::new(), Vec::new());
    if let Some(init) = &init {
        let loaded = init.load_into(&trainer.network.vs.variables(), &input, Transfer::Encoder)?;
        report = format!("{}: {loaded}", init.file.display());
        note!("{}", report.trim_end());
        warnings = loaded.warnings;
    }
    let run = Run::of_first(|| match run {
        Some(run) => {
            let before = run.description()?.remove("probe").unwrap_or_default();
            ensure!(before == json!(probed), "--resume {}: the store of --probe has changed", run.dir.display());
            Ok(run)
        }
        None => {
            let mut resolved = config.clone();
            (resolved.train.epochs, resolved.window, resolved.best) =
                (Some(trainer.epochs), Some(Sides::of(rank, window)), Some(best));
            if let [task] = &trainer.tasks[..] {
                (resolved.train.batch_size, resolved.train.draws) = (Some(task.batch), Some(task.draws));
            }
            let seen = probe.iter().fold(seen, |seen, probe| seen.probed(probe.subset()));
            let seen = if let Some(init) = init { seen.after(init.seen) } else { seen };
            Run::create(
                config.train.out.as_deref(),
                &config.name(),
                settings::resolved(&resolved),
                &split,
                &seen,
                object(json!({ "network": trainer.network.config, "input": input, "warnings": warnings, "probe": probed })),
            )
        }
    })?;
    if group::is_first() {
        run.keep_load_report(&report)?;
    }
    note!(
        "{}: {} on {}{device:?} in {}, {scans} training and {held_out} validation scans, window {}, {} steps an epoch",
        run.dir.display(),
        config.name(),
        work::processes(),
        if trainer.bf16 { "bf16" } else { "fp32" },
        Sides::of(rank, window),
        trainer.steps
    );
    if let (Some(probe), Some(probed)) = (&probe, &probed) {
        let scans = probed.scans.iter().map(String::as_str).collect::<Vec<_>>();
        let now = if run.has_checkpoint() {
            String::new()
        } else {
            format!(", {:.3} before training", probe.score(&trainer.network)?)
        };
        note!("val/{}: {} scans, e.g. {}{now}", probe.name(), scans.len(), some(&scans));
    }
    let (val_draws, save_minutes) = (config.val_draws, config.train.save_minutes);
    let course = Course { name: config.name(), val_draws, save_minutes, best, probe };
    let mut session = Session::open(run.clone(), trainer, course, stop)?;
    if let Ended::Stopped = session.train()? {
        note!(
            "stopped and saved; continue with: {}",
            print::command_line(["pretrain", "--resume", &run.dir.to_string_lossy()])
        );
        return Ok(Ended::Stopped);
    }
    if !group::is_first() {
        return Ok(Ended::Finished);
    }
    let written = export::export_run(&run, "best", &prefix, Some((&windows, device)))?;
    note!("exported {} from {}", written.join(", "), run.dir.display());
    run.write(RESULT, &record(&config, &session, rank, run.warnings()?))?;
    Ok(Ended::Finished)
}

/// Windows of the scans that a pretraining run trained on, which are now in the store `data`, unless where they were.
pub fn windows(run: &Run, data: Option<&Path>) -> Result<Windows> {
    let settings = run.settings()?;
    let setting =
        |key: &str| settings.get(key).cloned().with_context(|| format!("{}: no `{key}`", run.config_file().display()));
    let data = data.map_or_else(|| Ok(serde_json::from_value(setting("data")?)?), |data| anyhow::Ok(data.to_owned()))?;
    let slices = settings.get("slices").cloned().map(serde_json::from_value).transpose()?;
    let store = Store::open(&data)?.sliced(slices)?;
    let input = run.description()?.get("input").cloned();
    ensure!(
        input == Some(serde_json::to_value(Input::of(&store))?),
        "{}: not the store that {} was trained on",
        data.display(),
        run.dir.display()
    );
    let split = Split::load(&run.split_file())?.fraction(serde_json::from_value(setting("fraction")?)?)?;
    let [seed, window] = ["seed", "window"].map(setting);
    let (rank, window): (Rank, Sides) = (store.rank()?, serde_json::from_value(window?)?);
    let shape = window.shape("window", rank)?;
    Ok(Windows {
        rank,
        scans: Padded::around(Arc::new(store.subset(&scans_of(&store, &split))?), shape),
        shape,
        seed: serde_json::from_value(seed?)?,
    })
}

/// What a report shows of a finished pretraining. Of several tasks the means.
fn record(config: &PretrainConfig, session: &Session, rank: Rank, warnings: Vec<String>) -> PretrainResult {
    let tasks: Vec<&dyn Task> = session.trainer().tasks.iter().map(|run| run.task.as_ref()).collect();
    let firsts: Vec<_> = tasks.iter().map(|task| (task.name(), task.metrics().remove(0))).collect();
    let names: Vec<String> = firsts.iter().map(|(task, metric)| format!("{task}.{}", metric.name)).collect();
    let row = session.best().and_then(|(epoch, _)| session.rows().get(epoch as usize));
    let values: Option<Vec<f64>> = names.iter().map(|name| row?.get(&format!("val/{name}"))).collect();
    let chances: Option<Vec<f64>> = firsts.iter().map(|(_, metric)| metric.chance).collect();
    // Where high is good for one and low for another, the mean says nothing.
    let comparable = tasks.iter().all(|task| task.lower_is_better() == tasks[0].lower_is_better());
    let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
    PretrainResult {
        version: record::VERSION,
        pretext: config.name(),
        unlabelled: config.train.fraction,
        rank: Some(rank.n()),
        warnings,
        metric: if names.len() == 1 { names[0].clone() } else { format!("mean of {}", names.join(", ")) },
        value: values.filter(|_| comparable).map(mean),
        chance: chances.filter(|_| comparable).map(mean),
        seconds: session.rows().iter().filter_map(|r| r.get("seconds")).sum(),
        epochs: session.rows().len(),
    }
}

/// Rank and window for these scans. The network is known by now.
fn geometry(config: &PretrainConfig, store: &Store) -> Result<(Rank, Shape)> {
    let rank = store.rank()?;
    let window = match &config.window {
        Some(given) => given.shape("window", rank)?,
        None => tasks::default_window(&config.task, store, rank, config.network.networks(rank))?,
    };
    size::check("window", store, rank, window)?;
    Ok((rank, window))
}
