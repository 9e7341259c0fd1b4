use super::*;
use crate::data::labelling::{IGNORE, LabelRegion, LabelValue};
use crate::data::slices::Slices;
use crate::dim::Region;
use crate::nn::loss::DiceLoss;
use crate::nn::loss::tests::{regions_written_out, values, written_out};
use crate::nn::{UNet, UNetConfig};
use crate::rng::{Stream, rng};
use crate::sample::foreground::tests::{all, store};
use crate::tasks::tests::encoder;
use crate::transform::augment::{AugmentConfig, Augmentation};
use crate::transform::spatial::Orientation;
use ndarray::{Array3, ArrayView2, Axis};

const CLASSES: usize = 4;
const EQUAL: [f64; CLASSES] = [1.; CLASSES];

fn config(loss: Loss, deep_supervision: bool) -> SegmentationConfig {
    SegmentationConfig { loss, deep_supervision, ..Default::default() }
}

fn head(
    vs: &nn::VarStore,
    encoder: &dyn Encoder,
    config: &SegmentationConfig,
    patch: Shape,
    weights: &[f64],
) -> SegmentationHead {
    SegmentationHead::new(&(vs.root() / "segmentation"), encoder, config, patch, &labels(), weights)
}

fn labels() -> Labelling {
    let names = ["background", "a", "b", "c"];
    let label = |(value, name): (i64, &str)| LabelValue { value, name: name.into() };
    (0..).zip(names).map(label).collect::<Vec<_>>().into()
}

#[test]
fn losses_as_written_out() {
    let vs = nn::VarStore::new(Device::Cpu);
    tch::manual_seed(3);
    for (rank, dims) in [(Rank::Three, &[2, 3, 4, 2][..]), (Rank::Two, &[3, 5, 4])] {
        let encoder = encoder(&nn::VarStore::new(Device::Cpu), rank);
        let mut all = dims.to_vec();
        all.insert(1, CLASSES as i64);
        let logits = Tensor::randn(&all, (Kind::Float, Device::Cpu)) * 2.;
        // The last class is in no patch, as with few labels.
        let classes = Tensor::randint(CLASSES as i64 - 1, dims, (Kind::Int64, Device::Cpu));
        for (loss, weights) in
            [(Loss::Dice, EQUAL), (Loss::DiceCe, EQUAL), (Loss::Dice, [0.5, 1., 2., 3.]), (Loss::DiceCe, [0.5, 1., 2., 0.])]
        {
            let found = head(&vs, &encoder, &config(loss, false), [4; 3], &weights)
                .targets
                .loss(loss, &logits, &classes)
                .double_value(&[]);
            let cross_entropy = loss == Loss::DiceCe;
            let expected =
                written_out(DiceLoss { weights: &weights, background: false, cross_entropy, ignore: None }, &logits, &classes);
            assert!((found - expected).abs() < 1e-5, "{rank:?} {loss:?} {weights:?}: {found}, expected {expected}");
        }
    }
}

#[test]
fn deep_supervision_halves_each_coarser_loss() {
    let region = |name: &str, values: &[i64]| LabelRegion { name: name.into(), values: values.into(), written: values[0] };
    let overlapping = vec![region("all", &[1, 2, 3]), region("core", &[3, 2]), region("one", &[1]), region("two", &[2])];
    let members = [vec![1, 2, 3], vec![3, 2], vec![1], vec![2]];
    for (rank, regions, ignore) in [
        (Rank::Two, vec![], None),
        (Rank::Three, vec![], None),
        (Rank::Two, overlapping.clone(), None),
        (Rank::Two, vec![], Some(9)),
        (Rank::Three, overlapping, Some(9)),
    ] {
        tch::manual_seed(4);
        let vs = nn::VarStore::new(Device::Cpu);
        let encoder = encoder(&vs, rank);
        let (patch, config) = (rank.cube(16), config(Loss::DiceCe, true));
        let labelling = Labelling { regions, ignore, ..labels() };
        let head = SegmentationHead::new(&(vs.root() / "segmentation"), &encoder, &config, patch, &labelling, &EQUAL);
        let mut dims = vec![2, 1, 2];
        dims.extend(vec![16; rank.n()]);
        let views = Tensor::randn(&dims, (Kind::Float, Device::Cpu));
        let mut targets = Tensor::randint(CLASSES as i64, [2, voxels(patch) as i64], (Kind::Int64, Device::Cpu));
        let ignore = ignore.map(|_| i64::from(IGNORE));
        if let Some(class) = ignore {
            let most = Tensor::rand(targets.size(), (Kind::Float, Device::Cpu)).greater(0.3);
            targets = targets.masked_fill(&most, class);
        }
        let batch = Batch { views: views.shallow_clone(), clean: None, targets: targets.shallow_clone() };
        let outcome = head.forward(&encoder, &batch, Mode::Train);
        let found = outcome.loss.double_value(&[]);

        let logits = head.decoder.forward(encoder.forward(&views.squeeze_dim(1), Mode::Train), Mode::Train);
        assert_eq!(logits.len(), 2);
        let classes = values(&targets);
        let mut expected = 0.;
        for (level, (logits, weight)) in logits.iter().zip([1., 0.5]).enumerate() {
            let step = 1 << level;
            let kept = |x: usize| (x % 16).is_multiple_of(step);
            let at = |i: usize| kept(i) && kept(i / 16) && (rank == Rank::Two || kept(i / 256));
            let coarse: Vec<i64> = (0..classes.len()).filter(|&i| at(i)).map(|i| classes[i] as i64).collect();
            let mut dims = logits.size();
            dims.remove(1);
            let coarse = Tensor::from_slice(&coarse).reshape(&dims);
            let loss = DiceLoss { weights: &EQUAL, background: false, cross_entropy: true, ignore };
            let of_level = match labelling.regions.is_empty() {
                true => written_out(loss, logits, &coarse),
                false => regions_written_out(loss, logits, &coarse, &members),
            };
            expected += weight * of_level / 1.5;
        }
        assert!((found - expected).abs() < 1e-4, "{rank:?}: {found}, expected {expected}");
        // In evaluation the full resolution alone.
        assert_eq!(head.decoder.forward(encoder.forward(&views.squeeze_dim(1), Mode::Eval), Mode::Eval).len(), 1);

        // The metric: every mask of the full resolution, pooled over the batch, where voxels are labelled.
        let (shown, side) = (values(&logits[0]), voxels(patch));
        let [mut both, mut either] = [0.; 2];
        for (i, &class) in classes.iter().enumerate().filter(|(_, class)| ignore != Some(**class as i64)) {
            let logit = |k: usize| shown[(i / side * CLASSES + k) * side + i % side];
            let masks: Vec<[bool; 2]> = match labelling.regions.is_empty() {
                true => {
                    let best = (0..CLASSES).max_by(|&a, &b| logit(a).total_cmp(&logit(b))).unwrap();
                    (1..CLASSES).map(|k| [best == k, class as usize == k]).collect()
                }
                false => (0..4).map(|r| [logit(r) > 0., members[r].contains(&(class as i64))]).collect(),
            };
            both += masks.iter().filter(|mask| mask[0] && mask[1]).count() as f64;
            either += masks.iter().flatten().filter(|is| **is).count() as f64;
        }
        let (dice, expected) = (outcome.metrics[0].double_value(&[]), (2. * both + 1.) / (either + 1.));
        assert!((dice - expected).abs() < 1e-5, "{rank:?}: {dice}, expected {expected}");
    }
}

#[test]
fn cases_are_averaged_before_they_are_compared() {
    let case = |numbers: [[u64; 3]; 3]| numbers.map(|[both, prediction, truth]| Counts { truth, prediction, both }).to_vec();
    // Per class voxels in both, in the prediction, in the label. Dice: a 2 * 3 / 10 = 0.6, b missed, c in neither.
    let first = case([[3, 4, 6], [0, 0, 5], [0, 0, 0]]);
    // a in neither, b 1, c 2 * 1 / 8 = 0.25.
    let second = case([[0, 0, 0], [7, 7, 7], [1, 2, 6]]);
    let empty = case([[0; 3]; 3]);
    let found: Vec<(String, f64)> = summarise(&Group::classes(&labels().labels), &[first, second, empty.clone()]);
    let expected = [("dice", (0.3 + 0.625) / 2.), ("dice.a", 0.6), ("dice.b", 0.5), ("dice.c", 0.25)];
    for ((name, value), (wanted, expected)) in found.iter().zip(expected) {
        assert!(name == wanted && (value - expected).abs() < 1e-12, "{found:?}");
    }
    assert!(summarise(&Group::classes(&labels().labels), &[empty]).iter().all(|(_, value)| value.is_nan()));
}

#[test]
fn slices_are_judged_as_the_volume_that_they_are_put_back_to() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = rng(1, Stream::Train, 0, 0);
    let label = Array3::from_shape_simple_fn((9, 6, 7), || random.random_range(0..CLASSES as u8));
    let volumes = store(folder.path(), &[Some(label.clone())]);
    let vs = nn::VarStore::new(Device::Cpu);
    let encoder = UNet::new(vs.root() / "encoder", UNetConfig { filters: 4, levels: 2, ..UNetConfig::paper(Rank::Two, 1) });
    let patch = [1, 4, 4];
    let head = head(&vs, &encoder, &config(Loss::DiceCe, false), patch, &EQUAL);
    for (slices, axis) in [(Slices::Sagittal, 0), (Slices::Coronal, 1), (Slices::Axial, 2)] {
        let scans = volumes.clone().sliced(Some(slices)).unwrap();
        let found = head.counts(&encoder, &scans, 0, Device::Cpu, &|_| Ok(())).unwrap();
        // Slice by slice, put into a volume.
        let window = Window {
            rank: Rank::Two,
            patch,
            overlap: 0.5,
            batch_size: 1,
            mirroring: None,
            decoding: Decoding::Classes,
            device: Device::Cpu,
        };
        let mut predicted = Array3::zeros(label.dim());
        for (truth, mut out) in label.axis_iter(Axis(axis)).zip(predicted.axis_iter_mut(Axis(axis))) {
            let dims = [1, 1, truth.nrows() as i64, truth.ncols() as i64];
            let values: Vec<f32> = truth.iter().map(|&class| f32::from(class)).collect();
            let classes =
                window.classes(&Tensor::from_slice(&values).reshape(dims), &[&|x| Ok(head.logits(&encoder, x))]).unwrap();
            out.assign(&ArrayView2::from_shape(truth.dim(), &classes).unwrap());
        }
        let count = |of: &dyn Fn(u8, u8) -> bool| predicted.iter().zip(&label).filter(|&(&p, &t)| of(p, t)).count() as u64;
        let of_class = |k| Counts {
            both: count(&|p, t| p == k && t == k),
            prediction: count(&|p, _| p == k),
            truth: count(&|_, t| t == k),
        };
        let expected: Vec<Counts> = (1..CLASSES as u8).map(of_class).collect();
        assert_eq!(found, expected, "{slices:?}");
        assert!(
            expected.iter().any(|class| class.prediction > 0),
            "a prediction without foreground shows nothing: {expected:?}"
        );
    }
}

/// A ball of class 1 in a corner of a large scan, so that few patches meet it by chance.
fn ball(shape: Shape, radius: i64) -> Array3<u8> {
    Array3::from_shape_fn((shape[0], shape[1], shape[2]), |(d, h, w)| {
        let square = |x: usize| (x as i64 - radius).pow(2);
        u8::from((shape[0] == 1 || square(d) < radius * radius) && square(h) + square(w) < radius * radius)
    })
}

#[test]
fn samples_are_replayed_with_image_and_label_in_the_same_place() {
    for (rank, shape, patch) in [(Rank::Three, [40, 44, 48], [16, 20, 12]), (Rank::Two, [1, 90, 80], [1, 24, 16])] {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), &[Some(ball(shape, 7))]);
        let scans = all(&store);
        let foreground = Arc::new(Foreground::of(&scans, &labels()).unwrap());
        let mut config = config(Loss::Dice, false);
        config.foreground_share = 0.7;
        let augmenter = AugmentConfig { flip: 0.5, ..AugmentConfig::default() }.augmenter(rank, None, &[]).unwrap();
        let task = Segmentation::new(&config, augmenter, patch, labels(), EQUAL.into(), foreground).unwrap();
        let n = voxels(patch);
        let (mut wanted, mut moved, mut apart, mut seen) = (0, 0, 0, 0);
        for i in 0..400 {
            let mut image = vec![f32::NAN; n];
            let drawn = task.sample(&scans, 0, &mut rng(1, Stream::Train, 0, i), &mut image).unwrap();
            let region: Region = serde_json::from_value(drawn.params["region"].clone()).unwrap();
            let augmentation: Augmentation = serde_json::from_value(drawn.params["augmentation"].clone()).unwrap();
            let (mut again, mut label) = (vec![0f32; n], vec![0u8; n]);
            scans.read(0, region, Orientation::IDENTITY, &mut again).unwrap();
            scans.label(0, region, Orientation::IDENTITY, &mut label).unwrap();
            if drawn.params["foreground"].as_bool().unwrap() {
                wanted += 1;
                assert!(label.contains(&1), "{region:?}");
            }
            crate::sample::turned::augmented(&scans, 0, region, &augmentation, &mut again, Some(&mut label)).unwrap();
            assert!(again == image && label.iter().map(|&c| i64::from(c)).eq(drawn.targets.iter().copied()));
            // The image is the label: with intensities as they are, a voxel is bright where its class is 1.
            if augmentation.channels.iter().all(|change| *change == Default::default()) {
                moved += usize::from(augmentation.spatial != crate::transform::resample::Resample::IDENTITY);
                seen += drawn.targets.iter().filter(|&&c| c == 1).count();
                apart += image.iter().zip(&drawn.targets).filter(|(v, c)| (**v > 0.5) != (**c == 1)).count();
            }
        }
        // 280 expected, five standard deviations of 9.2.
        assert!((234..=326).contains(&wanted), "{wanted} of 400 with foreground");
        assert!(moved > 50 && seen > 1000 && apart * 50 < seen, "{moved} moved, {apart} of {seen} voxels apart");
    }
}
