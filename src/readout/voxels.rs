//! Classes of voxels, read out of a pyramid: each level gives a voxel the value of its map where the voxel lies, as upsampling to the
//! nearest does.

use super::{Ridge, Standard, one_hot};
use crate::data::labelling::IGNORE;
use crate::dim::Shape;
use crate::metrics::overlap::Counts;
use crate::nn::Level;
use tch::{Device, Kind, Tensor};

/// Pyramid of one patch, each map `[C, D, H, W]`, float32.
pub struct Maps {
    maps: Vec<Tensor>,
    /// For each map and axis, its place for each place of the patch.
    places: Vec<[Tensor; 3]>,
}

impl Maps {
    /// Planes of images are not reduced along the first axis.
    pub fn new(maps: Vec<Tensor>, levels: &[Level], patch: Shape) -> Maps {
        let axis = |map: &Tensor, level: &Level, a: usize| {
            let places = Tensor::arange(patch[a] as i64, (Kind::Int64, map.device()));
            places.divide_scalar_mode(level.reduction.along(a) as i64, "floor").clamp_max(map.size()[a + 1] - 1)
        };
        let places = maps.iter().zip(levels).map(|(map, level)| [0, 1, 2].map(|a| axis(map, level, a))).collect();
        Maps { maps, places }
    }

    /// Features `[N, channels of all levels]`, float64 on the CPU, of voxels at these places of the patch, row-major, `[N]`, int64.
    pub fn features(&self, voxels: &Tensor) -> Tensor {
        let rows = self.maps.iter().zip(&self.places).map(|(map, [x, y, z])| {
            let (h, w) = (y.size()[0], z.size()[0]);
            let voxels = voxels.to_device(map.device());
            let along = |step: i64, size: i64| voxels.divide_scalar_mode(step, "floor").remainder(size);
            let [_, _, rows, columns] = map.size()[..] else { panic!("a map has four axes") };
            let at = (x.take(&along(h * w, x.size()[0])) * rows + y.take(&along(w, h))) * columns + z.take(&along(1, w));
            map.flatten(1, -1).index_select(1, &at).tr()
        });
        Tensor::cat(&rows.collect::<Vec<_>>(), 1).to_device(Device::Cpu).to_kind(Kind::Double)
    }
}

/// Of the regularisation, for each voxel that is fitted on. Voxels of a scan are alike, so that leaving out single ones cannot choose it.
const STRENGTH: f64 = 0.25;

/// A linear readout of voxels, fitted on some of them.
pub struct VoxelReadout {
    /// `[D, K]`, of features as they are.
    weights: Tensor,
    /// `[K]`.
    intercept: Tensor,
}

impl VoxelReadout {
    /// Of features `[N, D]`, float64, not yet standardised, and classes `[N]`, int64, below `classes`.
    pub fn fit(x: &Tensor, truth: &Tensor, classes: usize) -> VoxelReadout {
        let standard = Standard::of(x);
        let ridge = Ridge::fit(&standard.apply(x), &one_hot(truth, classes), &[STRENGTH * x.size()[0] as f64]);
        let weights = &ridge.weights / standard.scale.tr();
        let intercept = &ridge.intercept - standard.mean.matmul(&weights).squeeze_dim(0);
        VoxelReadout { weights, intercept }
    }

    /// For every voxel of a patch, row-major, its most likely class above 0, and by how much that is ahead of class 0. A linear map and the
    /// upsampling may change places: it is applied to each level at the level's resolution.
    fn foreground(&self, maps: &Maps) -> (Vec<u8>, Vec<f32>) {
        let (mut first, mut sum) = (0, None);
        for (map, places) in maps.maps.iter().zip(&maps.places) {
            let size = map.size();
            let weights = self.weights.narrow(0, first, size[0]).tr().to_kind(Kind::Float).to_device(map.device());
            first += size[0];
            let scores = weights.matmul(&map.flatten(1, -1)).view([-1, size[1], size[2], size[3]]);
            let scores = places.iter().zip(1..).fold(scores, |scores, (places, axis)| scores.index_select(axis, places));
            sum = Some(match sum {
                Some(sum) => sum + scores,
                None => scores,
            });
        }
        let sum = sum.expect("a pyramid has at least one level");
        let intercept = self.intercept.to_kind(Kind::Float).to_device(sum.device()).view([-1, 1, 1, 1]);
        let scores = sum + intercept;
        let (ahead, class) = scores.narrow(0, 1, scores.size()[0] - 1).max_dim(0, false);
        let values = |x: Tensor| x.to_device(Device::Cpu).flatten(0, -1);
        let class = values((class + 1).to_kind(Kind::Uint8));
        let ahead = values(ahead - scores.get(0));
        (Vec::try_from(class).expect("a vector of classes"), Vec::try_from(ahead).expect("a vector of numbers"))
    }

    /// At each of [`thresholds`], the Dice of each class above 0 where voxels that are ahead of class 0 by more are foreground. `truth`: class
    /// of each voxel, below `classes`, or [`IGNORE`], where nothing counts.
    pub fn dice(&self, maps: &Maps, truth: &[u8], classes: usize) -> Vec<Vec<Option<f64>>> {
        let (class, ahead) = self.foreground(maps);
        // Voxels by class and by how many thresholds they pass.
        let mut counts = vec![vec![Counts::default(); THRESHOLDS + 1]; classes];
        let limits: Vec<f32> = thresholds().collect();
        for ((&class, &ahead), &truth) in class.iter().zip(&ahead).zip(truth).filter(|(_, truth)| **truth != IGNORE) {
            let passed = &mut counts[usize::from(class)][limits.partition_point(|limit| ahead > *limit)];
            passed.prediction += 1;
            passed.both += u64::from(class == truth);
        }
        let of_class = |class: usize| truth.iter().filter(|&&t| usize::from(t) == class).count() as u64;
        let true_voxels: Vec<u64> = (0..classes).map(of_class).collect();
        let at = |threshold: usize, class: usize| {
            let all = counts[class][threshold + 1..].iter();
            let (prediction, both) = all.fold((0, 0), |(p, b), more| (p + more.prediction, b + more.both));
            Counts { truth: true_voxels[class], prediction, both }.dice()
        };
        (0..THRESHOLDS).map(|threshold| (1..classes).map(|class| at(threshold, class)).collect()).collect()
    }
}

/// A readout is fitted on as much foreground as background, which is rare in a scan: how far a voxel must be ahead is chosen from these.
const THRESHOLDS: usize = 31;

/// From -0.5 to 1, on a scale where 0 is a class that is not there and 1 one that is.
fn thresholds() -> impl Iterator<Item = f32> {
    (0..THRESHOLDS).map(|i| -0.5 + 1.5 * i as f32 / (THRESHOLDS - 1) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against features of every voxel, upsampled one by one; the sides are no multiples of the reductions.
    #[test]
    fn places_and_classes_are_those_of_upsampled_maps() {
        tch::manual_seed(3);
        let cases =
            [("1x1x1", "2x2x2", "4x4x4", [5, 7, 6]), ("1x1", "2x2", "4x4", [3, 7, 6]), ("1x1x1", "1x2x2", "2x2x4", [5, 7, 6])];
        for (first, second, third, patch) in cases {
            let level = |(channels, reduction): (i64, &str)| Level { channels, reduction: reduction.parse().unwrap() };
            let levels = [(2, first), (3, second), (4, third)].map(level);
            let step = |level: &Level, a: usize| level.reduction.along(a) as i64;
            let side = |level: &Level, a: usize| patch[a] as i64 / step(level, a);
            let map = |l: &Level| Tensor::randn([l.channels, side(l, 0), side(l, 1), side(l, 2)], (Kind::Float, Device::Cpu));
            let maps: Vec<Tensor> = levels.iter().map(map).collect();
            let mut expected: Vec<f64> = Vec::new();
            for x in ndarray::indices((patch[0], patch[1], patch[2])) {
                let x = [x.0, x.1, x.2].map(|n| n as i64);
                for (level, map) in levels.iter().zip(&maps) {
                    let at = [0, 1, 2].map(|a| (x[a] / step(level, a)).min(map.size()[a + 1] - 1));
                    expected.extend((0..level.channels).map(|c| map.double_value(&[c, at[0], at[1], at[2]])));
                }
            }
            let n: i64 = patch.iter().product::<usize>() as i64;
            let expected = Tensor::from_slice(&expected).view([n, 9]);
            let maps = Maps::new(maps, &levels, patch);
            let all = Tensor::arange(n, (Kind::Int64, Device::Cpu));
            assert!(maps.features(&all).equal(&expected));
            let some = Tensor::from_slice(&[n - 1, 4, 50]);
            assert!(maps.features(&some).equal(&expected.index_select(0, &some)));

            let truth = Tensor::arange(n, (Kind::Int64, Device::Cpu)).remainder(3);
            let readout = VoxelReadout::fit(&expected, &truth, 3);
            let standard = Standard::of(&expected);
            let scores = {
                let ridge = Ridge::fit(&standard.apply(&expected), &one_hot(&truth, 3), &[STRENGTH * n as f64]);
                standard.apply(&expected).matmul(&ridge.weights) + &ridge.intercept
            };
            let truth: Vec<u8> = (0..n).map(|i| (i % 3) as u8).collect();
            let found = readout.dice(&maps, &truth, 3);
            assert_eq!(found.len(), 31);
            for (threshold, found) in thresholds().zip(found) {
                let value =
                    |i: i64, class: i64| scores.double_value(&[i, class]) - if class > 0 { f64::from(threshold) } else { 0. };
                let predicted: Vec<u8> =
                    (0..n).map(|i| (0..3).max_by(|&a, &b| value(i, a).total_cmp(&value(i, b))).unwrap() as u8).collect();
                let mask = |of: &[u8], class: u8| of.iter().map(|&c| c == class).collect::<Vec<bool>>();
                let wanted = [1, 2].map(|class| Counts::of(&mask(&truth, class), &mask(&predicted, class)).dice());
                assert_eq!(found, wanted, "at {threshold}");
            }
            // Where nobody labelled, nothing is right or wrong: as if the voxels were not there.
            let sparse: Vec<u8> = truth.iter().enumerate().map(|(i, &c)| if i % 4 == 1 { c } else { IGNORE }).collect();
            let (classes, ahead) = readout.foreground(&maps);
            for (threshold, found) in thresholds().zip(readout.dice(&maps, &sparse, 3)) {
                let kept = |i: &usize| sparse[*i] != IGNORE;
                let mask =
                    |class: u8| (0..sparse.len()).filter(kept).map(|i| ahead[i] > threshold && classes[i] == class).collect();
                let true_mask = |class: u8| (0..sparse.len()).filter(kept).map(|i| sparse[i] == class).collect();
                let dice = |(truth, prediction): (Vec<bool>, Vec<bool>)| Counts::of(&truth, &prediction).dice();
                assert_eq!(found, [1, 2].map(|class| dice((true_mask(class), mask(class)))), "at {threshold}");
            }
        }
    }
}
