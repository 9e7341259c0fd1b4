//! One encoder and the heads of the tasks that train it, in one variable store.

use crate::ffi::{self, MemoryFormat};
use crate::nn::{Encoder, EncoderConfig, Mode};
use crate::rng::{Stream, rng};
use crate::run::tensors::{ENCODER, Tensors};
use crate::tasks::{Batch, Head, Outcome, Task};
use anyhow::{Context, Result};
use rand::RngCore;
use tch::{Device, Tensor, nn::VarStore, no_grad};

/// Where a task's own copies of the encoder's statistics lie, below its name.
const STATISTICS: &str = "statistics";

/// Last part of the name of such a copy.
fn own_name(statistic: &str) -> String {
    statistic[ENCODER.len()..].replace('.', "_")
}

/// Name of a task's own copy of one of the encoder's statistics.
pub fn own_statistic(task: &str, statistic: &str) -> String {
    format!("{task}.{STATISTICS}.{}", own_name(statistic))
}

pub struct Network {
    pub config: EncoderConfig,
    pub vs: VarStore,
    pub encoder: Box<dyn Encoder>,
    /// In the order of the tasks.
    pub heads: Vec<Box<dyn Head>>,
    /// Per task, where there are several, each running statistic of the encoder and the task's own copy. Tasks feed the encoder
    /// differently (whole scans, small patches), so in training and validation each has its own. An export
    /// has those of whole windows.
    own_statistics: Vec<Vec<(Tensor, Tensor)>>,
    /// All that is not trained, the tasks' own copies included.
    statistics: Vec<Tensor>,
}

impl Network {
    /// Initialises on the CPU from the seed alone, so that every device starts from the same weights.
    pub fn new(config: EncoderConfig, tasks: &[&dyn Task], seed: u64) -> Result<Self> {
        seed_libtorch(seed, 0);
        let vs = VarStore::new(Device::Cpu);
        let root = vs.root();
        let encoder = config.build(&root / ENCODER.trim_end_matches('.'));
        let heads = tasks
            .iter()
            .map(|task| task.head(&(&root / task.name()), encoder.as_ref()).with_context(|| format!("task {}", task.name())))
            .collect::<Result<_>>()?;
        let mut shared: Vec<(String, Tensor)> =
            vs.variables().into_iter().filter(|(name, t)| name.starts_with(ENCODER) && !t.requires_grad()).collect();
        shared.sort_by(|a, b| a.0.cmp(&b.0));
        let own = |task: &&dyn Task| {
            let path = &root / task.name() / STATISTICS;
            let copy = |(name, t): &(String, Tensor)| {
                let mut own = path.zeros_no_train(&own_name(name), &t.size());
                own.copy_(t);
                (t.shallow_clone(), own)
            };
            shared.iter().map(copy).collect()
        };
        let own_statistics = if tasks.len() > 1 { tasks.iter().map(own).collect() } else { vec![] };
        let statistics = vs.variables().into_values().filter(|variable| !variable.requires_grad()).collect();
        Ok(Network { config, vs, encoder, heads, own_statistics, statistics })
    }

    /// Forward pass of one task, with the running statistics that are its own.
    pub fn forward(&self, task: usize, batch: &Batch, mode: Mode) -> Outcome {
        let own = self.own_statistics.get(task).map(Vec::as_slice).unwrap_or_default();
        no_grad(|| own.iter().for_each(|(shared, own)| shared.shallow_clone().copy_(own)));
        let outcome = self.heads[task].forward(self.encoder.as_ref(), batch, mode);
        if mode == Mode::Train {
            no_grad(|| own.iter().for_each(|(shared, own)| own.shallow_clone().copy_(shared)));
        }
        outcome
    }

    /// Each running statistic with a copy of its values.
    pub fn statistics(&self) -> Vec<(Tensor, Tensor)> {
        no_grad(|| self.statistics.iter().map(|statistic| (statistic.shallow_clone(), statistic.copy())).collect())
    }

    /// Every variable by its name.
    pub fn state(&self) -> Tensors {
        self.vs.variables().into_iter().collect()
    }

    /// Moves to the device and lays convolution weights out.
    pub fn place(&mut self, device: Device, format: MemoryFormat) -> Result<()> {
        self.vs.set_device(device);
        self.vs.variables().values().try_for_each(|variable| ffi::set_memory_format(variable, format))
    }
}

/// Views `[B, V, C, ...]` with each view laid out in this format.
pub fn layout_views(views: &Tensor, format: MemoryFormat) -> Result<Tensor> {
    let dims = views.size();
    let flat = views.flatten(0, 1);
    ffi::set_memory_format(&flat, format)?;
    Ok(flat.unflatten(0, [dims[0], dims[1]]))
}

/// Seeds libtorch's own generators (initialisation, dropout) for one step; nothing of them then needs saving.
pub fn seed_libtorch(seed: u64, step: u64) {
    tch::manual_seed(rng(seed, Stream::Network, step, 0).next_u64() as i64 & i64::MAX);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dim::Rank;
    use crate::nn::UNetConfig;
    use crate::tasks::{TaskConfigs, TaskKind, build};
    use tch::Kind;

    #[test]
    fn jointly_trained_tasks_keep_their_own_statistics() {
        let tasks: Vec<_> = [TaskKind::Rot, TaskKind::Exe]
            .map(|kind| build(kind, &TaskConfigs::default(), [1, 16, 16], 1, Rank::Two, 0).unwrap())
            .into_iter()
            .collect();
        let references: Vec<&dyn Task> = tasks.iter().map(|t| t.as_ref()).collect();
        let config = UNetConfig { filters: 2, levels: 2, ..UNetConfig::paper(Rank::Two, 1) };
        let network = Network::new(config.into(), &references, 0).unwrap();
        let batch = |task: usize, shift: f64| {
            let shape = tasks[task].view_shape();
            let dims = [3, tasks[task].views() as i64, 1, shape[1] as i64, shape[2] as i64];
            let views = Tensor::randn(dims, (Kind::Float, Device::Cpu)) + shift;
            Batch { views, clean: None, targets: Tensor::zeros([3, tasks[task].targets() as i64], (Kind::Int64, Device::Cpu)) }
        };
        let (a, b) = (batch(0, 0.), batch(1, 50.));
        tch::manual_seed(1);
        for _ in 0..200 {
            network.forward(0, &a, Mode::Train);
            network.forward(1, &b, Mode::Train);
        }
        // With its own statistics a task sees in evaluation what it saw in training, at every layer: the deepest map shows them all.
        let variables = network.vs.variables();
        let trained = network.encoder.encode_views(&b.views, Mode::Train).detach();
        let off = || {
            network.forward(1, &b, Mode::Eval);
            let map = network.encoder.encode_views(&b.views, Mode::Eval);
            (map - &trained).abs().max().double_value(&[]) / trained.std(true).double_value(&[])
        };
        let own = off();
        assert!(own < 0.02, "off by {own} sd");
        let statistics: Vec<&String> = variables.keys().filter(|name| name.starts_with("exe.statistics.")).collect();
        assert_eq!(statistics.len(), 2 * 2 * 2);
        for name in statistics {
            let (mut tensor, before) = (variables[name].shallow_clone(), variables[name].copy());
            // By half a standard deviation, or half the variance.
            let variance = &variables[&name.replace("mean", "var")];
            let change = if name.ends_with("mean") { 0.5 * variance.sqrt() } else { 0.5 * variance };
            tensor.copy_(&(&before + change));
            assert!(off() > 0.1, "{name} changes nothing");
            tensor.copy_(&before);
        }
        assert!((off() - own).abs() < 1e-6);
    }
}
