//! Masked autoencoding with a convolutional network (He et al. 2022 for images and transformers; for volumes and U-Nets Wald et al. 2024,
//! "Revisiting MAE pre-training for 3D medical image segmentation", and Munk et al. 2024, "AMAES"): most of a window's blocks are hidden,
//! and the U-Net gives them back.
//!
//! As AMAES, the input may be changed in its intensities while the target stays clean; as Wald et al., the error counts where the input is
//! masked. Unlike both, it is a share of what predicting the mean would give, so that it has no unit.

use super::restoration::{self, Restorer, relative_error};
use super::{Amounts, Batch, Drawn, Head, MetricInfo, Outcome, Picture, Task};
use crate::data::Scans;
use crate::dim::{Rank, Shape, Sides, voxels};
use crate::nn::{Encoder, Mode};
use crate::rng::Rng;
use crate::sample::patch::draw_window;
use crate::sample::turned::augmented;
use crate::transform::augment::{AugmentConfig, Augmenter};
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::nn::Init;
use tch::{Kind, Tensor, nn, no_grad};

/// What the network sees where the input is masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Fill {
    /// 0, which is the foreground's mean where intensities are z-scores
    Zero,
    /// The mean of the voxels that are left, in each channel
    Mean,
    /// A number that is learnt, for each channel
    Learnt,
}

/// Voxels that the loss counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Counted {
    Masked,
    All,
}

// A doc comment on a configuration's type would become the command's help.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Masked autoencoding (mae)")]
pub struct MaeConfig {
    /// Side in voxels of the blocks that are masked, or one along each axis [default: 4 where the window has up to 48 voxels, 8 up to 96,
    /// else 16]
    #[arg(id = "mae-block", long = "mae-block", value_name = "VOXELS")]
    pub block: Option<Sides>,
    /// Share of the blocks that is masked, above 0 and below 1 [default: 0.6 with blocks that are below 8 voxels along an axis, whose gaps
    /// are easy to bridge only from near by, else 0.75]
    #[arg(id = "mae-ratio", long = "mae-ratio", value_name = "SHARE")]
    pub ratio: Option<f64>,
    /// What stands where the input is masked [default: zero in stores of z-scores, else mean]
    #[arg(id = "mae-fill", long = "mae-fill", value_enum)]
    pub fill: Option<Fill>,
    /// Voxels whose error is minimised
    #[arg(id = "mae-loss", long = "mae-loss", value_enum, default_value_t = Self::default().loss)]
    pub loss: Counted,
    /// Probability of a rotation with scaling, of input and target alike
    #[arg(id = "mae-spatial", long = "mae-spatial", value_name = "P", default_value_t = Self::default().spatial)]
    pub spatial: f64,
    /// Probability of a mirror image along each axis, of input and target alike
    #[arg(id = "mae-flip", long = "mae-flip", value_name = "P", default_value_t = Self::default().flip)]
    pub flip: f64,
    /// Probability of each change of the input's intensities (contrast, brightness, gamma, noise), by itself and for each channel; the
    /// target stays as it is
    #[arg(id = "mae-intensity", long = "mae-intensity", value_name = "P", default_value_t = Self::default().intensity)]
    pub intensity: f64,
    /// Probability of each artefact of magnetic resonance in the input, which is restored without them, as fine-tuning has them (--aug-mr). For MR only
    #[arg(id = "mae-mr", long = "mae-mr", value_name = "P", default_value_t = Self::default().mr)]
    pub mr: f64,
}

impl Default for MaeConfig {
    fn default() -> Self {
        MaeConfig {
            block: None,
            ratio: None,
            fill: None,
            loss: Counted::Masked,
            spatial: 0.2,
            flip: 0.,
            intensity: 0.15,
            mr: 0.,
        }
    }
}

/// Blocks side by side that cover a window; the last ones along an axis may stick out.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Blocks {
    rank: Rank,
    /// Of a block; 1 along an axis that is not in use.
    side: Shape,
    window: Shape,
}

impl Blocks {
    /// Along each axis.
    fn grid(&self) -> Shape {
        std::array::from_fn(|a| self.window[a].div_ceil(self.side[a]))
    }

    /// Whether each voxel's block is marked.
    fn voxels(&self, marked: &[i64]) -> Vec<bool> {
        let grid = self.grid();
        let block = |x: usize, a: usize| x / self.side[a];
        let [d, h, w] = self.window;
        let mut out = Vec::with_capacity(voxels(self.window));
        for x in 0..d {
            for y in 0..h {
                let row = (block(x, 0) * grid[1] + block(y, 1)) * grid[2];
                out.extend((0..w).map(|z| marked[row + block(z, 2)] != 0));
            }
        }
        out
    }

    /// The same on the device, of a batch: `[B, blocks]` of 0 and 1 to `[B, 1, ...]`, float32.
    fn mask(&self, marked: &Tensor) -> Tensor {
        let grid = self.grid();
        let (mut apart, mut spread, mut whole) =
            (vec![marked.size()[0], 1], vec![marked.size()[0], 1], vec![marked.size()[0], 1]);
        for a in self.rank.axes() {
            let (n, side) = (grid[a] as i64, self.side[a] as i64);
            apart.extend([n, 1]);
            spread.extend([n, side]);
            whole.push(n * side);
        }
        let mask = marked.to_kind(Kind::Float).reshape(&apart).expand(&spread, false).reshape(&whole);
        self.rank.axes().zip(2..).fold(mask, |mask, (a, axis)| mask.narrow(axis, 0, self.window[a] as i64))
    }
}

pub struct Mae {
    config: MaeConfig,
    augment: Augmenter,
    blocks: Blocks,
    /// Blocks that are masked.
    masked: usize,
    rank: Rank,
}

impl Mae {
    /// Errors if nothing would be masked, or nothing left.
    pub fn new(config: &MaeConfig, window: Shape, rank: Rank) -> Result<Self> {
        let mut side = [1; 3];
        rank.axes().for_each(|a| {
            side[a] = match window[a] {
                ..=48 => 4,
                49..=96 => 8,
                _ => 16,
            }
        });
        if let Some(given) = &config.block {
            side = given.shape("mae-block", rank)?;
        }
        let ratio = config.ratio.unwrap_or(if rank.axes().any(|a| side[a] < 8) { 0.6 } else { 0.75 });
        let [blocks, of] = [side, window].map(|shape| Sides::of(rank, shape));
        ensure!(
            (0..3).all(|a| (1..=window[a]).contains(&side[a])),
            "--mae-block: blocks of {blocks} voxels in a window of {of}"
        );
        ensure!(ratio > 0. && ratio < 1., "--mae-ratio must be above 0 and below 1, found {ratio}");
        let named = blocks;
        let blocks = Blocks { rank, side, window };
        let all = voxels(blocks.grid());
        let masked = (ratio * all as f64).round() as usize;
        ensure!(
            0 < masked && masked < all,
            "--mae-ratio {ratio} masks {masked} of the {all} blocks of {named} voxels in a window of {of}: some must be masked and \
             some left; lower --mae-block"
        );
        for (name, p) in
            [("spatial", config.spatial), ("flip", config.flip), ("intensity", config.intensity), ("mr", config.mr)]
        {
            ensure!((0. ..=1.).contains(&p), "--mae-{name} is a probability, 0 to 1, found {p}");
        }
        let MaeConfig { spatial, flip, intensity: p, mr, .. } = *config;
        let intensity = AugmentConfig { brightness_p: p, contrast_p: p, gamma_p: p, noise_p: p, ..AugmentConfig::default() };
        let augment = AugmentConfig { spatial, flip, mr, ..intensity }.augmenter(rank, None, &[])?;
        Ok(Mae { config: config.clone(), augment, blocks, masked, rank })
    }

    fn network(&self, vs: &nn::Path, encoder: &dyn Encoder) -> Result<MaeHead> {
        let mut dims = vec![1; 2 + self.rank.n()];
        dims[1] = encoder.in_channels();
        let learnt = self.config.fill == Some(Fill::Learnt);
        Ok(MaeHead {
            restorer: Restorer::new(vs, encoder, self.view_shape())?,
            fill: learnt.then(|| vs.var("fill", &dims, Init::Const(0.))),
            blocks: self.blocks,
            loss: self.config.loss,
        })
    }

    /// What stands in masked voxels: a number for each channel of the input.
    fn fill(&self, scans: &dyn Scans, input: &[f32], masked: &[bool]) -> Vec<f32> {
        let fill = self.config.fill.unwrap_or(if scans.zero_is_mean() { Fill::Zero } else { Fill::Mean });
        let mean = |channel: &[f32]| {
            let visible = || channel.iter().zip(masked).filter(|(_, masked)| !**masked);
            (visible().map(|(&x, _)| f64::from(x)).sum::<f64>() / visible().count() as f64) as f32
        };
        let channels = input.chunks_exact(masked.len());
        match fill {
            Fill::Mean => channels.map(mean).collect(),
            // What is learnt the head adds.
            Fill::Zero | Fill::Learnt => channels.map(|_| 0.).collect(),
        }
    }
}

impl Task for Mae {
    fn name(&self) -> &'static str {
        "mae"
    }

    /// The window as it is, but for spatial changes.
    fn clean_views(&self) -> usize {
        1
    }

    fn view_shape(&self) -> Shape {
        self.blocks.window
    }

    /// 1 for each block that is masked, else 0, in row-major order.
    fn targets(&self) -> usize {
        voxels(self.blocks.grid())
    }

    fn sample(&self, scans: &dyn Scans, scan: usize, rng: &mut Rng, out: &mut [f32]) -> Result<Drawn> {
        let shape = self.view_shape();
        let (input, clean) = out.split_at_mut(scans.channels() * voxels(shape));
        let window = draw_window(scans, scan, self.rank, shape, rng)?;
        let augmentation = self.augment.draw(scans.channels(), shape, rng);
        let (spatial, intensity) = augmentation.clone().apart();
        augmented(scans, scan, window, &spatial, clean, None)?;
        input.copy_from_slice(clean);
        intensity.apply(input, None, shape)?;

        let mut targets = vec![0; self.targets()];
        rand::seq::index::sample(rng, targets.len(), self.masked).iter().for_each(|block| targets[block] = 1);
        let masked = self.blocks.voxels(&targets);
        let fill = self.fill(scans, input, &masked);
        for (channel, fill) in input.chunks_exact_mut(masked.len()).zip(&fill) {
            channel.iter_mut().zip(&masked).filter(|(_, masked)| **masked).for_each(|(x, _)| *x = *fill);
        }
        Ok(Drawn { targets, params: json!({ "window": window, "augmentation": augmentation, "fill": fill }) })
    }

    fn hidden(&self, drawn: &Drawn) -> Option<Vec<bool>> {
        Some(self.blocks.voxels(&drawn.targets))
    }

    fn caption(&self, drawn: &Drawn) -> String {
        let (side, all) = (Sides::of(self.rank, self.blocks.side), drawn.targets.len());
        format!("{} of {all} blocks of {side} voxels masked", self.masked)
    }

    fn head(&self, vs: &nn::Path, encoder: &dyn Encoder) -> Result<Box<dyn Head>> {
        Ok(Box::new(self.network(vs, encoder)?))
    }

    fn min_batch(&self) -> u64 {
        1
    }

    fn lower_is_better(&self) -> bool {
        true
    }

    fn last_is_best(&self) -> bool {
        true
    }

    fn amounts(&self) -> Amounts {
        Amounts { batch: 2, draws: 2, epochs: 10 }
    }

    fn metrics(&self) -> Vec<MetricInfo> {
        // On masked voxels.
        vec![MetricInfo { name: "relative_error", chance: Some(1.) }]
    }
}

struct MaeHead {
    restorer: Restorer,
    /// Learnt, `[1, C, 1, ...]`.
    fill: Option<Tensor>,
    blocks: Blocks,
    loss: Counted,
}

impl MaeHead {
    /// Restored windows and where they were masked.
    fn restore(&self, encoder: &dyn Encoder, batch: &Batch, mode: Mode) -> (Tensor, Tensor) {
        let mask = self.blocks.mask(&batch.targets);
        let x = restoration::inputs(batch);
        let x = match &self.fill {
            Some(fill) => &x + (&mask * fill).to_kind(x.kind()),
            None => x,
        };
        (self.restorer.forward(encoder, &x, mode), mask)
    }
}

impl Head for MaeHead {
    fn pictures(&self, encoder: &dyn Encoder, batch: &Batch) -> Vec<Picture> {
        let (restored, mask) = self.restore(encoder, batch, Mode::Eval);
        let clean = restoration::targets(batch);
        let filled = &clean + (&restored - &clean) * &mask;
        let filled = Picture::new(vec!["target with the prediction where masked".into()], &filled, None);
        let trained = if self.loss == Counted::Masked { ", trained where masked" } else { "" };
        vec![restoration::picture(&restored, &clean, Some(&mask), trained), filled]
    }

    fn forward(&self, encoder: &dyn Encoder, batch: &Batch, mode: Mode) -> Outcome {
        let (restored, mask) = self.restore(encoder, batch, mode);
        restoration::in_float32(batch, || {
            let clean = restoration::targets(batch);
            let masked = || relative_error(&restored, &clean, Some(&mask));
            match self.loss {
                Counted::Masked => {
                    let loss = masked();
                    let metrics = vec![loss.detach()];
                    Outcome { loss, metrics }
                }
                Counted::All => Outcome { loss: relative_error(&restored, &clean, None), metrics: vec![no_grad(masked)] },
            }
        })
    }
}

#[cfg(test)]
mod tests;
