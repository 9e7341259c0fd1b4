//! VolumeFusion (Wang et al. 2023, arXiv 2306.16925): two scans are mixed box by box with a few coefficients, and the network says for
//! every voxel which coefficient it was. It is segmentation with labels for free, and trains the encoder with a decoder.
//!
//! `input = a F + (1 - a) B` with `a` in 0, 1/4, ..., 1; outside of all boxes `a` is 0.

use super::{Amounts, Batch, Drawn, Head, MetricInfo, Outcome, Picture, Task};
use crate::data::Scans;
use crate::dim::{Rank, Region, Shape, Sides, voxels};
use crate::nn::loss::{DiceLoss, SMOOTH};
use crate::nn::{Decoder, Encoder, Mode, step};
use crate::rng::Rng;
use crate::sample::patch::{draw_box, draw_window};
use crate::transform::augment::{AugmentConfig, Augmentation, Augmenter};
use crate::transform::spatial::Orientation;
use anyhow::{Context, Result, ensure};
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use tch::{Kind, Tensor, nn, no_grad};

/// Boxes of a sample, drawn uniformly.
const BOXES: RangeInclusive<usize> = 10..=39;
/// Shortest side of a box in voxels; in a window below four times as much, a quarter of the window.
const SHORTEST: usize = 8;
/// Longest side of a box, as a share of the window's.
const LONGEST: f64 = 0.625;

// No doc comments on configurations' types: clap would take them for the command's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "VolumeFusion (vf)")]
pub struct VfConfig {
    /// Fusion coefficients that are told apart, evenly from 0 to 1, 2 to 100
    #[arg(id = "vf-classes", long = "vf-classes", value_name = "N", default_value_t = Self::default().classes)]
    pub classes: usize,
    /// Probability of a mirror image of each of the two windows along each axis, by itself
    #[arg(id = "vf-flip", long = "vf-flip", value_name = "P", default_value_t = Self::default().flip)]
    pub flip: f64,
    /// Probability of each artefact of magnetic resonance in each of the two windows, as fine-tuning has them (--aug-mr). For MR only
    #[arg(id = "vf-mr", long = "vf-mr", value_name = "P", default_value_t = Self::default().mr)]
    pub mr: f64,
}

impl Default for VfConfig {
    fn default() -> Self {
        VfConfig { classes: 5, flip: 0., mr: 0. }
    }
}

/// A box with its class: the coefficient is `class / (classes - 1)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FusedBox {
    /// Relative to the window.
    region: Region,
    class: usize,
}

/// A scan's part of a sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    /// Index of the scan, and its name.
    scan: usize,
    id: String,
    window: Region,
    augmentation: Augmentation,
}

/// Everything that is drawn for a sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    /// `F`, whose share is `a`.
    front: Source,
    /// `B`, whose share is `1 - a`.
    back: Source,
    /// A later one lies over the earlier ones.
    boxes: Vec<FusedBox>,
}

/// VolumeFusion; the one view is the fused window.
pub struct VolumeFusion {
    rank: Rank,
    window: Shape,
    classes: usize,
    augment: Augmenter,
    /// Sides of a box in voxels, along each axis.
    sides: [RangeInclusive<usize>; 3],
    /// Accuracy of one class everywhere.
    blind: f64,
}

impl VolumeFusion {
    /// Errors if there is nothing to tell apart, or no room for a box.
    pub fn new(config: &VfConfig, window: Shape, rank: Rank) -> Result<Self> {
        let VfConfig { classes, flip, mr } = *config;
        ensure!((2..=100).contains(&classes), "vf: --vf-classes must be 2 to 100, found {classes}");
        ensure!((0. ..=1.).contains(&flip), "vf: --vf-flip is a probability, 0 to 1, found {flip}");
        ensure!((0. ..=1.).contains(&mr), "vf: --vf-mr is a probability, 0 to 1, found {mr}");
        let named = Sides::of(rank, window);
        let enough = rank.axes().all(|a| window[a] >= 4);
        ensure!(enough, "vf: a window of {named} voxels a side is too small for boxes, expected at least 4");
        // The intensities of fine-tuning. Turned and scaled scans would have borders, which tell the two apart.
        let augment = AugmentConfig { flip, mr, spatial: 0., ..Default::default() }.augmenter(rank, None, &[])?;
        let sides = window.map(|side| SHORTEST.min(side / 4)..=(LONGEST * side as f64) as usize);
        let blind = share_of_first(rank, window, &sides, classes);
        Ok(VolumeFusion { rank, window, classes, augment, sides, blind })
    }

    fn draw(&self, scans: &dyn Scans, scan: usize, rng: &mut Rng) -> Result<Params> {
        ensure!(
            scans.len() > 1,
            "vf: a scan is fused with another one, but {} is the only one: at least 2 are needed",
            scans.id(scan)
        );
        let other = rng.random_range(0..scans.len() - 1);
        let mut source = |scan| -> Result<Source> {
            let window = draw_window(scans, scan, self.rank, self.window, rng)?;
            let augmentation = self.augment.draw(scans.channels(), self.window, rng);
            Ok(Source { scan, id: scans.id(scan).into(), window, augmentation })
        };
        let (front, back) = (source(scan)?, source(other + usize::from(other >= scan))?);
        let boxes = (0..rng.random_range(BOXES))
            .map(|_| {
                let region = draw_box(self.rank, self.window, &self.sides, rng);
                FusedBox { region, class: rng.random_range(0..self.classes) }
            })
            .collect();
        Ok(Params { front, back, boxes })
    }

    /// Writes the fused window and returns the class of every voxel.
    fn render(&self, scans: &dyn Scans, params: &Params, out: &mut [f32]) -> Result<Vec<i64>> {
        let shape = self.view_shape();
        let mut front = vec![0f32; out.len()];
        for (source, into) in [(&params.back, &mut *out), (&params.front, &mut front)] {
            scans.read(source.scan, source.window, Orientation::IDENTITY, into)?;
            source.augmentation.apply(into, None, shape)?;
        }
        let classes = paint(&params.boxes, shape);
        let shares: Vec<f32> = (0..self.classes).map(|class| class as f32 / (self.classes - 1) as f32).collect();
        for (back, front) in out.chunks_exact_mut(classes.len()).zip(front.chunks_exact(classes.len())) {
            for ((back, front), &class) in back.iter_mut().zip(front).zip(&classes) {
                let a = shares[class as usize];
                *back = a * front + (1. - a) * *back;
            }
        }
        Ok(classes)
    }

    fn network(&self, vs: &nn::Path, encoder: &dyn Encoder) -> Result<VolumeFusionHead> {
        Decoder::check_input(encoder, self.view_shape()).context("vf: --window")?;
        let decoder = Decoder::new(vs / "decoder", encoder, self.classes as i64, false);
        Ok(VolumeFusionHead { decoder, weights: vec![1.; self.classes] })
    }
}

/// Expected share of class 0 of `classes`, the most frequent one by what no box covers: the accuracy of always saying it.
fn share_of_first(rank: Rank, window: Shape, sides: &[RangeInclusive<usize>; 3], classes: usize) -> f64 {
    // Probability that a box covers position `x` of an axis: its sides and places are drawn for each axis by itself.
    let covered = |x: usize, window: usize, sides: &RangeInclusive<usize>| {
        let of_side = |side: usize| {
            let places = x.min(window - side) + 1 - (x + 1).saturating_sub(side);
            places as f64 / (window - side + 1) as f64
        };
        sides.clone().map(of_side).sum::<f64>() / sides.clone().count() as f64
    };
    let mut boxed = vec![1.];
    for a in rank.axes() {
        // The second half of an axis mirrors the first.
        let half = if window[a].is_multiple_of(2) { window[a] / 2 } else { window[a] };
        let line: Vec<f64> = (0..half).map(|x| covered(x, window[a], &sides[a])).collect();
        boxed = boxed.iter().flat_map(|p| line.iter().map(move |q| p * q)).collect();
    }
    // The mean of `(1 - p)^n` over the numbers of boxes, a geometric series.
    let (first, count) = (*BOXES.start() as i32, BOXES.count() as i32);
    let left = |p: &f64| (1. - p).powi(first) * (1. - (1. - p).powi(count)) / (p * f64::from(count));
    let uncovered = boxed.iter().map(left).sum::<f64>() / boxed.len() as f64;
    uncovered + (1. - uncovered) / classes as f64
}

/// The class of every voxel: that of the last box over it, 0 where there is none.
fn paint(boxes: &[FusedBox], shape: Shape) -> Vec<i64> {
    let mut classes = vec![0; voxels(shape)];
    for FusedBox { region, class } in boxes {
        region.rows(shape).for_each(|row| classes[row].fill(*class as i64));
    }
    classes
}

impl Task for VolumeFusion {
    fn name(&self) -> &'static str {
        "vf"
    }

    fn view_shape(&self) -> Shape {
        self.window
    }

    /// The coefficient's class in every voxel.
    fn targets(&self) -> usize {
        voxels(self.view_shape())
    }

    fn voxel_classes(&self) -> Option<usize> {
        Some(self.classes)
    }

    fn sample(&self, scans: &dyn Scans, scan: usize, rng: &mut Rng, out: &mut [f32]) -> Result<Drawn> {
        let params = self.draw(scans, scan, rng)?;
        let targets = self.render(scans, &params, out)?;
        Ok(Drawn { targets, params: serde_json::to_value(params).context("recording a sample")? })
    }

    fn caption(&self, drawn: &Drawn) -> String {
        let Ok(Params { back, boxes, .. }) = serde_json::from_value(drawn.params.clone()) else {
            return "two scans, fused".into();
        };
        format!("fused with {} in {} boxes", back.id, boxes.len())
    }

    fn head(&self, vs: &nn::Path, encoder: &dyn Encoder) -> Result<Box<dyn Head>> {
        Ok(Box::new(self.network(vs, encoder)?))
    }

    /// Each voxel is a sample of its own.
    fn min_batch(&self) -> u64 {
        1
    }

    fn last_is_best(&self) -> bool {
        true
    }

    /// The two that are fused.
    fn min_scans(&self) -> usize {
        2
    }

    fn amounts(&self) -> Amounts {
        Amounts { batch: 4, draws: 1, epochs: 15 }
    }

    fn metrics(&self) -> Vec<MetricInfo> {
        vec![
            // Mean over the classes. No blind guess has more than one that knows how frequent each class is: that frequency.
            MetricInfo { name: "dice", chance: Some(1. / self.classes as f64) },
            MetricInfo { name: "accuracy", chance: Some(self.blind) },
        ]
    }
}

/// The decoder with its loss.
struct VolumeFusionHead {
    decoder: Decoder,
    /// Of each class in the loss: all the same.
    weights: Vec<f64>,
}

impl Head for VolumeFusionHead {
    fn pictures(&self, encoder: &dyn Encoder, batch: &Batch) -> Vec<Picture> {
        let logits = self.decoder.forward(encoder.forward(&batch.views.squeeze_dim(1), Mode::Eval), Mode::Eval).remove(0);
        let (predicted, classes) = (logits.argmax(1, true), self.weights.len());
        let dice = mean_dice(&predicted, &batch.class_map(), classes as i64).double_value(&[]);
        let caption = format!("predicted classes: dice {dice:.2}");
        vec![Picture::new(vec![caption], &predicted, Some([0., (classes - 1) as f32]))]
    }

    fn forward(&self, encoder: &dyn Encoder, batch: &Batch, mode: Mode) -> Outcome {
        let classes = batch.class_map();
        let logits = self.decoder.forward(encoder.forward(&batch.views.squeeze_dim(1), mode), mode).remove(0);
        let loss =
            DiceLoss { weights: &self.weights, background: true, cross_entropy: true, ignore: None }.of(&logits, &classes);
        let metrics = no_grad(|| {
            let predicted = logits.argmax(1, false);
            let right = predicted.eq_tensor(&classes).to_kind(Kind::Float).mean(Kind::Float);
            let accuracy = step::mean(right, classes.size()[0]);
            vec![mean_dice(&predicted, &classes, self.weights.len() as i64), accuracy]
        });
        Outcome { loss, metrics }
    }
}

/// Dice of each of `k` classes over the whole step, averaged; 1 for a class that neither has.
fn mean_dice(predicted: &Tensor, truth: &Tensor, k: i64) -> Tensor {
    let ids = Tensor::arange(k, (Kind::Int64, truth.device())).unsqueeze(1);
    let [p, t] = [predicted, truth].map(|x| x.flatten(0, -1).eq_tensor(&ids));
    let count = |x: &Tensor| x.sum_dim_intlist(1, false, Kind::Float);
    let [both, p, t] = step::sums([count(&p.logical_and(&t)), count(&p), count(&t)]);
    ((both * 2. + SMOOTH) / (p + t + SMOOTH)).mean(Kind::Float)
}

#[cfg(test)]
mod tests;
