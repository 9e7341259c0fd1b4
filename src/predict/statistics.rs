//! BatchNorm statistics of a pretraining run's encoder, estimated on whole windows of its training scans: tasks show them in pieces or
//! changed.

use crate::device::memory_format;
use crate::dim::Sides;
use crate::ffi;
use crate::nn::EncoderConfig;
use crate::nn::calibrate::calibrate_encoder;
use crate::print::note;
use crate::run::tensors::{DECODER, ENCODER};
use crate::run::weights::{Pretrained, load_encoder};
use crate::sample::windows::Windows;
use anyhow::Result;
use tch::{Device, Tensor, nn::VarStore};

/// Sets the statistics of an encoder, and those of the decoder above it where there is one, to those of these windows, in float32. `vs`
/// holds them on the CPU, under [`ENCODER`] and [`DECODER`].
pub fn calibrate_on(windows: &Windows, device: Device, config: &EncoderConfig, decoder: bool, vs: &mut VarStore) -> Result<()> {
    vs.set_device(device);
    let place = |windows: Tensor| {
        let windows = windows.to_device(device);
        ffi::set_memory_format(&windows, memory_format(device, false))?;
        Ok(windows)
    };
    let batches = windows.batches().map(|batch| batch.and_then(place));
    let windows_used = calibrate_encoder(config, &vs.variables(), ENCODER, decoder.then_some(DECODER), batches)?;
    vs.set_device(Device::Cpu);
    if windows_used > 0 {
        note!(
            "BatchNorm statistics: estimated on {windows_used} windows of {} voxels a side",
            Sides::of(windows.rank, windows.shape)
        );
    }
    Ok(())
}

/// Gives weights of a run the statistics that an export of it has.
pub fn calibrate(given: &mut Pretrained, windows: &Windows, device: Device) -> Result<()> {
    let mut vs = VarStore::new(Device::Cpu);
    given.config.build(&vs.root() / ENCODER.trim_end_matches('.'));
    load_encoder(&vs.variables(), &given.tensors, &given.file, None)?;
    calibrate_on(windows, device, &given.config, false, &mut vs)?;
    given.tensors.extend(vs.variables().into_iter().map(|(name, tensor)| (name, tensor.detach())));
    Ok(())
}
