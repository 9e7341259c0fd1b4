//! One encoder and the heads of the tasks that train it, in one variable store.

use crate::ffi::{self, MemoryFormat};
use crate::nn::{Encoder, UNet, UNetConfig};
use crate::rng::{Stream, rng};
use crate::tasks::{Head, Task};
use crate::weights;
use anyhow::{Context, Result};
use rand::RngCore;
use tch::{Device, nn::VarStore};

pub struct Network {
    pub config: UNetConfig,
    pub vs: VarStore,
    pub encoder: Box<dyn Encoder>,
    /// In the order of the tasks.
    pub heads: Vec<Box<dyn Head>>,
}

impl Network {
    /// Initialises on the CPU from the seed alone, so that every device starts from the same weights.
    pub fn new(config: UNetConfig, tasks: &[&dyn Task], seed: u64) -> Result<Self> {
        seed_libtorch(seed, 0);
        let vs = VarStore::new(Device::Cpu);
        let root = vs.root();
        let encoder = UNet::new(&root / weights::ENCODER.trim_end_matches('.'), config.clone());
        let heads = tasks
            .iter()
            .map(|task| task.head(&(&root / task.name()), &encoder).with_context(|| format!("task {}", task.name())))
            .collect::<Result<_>>()?;
        Ok(Network { config, vs, encoder: Box::new(encoder), heads })
    }

    /// Moves to the device and lays convolution weights out with the channels last.
    pub fn place(&mut self, device: Device) -> Result<()> {
        self.vs.set_device(device);
        self.vs.variables().values().try_for_each(|variable| ffi::set_memory_format(variable, MemoryFormat::ChannelsLast))
    }
}

/// Views `[B, V, C, ...]` as the network wants them: each view's channels last in memory.
pub fn layout_views(views: &tch::Tensor) -> Result<tch::Tensor> {
    let dims = views.size();
    let flat = views.flatten(0, 1);
    ffi::set_memory_format(&flat, MemoryFormat::ChannelsLast)?;
    Ok(flat.unflatten(0, [dims[0], dims[1]]))
}

/// Seeds libtorch's own generators (initialisation, dropout) for one step; nothing of them then needs saving.
pub fn seed_libtorch(seed: u64, step: u64) {
    tch::manual_seed(rng(seed, Stream::Network, step, 0).next_u64() as i64 & i64::MAX);
}
