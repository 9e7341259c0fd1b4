//! Ranks that share a batch have its loss, metrics, statistics and, as the mean of theirs, its gradients.

use super::*;
use crate::data::labelling::{IGNORE, LabelRegion, LabelValue, Labelling};
use crate::group::{self, testing::ranks};
use crate::tasks::class_weights::ClassWeights;
use crate::tasks::classification::{ClassificationConfig, ClassificationHead, Outputs, Score};
use crate::tasks::regression::{RegressionConfig, RegressionHead, Standard};
use crate::tasks::segmentation::{Loss, SegmentationConfig, SegmentationHead};
use std::collections::BTreeMap;

/// Samples of the batch: no two of the ranks' shares are of one size.
const SAMPLES: u64 = 5;

/// Tensors, which threads cannot share, by name.
type Values = BTreeMap<String, Vec<f64>>;

fn values(t: &Tensor) -> Vec<f64> {
    Vec::try_from(t.to_kind(Kind::Double).contiguous().flatten(0, -1)).unwrap()
}

struct Trained {
    weights: Values,
    /// The loss, then the metrics.
    numbers: Vec<f64>,
    gradients: Values,
    /// After the step.
    statistics: Values,
}

/// A step of a head on these samples, from these weights or new ones.
fn train(
    head: &dyn Fn(&nn::Path, &dyn Encoder) -> Box<dyn Head>,
    batch: &dyn Fn(Range<usize>) -> Batch,
    own: Range<u64>,
    weights: Option<&Values>,
) -> Trained {
    let vs = nn::VarStore::new(Device::Cpu);
    let config = UNetConfig { filters: 4, levels: 2, ..UNetConfig::paper(Rank::Two, 2) };
    let encoder = UNet::new(vs.root() / "encoder", config);
    let head = head(&(vs.root() / "head"), &encoder);
    let variables = vs.variables();
    let of = |choose: &dyn Fn(&Tensor) -> Option<Tensor>| -> Values {
        variables.iter().filter_map(|(name, variable)| Some((name.clone(), values(&choose(variable)?)))).collect()
    };
    for (name, values) in weights.into_iter().flatten() {
        let variable = &variables[name];
        tch::no_grad(|| variable.shallow_clone().copy_(&Tensor::from_slice(values).reshape(variable.size())));
    }
    let weights = of(&|variable| Some(variable.detach()));
    let batch = batch(own.start as usize..own.end as usize);
    let outcome = group::with_batch(SAMPLES, || {
        let outcome = head.forward(&encoder, &batch, Mode::Train);
        outcome.loss.backward();
        outcome
    });
    let numbers = std::iter::once(&outcome.loss).chain(&outcome.metrics).map(|t| t.double_value(&[])).collect();
    let gradients = of(&|variable| Some(variable.grad()).filter(Tensor::defined));
    let statistics = of(&|variable| (!variable.requires_grad()).then(|| variable.detach()));
    Trained { weights, numbers, gradients, statistics }
}

fn check_ranks(
    name: &str,
    head: impl Fn(&nn::Path, &dyn Encoder) -> Box<dyn Head> + Sync,
    batch: impl Fn(Range<usize>) -> Batch + Sync,
) {
    let one = train(&head, &batch, 0..SAMPLES, None);
    let shared = ranks(2, |_| train(&head, &batch, group::share(SAMPLES), Some(&one.weights)));
    let close = |what: &str, found: &[f64], wanted: &[f64], scale: f64| {
        let off = found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0., f64::max);
        assert!(found.len() == wanted.len() && off <= 2e-5 * scale, "{name}: {what}: off by {off} of {scale}");
    };
    let largest = |all: &mut dyn Iterator<Item = &f64>| all.fold(0f64, |most, x| most.max(x.abs()));
    let gradient = largest(&mut one.gradients.values().flatten());
    assert!(gradient > 0. && !one.statistics.is_empty());
    for rank in &shared {
        close("loss and metrics", &rank.numbers, &one.numbers, largest(&mut one.numbers.iter()).max(1.));
        for (statistic, wanted) in &one.statistics {
            close(statistic, &rank.statistics[statistic], wanted, 1.);
        }
    }
    for (parameter, wanted) in &one.gradients {
        let mut mean = vec![0.; wanted.len()];
        for rank in &shared {
            mean.iter_mut().zip(&rank.gradients[parameter]).for_each(|(mean, g)| *mean += g / shared.len() as f64);
        }
        close(parameter, &mean, wanted, gradient);
    }
}

#[test]
fn of_pretext_tasks() {
    let mut configs = TaskConfigs::default();
    // Without dropout: libtorch's generator is one for all ranks of a test.
    (configs.rot.head, configs.rpl.head, configs.jig.head) = (HeadKind::Gap, HeadKind::Gap, HeadKind::Gap);
    for &kind in TaskKind::value_variants() {
        let side = if kind.decodes() || kind == TaskKind::Simclr { 16 } else { 18 };
        let task = build(kind, &configs, Rank::Two.cube(side), 2, Rank::Two, 5).unwrap();
        let (scans, length) = (scans([1, 21, 22]), sample_length(&*task, 2));
        let (mut samples, mut targets) = (vec![0.; length * SAMPLES as usize], Vec::new());
        for (i, out) in samples.chunks_exact_mut(length).enumerate() {
            let drawn = task.sample(&scans, i % scans.len(), &mut rng(3, Stream::Train, 0, i as u64), out).unwrap();
            targets.extend(drawn.targets);
        }
        let batch = |own: Range<usize>| {
            let targets = &targets[own.start * task.targets()..own.end * task.targets()];
            super::super::batch(&*task, Rank::Two, 2, &samples[own.start * length..own.end * length], targets, false)
        };
        check_ranks(&kind.name(), |vs, encoder| task.head(vs, encoder).unwrap(), batch);
    }
}

/// Images of 8 x 8 pixels, with targets.
fn images(targets: &[i64]) -> impl Fn(Range<usize>) -> Batch + Sync {
    let mut rng = rng(5, Stream::Phantom, 0, 0);
    let (length, each) = (2 * 64, targets.len() / SAMPLES as usize);
    let pixels: Vec<f32> = (0..length * SAMPLES as usize).map(|i| rng.random::<f32>() + (i / length) as f32).collect();
    let targets = targets.to_vec();
    move |own| {
        let n = own.len() as i64;
        Batch {
            views: Tensor::from_slice(&pixels[own.start * length..own.end * length]).view([n, 1, 2, 8, 8]),
            clean: None,
            targets: Tensor::from_slice(&targets[own.start * each..own.end * each]).view([n, each as i64]),
        }
    }
}

#[test]
fn of_segmentations() {
    let name = |i: i64| ["background", "a", "b", "c"][i as usize].to_owned();
    let labels = (0..4).map(|value| LabelValue { value, name: name(value) }).collect::<Vec<_>>();
    let region = |name: &str, values: &[i64]| LabelRegion { name: name.into(), values: values.into(), written: values[0] };
    let regions = vec![region("all", &[1, 2, 3]), region("core", &[3, 2]), region("one", &[1])];
    let mut rng = rng(6, Stream::Phantom, 0, 0);
    for (regions, ignore) in [(vec![], None), (regions.clone(), None), (vec![], Some(9)), (regions, Some(9))] {
        // Samples have few of some classes, and of labels: the ranks' counts differ.
        let mut class = |i: usize| match ignore {
            Some(_) if rng.random_bool(0.2 * (i / 64) as f64) => IGNORE.into(),
            _ => rng.random_range(0..=(i / 64).min(3) as i64),
        };
        let targets: Vec<i64> = (0..64 * SAMPLES as usize).map(&mut class).collect();
        let labelling = Labelling { labels: labels.clone(), regions, ignore };
        for loss in [Loss::Dice, Loss::DiceCe] {
            let config = SegmentationConfig { loss, deep_supervision: true, ..Default::default() };
            let weights = &[0.5, 1., 3., 2.][..labelling.outputs().len()];
            let head = |vs: &nn::Path, encoder: &dyn Encoder| -> Box<dyn Head> {
                Box::new(SegmentationHead::new(vs, encoder, &config, [1, 8, 8], &labelling, weights))
            };
            check_ranks(&format!("{loss:?} {labelling:?}"), head, images(&targets));
        }
    }
}

#[test]
fn of_whole_scans() {
    let weights = ClassWeights::resolve(Some(&ClassWeights::Balanced), &[3, 1, 7]).unwrap();
    for outputs in [Outputs::Softmax, Outputs::Ordinal] {
        let config = ClassificationConfig { outputs: Some(outputs), head_dropout: 0., ..Default::default() };
        let head = |vs: &nn::Path, encoder: &dyn Encoder| -> Box<dyn Head> {
            Box::new(ClassificationHead::new(vs, encoder, &config, &weights, Score::Kappa))
        };
        check_ranks("classification", head, images(&[0, 2, 2, 1, 0]));
    }
    let head = |vs: &nn::Path, encoder: &dyn Encoder| -> Box<dyn Head> {
        let standard = Standard { mean: 3., sd: 2. };
        Box::new(RegressionHead::new(vs, encoder, &RegressionConfig::default(), 0., standard))
    };
    check_ranks("regression", head, images(&[0.3, -2., 1., 0.5, 7f64].map(|x| x.to_bits() as i64)));
}
