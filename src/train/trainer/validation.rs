//! The validation pass, and what chooses the best checkpoint.

use super::{TaskRun, Trainer};
use crate::device::memory_format;
use crate::ffi;
use crate::group::{self, work};
use crate::nn::Mode;
use crate::run::means::Means;
use crate::sample::loader::Loader;
use crate::sample::sampler::LoadedBatch;
use crate::tasks::Downstream;
use crate::train::stop::Stop;
use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor, no_grad};

impl Trainer {
    /// Loss and metrics on the validation scans, the same samples every time, shared out between the ranks; `None` if a signal came.
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
            let (device, batches) = (self.device, samples.div_ceil(batch) as usize);
            let of_batch = move |item: usize| (item as u64 * batch)..((item as u64 + 1) * batch).min(samples);
            let items: Vec<usize> = work::own(batches).collect();
            let loader = Loader::new(self.threads, self.prefetch, 0..items.len(), move |item| {
                sampler.valid(of_batch(items[item]))?.pinned(device)
            });
            let rows = work::leaving(self.validate_task(index, loader, &|| stop.asked()))?;
            let Some(rows) = work::gathered(rows, batches)? else { return Ok(None) };
            for (item, row) in rows.iter().enumerate() {
                let mut values = row.iter().copied();
                let mut next = || values.next().expect("one value a loss and metric");
                let (loss, positions) = (next(), of_batch(item));
                let weight = (positions.end - positions.start) as f64;
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

    /// Loss and metrics of each batch of a task; `None` if a rank leaves off.
    fn validate_task(
        &self,
        index: usize,
        loader: Loader<LoadedBatch>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<Vec<f64>>>> {
        let mut rows = Vec::new();
        for loaded in loader {
            if work::leaving_off(stop) {
                return Ok(None);
            }
            let loaded = loaded?;
            let outcome = group::alone(|| no_grad(|| self.forward(index, &loaded, Mode::Eval)))?;
            let mut values = vec![outcome.loss.to_kind(Kind::Float)];
            values.extend(outcome.metrics.iter().map(|m| m.to_kind(Kind::Float)));
            rows.push(Tensor::stack(&values, 0));
        }
        if rows.is_empty() {
            return Ok(Some(vec![]));
        }
        Ok(Some(Vec::try_from(Tensor::stack(&rows, 0).to_device(Device::Cpu).to_kind(Kind::Double))?))
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
