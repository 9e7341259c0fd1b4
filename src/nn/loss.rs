//! Soft Dice and cross-entropy of a class, or of overlapping regions, for every voxel; shared by segmentation and VolumeFusion.

use super::step;
use tch::{Kind, Reduction, Tensor, no_grad};

/// Keeps the Dice of a class that a batch lacks finite: a few voxels' worth of probability.
pub const SMOOTH: f64 = 1.;

/// What is summed up.
#[derive(Clone, Copy, Debug)]
pub struct DiceLoss<'a> {
    /// Of each output.
    pub weights: &'a [f64],
    /// Whether class 0 counts in the Dice.
    pub background: bool,
    /// Add the cross-entropy.
    pub cross_entropy: bool,
    /// Class of voxels that are left out, where there may be some.
    pub ignore: Option<i64>,
}

impl DiceLoss<'_> {
    /// Of logits `[B, K, ...]` against classes `[B, ...]` of the same extent, computed in float32.
    pub fn of(&self, logits: &Tensor, classes: &Tensor) -> Tensor {
        let log = logits.to_kind(Kind::Float).log_softmax(1, Kind::Float);
        let (weights, known) = (self.weights_on(&log), self.known(classes));
        let k = log.size()[1];
        let truth = no_grad(|| {
            let ids = Tensor::arange(k, (Kind::Int64, classes.device()));
            // `[K, 1, ...]` beside `[B, 1, ...]`.
            let ids = ids.reshape([&[k][..], &vec![1; classes.dim() - 1]].concat());
            classes.unsqueeze(1).eq_tensor(&ids).to_kind(Kind::Float)
        });
        let first = i64::from(!self.background);
        let [p, t] = [&log.exp(), &truth].map(|x| x.narrow(1, first, k - first));
        let dice = soft_dice_loss(&p, &t, known.as_ref(), &weights.narrow(0, first, k - first));
        if !self.cross_entropy {
            return dice;
        }
        // As `Reduction::Mean`, but 0 and not 0 / 0 where every voxel has a class of weight 0, or none.
        let voxels = match &known {
            None => weights.take(classes),
            Some(known) => weights.take(&(classes * known)) * known,
        };
        let ignored = self.ignore.unwrap_or(NO_CLASS);
        let losses = log.nll_loss_nd(classes, Some(&weights), Reduction::Sum, ignored);
        let [losses, total] = step::sums([losses, voxels.sum(Kind::Float)]);
        dice + losses / total.clamp_min(f64::from(f32::MIN_POSITIVE))
    }

    /// Of logits `[B, R, ...]` of regions, each by itself (sigmoid), against classes `[B, ...]`: `regions[r]` are the classes of region `r`.
    /// The cross-entropy is binary, its mean that over voxels and regions.
    ///
    /// nnU-Net's `DC_and_BCE_loss` takes that mean, too, but sums over the regions once a dataset has an ignored value: its weight against
    /// the Dice would then grow with the number of regions, whether or not anything is ignored.
    pub fn of_regions(&self, logits: &Tensor, classes: &Tensor, regions: &[Vec<i64>]) -> Tensor {
        let logits = logits.to_kind(Kind::Float);
        let (weights, known) = (self.weights_on(&logits), self.known(classes));
        let truth = no_grad(|| membership(classes, regions).to_kind(Kind::Float));
        let dice = soft_dice_loss(&logits.sigmoid(), &truth, known.as_ref(), &weights);
        if !self.cross_entropy {
            return dice;
        }
        let losses = logits.binary_cross_entropy_with_logits::<Tensor>(&truth, None, None, Reduction::None);
        let each = match &known {
            None => step::mean(over_voxels(&losses) / classes.numel() as f64, classes.size()[0]),
            Some(known) => {
                let [losses, total] = step::sums([over_voxels(&(losses * known.unsqueeze(1))), known.sum(Kind::Float)]);
                losses / total.clamp_min(1.)
            }
        };
        dice + (each * &weights).sum(Kind::Float) / weights.sum(Kind::Float)
    }

    /// 1 where a voxel counts and 0 where not, as integers; `None` where all do.
    fn known(&self, classes: &Tensor) -> Option<Tensor> {
        self.ignore.map(|ignore| no_grad(|| classes.not_equal(ignore).to_kind(Kind::Int64)))
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

/// What no class is, for the cross-entropy where none is left out.
const NO_CLASS: i64 = -100;

/// Whether each voxel of classes `[B, ...]` is in each region, `[B, R, ...]`, of these classes each. Compared class by class, so that
/// nothing is copied to a GPU.
pub fn membership(classes: &Tensor, regions: &[Vec<i64>]) -> Tensor {
    let of = |region: &Vec<i64>| {
        let each = region.iter().map(|&class| classes.eq(class));
        each.reduce(|any, class| any.logical_or(&class)).unwrap_or_else(|| classes.not_equal_tensor(classes))
    };
    Tensor::stack(&regions.iter().map(of).collect::<Vec<_>>(), 1)
}

/// `[B, K, ...]` summed over all but the outputs.
fn over_voxels(x: &Tensor) -> Tensor {
    let axes: Vec<i64> = (0..x.dim() as i64).filter(|&axis| axis != 1).collect();
    x.sum_dim_intlist(axes.as_slice(), false, Kind::Float)
}

/// One minus soft Dice, summed over the whole step so that a class which one patch lacks does not decide, averaged over the
/// outputs with their weights `[K]`. `probabilities` and `truth`: `[B, K, ...]`; `known`: `[B, ...]`, 1 where a voxel counts, otherwise 0.
fn soft_dice_loss(probabilities: &Tensor, truth: &Tensor, known: Option<&Tensor>, weights: &Tensor) -> Tensor {
    let counted = |x: &Tensor| known.map_or_else(|| x.shallow_clone(), |known| x * known.unsqueeze(1));
    let [p, t] = [probabilities, truth].map(counted);
    let [both, sum] = step::sums([over_voxels(&(&p * &t)), over_voxels(&p) + over_voxels(&t)]);
    let dice = (both * 2. + SMOOTH) / (sum + SMOOTH);
    ((-dice + 1.) * weights).sum(Kind::Float) / weights.sum(Kind::Float)
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
        let voxels = || {
            let all = probabilities.iter().zip(classes.iter().map(|&c| c as usize));
            all.filter(|(_, class)| loss.ignore != Some(*class as i64))
        };
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
                    let loss = DiceLoss { weights: &weights, background, cross_entropy, ignore: None };
                    let (found, expected) =
                        (loss.of(&logits, &classes).double_value(&[]), written_out(loss, &logits, &classes));
                    assert!((found - expected).abs() < 1e-5, "{loss:?} of {dims:?}: {found}, expected {expected}");
                }
            }
        }
    }

    /// Of regions, the same way.
    pub fn regions_written_out(loss: DiceLoss, logits: &Tensor, classes: &Tensor, regions: &[Vec<i64>]) -> f64 {
        let images = logits.size()[0] as usize;
        let (logits, classes) = (values(logits), values(classes));
        let side = classes.len() / images;
        let (mut sum, weights) = (0., loss.weights);
        for (r, region) in regions.iter().enumerate() {
            let (mut both, mut total, mut entropy, mut n) = (0., 0., 0., 0.);
            for (i, &class) in classes.iter().enumerate().filter(|(_, class)| loss.ignore != Some(**class as i64)) {
                let p = 1. / (1. + (-logits[(i / side * regions.len() + r) * side + i % side]).exp());
                let t = f64::from(region.contains(&(class as i64)));
                (both, total, n) = (both + p * t, total + p + t, n + 1.);
                entropy -= t * p.ln() + (1. - t) * (1. - p).ln();
            }
            let entropy = if loss.cross_entropy && n > 0. { entropy / n } else { 0. };
            sum += weights[r] * (1. - (2. * both + 1.) / (total + 1.) + entropy);
        }
        sum / weights.iter().sum::<f64>()
    }

    #[test]
    fn ignored_voxels_and_regions_as_written_out() {
        tch::manual_seed(5);
        const IGNORED: i64 = 255;
        for dims in [&[2, 3, 4, 2][..], &[3, 5, 4]] {
            let mut all = dims.to_vec();
            all.insert(1, CLASSES as i64);
            let logits = Tensor::randn(&all, (Kind::Float, Device::Cpu)) * 2.;
            let classes = Tensor::randint(CLASSES as i64, dims, (Kind::Int64, Device::Cpu));
            // Most voxels, all of one image.
            let ignored = Tensor::rand(dims, (Kind::Float, Device::Cpu)).greater(0.4);
            let _ = ignored.get(0).fill_(1);
            let sparse = classes.masked_fill(&ignored, IGNORED);
            let regions = [vec![1, 2, 3], vec![3], vec![3, 1], vec![]];
            for cross_entropy in [false, true] {
                for weights in [[1.; CLASSES], [0.5, 1., 2., 0.]] {
                    for (classes, ignore) in [(&classes, None), (&classes, Some(IGNORED)), (&sparse, Some(IGNORED))] {
                        let loss = DiceLoss { weights: &weights, background: false, cross_entropy, ignore };
                        let found = [loss.of(&logits, classes), loss.of_regions(&logits, classes, &regions)];
                        let expected =
                            [written_out(loss, &logits, classes), regions_written_out(loss, &logits, classes, &regions)];
                        for (found, expected) in found.iter().map(|loss| loss.double_value(&[])).zip(expected) {
                            assert!((found - expected).abs() < 1e-5, "{loss:?} of {dims:?}: {found}, expected {expected}");
                        }
                    }
                }
            }
            // Nothing is learnt where nothing is labelled, in a patch of its own neither.
            let logits = logits.set_requires_grad(true);
            for (classes, learnt) in [(sparse.shallow_clone(), true), (sparse.full_like(IGNORED as f64), false)] {
                let loss = DiceLoss { weights: &[1.; CLASSES], background: false, cross_entropy: true, ignore: Some(IGNORED) };
                for value in [loss.of(&logits, &classes), loss.of_regions(&logits, &classes, &regions)] {
                    value.backward();
                    let gradient = logits.grad().abs().sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
                    let elsewhere = gradient.masked_select(&classes.eq(IGNORED)).sum(Kind::Float).double_value(&[]);
                    let all = gradient.sum(Kind::Float).double_value(&[]);
                    assert!(
                        value.double_value(&[]).is_finite() && elsewhere == 0. && (all > 0.) == learnt,
                        "{all} {elsewhere}"
                    );
                    let _ = logits.grad().zero_();
                }
            }
        }
    }

    #[test]
    fn a_patch_of_classes_without_weight_has_a_loss() {
        let loss = DiceLoss { weights: &[0., 1., 1., 1.], background: false, cross_entropy: true, ignore: None };
        let logits = Tensor::randn([1, CLASSES as i64, 4, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let value = loss.of(&logits, &Tensor::zeros([1, 4, 4], (Kind::Int64, Device::Cpu)));
        value.backward();
        assert!(value.double_value(&[]).is_finite() && bool::try_from(logits.grad().isfinite().all()).unwrap());
    }
}
