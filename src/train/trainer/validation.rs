//! The validation pass, and what chooses the best checkpoint.

use super::{TaskRun, Trainer};
use crate::device::memory_format;
use crate::ffi;
use crate::nn::Mode;
use crate::run::means::Means;
use crate::sample::loader::Loader;
use crate::tasks::Downstream;
use crate::train::stop::Stop;
use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor, no_grad};

impl Trainer {
    /// Loss and metrics on the validation scans, the same samples every time; `None` if a signal came.
    pub fn validate(&self, draws: u64, stop: &Stop) -> Result<Option<Means>> {
        let mut means = Means::default();
        let mut total = 0.;
        for (index, run) in self.tasks.iter().enumerate() {
            if let Some(head) = self.network.heads[index].downstream() {
                if !self.judge(run, head, &mut means, stop)? {
                    return Ok(None);
                }
                continue;
            }
            let (sampler, batch, samples) = (run.valid.clone(), run.batch, run.valid.scans.len() as u64 * draws);
            let device = self.device;
            let items = 0..samples.div_ceil(batch) as usize;
            let loader = Loader::new(self.threads, self.prefetch, items, move |item| {
                let first = item as u64 * batch;
                sampler.valid(first..(first + batch).min(samples))?.pinned(device)
            });
            let mut rows = Vec::new();
            let mut weights = Vec::new();
            for loaded in loader {
                if stop.asked() {
                    return Ok(None);
                }
                let loaded = loaded?;
                let outcome = no_grad(|| self.forward(index, &loaded, Mode::Eval))?;
                let mut values = vec![outcome.loss.to_kind(Kind::Float)];
                values.extend(outcome.metrics.iter().map(|m| m.to_kind(Kind::Float)));
                rows.push(Tensor::stack(&values, 0));
                weights.push(loaded.scans.len() as f64);
            }
            let rows: Vec<Vec<f64>> = Vec::try_from(Tensor::stack(&rows, 0).to_device(Device::Cpu).to_kind(Kind::Double))?;
            for (row, &weight) in rows.iter().zip(&weights) {
                let mut values = row.iter().copied();
                let mut next = || values.next().expect("one value a loss and metric");
                let loss = next();
                total += run.weight * loss * weight / samples as f64;
                self.add_task(&mut means, run, loss, &mut next, weight);
            }
        }
        ensure!(total.is_finite(), "the validation loss is {total}");
        if self.network.heads.iter().any(|head| head.downstream().is_none()) {
            means.add("loss", total, 1.);
        }
        Ok(Some(means))
    }

    /// Metrics of a task over whole validation scans; undefined ones (of a class that no scan has) are left out. False if a signal came.
    fn judge(&self, run: &TaskRun, head: &dyn Downstream, means: &mut Means, stop: &Stop) -> Result<bool> {
        let scans = run.valid.scans.as_ref();
        let place = |x: &Tensor| ffi::set_memory_format(x, memory_format(self.device, self.bf16));
        let judged = ffi::with_autocast(self.device, self.bf16, || {
            no_grad(|| head.judge(self.network.encoder.as_ref(), scans, self.device, &place, &|| stop.asked()))
        })?;
        let Some(metrics) = judged else { return Ok(false) };
        ensure!(
            metrics.first().is_some_and(|(_, value)| value.is_finite()),
            "validation: {} is undefined on these {} scans",
            run.task.selects(),
            scans.len()
        );
        for (name, value) in metrics.into_iter().filter(|(_, value)| value.is_finite()) {
            means.add(&format!("{}.{name}", run.task.name()), value, 1.);
        }
        Ok(true)
    }

    /// What the best checkpoint is chosen by, higher being better: [`Task::selects`] of each task, averaged; those of which the lowest is
    /// the best count negative.
    pub fn score(&self, validation: &Means) -> f64 {
        let selected = |run: &TaskRun| {
            let metric = format!("{}.{}", run.task.name(), run.task.selects());
            let value = validation.get(&metric).expect("validation reports every metric");
            if run.task.lower_is_better() { -value } else { value }
        };
        self.tasks.iter().map(selected).sum::<f64>() / self.tasks.len() as f64
    }
}
