use super::*;
use crate::data::Arrays;
use crate::dim::{Rank, Region};
use crate::rng::{Stream, rng};
use crate::tasks::tests::{encoder, scans};
use crate::transform::augment::AugmentConfig;
use crate::transform::mirror::MirrorAxis;
use crate::transform::spatial::Orientation;
use rand::Rng as _;

const CLASSES: usize = 5;

fn logits(samples: usize) -> Vec<[f64; CLASSES]> {
    let mut rng = rng(4, Stream::Train, 0, 0);
    (0..samples).map(|_| std::array::from_fn(|_| rng.random_range(-3. ..3.))).collect()
}

fn tensor(rows: &[[f64; CLASSES]]) -> Tensor {
    Tensor::from_slice(&rows.concat()).reshape([rows.len() as i64, CLASSES as i64]).to_kind(Kind::Float)
}

fn head(vs: &nn::VarStore, outputs: Outputs, weights: &[f64]) -> ClassificationHead {
    let config = ClassificationConfig { outputs: Some(outputs), ..Default::default() };
    ClassificationHead::new(&vs.root(), &encoder(vs, Rank::Two), &config, weights, Score::Kappa)
}

#[test]
fn losses_as_written_out() {
    let rows = logits(12);
    let truth: Vec<i64> = (0..12).map(|i| i % 4).collect();
    for outputs in [Outputs::Ordinal, Outputs::Softmax] {
        for weights in [[1.; CLASSES], [0.5, 2., 0., 1., 3.]] {
            let (mut sum, mut total) = (0., 0.);
            for (row, &t) in rows.iter().zip(&truth) {
                let loss = match outputs {
                    Outputs::Softmax => row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[t as usize],
                    Outputs::Ordinal => {
                        let p = |x: f64| 1. / (1. + (-x).exp());
                        let term = |(k, &x): (usize, &f64)| if t >= k as i64 { -p(x).ln() } else { -(1. - p(x)).ln() };
                        row.iter().enumerate().map(term).sum::<f64>() / CLASSES as f64
                    }
                };
                sum += weights[t as usize] * loss;
                total += weights[t as usize];
            }
            let vs = nn::VarStore::new(Device::Cpu);
            let found = head(&vs, outputs, &weights).loss(&tensor(&rows), &Tensor::from_slice(&truth)).double_value(&[]);
            assert!((found - sum / total).abs() < 1e-5, "{outputs:?} {weights:?}: {found}, expected {}", sum / total);
        }
        let vs = nn::VarStore::new(Device::Cpu);
        let none = head(&vs, outputs, &[0., 1., 1., 1., 1.]).loss(&tensor(&rows[..2]), &Tensor::from_slice(&[0i64, 0]));
        assert_eq!(none.double_value(&[]), 0.);
    }
}

#[test]
fn classes_and_probabilities_of_ordered_outputs() {
    let rows = logits(200);
    let found: Vec<i64> = Vec::try_from(classes(Outputs::Ordinal, &tensor(&rows))).unwrap();
    let probabilities = probabilities(Outputs::Ordinal, &tensor(&rows));
    for (i, row) in rows.iter().enumerate() {
        let above = row.iter().filter(|&&x| 1. / (1. + (-x).exp()) > 0.5).count() as i64;
        assert_eq!(found[i], (above - 1).max(0));
        let mut at_least = [1.; CLASSES + 1];
        at_least[CLASSES] = 0.;
        (1..CLASSES).for_each(|k| at_least[k] = f64::min(at_least[k - 1], 1. / (1. + (-row[k]).exp())));
        for k in 0..CLASSES {
            let p = probabilities.double_value(&[i as i64, k as i64]);
            assert!((p - (at_least[k] - at_least[k + 1])).abs() < 1e-6, "{row:?}: {k}");
        }
    }
    // Outputs in order give the class in whose middle half of the probability lies.
    let falling = tensor(&[[4., 2., 1., -1., -2.]]);
    assert_eq!(classes(Outputs::Ordinal, &falling).int64_value(&[0]), 2);
    assert_eq!(classes(Outputs::Softmax, &falling).int64_value(&[0]), 0);
}

#[test]
fn heads_run_in_both_ranks_and_reach_every_parameter() {
    for rank in [Rank::Two, Rank::Three] {
        tch::manual_seed(1);
        let vs = nn::VarStore::new(Device::Cpu);
        let encoder = encoder(&vs, rank);
        let names = ["a", "b", "c", "d", "e"].map(String::from).to_vec();
        let config = ClassificationConfig::default();
        let augmenter = AugmentConfig::default().augmenter(rank, None, &[]).unwrap();
        let task = Classification::new(&config, augmenter, rank.cube(8), names, vec![1.; CLASSES], Score::Kappa);
        let head = task.head(&(vs.root() / "classification"), &encoder).unwrap();
        let mut dims = vec![4, 1, 2];
        dims.extend(vec![8; rank.n()]);
        let views = Tensor::randn(&dims, (Kind::Float, Device::Cpu));
        let targets = Tensor::from_slice(&[0i64, 4, 2, 1]).reshape([4, 1]);
        let outcome = head.forward(&encoder, &Batch { views, clean: None, targets }, Mode::Train);
        outcome.loss.backward();
        for (name, variable) in vs.variables().into_iter().filter(|(_, v)| v.requires_grad()) {
            assert!(variable.grad().defined() && bool::try_from(variable.grad().isfinite().all()).unwrap(), "{name}");
        }
    }
}

#[test]
fn validation_is_summarised_over_all_scans() {
    let judged = |rows: &[(u8, u8, f64)]| -> Vec<Judged> {
        rows.iter().map(|&(truth, predicted, loss)| Judged { truth, predicted, loss }).collect()
    };
    let cases = judged(&[(0, 0, 1.), (1, 2, 2.), (2, 2, 3.), (1, 0, 2.)]);
    let summary: std::collections::BTreeMap<String, f64> = summarise(Score::Kappa, &[1.; 3], &cases).into_iter().collect();
    assert_eq!(summary["accuracy"], 0.5);
    assert_eq!(summary["loss"], 2.);
    // Mean squared distances: 2 of 4 observed, and that of chance from how often each class is the true and the predicted one.
    let (n, m) = ([1., 2., 1.], [2., 0., 2.]);
    let chance: f64 = (0..9).map(|i| n[i / 3] * m[i % 3] * ((i / 3) as f64 - (i % 3) as f64).powi(2)).sum::<f64>() / 16.;
    assert!((summary["kappa"] - (1. - 0.5 / chance)).abs() < 1e-12);
    assert!(summarise(Score::Kappa, &[1.; 3], &judged(&[(1, 1, 0.)]))[0].1.is_nan());
}

/// Scan `k` has class `k`.
struct Graded(Arrays);

impl Scans for Graded {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn id(&self, scan: usize) -> &str {
        self.0.id(scan)
    }
    fn channels(&self) -> usize {
        self.0.channels()
    }
    fn shape(&self, scan: usize) -> Shape {
        self.0.shape(scan)
    }
    fn read(&self, scan: usize, region: Region, orientation: Orientation, out: &mut [f32]) -> Result<()> {
        self.0.read(scan, region, orientation, out)
    }
    fn class(&self, scan: usize) -> Option<u8> {
        Some(scan as u8)
    }
}

#[test]
fn a_class_with_a_side_becomes_the_other_one_in_a_mirror_image() {
    let (shape, names) = ([1, 8, 8], ["neither", "left eye", "right eye"]);
    let scans = Graded(scans(shape));
    for (axis, expected) in [(MirrorAxis::Horizontal, [0, 2, 1]), (MirrorAxis::Vertical, [0, 1, 2])] {
        let config = AugmentConfig { flip: 1., flip_axes: vec![axis], ..AugmentConfig::default() };
        let augmenter = config.augmenter(Rank::Two, None, &names).unwrap();
        let names = names.map(String::from).to_vec();
        let task = Classification::new(&ClassificationConfig::default(), augmenter, shape, names, vec![1.; 3], Score::Kappa);
        for (scan, class) in expected.into_iter().enumerate() {
            let mut out = vec![0.; 2 * 64];
            let drawn = task.sample(&scans, scan, &mut rng(1, Stream::Train, 0, 0), &mut out).unwrap();
            assert_eq!(drawn.targets, [class], "{axis:?}");
        }
    }
}
