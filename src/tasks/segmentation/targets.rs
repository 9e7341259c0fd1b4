//! What the outputs of a segmentation are trained towards: classes, or regions that are unions of several.

use super::Loss;
use crate::data::labelling::{IGNORE, Labelling};
use crate::metrics::regions;
use crate::nn::loss::{DiceLoss, SMOOTH, membership};
use crate::nn::step;
use tch::{Kind, Tensor};

pub struct VoxelTargets {
    /// Of each output in the loss.
    weights: Vec<f64>,
    /// Classes of each region that is an output; none where classes are.
    regions: Vec<Vec<i64>>,
    /// Class of voxels that nobody labelled, where there may be some.
    ignore: Option<i64>,
}

impl VoxelTargets {
    pub fn new(labelling: &Labelling, weights: &[f64]) -> VoxelTargets {
        let regions = match labelling.regions.is_empty() {
            true => vec![],
            false => regions::groups(&regions::learnt(labelling), labelling),
        };
        let classes = regions.into_iter().map(|region| region.classes.into_iter().map(i64::from).collect());
        VoxelTargets { weights: weights.to_vec(), regions: classes.collect(), ignore: labelling.ignore.map(|_| IGNORE.into()) }
    }

    /// Loss of logits `[B, K, ...]` against classes `[B, ...]` of the same extent.
    pub fn loss(&self, kind: Loss, logits: &Tensor, classes: &Tensor) -> Tensor {
        let cross_entropy = kind == Loss::DiceCe;
        let loss = DiceLoss { weights: &self.weights, background: false, cross_entropy, ignore: self.ignore };
        if self.regions.is_empty() { loss.of(logits, classes) } else { loss.of_regions(logits, classes, &self.regions) }
    }

    /// Hard Dice of all foreground classes, or of all regions, the whole step pooled; 1 where there is no foreground at all.
    pub fn pooled_dice(&self, logits: &Tensor, classes: &Tensor) -> Tensor {
        let known = self.ignore.map(|ignore| classes.not_equal(ignore));
        let [prediction, truth, both] = match self.regions.is_empty() {
            true => {
                let predicted = logits.argmax(1, false);
                let [p, t] = [&predicted, classes].map(|x| x.not_equal(0));
                let both = predicted.eq_tensor(classes).logical_and(&t);
                [p, t, both].map(|mask| mask.unsqueeze(1))
            }
            false => {
                let (p, t) = (logits.greater(0), membership(classes, &self.regions));
                let both = p.logical_and(&t);
                [p, t, both]
            }
        };
        let count = |mask: Tensor| match &known {
            None => mask.sum(Kind::Float),
            Some(known) => mask.logical_and(&known.unsqueeze(1)).sum(Kind::Float),
        };
        let [both, prediction, truth] = step::sums([count(both), count(prediction), count(truth)]);
        (both * 2. + SMOOTH) / (prediction + truth + SMOOTH)
    }
}
