//! Soft Dice and cross-entropy of a class for every voxel, shared by segmentation and VolumeFusion.

use tch::{Kind, Reduction, Tensor, no_grad};

/// Keeps the Dice of a class that a batch lacks finite: a few voxels' worth of probability.
pub const SMOOTH: f64 = 1.;

/// What is summed up.
#[derive(Clone, Copy, Debug)]
pub struct DiceLoss<'a> {
    /// Of each class.
    pub weights: &'a [f64],
    /// Whether class 0 counts in the Dice.
    pub background: bool,
    /// Add the cross-entropy.
    pub cross_entropy: bool,
}

impl DiceLoss<'_> {
    /// Of logits `[B, K, ...]` against classes `[B, ...]` of the same extent, computed in float32.
    pub fn of(&self, logits: &Tensor, classes: &Tensor) -> Tensor {
        let log = logits.to_kind(Kind::Float).log_softmax(1, Kind::Float);
        let weights = self.weights_on(&log);
        let dice = soft_dice_loss(&log.exp(), classes, &weights, i64::from(!self.background));
        if !self.cross_entropy {
            return dice;
        }
        // As `Reduction::Mean`, but 0 and not 0 / 0 where every voxel has a class of weight 0.
        let total = weights.take(classes).sum(Kind::Float).clamp_min(f64::from(f32::MIN_POSITIVE));
        dice + log.nll_loss_nd(classes, Some(&weights), Reduction::Sum, -100) / total
    }

    /// On the device of `like`. Equal weights are not copied there: a GPU would wait for the copy in every step.
    fn weights_on(&self, like: &Tensor) -> Tensor {
        let first = self.weights[0];
        if self.weights.iter().all(|w| *w == first) {
            return like.new_full([self.weights.len() as i64], first, (Kind::Float, like.device()));
        }
        let weights: Vec<f32> = self.weights.iter().map(|&w| w as f32).collect();
        Tensor::from_slice(&weights).to_device(like.device())
    }
}

/// One minus soft Dice, summed over the whole batch so that a class which one patch lacks does not decide, averaged over the
/// classes from `first` on with their weights. `probabilities` `[B, K, ...]`, `classes` `[B, ...]`, `weights` `[K]`.
fn soft_dice_loss(probabilities: &Tensor, classes: &Tensor, weights: &Tensor, first: i64) -> Tensor {
    let k = probabilities.size()[1];
    let truth = no_grad(|| {
        let ids = Tensor::arange(k, (Kind::Int64, classes.device()));
        // `[K, 1, ...]` beside `[B, 1, ...]`.
        let ids = ids.reshape([&[k][..], &vec![1; classes.dim() - 1]].concat());
        classes.unsqueeze(1).eq_tensor(&ids).to_kind(Kind::Float)
    });
    let [p, t] = [probabilities, &truth].map(|x| x.narrow(1, first, k - first));
    let axes: Vec<i64> = (0..p.dim() as i64).filter(|&axis| axis != 1).collect();
    let over = |x: &Tensor| x.sum_dim_intlist(axes.as_slice(), false, Kind::Float);
    let (both, sum) = (over(&(&p * &t)), over(&p) + over(&t));
    let dice = (both * 2. + SMOOTH) / (sum + SMOOTH);
    let weights = weights.narrow(0, first, k - first);
    ((-dice + 1.) * &weights).sum(Kind::Float) / weights.sum(Kind::Float)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tch::Device;

    const CLASSES: usize = 4;

    pub fn values(x: &Tensor) -> Vec<f64> {
        Vec::try_from(x.to_kind(Kind::Double).contiguous().reshape([-1])).unwrap()
    }

    /// The loss voxel by voxel; `logits` `[B, 4, ...]`, `classes` `[B, ...]`.
    pub fn written_out(loss: DiceLoss, logits: &Tensor, classes: &Tensor) -> f64 {
        let images = logits.size()[0] as usize;
        let (logits, classes) = (values(logits), values(classes));
        let side = classes.len() / images;
        let probabilities: Vec<[f64; CLASSES]> = (0..classes.len())
            .map(|i| {
                let e: [f64; CLASSES] = std::array::from_fn(|k| logits[(i / side * CLASSES + k) * side + i % side].exp());
                e.map(|x| x / e.iter().sum::<f64>())
            })
            .collect();
        let voxels = || probabilities.iter().zip(classes.iter().map(|&c| c as usize));
        let weights = loss.weights;
        let (mut dice, mut weight) = (0., 0.);
        for k in usize::from(!loss.background)..CLASSES {
            let both: f64 = voxels().filter(|(_, c)| *c == k).map(|(p, _)| p[k]).sum();
            let total: f64 = voxels().map(|(p, c)| p[k] + if c == k { 1. } else { 0. }).sum();
            dice += weights[k] * (1. - (2. * both + 1.) / (total + 1.));
            weight += weights[k];
        }
        let entropy: f64 = voxels().map(|(p, c)| -weights[c] * p[c].ln()).sum();
        let entropy = entropy / voxels().map(|(_, c)| weights[c]).sum::<f64>();
        dice / weight + if loss.cross_entropy { entropy } else { 0. }
    }

    #[test]
    fn losses_as_written_out() {
        tch::manual_seed(3);
        for dims in [&[2, 3, 4, 2][..], &[3, 5, 4]] {
            let mut all = dims.to_vec();
            all.insert(1, CLASSES as i64);
            let logits = Tensor::randn(&all, (Kind::Float, Device::Cpu)) * 2.;
            // The last class is in no patch, as with few labels.
            let classes = Tensor::randint(CLASSES as i64 - 1, dims, (Kind::Int64, Device::Cpu));
            for weights in [[1.; CLASSES], [2.; CLASSES], [0.5, 1., 2., 3.], [0.5, 1., 2., 0.]] {
                for (background, cross_entropy) in [(false, false), (false, true), (true, false), (true, true)] {
                    let loss = DiceLoss { weights: &weights, background, cross_entropy };
                    let (found, expected) =
                        (loss.of(&logits, &classes).double_value(&[]), written_out(loss, &logits, &classes));
                    assert!((found - expected).abs() < 1e-5, "{loss:?} of {dims:?}: {found}, expected {expected}");
                }
            }
        }
    }

    #[test]
    fn a_patch_of_classes_without_weight_has_a_loss() {
        let loss = DiceLoss { weights: &[0., 1., 1., 1.], background: false, cross_entropy: true };
        let logits = Tensor::randn([1, CLASSES as i64, 4, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let value = loss.of(&logits, &Tensor::zeros([1, 4, 4], (Kind::Int64, Device::Cpu)));
        value.backward();
        assert!(value.double_value(&[]).is_finite() && bool::try_from(logits.grad().isfinite().all()).unwrap());
    }
}
