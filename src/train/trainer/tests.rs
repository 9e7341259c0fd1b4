use super::*;
use crate::data::Arrays;
use crate::dim::Rank;
use crate::nn::UNetConfig;
use crate::nn::heads::HeadKind;
use crate::run::means::Means;
use crate::run::tensors::{Tensors, restore};
use crate::tasks::{TaskConfigs, TaskKind, build, tests::scans};
use clap::Parser;

#[derive(Parser)]
#[command(args_override_self = true)]
struct Settings {
    #[command(flatten)]
    config: TrainConfig,
}

/// A trainer of rotations on these scans, without dropout, from the same weights as `like`: other tests draw from libtorch's generator
/// at the same time.
fn trainer(scans: Arrays, flags: &str, like: Option<&Trainer>) -> Trainer {
    let always = "trainer --data - --device cpu --precision fp32 --threads 1 --schedule constant --warmup-epochs 0 --clip 0";
    let config = Settings::try_parse_from(always.split(' ').chain(flags.split(' '))).unwrap().config;
    let mut tasks = TaskConfigs::default();
    tasks.rot.head = HeadKind::Gap;
    let task = build(TaskKind::Rot, &tasks, [1, 16, 16], 2, Rank::Two, 0).unwrap();
    let encoder = UNetConfig { filters: 2, levels: 2, ..UNetConfig::paper(Rank::Two, 2) }.into();
    let scans: Arc<dyn Scans> = Arc::new(scans);
    let (device, tasks) = (Device::Cpu, vec![(Arc::from(task), 1.)]);
    let setup =
        Setup { config: &config, device, tasks, encoder, train: scans.clone(), valid: scans, mirror_zoom: None, given: None };
    let trainer = Trainer::new(setup).unwrap();
    if let Some(like) = like {
        let weights: Tensors = like.network.vs.variables().into_iter().map(|(n, t)| (n, t.detach().copy())).collect();
        restore(&trainer.network.vs.variables(), &weights).unwrap();
    }
    trainer
}

fn two_dimensional() -> Arrays {
    scans([1, 20, 20])
}

/// The momentum buffers of SGD, flat; after the first step they are the gradient.
fn momentum(trainer: &Trainer) -> Tensor {
    let state = trainer.optimizer.state().into_iter().filter(|(name, _)| name.starts_with("first."));
    Tensor::cat(&state.map(|(_, t)| t.flatten(0, -1).copy()).collect::<Vec<_>>(), 0)
}

#[test]
fn accumulated_batches_give_the_mean_of_their_gradients() {
    // Nothing moves at a rate of 0, so that both of the single steps start from the same weights.
    let flags = "--optimizer sgd --lr 0 --weight-decay 0 --batch-size 3";
    let mut one = trainer(two_dimensional(), &format!("{flags} --steps 2"), None);
    let mut both = trainer(two_dimensional(), &format!("{flags} --steps 1 --accumulate 2"), Some(&one));
    let (mut means, mut accumulated) = (Means::default(), Means::default());
    let mut batches = one.batches(0, 0);
    one.step(0, 0, &mut batches, &mut means).unwrap();
    let first = momentum(&one);
    one.step(0, 1, &mut batches, &mut means).unwrap();
    let second = momentum(&one) - 0.9 * &first;
    let mut batches = both.batches(0, 0);
    both.step(0, 0, &mut batches, &mut accumulated).unwrap();
    let (expected, found) = ((&first + &second) / 2., momentum(&both));
    let error = (&found - &expected).abs().max().double_value(&[]);
    let size = expected.abs().max().double_value(&[]);
    assert!(error < 1e-5 * size && (&first - &second).abs().max().double_value(&[]) > 0.1 * size, "{error} of {size}");
    for name in ["loss", "rot.accuracy"] {
        let [found, expected] = [&accumulated, &means].map(|means| means.get(name).unwrap());
        assert!((found - expected).abs() < 1e-5, "{name}: {found} for {expected}");
    }
    assert_eq!(both.samples_per_step(), 6);
}

#[test]
fn numbers_fetched_later_are_the_same() {
    let flags = "--steps 6 --batch-size 3";
    let mut now = trainer(two_dimensional(), flags, None);
    let mut later = trainer(two_dimensional(), flags, Some(&now));
    later.check_steps = 4;
    let (mut expected, mut found) = (Means::default(), Means::default());
    let (mut a, mut b) = (now.batches(0, 0), later.batches(0, 0));
    for step in 0..6 {
        now.step(0, step, &mut a, &mut expected).unwrap();
        later.step(0, step, &mut b, &mut found).unwrap();
        assert_eq!(found.get("loss").is_some(), step >= 3, "after step {step}");
    }
    assert_ne!(found, expected);
    later.flush(&mut found).unwrap();
    assert_eq!(found, expected);
}

#[test]
fn a_loss_that_is_not_finite_names_its_step_and_scans() {
    let broken = || {
        let mut scans = two_dimensional();
        scans.images[2].fill(f32::NAN);
        scans
    };
    let flags = "--steps 8 --batch-size 2";
    let run = |mut trainer: Trainer, check_steps: usize| {
        trainer.check_steps = check_steps;
        let (mut means, mut batches) = (Means::default(), trainer.batches(0, 0));
        let ended = (0..8).try_for_each(|step| trainer.step(0, step, &mut batches, &mut means));
        ended.and_then(|()| trainer.flush(&mut means)).unwrap_err().to_string()
    };
    let now = run(trainer(broken(), flags, None), 1);
    assert!(now.contains("the loss of rot is NaN") && now.contains("scan2"), "{now}");
    // The first step that went wrong, not one of those that its weights have spoilt since.
    for later in [3, 100] {
        assert_eq!(run(trainer(broken(), flags, None), later), now);
    }
}

#[test]
fn the_rate_rises_over_the_warm_up_epochs() {
    let trainer =
        trainer(two_dimensional(), "--steps 4 --batch-size 2 --epochs 4 --lr 0.6 --warmup-epochs 1.5 --warmup-floor 0", None);
    let rates: Vec<f64> = (0..12).map(|step| trainer.rates(step / 4, step % 4).new).collect();
    for (step, rate) in rates.iter().enumerate() {
        assert!((rate - 0.1 * step.min(6) as f64).abs() < 1e-12, "step {step}: {rate}");
    }
}
