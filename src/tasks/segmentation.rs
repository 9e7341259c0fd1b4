//! Segmentation: the class of every voxel, or the regions that it is in, on the encoder that pretraining made (method 4 and 6).
//!
//! The network is the encoder with a U-Net decoder. A sample is a patch of a scan with its label, both augmented alike; a given
//! share of the patches contains foreground. Validation judges whole scans by hard Dice, case by case, the background left out
//! (the reference averages the background in and pools voxels over cases).

mod targets;

use super::{Amounts, Batch, Downstream, Drawn, Head, MetricInfo, Outcome, Task, each_scan};
use crate::data::Scans;
use crate::data::labelling::{Decoding, Labelling};
use crate::dim::{PerAxis, Rank, Shape, Sides, voxels};
use crate::metrics::case::Group;
use crate::metrics::overlap::Counts;
use crate::metrics::regions;
use crate::metrics::summary::mean;
use crate::nn::decoder::multiples;
use crate::nn::script::ScriptModule;
use crate::nn::{Decoder, Encoder, Mode};
use crate::predict::window::{Forward, Window, default_batch};
use crate::rng::Rng;
use crate::sample::foreground::Foreground;
use crate::sample::size;
use crate::sample::turned::augmented;
use crate::transform::augment::Augmenter;
use anyhow::{Context, Result, ensure};
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use targets::VoxelTargets;
use tch::{Device, Kind, Tensor, nn, no_grad};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Soft Dice over the classes, the paper's, or over the regions
    Dice,
    /// Soft Dice plus cross-entropy, of regions binary cross-entropy
    DiceCe,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Segmentation")]
pub struct SegmentationConfig {
    /// Patches that are trained on, one side in voxels or three (left to right, back to front, bottom to top), in 2D one or two
    /// (rows, columns), multiples of the encoder's reduction; smaller scans are padded [default: the median scan, of larger ones as many
    /// voxels as 128^3, in 2D 224^2, in shape as nnU-Net plans patches]
    #[arg(long, value_delimiter = ',', value_name = "VOXELS")]
    pub patch: Vec<usize>,
    /// Share of the patches that contain foreground, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = Self::default().foreground_share)]
    pub foreground_share: f64,
    #[arg(long, value_enum, default_value_t = Self::default().loss)]
    pub loss: Loss,
    /// Add losses at the decoder's coarser resolutions, each of half the weight of the next finer one
    #[arg(long)]
    pub deep_supervision: bool,
    /// Overlap of neighbouring windows when whole scans are predicted, at least 0 and below 1
    #[arg(long, value_name = "SHARE", default_value_t = Self::default().overlap)]
    pub overlap: f64,
}

impl Default for SegmentationConfig {
    fn default() -> Self {
        SegmentationConfig { patch: vec![], foreground_share: 0.5, loss: Loss::DiceCe, deep_supervision: false, overlap: 0.5 }
    }
}

impl SegmentationConfig {
    /// Shape of the patches for these scans and an encoder that pools by `reduction`. Errors if all scans are much smaller, or a side is no
    /// multiple of the reduction.
    pub fn patch_shape(&self, scans: &dyn Scans, rank: Rank, reduction: PerAxis) -> Result<Shape> {
        let given = Sides::given(&self.patch).map(|patch| patch.shape("patch", rank)).transpose()?;
        // An axis that is shorter than what the encoder pools by is padded to that.
        let shape = given.unwrap_or_else(|| reduction.whole_or_one(size::planned(scans, rank)));
        for a in rank.axes() {
            let by = reduction.along(a);
            ensure!(
                shape[a] > 0 && shape[a].is_multiple_of(by),
                "--patch: a side of {} voxels along axis {a}, expected a multiple of {by}, by which the encoder pools: {}",
                shape[a],
                multiples(shape[a], by)
            );
        }
        size::check("patch", scans, rank, shape)
            .with_context(|| format!("the encoder pools by {}; fewer --levels pool less", reduction.words()))?;
        Ok(shape)
    }

    /// Checks ranges that the parser cannot.
    pub fn check(&self) -> Result<()> {
        let share = self.foreground_share;
        ensure!((0. ..=1.).contains(&share), "--foreground-share must be 0 to 1, found {share}");
        ensure!((0. ..1.).contains(&self.overlap), "--overlap must be at least 0 and below 1, found {}", self.overlap);
        Ok(())
    }
}

/// Segmentation of scans with labels.
pub struct Segmentation {
    config: SegmentationConfig,
    augmenter: Augmenter,
    patch: Shape,
    labelling: Labelling,
    /// In the loss, one for each output.
    weights: Vec<f64>,
    /// Masks that whole scans are judged by.
    groups: Vec<Group>,
    /// Of the scans that are trained on.
    foreground: Arc<Foreground>,
    given_decoder: bool,
}

/// Prefix of the decoder's parameters in the variable store.
pub const DECODER: &str = "segmentation.decoder.";

impl Segmentation {
    /// `patch`: shape of the training patches; `weights`: of each output in the loss, not all 0 for the foreground; `foreground`: of the
    /// scans that [`Task::sample`] will be given.
    pub fn new(
        config: &SegmentationConfig,
        augmenter: Augmenter,
        patch: Shape,
        labelling: Labelling,
        weights: Vec<f64>,
        foreground: Arc<Foreground>,
    ) -> Result<Self> {
        let background = usize::from(labelling.regions.is_empty());
        ensure!(weights[background..].iter().any(|w| *w > 0.), "--class-weights are all 0 for the foreground: {weights:?}");
        let groups = regions::groups(&regions::learnt(&labelling), &labelling);
        let config = config.clone();
        Ok(Segmentation { config, augmenter, patch, labelling, weights, groups, foreground, given_decoder: false })
    }

    /// Judges whole scans by these masks, and not by each class: what chooses the best epoch is what the test scores.
    pub fn judged_by(self, groups: Vec<Group>) -> Self {
        Segmentation { groups, ..self }
    }

    /// Whether the decoder is given as the encoder is, see [`Decoder::given`].
    pub fn with_given_decoder(self, given_decoder: bool) -> Self {
        Segmentation { given_decoder, ..self }
    }
}

impl Task for Segmentation {
    fn name(&self) -> &'static str {
        "segmentation"
    }

    fn view_shape(&self) -> Shape {
        self.patch
    }

    /// The class of every voxel.
    fn targets(&self) -> usize {
        voxels(self.patch)
    }

    fn min_batch(&self) -> u64 {
        1
    }

    fn sample(&self, scans: &dyn Scans, scan: usize, rng: &mut Rng, out: &mut [f32]) -> Result<Drawn> {
        let wanted = rng.random_bool(self.config.foreground_share);
        let region = self.foreground.region(scan, self.patch, wanted, rng);
        let augmentation = self.augmenter.draw(scans.channels(), self.patch, rng);
        let mut label = vec![0u8; voxels(self.patch)];
        augmented(scans, scan, region, &augmentation, out, Some(&mut label))?;
        Ok(Drawn {
            targets: label.into_iter().map(i64::from).collect(),
            params: json!({ "region": region, "foreground": wanted, "augmentation": augmentation }),
        })
    }

    fn caption(&self, drawn: &Drawn) -> String {
        let mut present: Vec<usize> = drawn.targets.iter().map(|&t| t as usize).collect();
        present.sort_unstable();
        present.dedup();
        let name = |class: &usize| self.labelling.labels.get(*class).map_or("not labelled", |label| label.name.as_str());
        present.iter().map(name).collect::<Vec<_>>().join(", ")
    }

    fn head(&self, vs: &nn::Path, encoder: &dyn Encoder) -> Result<Box<dyn Head>> {
        Decoder::check_input(encoder, self.patch).context("--patch")?;
        let head = SegmentationHead::new(vs, encoder, &self.config, self.patch, &self.labelling, &self.weights);
        let decoder = head.decoder.given(self.given_decoder);
        Ok(Box::new(SegmentationHead { groups: self.groups.clone(), decoder, ..head }))
    }

    fn amounts(&self) -> Amounts {
        Amounts { batch: 2, draws: 2, epochs: 20 }
    }

    /// Dice over a batch's foreground voxels, all classes or regions pooled.
    fn metrics(&self) -> Vec<MetricInfo> {
        vec![MetricInfo { name: DICE, chance: None }]
    }
}

const DICE: &str = "dice";

/// Dice: the mean over cases of each case's mean over the groups that its label or prediction has; then each group's. `counts`: of each
/// case, for each of `groups`.
fn summarise(groups: &[Group], counts: &[Vec<Counts>]) -> Vec<(String, f64)> {
    let over = |values: &mut dyn Iterator<Item = Option<f64>>| mean(&values.flatten().collect::<Vec<_>>());
    let cases = &mut counts.iter().map(|case| over(&mut case.iter().map(|group| group.dice())));
    let mut out = vec![(DICE.to_owned(), over(cases).unwrap_or(f64::NAN))];
    for (k, group) in groups.iter().enumerate() {
        let dice = over(&mut counts.iter().map(|case| case[k].dice()));
        out.push((format!("{DICE}.{}", group.name), dice.unwrap_or(f64::NAN)));
    }
    out
}

/// A scan with its label and what a network makes of it, on the stored grid.
pub struct Predicted {
    /// `[C, D, H, W]`.
    pub image: Vec<f32>,
    /// Classes, `[D, H, W]`, [`IGNORE`](crate::data::labelling::IGNORE) where nobody labelled.
    pub truth: Vec<u8>,
    /// Predicted classes, of the same extent.
    pub classes: Vec<u8>,
}

impl Predicted {
    /// Errors where the scan has no label.
    pub fn of(scans: &dyn Scans, scan: usize, window: &Window, network: Forward) -> Result<Predicted> {
        let [d, h, w] = scans.shape(scan);
        let (image, truth) = (scans.whole(scan)?, scans.whole_label(scan)?);
        let dims = [scans.channels(), d, h, w].map(|n| n as i64);
        let mut classes = window.classes(&Tensor::from_slice(&image).reshape(dims), &[network])?;
        // A prediction of the file does not reach what was stored for the sake of labels: those count as missed.
        let [planes, rows, columns] = scans.foreground(scan).ranges();
        for (line, classes) in classes.chunks_exact_mut(w).enumerate() {
            let reached = if planes.contains(&(line / h)) && rows.contains(&(line % h)) { columns.clone() } else { 0..0 };
            classes[..reached.start].fill(0);
            classes[reached.end..].fill(0);
        }
        Ok(Predicted { image, truth, classes })
    }
}

/// The decoder with its loss.
pub struct SegmentationHead {
    decoder: Decoder,
    config: SegmentationConfig,
    targets: VoxelTargets,
    decoding: Decoding,
    /// Masks that whole scans are judged by.
    groups: Vec<Group>,
    rank: Rank,
    patch: Shape,
}

impl SegmentationHead {
    /// The network above the encoder, for whole scans in windows of `patch` voxels; `weights`: of each output in the loss.
    pub fn new(
        vs: &nn::Path,
        encoder: &dyn Encoder,
        config: &SegmentationConfig,
        patch: Shape,
        labelling: &Labelling,
        weights: &[f64],
    ) -> Self {
        let decoder = Decoder::new(vs / "decoder", encoder, labelling.outputs().len() as i64, config.deep_supervision);
        SegmentationHead {
            decoder,
            config: config.clone(),
            targets: VoxelTargets::new(labelling, weights),
            decoding: labelling.decoding(),
            groups: regions::groups(&regions::learnt(labelling), labelling),
            rank: encoder.rank(),
            patch,
        }
    }

    /// The decoder as TorchScript.
    pub fn script(&self) -> ScriptModule {
        self.decoder.script()
    }

    /// [`SegmentationHead::logits`](Downstream::logits) to probabilities, as a TorchScript method of the exported network.
    pub fn probabilities_source(&self) -> &'static str {
        match self.decoding {
            Decoding::Classes => {
                "def probabilities(self, x: Tensor) -> Tensor:\n    return torch.softmax(self.forward(x), 1)\n"
            }
            Decoding::Regions(_) => {
                "def probabilities(self, x: Tensor) -> Tensor:\n    return torch.sigmoid(self.forward(x))\n"
            }
        }
    }

    /// Voxels of each group in a whole scan's label and in its prediction.
    fn counts(
        &self,
        encoder: &dyn Encoder,
        scans: &dyn Scans,
        scan: usize,
        device: Device,
        place: &dyn Fn(&Tensor) -> Result<()>,
    ) -> Result<Vec<Counts>> {
        let (rank, patch, overlap) = (self.rank, self.patch, self.config.overlap);
        let (batch_size, decoding) = (default_batch(rank), self.decoding.clone());
        let window = Window { rank, patch, overlap, batch_size, mirroring: None, decoding, device };
        let predicted = Predicted::of(scans, scan, &window, &|x| {
            place(x)?;
            Ok(self.logits(encoder, x))
        })?;
        Ok(self.groups.iter().map(|group| group.counts(&predicted.truth, &predicted.classes)).collect())
    }
}

impl Head for SegmentationHead {
    fn forward(&self, encoder: &dyn Encoder, batch: &Batch, mode: Mode) -> Outcome {
        let x = batch.views.squeeze_dim(1);
        let classes = batch.class_map();
        let logits = self.decoder.forward(encoder.forward(&x, mode), mode);
        let (mut loss, mut total, mut weight) = (Tensor::from(0f32).to_device(x.device()), 0., 1.);
        for logits in &logits {
            // As many voxels along each axis as there are logits, the nearest ones, so that classes stay classes.
            let coarse = (1..=self.rank.n() as i64).fold(classes.shallow_clone(), |t, axis| {
                let step = t.size()[axis as usize] / logits.size()[axis as usize + 1];
                if step == 1 { t } else { t.slice(axis, 0, None, step) }
            });
            loss += self.targets.loss(self.config.loss, logits, &coarse) * weight;
            total += weight;
            weight /= 2.;
        }
        let metrics = vec![no_grad(|| self.targets.pooled_dice(&logits[0], &classes))];
        Outcome { loss: loss / total, metrics }
    }

    fn downstream(&self) -> Option<&dyn Downstream> {
        Some(self)
    }
}

impl Downstream for SegmentationHead {
    fn logits(&self, encoder: &dyn Encoder, x: &Tensor) -> Tensor {
        self.decoder.forward(encoder.forward(x, Mode::Eval), Mode::Eval).remove(0).to_kind(Kind::Float)
    }

    fn judge(
        &self,
        encoder: &dyn Encoder,
        scans: &dyn Scans,
        device: Device,
        place: &dyn Fn(&Tensor) -> Result<()>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<(String, f64)>>> {
        let numbers = |counts: Vec<Counts>| counts.into_iter().flat_map(Counts::numbers).collect();
        let counts = each_scan(scans, stop, |scan| self.counts(encoder, scans, scan, device, place).map(numbers))?;
        let counted = |numbers: &Vec<f64>| numbers.as_chunks().0.iter().copied().map(Counts::of_numbers).collect();
        Ok(counts.map(|counts| summarise(&self.groups, &counts.iter().map(counted).collect::<Vec<_>>())))
    }
}

#[cfg(test)]
mod tests;
