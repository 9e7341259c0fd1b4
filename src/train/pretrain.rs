//! A pretraining run from start to finish: data, split, epochs, checkpoints, export.

use super::config::PretrainConfig;
use super::means::Means;
use super::run::{Progress, Run};
use super::stop::Stop;
use super::trainer::Trainer;
use crate::data::split::{Split, subject};
use crate::data::store::Store;
use crate::data::{Scans, loader::Loader};
use crate::dim::{Rank, Shape};
use crate::patch::default_window;
use crate::report::curves::{Metric, write_curves};
use crate::report::history::{History, Row};
use crate::report::progress::{Progress as Bar, StepInfo};
use crate::report::tensorboard::{EventWriter, wall_time};
use crate::{export, weights};
use anyhow::{Context, Result, bail, ensure};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a run ended.
pub enum Ended {
    Finished,
    /// Stopped by a signal, saved, and to be continued.
    Stopped,
}

/// Trains until the last epoch or a signal. `resume`: the folder of the run to continue.
pub fn pretrain(config: &PretrainConfig, resume: Option<&Path>) -> Result<Ended> {
    config.check()?;
    let stop = Stop::on_signals()?;
    let store = Store::open(&config.data)?;
    ensure!(
        store.index().complete,
        "{}: preprocessing did not finish; run the same preprocess command again",
        config.data.display()
    );
    let device = config.device.resolve()?;

    let input = export::Input::of(store.index());
    let run = resume.map(|dir| Run::reopen(dir, config, &input)).transpose()?;
    let split = choose_split(config, &store, run.as_ref())?;
    let train = Arc::new(store.subset(&scans_of(&store, &split.fraction(config.fraction)?))?);
    let valid = Arc::new(store.subset(&scans_of(&store, &split.val))?);
    let (rank, window) = geometry(config, &store)?;
    let mut trainer = Trainer::new(config, device, rank, window, train.clone(), valid.clone())?;
    let mut report = String::new();
    if let (Some(file), None) = (&config.init, &run) {
        let saved = weights::read(file)?;
        report = format!("{}: {}", file.display(), weights::load_encoder(&trainer.network.vs.variables(), &saved, file)?);
        eprint!("{report}");
    }
    let run = match run {
        Some(run) => run,
        None => {
            let mut resolved = config.clone();
            (resolved.epochs, resolved.window) = (Some(trainer.epochs), Some(window));
            if let [task] = &trainer.tasks[..] {
                (resolved.batch_size, resolved.draws) = (Some(task.batch), Some(task.draws));
            }
            let run = Run::create(&resolved, &split, &trainer.network.config, &input)?;
            if !report.is_empty() {
                crate::fs::write_atomic(&run.dir.join("load.txt"), |f| Ok(std::io::Write::write_all(f, report.as_bytes())?))?;
            }
            run
        }
    };
    let progress = run.restore(&trainer.network, &mut trainer.optimizer)?;
    eprintln!(
        "{}: {} on {device:?} in {}, {} training and {} validation scans, window {window}, {} steps an epoch",
        run.dir.display(),
        config.name(),
        if trainer.bf16 { "bf16" } else { "fp32" },
        train.len(),
        valid.len(),
        trainer.steps
    );
    let history = History::open(&run.dir, Some(progress.epoch as usize))?;
    let events = EventWriter::create(&run.dir, progress.epoch + u64::from(progress.epoch > 0))?;
    let mut session = Session { config, run, trainer, progress, history, events, stop };
    if let Ended::Stopped = session.epochs()? {
        let dir = session.run.dir.display();
        eprintln!("stopped and saved; continue with: pretext3d pretrain --resume {dir}");
        return Ok(Ended::Stopped);
    }
    let prefix = config.weights.clone().unwrap_or_else(|| Path::new("weights").join(config.name()));
    let written = export::export_run(&session.run, "best", &prefix)?;
    eprintln!("exported {} from {}", written.join(", "), session.run.dir.display());
    Ok(Ended::Finished)
}

/// The run's own split, the one named, or a new one.
fn choose_split(config: &PretrainConfig, store: &Store, run: Option<&Run>) -> Result<Split> {
    let own = run.map(Run::split_file);
    let split = match own.as_ref().or(config.split.as_ref()) {
        Some(file) => Split::load(file)?,
        None => {
            let subjects: Vec<_> = store.index().subjects.iter().map(|s| (s.id.clone(), s.split.clone())).collect();
            Split::draw(&subjects, config.val_fraction, 0., config.seed)?
        }
    };
    let unused = split.check(store.ids())?;
    if !unused.is_empty() {
        eprintln!("{} subjects of the store are on no side of the split and are not used", unused.len());
    }
    Ok(split)
}

/// The stored scans of these subjects.
fn scans_of(store: &Store, subjects: &[String]) -> Vec<String> {
    let wanted: HashSet<&str> = subjects.iter().map(String::as_str).collect();
    store.ids().iter().filter(|id| wanted.contains(subject(id))).cloned().collect()
}

/// Rank and window side for these scans.
fn geometry(config: &PretrainConfig, scans: &dyn Scans) -> Result<(Rank, usize)> {
    let shapes: Vec<Shape> = (0..scans.len()).map(|s| scans.shape(s)).collect();
    let rank = Rank::of(*shapes.first().context("the store has no scans")?);
    ensure!(shapes.iter().all(|s| Rank::of(*s) == rank), "the store mixes images and volumes");
    let window = config.window.unwrap_or_else(|| default_window(scans, rank));
    if let Some(small) = (0..scans.len()).find(|&s| rank.axes().any(|a| shapes[s][a] < window)) {
        bail!(
            "--window {window} is larger than {}, which has {:?} voxels; lower --window or leave the scan out",
            scans.id(small),
            shapes[small]
        );
    }
    Ok((rank, window))
}

struct Session<'a> {
    config: &'a PretrainConfig,
    run: Run,
    trainer: Trainer,
    progress: Progress,
    history: History,
    events: EventWriter,
    stop: Stop,
}

impl Session<'_> {
    fn epochs(&mut self) -> Result<Ended> {
        let tty = console::user_attended_stderr();
        let mut bar = Bar::new(self.trainer.epochs as usize, self.trainer.steps as usize, tty);
        while self.progress.epoch < self.trainer.epochs {
            let started = Instant::now();
            let first_step = self.progress.step;
            let Some(wait) = self.train_epoch(&mut bar)? else { return Ok(Ended::Stopped) };
            let seconds = started.elapsed().as_secs_f64();
            let validation = self.trainer.validate(self.config.val_draws)?;
            let mut row = Row::new(self.progress.epoch as usize + 1);
            let steps = self.trainer.steps;
            row.set("step", ((self.progress.epoch + 1) * steps) as f64);
            row.set("lr", self.trainer.lr(self.progress.epoch, steps - 1));
            self.progress.means.iter().for_each(|(name, value)| row.set(format!("train/{name}"), value));
            validation.iter().for_each(|(name, value)| row.set(format!("val/{name}"), value));
            row.set("seconds", seconds);
            row.set("samples_per_s", ((steps - first_step) * self.trainer.samples_per_step()) as f64 / seconds);
            row.set("wait_share", wait.as_secs_f64() / seconds);
            self.finish_epoch(row, &validation, &mut bar)?;
        }
        bar.finish();
        Ok(Ended::Finished)
    }

    /// Trains the rest of the epoch; gives how long the steps waited for data, or `None` if a signal stopped it (then saved).
    fn train_epoch(&mut self, bar: &mut Bar) -> Result<Option<Duration>> {
        let epoch = self.progress.epoch;
        let mut batches: Loader<_> = self.trainer.batches(epoch, self.progress.step);
        let (started, first_step) = (Instant::now(), self.progress.step);
        let mut saved = Instant::now();
        while self.progress.step < self.trainer.steps {
            let step = self.progress.step;
            self.trainer.step(epoch, step, &mut batches, &mut self.progress.means)?;
            self.progress.step += 1;
            let seconds = started.elapsed().as_secs_f64();
            let done = (self.progress.step - first_step) * self.trainer.samples_per_step();
            let means = &self.progress.means;
            let metrics: Vec<_> = means.iter().filter(|m| m.0.contains('.')).map(|(n, v)| (n.to_owned(), v)).collect();
            bar.step(&StepInfo {
                epoch: epoch as usize + 1,
                step: self.progress.step as usize,
                loss: means.get("loss").unwrap_or(f64::NAN),
                metrics: &metrics,
                samples_per_s: done as f64 / seconds,
                wait_share: batches.wait().as_secs_f64() / seconds,
            });
            let stop = self.stop.asked();
            if stop || saved.elapsed().as_secs_f64() > 60. * self.config.save_minutes {
                self.trainer.flush(&mut self.progress.means)?;
                self.run.save("last", &self.trainer.network, &self.trainer.optimizer, &self.progress)?;
                saved = Instant::now();
            }
            if stop {
                bar.finish();
                return Ok(None);
            }
        }
        self.trainer.flush(&mut self.progress.means)?;
        Ok(Some(batches.wait()))
    }

    /// Records the epoch, then saves: a run killed in between repeats the epoch and its row.
    fn finish_epoch(&mut self, row: Row, validation: &Means, bar: &mut Bar) -> Result<()> {
        let score = self.trainer.score(validation);
        let epoch = self.progress.epoch;
        let better = self.progress.best.is_none_or(|(_, best)| score > best);
        self.progress = Progress { epoch: epoch + 1, step: 0, means: Means::default(), best: self.progress.best };
        if better {
            self.progress.best = Some((epoch, score));
        }
        bar.epoch(&row);
        for (column, value) in row.values() {
            self.events.scalar(column, row.epoch as u64, wall_time(), *value as f32)?;
        }
        self.events.flush()?;
        self.history.append(row)?;
        let metrics: Vec<Metric> = self
            .trainer
            .tasks
            .iter()
            .flat_map(|run| {
                let name = run.task.name();
                run.task.metrics().into_iter().map(move |m| Metric { column: format!("{name}.{}", m.name), chance: m.chance })
            })
            .collect();
        write_curves(&self.run.dir.join("curves.png"), &self.config.name(), self.history.rows(), &metrics)?;
        if better {
            self.run.save("best", &self.trainer.network, &self.trainer.optimizer, &self.progress)?;
        }
        self.run.save("last", &self.trainer.network, &self.trainer.optimizer, &self.progress)
    }
}
