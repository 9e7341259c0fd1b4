//! What is trained, and its batches; one training step and one validation pass. Knows tasks only as [`Task`] and
//! [`Head`](crate::tasks::Head).

mod step;
mod validation;

use super::config::TrainConfig;
use super::network::{Network, layout_views};
use crate::data::Scans;
use crate::device::memory_format;
use crate::dim::voxels;
use crate::ffi;
use crate::group::work::cores;
use crate::group::{self, Reducer};
use crate::nn::decoder::is_output;
use crate::nn::{EncoderConfig, Mode, NormKind, calibrate};
use crate::run::tensors::ENCODER;
use crate::sample::loader::Loader;
use crate::sample::mirror_zoom::MirrorZoom;
use crate::sample::sampler::{LoadedBatch, Sampler};
use crate::tasks::{Batch, Outcome, Task, views};
use crate::train::optim::Optimizer;
use crate::train::schedule::{Rates, Schedule};
use anyhow::{Result, ensure};
use std::ops::Range;
use std::sync::Arc;
use tch::{Device, Tensor};

/// Steps between looking at the loss on a GPU, where each look waits for the device.
const GPU_CHECK_STEPS: usize = 16;

/// Threads that prepare batches: beside a GPU, and beside training on the CPU, which takes every core itself.
const MAX_LOADER_THREADS: usize = 16;
const CPU_LOADER_THREADS: usize = 2;

/// A task in training: where its samples come from and what it weighs.
pub struct TaskRun {
    pub task: Arc<dyn Task>,
    pub weight: f64,
    /// Samples a batch.
    pub batch: u64,
    /// Samples of each training scan an epoch.
    pub draws: u64,
    train: Sampler,
    valid: Sampler,
}

/// A step whose numbers are still on the device.
struct Pending {
    epoch: u64,
    step: u64,
    /// Per task its loss, then its metrics; then the gradient norm.
    values: Tensor,
}

pub struct Trainer {
    pub network: Network,
    pub optimizer: Optimizer,
    pub tasks: Vec<TaskRun>,
    pub device: Device,
    pub bf16: bool,
    pub epochs: u64,
    /// Optimizer steps an epoch.
    pub steps: u64,
    schedule: Schedule,
    accumulate: u64,
    checkpointing: bool,
    seed: u64,
    threads: usize,
    prefetch: usize,
    /// Of several ranks.
    reducer: Option<Reducer>,
    pending: Vec<Pending>,
    /// Steps between looking at the loss.
    check_steps: usize,
    frozen_epochs: u64,
    /// See [`Given::decoder`].
    given_decoder: Option<&'static str>,
}

/// What a [`Trainer`] is made of.
pub struct Setup<'a> {
    pub config: &'a TrainConfig,
    pub device: Device,
    /// With the weight of each one's loss.
    pub tasks: Vec<(Arc<dyn Task>, f64)>,
    pub encoder: EncoderConfig,
    pub train: Arc<dyn Scans>,
    pub valid: Arc<dyn Scans>,
    /// Of training scans, for pretext tasks that take them changed.
    pub mirror_zoom: Option<MirrorZoom>,
    /// Of a fine-tuning; without, all weights are trained alike.
    pub given: Option<Given>,
}

/// Weights that are trained otherwise than the new layers above them.
pub struct Given {
    /// What the names of a decoder begin with that belongs to them, as the encoder does, all but its output layers.
    pub decoder: Option<&'static str>,
    /// Learning rate, after warm-up.
    pub lr: f64,
    /// Epochs in which they are fixed, their BatchNorm statistics included.
    pub frozen_epochs: u64,
    /// Epochs of the warm-up after these, see [`Schedule`].
    pub unfreeze_warmup_epochs: f64,
}

impl Given {
    /// Whether the variable of a name is one of them.
    fn holds(&self, name: &str) -> bool {
        let in_decoder = |prefix| name.strip_prefix(prefix).is_some_and(|name| !is_output(name));
        name.starts_with(ENCODER) || self.decoder.is_some_and(in_decoder)
    }
}

/// Batches of one step or validation pass, one a task.
type StepBatches = Vec<LoadedBatch>;

impl Trainer {
    pub fn new(setup: Setup) -> Result<Trainer> {
        let Setup { config, device, tasks, encoder, train, valid, mirror_zoom, given } = setup;
        let bf16 = config.precision.is_bf16(device);
        let rank = encoder.rank();
        let mut runs = Vec::new();
        for (slot, (task, weight)) in tasks.into_iter().enumerate() {
            let sampler = |scans: &Arc<dyn Scans>| Sampler {
                task: task.clone(),
                scans: scans.clone(),
                rank,
                seed: config.seed,
                slot: slot as u64,
                mirror_zoom: mirror_zoom.clone(),
                bf16,
            };
            for (side, scans) in [("training", &train), ("validation", &valid)] {
                ensure!(
                    scans.len() >= task.min_scans(),
                    "{}: needs at least {} {side} scans, found {}",
                    task.name(),
                    task.min_scans(),
                    scans.len()
                );
            }
            runs.push(TaskRun {
                weight,
                batch: config.batch_size.unwrap_or(task.amounts().batch),
                draws: config.draws.unwrap_or(task.amounts().draws),
                train: sampler(&train),
                valid: sampler(&valid),
                task,
            });
        }
        let mut steps = 0;
        for run in &runs {
            ensure!(
                run.batch >= run.task.min_batch(),
                "{}: --batch-size must be at least {}",
                run.task.name(),
                run.task.min_batch()
            );
            ensure!(
                run.batch >= group::world() as u64,
                "{}: --batch-size {} is that of the whole step, of which each of {} processes needs a sample; raise it or start fewer",
                run.task.name(),
                run.batch,
                group::world()
            );
            let samples = train.len() as u64 * run.draws;
            let needed = run.batch * config.accumulate;
            ensure!(
                samples >= needed || config.steps.is_some(),
                "{}: a step needs {needed} samples (batch {} x accumulate {}), an epoch has {samples} ({} scans x draws {}); \
                 lower --batch-size, raise --draws or give --steps",
                run.task.name(),
                run.batch,
                config.accumulate,
                train.len(),
                run.draws
            );
            steps = steps.max(config.steps.unwrap_or(samples / needed));
        }
        let most = if device.is_cuda() { MAX_LOADER_THREADS } else { CPU_LOADER_THREADS };
        let threads = config.threads.unwrap_or(if group::world() > 1 || device.is_cuda() { cores()?.min(most) } else { most });
        let longest = runs.iter().map(|r| r.task.amounts().epochs).max().expect("at least one task");
        let epochs = config.epochs.unwrap_or(longest);
        let references: Vec<&dyn Task> = runs.iter().map(|r| r.task.as_ref()).collect();
        for TaskRun { task, .. } in &runs {
            views::check(task.as_ref(), &encoder)?;
        }
        ensure!(
            !config.checkpointing || encoder.norm() == NormKind::Instance,
            "--checkpointing is for networks with instance normalisation (unet with --norm instance, nnU-Net's encoders): computed again, \
             batch normalisation would update its statistics twice"
        );
        let mut network = Network::new(encoder, &references, config.seed)?;
        network.place(device, memory_format(device, bf16))?;
        let reducer = group::current().map(|_| Reducer::new(&network.vs.trainable_variables())).transpose()?;
        let is_given = |name: &str| given.as_ref().is_some_and(|given| given.holds(name));
        let optimizer = Optimizer::new(config.optimizer, &network.vs, is_given, config.weight_decay, config.clip);
        let given = given.unwrap_or(Given { decoder: None, lr: config.lr, frozen_epochs: 0, unfreeze_warmup_epochs: 0. });
        let steps_of = |epochs: f64| (epochs * steps as f64).round() as u64;
        let schedule = Schedule {
            kind: config.schedule,
            peak: Rates { new: config.lr, given: given.lr },
            floor: config.warmup_floor,
            warmup_steps: steps_of(config.warmup_epochs),
            frozen_steps: given.frozen_epochs.saturating_mul(steps),
            unfreeze_warmup_steps: steps_of(given.unfreeze_warmup_epochs),
            total_steps: epochs * steps,
        };
        Ok(Trainer {
            network,
            optimizer,
            tasks: runs,
            device,
            bf16,
            epochs,
            steps,
            schedule,
            accumulate: config.accumulate,
            checkpointing: config.checkpointing,
            seed: config.seed,
            threads,
            prefetch: config.prefetch,
            reducer,
            pending: Vec::new(),
            check_steps: if device.is_cuda() { GPU_CHECK_STEPS } else { 1 },
            frozen_epochs: given.frozen_epochs,
            given_decoder: given.decoder,
        })
    }

    /// Batches of an epoch from step `from` on, prepared ahead; of each the share of this rank.
    pub fn batches(&self, epoch: u64, from: u64) -> Loader<StepBatches> {
        let of_task = |task: &TaskRun| (task.train.clone(), task.batch, group::share(task.batch));
        let samplers: Vec<(Sampler, u64, Range<u64>)> = self.tasks.iter().map(of_task).collect();
        let device = self.device;
        let items = (from * self.accumulate) as usize..(self.steps * self.accumulate) as usize;
        Loader::new(self.threads, self.prefetch, items, move |item| {
            let draw = |(sampler, batch, own): &(Sampler, u64, Range<u64>)| {
                let first = item as u64 * batch;
                sampler.train(epoch, first + own.start..first + own.end)?.pinned(device)
            };
            samplers.iter().map(draw).collect()
        })
    }

    /// Before a phase with the encoder fixed: estimates its running statistics, and those of a given decoder, anew on samples of the first task
    /// as it trains on them, the same each time. Gives how many, 0 where there is no such phase or are no such statistics.
    pub fn calibrate(&self) -> Result<u64> {
        if self.frozen_epochs == 0 {
            return Ok(0);
        }
        let (sampler, batch) = (&self.tasks[0].train, self.tasks[0].batch);
        let size = batch.max(calibrate::batch_size(voxels(sampler.task.view_shape())));
        let batches = (0..calibrate::SAMPLES).step_by(size as usize).map(|first| {
            let views = sampler.train(0, first..first + size)?.on(self.device).views;
            Ok(layout_views(&views, memory_format(self.device, self.bf16))?.flatten(0, 1))
        });
        let Network { config, vs, .. } = &self.network;
        ffi::with_autocast(self.device, self.bf16, || {
            calibrate::calibrate_encoder(config, &vs.variables(), ENCODER, self.given_decoder, batches)
        })
    }

    /// All tensors that a checkpoint holds, in an order that is the same on all ranks.
    pub fn state(&self) -> Vec<Tensor> {
        self.network.state().into_values().chain(self.optimizer.state().into_values()).collect()
    }

    pub fn rates(&self, epoch: u64, step: u64) -> Rates {
        self.schedule.at(epoch * self.steps + step)
    }

    /// Whether given weights have another rate than new layers in some step.
    pub fn rates_differ(&self) -> bool {
        self.schedule.differs()
    }

    /// Samples of all tasks that one step uses.
    pub fn samples_per_step(&self) -> u64 {
        self.accumulate * self.tasks.iter().map(|t| t.batch).sum::<u64>()
    }

    fn forward(&self, task: usize, loaded: &LoadedBatch, mode: Mode) -> Result<Outcome> {
        let batch = loaded.on(self.device);
        let laid_out = |views: &Tensor| layout_views(views, memory_format(self.device, self.bf16));
        let clean = batch.clean.as_ref().map(laid_out).transpose()?;
        let batch = Batch { views: laid_out(&batch.views)?, clean, targets: batch.targets };
        let forward = || self.network.forward(task, &batch, mode);
        Ok(ffi::with_autocast(self.device, self.bf16, || ffi::with_checkpointing(self.checkpointing, forward)))
    }
}

#[cfg(test)]
mod tests;
