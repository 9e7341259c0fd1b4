//! A pretrained encoder that turns a scan into one vector a level: the average of each map of its pyramid.

use crate::device::{Precision, memory_format};
use crate::dim::{Rank, Shape};
use crate::ffi;
use crate::nn::blocks::global_average;
use crate::nn::{Encoder, EncoderConfig, EncoderFlags, Level, Mode};
use crate::predict::window::{default_batch, pad, starts};
use crate::run::input::Input;
use crate::run::tensors::ENCODER;
use crate::run::weights::{LoadReport, Pretrained, Transfer};
use anyhow::{Result, ensure};
use ndarray::Array4;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor, no_grad};

/// Side in voxels up to which scans are taken whole, unless the user says otherwise: the finest maps of 16 filters stay below half a
/// gigabyte.
pub fn default_window(rank: Rank) -> usize {
    match rank {
        Rank::Two => 2048,
        Rank::Three => 192,
    }
}

pub struct Embedder {
    encoder: Box<dyn Encoder>,
    config: EncoderConfig,
    /// Planes of volumes that a network of images takes.
    input: Input,
    window: usize,
    device: Device,
    bf16: bool,
    _vs: VarStore,
}

impl Embedder {
    /// The encoder of these weights for scans as `input` says. `window`: side of what it takes at a time. Errors if the weights are of
    /// scans of another rank.
    pub fn new(
        given: &Pretrained,
        input: Input,
        rank: Rank,
        window: Option<usize>,
        device: Device,
        precision: Precision,
    ) -> Result<(Embedder, LoadReport)> {
        let flags = EncoderFlags::default().of_weights(&given.config, rank, &given.file)?;
        let mut vs = VarStore::new(Device::Cpu);
        let config = flags.config(rank, input.channels.len() as i64, 0.)?;
        let encoder = config.build(&vs.root() / ENCODER.trim_end_matches('.'));
        let report = given.load_into(&vs.variables(), &input, Transfer::Encoder)?;
        let bf16 = precision.is_bf16(device);
        vs.set_device(device);
        vs.variables().values().try_for_each(|v| ffi::set_memory_format(v, memory_format(device, bf16)))?;
        let window = window.unwrap_or_else(|| default_window(rank));
        let least = encoder.deepest().reduction.values().iter().copied().max().unwrap_or(1);
        ensure!(
            window as i64 >= least,
            "--window must be at least {least}, as the encoder pools every side by that, found {window}"
        );
        Ok((Embedder { encoder, config, input, window, device, bf16, _vs: vs }, report))
    }

    pub fn levels(&self) -> &[Level] {
        self.encoder.levels()
    }

    /// A vector a level, finest first, float32 on the CPU: the average of the level's map over the whole scan `[C, D, H, W]`, without
    /// padding but for sides that the encoder would pool to nothing: there the scan lies in the middle of each channel's minimum. Of a scan
    /// with a side above the window, and of slices, the mean of those of the windows that cover it.
    pub fn embed(&self, image: &Array4<f32>) -> Result<Vec<Tensor>> {
        let rank = self.encoder.rank();
        let shape = [1, 2, 3].map(|a| image.shape()[a]);
        let expected = if self.input.slices.is_some() { Rank::Three } else { rank };
        ensure!(Rank::of(shape) == expected, "{shape:?} voxels, expected a scan of rank {}", expected.n());
        let size: Vec<i64> = image.shape().iter().map(|&n| n as i64).collect();
        let standard = image.as_standard_layout();
        let scan = Tensor::from_slice(standard.as_slice().expect("standard layout")).reshape(size);
        let scan = match self.input.slices {
            Some(slices) => {
                let [x, y, z] = slices.orientation().source.map(|a| a as i64 + 1);
                scan.permute([0, x, y, z])
            }
            None => scan,
        };
        self.config.check_input(window_of(&*self.encoder, &scan, self.window))?;
        pooled(&*self.encoder, &scan, self.window, self.device, self.bf16)
    }
}

/// Of a scan `[C, D, H, W]` that lies as the encoder takes it, as [`Embedder::embed`]; of images each plane `[C, H, W]` is a window at least.
pub fn pooled(encoder: &dyn Encoder, scan: &Tensor, window: usize, device: Device, bf16: bool) -> Result<Vec<Tensor>> {
    let rank = encoder.rank();
    let patch = window_of(encoder, scan, window);
    let (scan, _) = pad(scan, patch);
    let along = [0, 1, 2].map(|a| starts(patch[a], 0., scan.size()[a + 1] as usize));
    let cut = |(x, y, z): (usize, usize, usize)| {
        let at = [along[0][x], along[1][y], along[2][z]];
        let window = (0..3).fold(scan.shallow_clone(), |view, a| view.narrow(a as i64 + 1, at[a] as i64, patch[a] as i64));
        if rank == Rank::Two { window.squeeze_dim(1) } else { window }
    };
    let places: Vec<_> = ndarray::indices((along[0].len(), along[1].len(), along[2].len())).into_iter().collect();
    let mut sums: Option<Vec<Tensor>> = None;
    for batch in places.chunks(default_batch(rank)) {
        let windows: Vec<Tensor> = batch.iter().map(|&at| cut(at)).collect();
        let x = Tensor::stack(&windows, 0).to_device(device);
        ffi::set_memory_format(&x, memory_format(device, bf16))?;
        let pyramid = ffi::with_autocast(device, bf16, || no_grad(|| encoder.forward(&x, Mode::Eval)));
        let pooled = pyramid.iter().map(|map| global_average(map).sum_dim_intlist(0, false, Kind::Double));
        sums = Some(match sums {
            Some(sums) => sums.into_iter().zip(pooled).map(|(sum, more)| sum + more).collect(),
            None => pooled.collect(),
        });
    }
    let mean = |sum: Tensor| (sum / places.len() as f64).to_kind(Kind::Float).to_device(Device::Cpu);
    let features: Vec<Tensor> = sums.expect("a scan has at least one window").into_iter().map(mean).collect();
    let finite = features.iter().all(|level| level.isfinite().all().int64_value(&[]) == 1);
    ensure!(finite, "features that are not finite");
    Ok(features)
}

/// Shape of the windows of a scan `[C, D, H, W]`, up to `window` voxels a side.
fn window_of(encoder: &dyn Encoder, scan: &Tensor, window: usize) -> Shape {
    let mut shape = [1; 3];
    for a in encoder.rank().axes() {
        shape[a] = window.min(scan.size()[a + 1] as usize).max(encoder.deepest().reduction.along(a));
    }
    shape
}
