//! Which device and number format a run uses; never a silent fall-back.

use crate::ffi::{self, MemoryFormat};
use crate::group;
use crate::machine;
use crate::print::note;
use anyhow::{Result, bail};
use serde::Serialize;
use std::str::FromStr;
use tch::{Cuda, Device};

/// What was asked for: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    Auto,
    Cpu,
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(DeviceChoice::Cuda)
                .ok_or_else(|| format!("expected auto, cpu, cuda or cuda:N, found {text:?}")),
        }
    }
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl Serialize for DeviceChoice {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl DeviceChoice {
    /// The device; `auto` is the first GPU where there is one, of a rank its own one. Asking for a GPU that is not there is an error that says why.
    pub fn resolve(self) -> Result<Device> {
        let device = self.find()?;
        // Shapes repeat from step to step, so that cuDNN's search for the fastest kernel pays.
        tch::Cuda::cudnn_set_benchmark(device.is_cuda());
        Ok(device)
    }

    fn find(self) -> Result<Device> {
        match self {
            DeviceChoice::Cpu => Ok(Device::Cpu),
            // Loading the CUDA half of libtorch takes over a second: only where there is a driver.
            DeviceChoice::Auto => {
                if !ffi::gpus().is_ok_and(|gpus| !gpus.is_empty()) {
                    return Ok(Device::Cpu);
                }
                match ffi::load_cuda() {
                    Ok(()) if Cuda::is_available() => return own_gpu(),
                    Ok(()) => {
                        note!("warning: this machine has a GPU that libtorch cannot use (see doctor); training on the CPU")
                    }
                    Err(reason) => {
                        note!("warning: this machine has a GPU, but libtorch no CUDA half ({reason}); training on the CPU")
                    }
                }
                Ok(Device::Cpu)
            }
            DeviceChoice::Cuda(n) => {
                if let Err(reason) = ffi::gpus() {
                    bail!("--device {self}: no NVIDIA driver on this machine ({reason})");
                }
                if let Err(reason) = ffi::load_cuda() {
                    bail!("--device {self}: this libtorch has no CUDA half ({reason}); install a CUDA build of torch 2.11.0");
                }
                let count = if Cuda::is_available() { Cuda::device_count() } else { 0 };
                if n as i64 >= count {
                    bail!("--device {self}: libtorch sees {count} CUDA devices");
                }
                match group::current() {
                    Some(_) if n > 0 => {
                        bail!("--device {self}: each process of this run has a GPU of its own: give --device cuda")
                    }
                    Some(_) => own_gpu(),
                    None => Ok(Device::Cuda(n)),
                }
            }
        }
    }
}

/// The first GPU; of a rank the one that is its own.
fn own_gpu() -> Result<Device> {
    let visible = Cuda::device_count().max(0) as usize;
    Ok(Device::Cuda(group::current().map_or(Ok(0), |group| group.cuda_index(visible))?))
}

/// Number format of convolutions and matrix products; weights, optimizer state and losses are always float32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bf16 where the hardware has it
    Auto,
    Fp32,
    /// bfloat16 autocast
    Bf16,
}

impl Precision {
    /// Whether to compute in bfloat16 on this device.
    pub fn is_bf16(self, device: Device) -> bool {
        match self {
            Precision::Fp32 => false,
            Precision::Bf16 => true,
            Precision::Auto => match device {
                // From compute capability 8.0 on.
                Device::Cuda(n) => ffi::gpus().is_ok_and(|gpus| gpus.get(n).is_some_and(|gpu| gpu.compute_capability[0] >= 8)),
                _ => machine::cpu_has_bf16(),
            },
        }
    }
}

/// The faster layout that is exact enough: libtorch's channels-last batch normalisation on the CPU sums in plain float32 and
/// is off by up to 1e-3, which bfloat16 hides and float32 does not.
pub fn memory_format(device: Device, bf16: bool) -> MemoryFormat {
    if device == Device::Cpu && !bf16 { MemoryFormat::Contiguous } else { MemoryFormat::ChannelsLast }
}
