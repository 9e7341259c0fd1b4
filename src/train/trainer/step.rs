//! One optimizer step: forward, backward, update, and the numbers of it.

use super::{Pending, StepBatches, TaskRun, Trainer};
use crate::group;
use crate::group::work::stopping;
use crate::nn::Mode;
use crate::run::means::Means;
use crate::sample::loader::Loader;
use crate::train::network::seed_libtorch;
use anyhow::{Context, Result, bail};
use std::ops::Range;
use tch::{Device, Kind, Tensor, no_grad};

impl Trainer {
    /// A whole step: [`Trainer::gradients`], then [`Trainer::update`].
    pub fn step(&mut self, epoch: u64, step: u64, batches: &mut Loader<StepBatches>, means: &mut Means) -> Result<()> {
        let values = self.gradients(epoch, step, batches, false)?.context("another rank was asked to stop")?;
        self.update(epoch, step, values, means)
    }

    /// Forward and backward of a step, whose gradients [`Trainer::update`] applies: gives its numbers, or `None`, with nothing done, if a
    /// rank was asked to stop, `stop` being whether this one was. After an error weights and statistics are those of before the step.
    pub fn gradients(
        &mut self,
        epoch: u64,
        step: u64,
        batches: &mut Loader<StepBatches>,
        stop: bool,
    ) -> Result<Option<Tensor>> {
        // One process that fails has computed nothing yet, but for earlier batches of the step.
        let undone = group::world() > 1 || self.accumulate > 1;
        let before = if undone { self.network.statistics() } else { vec![] };
        let values = self.accumulated(epoch, step, batches, stop);
        if values.is_err() {
            no_grad(|| before.iter().for_each(|(statistic, before)| statistic.shallow_clone().copy_(before)));
        }
        values
    }

    fn accumulated(&mut self, epoch: u64, step: u64, batches: &mut Loader<StepBatches>, stop: bool) -> Result<Option<Tensor>> {
        seed_libtorch(self.seed, 1 + epoch * self.steps + step);
        let mut sums: Vec<Tensor> = Vec::new();
        let mode = if epoch < self.frozen_epochs { Mode::Frozen } else { Mode::Train };
        for part in 0..self.accumulate {
            let loaded = batches.next().expect("the loader covers every step of the epoch")?;
            if stopping(stop && part == 0)? {
                return Ok(None);
            }
            let last = part + 1 == self.accumulate;
            // A failure while others compute ends their collectives, too.
            let values = group::attempt(|| self.backward(&loaded, mode, last)).inspect_err(|error| {
                if group::lost().is_none() {
                    group::leave(&format!("{error:#}"));
                }
            })?;
            sums.push(values);
        }
        Ok(Some(no_grad(|| Tensor::stack(&sums, 0).mean_dim(0, false, Kind::Float))))
    }

    /// Adds the gradients of one batch of each task; `last`: of the step. Gives losses and metrics.
    fn backward(&mut self, loaded: &StepBatches, mode: Mode, last: bool) -> Result<Tensor> {
        let mut values = Vec::new();
        for (task, batch) in loaded.iter().enumerate() {
            let outcome = group::with_batch(self.tasks[task].batch, || {
                let outcome = self.forward(task, batch, mode)?;
                if let Some(reducer) = self.reducer.as_mut().filter(|_| last && task + 1 == loaded.len()) {
                    reducer.arm()?;
                }
                (&outcome.loss * (self.tasks[task].weight / self.accumulate as f64)).f_backward()?;
                anyhow::Ok(outcome)
            })?;
            values.push(outcome.loss.detach());
            values.extend(outcome.metrics);
        }
        if let Some(reducer) = self.reducer.as_mut().filter(|_| last) {
            reducer.finish()?;
        }
        Ok(Tensor::stack(&values.iter().map(|v| v.to_kind(Kind::Float)).collect::<Vec<_>>(), 0))
    }

    /// Applies the gradients of a step with these numbers. They reach `means` now or, on a GPU, some steps later ([`Trainer::flush`]).
    pub fn update(&mut self, epoch: u64, step: u64, values: Tensor, means: &mut Means) -> Result<()> {
        let norm = self.optimizer.step(self.rates(epoch, step))?;
        let values = no_grad(|| Tensor::cat(&[values, norm.reshape([1])], 0));
        self.pending.push(Pending { epoch, step, values });
        if self.pending.len() >= self.check_steps {
            self.flush(means)?;
        }
        Ok(())
    }

    /// Fetches the numbers of the steps since the last flush. A loss or gradient that is not finite is an error that names the
    /// step and its scans.
    pub fn flush(&mut self, means: &mut Means) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let stacked = Tensor::stack(&self.pending.iter().map(|p| &p.values).collect::<Vec<_>>(), 0);
        let rows: Vec<Vec<f64>> = Vec::try_from(stacked.to_device(Device::Cpu).to_kind(Kind::Double))?;
        for (pending, row) in std::mem::take(&mut self.pending).iter().zip(rows) {
            let mut values = row.into_iter();
            let mut next = || values.next().expect("one value a loss, metric and norm");
            let mut total = 0.;
            for (index, run) in self.tasks.iter().enumerate() {
                let loss = next();
                if !loss.is_finite() {
                    bail!(self.not_finite(pending, &format!("the loss of {} is {loss}", run.task.name()), index..index + 1));
                }
                total += run.weight * loss;
                self.add_task(means, run, loss, &mut next, 1.);
            }
            let norm = next();
            if !norm.is_finite() {
                bail!(self.not_finite(pending, &format!("the gradient's norm is {norm}"), 0..self.tasks.len()));
            }
            means.add("loss", total, 1.);
            means.add("gradient_norm", norm, 1.);
        }
        Ok(())
    }

    /// Adds a task's loss (where there are several tasks) and metrics.
    pub(super) fn add_task(&self, means: &mut Means, run: &TaskRun, loss: f64, next: &mut impl FnMut() -> f64, weight: f64) {
        let name = run.task.name();
        if self.tasks.len() > 1 {
            means.add(&format!("{name}.loss"), loss, weight);
        }
        for metric in run.task.metrics() {
            means.add(&format!("{name}.{}", metric.name), next(), weight);
        }
    }

    fn not_finite(&self, pending: &Pending, what: &str, tasks: Range<usize>) -> String {
        let mut names = Vec::new();
        for TaskRun { train, batch, .. } in &self.tasks[tasks] {
            let samples = batch * self.accumulate;
            let order = train.order(pending.epoch, pending.step * samples..(pending.step + 1) * samples);
            names.extend(order.into_iter().map(|scan| train.scans.id(scan)));
        }
        names.sort();
        names.dedup();
        format!("step {}: {what}; its scans: {}", pending.step + 1, names.join(", "))
    }
}
