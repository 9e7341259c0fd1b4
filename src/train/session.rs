//! The loop over epochs: steps, validation, checkpoints, logs, and a clean stop. The same for pretraining and fine-tuning. Of several ranks
//! the first one reads and writes.

use super::probe::Probe;
use super::stop::Stop;
use super::trainer::Trainer;
use crate::group::{self, work};
use crate::print::{self, note};
use crate::report::curves::{Metric, write_curves};
use crate::report::progress::{EpochBar, StepInfo};
use crate::report::tensorboard::{EventWriter, wall_time};
use crate::run::folder::{Progress, Run};
use crate::run::history::{History, Row};
use crate::run::means::Means;
use crate::run::tensors;
use crate::sample::loader::Loader;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// How a run ended.
pub enum Ended {
    Finished,
    /// Stopped by a signal, saved, and to be continued.
    Stopped,
}

/// Which checkpoint is the best one, which is exported and tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Best {
    /// That of the last epoch
    Last,
    /// That with the highest validation metric, of several tasks with the highest mean
    Metric,
    /// That with the highest score of --probe
    Probe,
}

/// How a run goes on after each epoch.
pub struct Course {
    /// Title of the curves.
    pub name: String,
    /// Samples of each validation scan.
    pub val_draws: u64,
    pub save_minutes: f64,
    pub best: Best,
    pub probe: Option<Probe>,
}

/// The numbers of the epochs, as they are kept.
struct Records {
    history: History,
    events: EventWriter,
}

/// A run under way.
pub struct Session {
    run: Run,
    trainer: Trainer,
    progress: Progress,
    /// On the first rank.
    records: Option<Records>,
    stop: Stop,
    course: Course,
}

impl Session {
    /// Takes up a run where its last checkpoint left it.
    pub fn open(run: Run, mut trainer: Trainer, course: Course, stop: Stop) -> Result<Session> {
        let progress = work::of_first(|| restore(&run, &mut trainer))?;
        group::broadcast(&trainer.state())?;
        let open = || -> Result<Records> {
            let history = History::open(&run.dir, Some(progress.epoch as usize))?;
            let events = EventWriter::create(&run.dir, progress.epoch + u64::from(progress.epoch > 0))?;
            Ok(Records { history, events })
        };
        let records = group::is_first().then(open).transpose()?;
        Ok(Session { run, trainer, progress, records, stop, course })
    }

    /// What is trained.
    pub fn trainer(&self) -> &Trainer {
        &self.trainer
    }

    /// Epoch (from 0) of the best checkpoint so far, and what it was chosen by.
    pub fn best(&self) -> Option<(u64, f64)> {
        self.progress.best
    }

    /// Numbers of the epochs so far, on the first rank.
    pub fn rows(&self) -> &[Row] {
        self.records.as_ref().map_or(&[], |records| records.history.rows())
    }

    /// Trains until the last epoch or a signal.
    pub fn train(&mut self) -> Result<Ended> {
        let tty = print::attended();
        let mut bar = EpochBar::new(self.trainer.epochs as usize, self.trainer.steps as usize, tty);
        while self.progress.epoch < self.trainer.epochs {
            let started = Instant::now();
            let first_step = self.progress.step;
            let Some(wait) = self.train_epoch(&mut bar)? else { return Ok(Ended::Stopped) };
            let seconds = started.elapsed().as_secs_f64();
            let validation = self.trainer.validate(self.course.val_draws, &self.stop);
            let Some(validation) = self.keeping(validation)? else {
                self.stop(&bar)?;
                return Ok(Ended::Stopped);
            };
            let mut row = Row::new(self.progress.epoch as usize + 1);
            let steps = self.trainer.steps;
            row.set("step", ((self.progress.epoch + 1) * steps) as f64);
            let rates = self.trainer.rates(self.progress.epoch, steps - 1);
            row.set("lr", rates.new);
            if self.trainer.rates_differ() {
                row.set("lr_encoder", rates.given);
            }
            self.progress.means.iter().for_each(|(name, value)| row.set(format!("train/{name}"), value));
            validation.iter().for_each(|(name, value)| row.set(format!("val/{name}"), value));
            if let Some(probe) = self.course.probe.as_ref().filter(|p| p.is_due(self.progress.epoch, self.trainer.epochs)) {
                row.set(format!("val/{}", probe.name()), probe.score(&self.trainer.network)?);
            }
            row.set("seconds", seconds);
            row.set("samples_per_s", ((steps - first_step) * self.trainer.samples_per_step()) as f64 / seconds);
            row.set("wait_share", wait.as_secs_f64() / seconds);
            self.finish_epoch(row, &validation, &mut bar)?;
        }
        bar.finish();
        // No rank goes on before the first has saved.
        let stopped = work::stopping(false);
        self.keeping(stopped).map(|_| Ended::Finished)
    }

    /// Trains the rest of the epoch; gives how long the steps waited for data, or `None` if a signal stopped it (then saved).
    fn train_epoch(&mut self, bar: &mut EpochBar) -> Result<Option<Duration>> {
        let epoch = self.progress.epoch;
        let mut batches: Loader<_> = self.trainer.batches(epoch, self.progress.step);
        let (started, first_step) = (Instant::now(), self.progress.step);
        let mut saved = Instant::now();
        while self.progress.step < self.trainer.steps {
            let step = self.progress.step;
            let gradients = self.trainer.gradients(epoch, step, &mut batches, self.stop.asked());
            let Some(values) = self.keeping(gradients)? else {
                self.stop(bar)?;
                return Ok(None);
            };
            self.trainer.update(epoch, step, values, &mut self.progress.means)?;
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
            if group::is_first() && saved.elapsed().as_secs_f64() > 60. * self.course.save_minutes {
                self.trainer.flush(&mut self.progress.means)?;
                self.save("last")?;
                saved = Instant::now();
            }
        }
        self.trainer.flush(&mut self.progress.means)?;
        Ok(Some(batches.wait()))
    }

    /// Saves to go on later.
    fn stop(&mut self, bar: &EpochBar) -> Result<()> {
        self.trainer.flush(&mut self.progress.means)?;
        self.save("last")?;
        bar.finish();
        // No rank ends before the first has saved.
        work::stopping(false).map(drop)
    }

    /// Records the epoch, then saves: a run killed in between repeats the epoch and its row.
    fn finish_epoch(&mut self, row: Row, validation: &Means, bar: &mut EpochBar) -> Result<()> {
        let epoch = self.progress.epoch;
        let Some(Records { history, events }) = &mut self.records else {
            self.progress = Progress { epoch: epoch + 1, ..Progress::default() };
            return Ok(());
        };
        let (score, best) = match (self.course.best, &self.course.probe) {
            (Best::Probe, Some(probe)) => (row.get(&format!("val/{}", probe.name())), self.progress.best),
            (Best::Probe, None) => bail!("--best probe needs --probe"),
            (Best::Metric, _) => (Some(self.trainer.score(validation)), self.progress.best),
            (Best::Last, _) => (Some(self.trainer.score(validation)), None),
        };
        // An epoch without a look of the probe is no candidate.
        let better = score.filter(|score| best.is_none_or(|(_, best)| *score > best)).map(|score| (epoch, score));
        let best = better.or(self.progress.best);
        self.progress = Progress { epoch: epoch + 1, step: 0, means: Means::default(), best };
        bar.epoch(&row);
        for (column, value) in row.values() {
            events.scalar(column, row.epoch as u64, wall_time(), *value as f32)?;
        }
        events.flush()?;
        history.append(row)?;
        let metrics: Vec<Metric> = self
            .trainer
            .tasks
            .iter()
            .flat_map(|run| {
                let name = run.task.name();
                run.task.metrics().into_iter().map(move |m| Metric { column: format!("{name}.{}", m.name), chance: m.chance })
            })
            .chain(self.course.probe.iter().map(|probe| Metric { column: probe.name().to_owned(), chance: None }))
            .collect();
        write_curves(&self.run.dir.join("curves.png"), &self.course.name, history.rows(), &metrics)?;
        if better.is_none() {
            return self.save("last");
        }
        // In this order: a run killed in between repeats the epoch.
        self.save("best")?;
        self.run.best_is_last()
    }

    /// Saves where the run stands before an error ends it: weights are those of the last whole step.
    fn keeping<T>(&mut self, result: Result<T>) -> Result<T> {
        if result.is_err() && group::is_first() {
            let saved = self.trainer.flush(&mut self.progress.means).and_then(|()| self.save("last"));
            let Progress { epoch, step, .. } = self.progress;
            match saved {
                Ok(()) => note!("{}: saved after {step} steps of epoch {}", self.run.dir.display(), epoch + 1),
                Err(error) => note!("warning: not saved: {error:#}"),
            }
        }
        result
    }

    /// Writes a checkpoint.
    fn save(&self, which: &str) -> Result<()> {
        if !group::is_first() {
            return Ok(());
        }
        let Trainer { network, optimizer, .. } = &self.trainer;
        self.run.save(which, &network.state(), &optimizer.state(), &self.progress)
    }
}

/// Takes weights and optimizer from the run's last checkpoint, if it has one.
fn restore(run: &Run, trainer: &mut Trainer) -> Result<Progress> {
    let Some(saved) = run.last()? else { return Ok(Progress::default()) };
    let file = || run.checkpoint("last").display().to_string();
    tensors::restore(&trainer.network.vs.variables(), &saved.model).with_context(file)?;
    trainer.optimizer.restore(saved.optimizer).with_context(file)?;
    Ok(saved.progress)
}
