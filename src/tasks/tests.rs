mod ranks;

use super::*;
use crate::data::Arrays;
use crate::dim::Sides;
use crate::nn::heads::HeadKind;
use crate::nn::{Architecture, EncoderFlags, UNet, UNetConfig};
use crate::rng::{Stream, rng};
use rand::Rng as _;

/// Random scans of a shape with two channels.
pub fn scans(shape: Shape) -> Arrays {
    let mut rng = rng(7, Stream::Phantom, 0, 0);
    let [d, h, w] = shape;
    let images = (0..3).map(|_| ndarray::Array4::from_shape_simple_fn((2, d, h, w), || rng.random::<f32>())).collect();
    Arrays { ids: (0..3).map(|i| format!("scan{i}")).collect(), images }
}

/// A batch of samples of scans 0, 1, ..., and what was drawn.
pub fn batch(task: &dyn Task, scans: &Arrays, rank: Rank, size: usize) -> (Batch, Vec<Drawn>) {
    let length = sample_length(task, scans.channels());
    let (mut views, mut drawn) = (Vec::new(), Vec::new());
    for i in 0..size {
        let mut out = vec![f32::NAN; length];
        let mut rng = rng(3, Stream::Train, 0, i as u64);
        drawn.push(task.sample(scans, i % scans.len(), &mut rng, &mut out).unwrap());
        assert!(out.iter().all(|v| v.is_finite()), "{}: unwritten voxels", task.name());
        views.extend(out);
    }
    let targets: Vec<i64> = drawn.iter().flat_map(|d| d.targets.clone()).collect();
    (super::batch(task, rank, scans.channels(), &views, &targets, false), drawn)
}

pub fn encoder(vs: &nn::VarStore, rank: Rank) -> UNet {
    UNet::new(vs.root() / "encoder", UNetConfig { filters: 4, levels: 3, ..UNetConfig::paper(rank, 2) })
}

/// Every head runs forward and backward in both ranks and in windows of equal and unequal sides, reaches every parameter, and reports what
/// it declares.
pub fn check(kind: TaskKind, configs: &TaskConfigs, side: usize) {
    for (rank, longer) in [Rank::Two, Rank::Three].into_iter().flat_map(|rank| [(rank, 0), (rank, 4)]) {
        tch::manual_seed(1);
        let mut window = rank.cube(side);
        window[1] += longer;
        let task = build(kind, configs, window, 2, rank, 5).unwrap();
        let scan = std::array::from_fn(|a| if window[a] == 1 { 1 } else { window[a] + 3 });
        let (batch, drawn) = batch(&*task, &scans(scan), rank, 2);
        assert!(drawn.iter().all(|d| !task.caption(d).is_empty() && d.targets.len() == task.targets()));
        let vs = nn::VarStore::new(Device::Cpu);
        let encoder = encoder(&vs, rank);
        let head = task.head(&(vs.root() / task.name()), &encoder).unwrap();
        let outcome = head.forward(&encoder, &batch, Mode::Train);
        assert_eq!(outcome.metrics.len(), task.metrics().len());
        assert!(outcome.metrics.iter().all(|m| m.numel() == 1 && m.kind() == Kind::Float && !m.requires_grad()));
        outcome.loss.backward();
        for (name, variable) in vs.variables().into_iter().filter(|(_, v)| v.requires_grad()) {
            assert!(variable.grad().defined(), "{kind:?} {rank:?}: no gradient for {name}");
            assert!(bool::try_from(variable.grad().isfinite().all()).unwrap(), "{kind:?} {rank:?}: {name}");
        }
        let loss = f64::try_from(head.forward(&encoder, &batch, Mode::Eval).loss).unwrap();
        assert!(loss.is_finite());
    }
}

#[test]
fn heads_run_forward_and_backward() {
    for head in [HeadKind::Big, HeadKind::Gap] {
        let mut configs = TaskConfigs::default();
        (configs.rot.head, configs.rpl.head, configs.jig.head) = (head, head, head);
        [TaskKind::Rot, TaskKind::Rpl, TaskKind::Jig].iter().for_each(|&kind| check(kind, &configs, 27));
    }
}

#[test]
fn cross_entropy_and_accuracy_as_written_out() {
    let mut rng = rng(2, Stream::Train, 0, 0);
    let logits: Vec<[f64; 5]> = (0..40).map(|_| std::array::from_fn(|_| rng.random_range(-4. ..4.))).collect();
    let targets: Vec<i64> = (0..40).map(|_| rng.random_range(0..5)).collect();
    let (mut loss, mut right) = (0., 0.);
    for (row, &t) in logits.iter().zip(&targets) {
        loss -= row[t as usize] - row.iter().map(|x| x.exp()).sum::<f64>().ln();
        right += (0..5).all(|i| row[i] <= row[t as usize]) as u8 as f64;
    }
    let flat: Vec<f64> = logits.concat();
    let outcome = classify(&Tensor::from_slice(&flat).view([40, 5]), &Tensor::from_slice(&targets));
    assert_eq!(outcome.loss.kind(), Kind::Float);
    assert!((f64::try_from(outcome.loss).unwrap() - loss / 40.).abs() < 1e-5);
    assert!((f64::try_from(&outcome.metrics[0]).unwrap() - right / 40.).abs() < 1e-6);
}

#[test]
fn names_short_and_long() {
    for (short, long) in [
        ("rot", "rotation"),
        ("rpl", "relative-patch-location"),
        ("jig", "jigsaw"),
        ("cpc", "contrastive-predictive-coding"),
        ("exe", "exemplar"),
        ("mae", "masked-autoencoding"),
        ("gen", "models-genesis"),
        ("vf", "volume-fusion"),
        ("simclr", "simclr"),
    ] {
        let kind: TaskKind = short.parse().unwrap();
        assert_eq!(kind, long.parse().unwrap());
        assert_eq!(kind, serde_json::from_value(long.into()).unwrap());
        assert_eq!(serde_json::to_value(kind).unwrap(), short);
    }
    assert!("rott".parse::<TaskKind>().unwrap_err().to_string().contains("\"rott\""));
}

#[test]
fn impossible_geometry_is_refused_with_the_numbers() {
    let refused = |kind, window, change: fn(&mut TaskConfigs), part: &str| {
        let mut configs = TaskConfigs::default();
        change(&mut configs);
        let error = build(kind, &configs, [window; 3], 1, Rank::Three, 0).err().expect("refused");
        assert!(format!("{error:#}").contains(part), "{error:#}");
    };
    refused(TaskKind::Rot, 1, |_| (), "window of 1");
    refused(TaskKind::Rpl, 2, |_| (), "2 voxels");
    refused(TaskKind::Rpl, 64, |c| c.rpl.grid = Sides::all(4), "found 4");
    refused(TaskKind::Rpl, 64, |c| c.rpl.jitter = Some(Sides::all(21)), "cells of 21 voxels");
    refused(TaskKind::Jig, 64, |c| c.jig.grid = Sides::all(1), "found 1");
    refused(TaskKind::Jig, 64, |c| c.jig.shuffles = 101, "--jig-shuffles 101");
    refused(TaskKind::Jig, 64, |c| c.jig.permutations = 1, "1 permutations");

    // A patch that the encoder pools to nothing, and a scan smaller than the window.
    let task = build(TaskKind::Rpl, &TaskConfigs::default(), [9; 3], 2, Rank::Three, 0).unwrap();
    let vs = nn::VarStore::new(Device::Cpu);
    let error = task.head(&vs.root(), &encoder(&vs, Rank::Three)).err().expect("refused");
    assert!(format!("{error:#}").contains("[2, 2, 2]"), "{error:#}");
    let mut out = vec![0.; 2 * 2 * 8];
    let error = task.sample(&scans([9, 8, 9]), 0, &mut rng(0, Stream::Train, 0, 0), &mut out).err().expect("refused");
    assert!(error.to_string().contains("[9, 8, 9]") && error.to_string().contains("[9, 9, 9]"), "{error:#}");
}

#[test]
fn windows_that_nobody_names_fit_the_decoder() {
    let scans = |side| Arrays { ids: vec!["a".into()], images: vec![ndarray::Array4::zeros((1, side, side, side))] };
    let window = |task, side, flags: &EncoderFlags| {
        let window = default_window(&[task], &scans(side), Rank::Three, flags.networks(Rank::Three)).unwrap();
        let network = flags.fitted(Rank::Three, &[window]).unwrap().config(Rank::Three, 1, 0.).unwrap();
        assert_eq!(window, [window[0]; 3]);
        (window[0], network.levels().len())
    };
    let (unet, resenc) = (EncoderFlags::default(), EncoderFlags { encoder: Some(Architecture::ResEncL), ..Default::default() });
    for (side, of_unet, of_resenc) in
        [(31, (24, 4), (24, 4)), (47, (32, 5), (32, 5)), (70, (64, 5), (64, 6)), (13, (12, 3), (12, 3))]
    {
        assert_eq!(window(TaskKind::Mae, side, &unet), of_unet);
        assert_eq!(window(TaskKind::Mae, side, &resenc), of_resenc);
        assert_eq!(window(TaskKind::Rot, side, &unet).0, side, "nothing to decode");
    }
    // Along each axis by itself, and of rotation with sides made equal.
    let uneven = |task, shape: Shape| {
        let scans = Arrays { ids: vec!["a".into()], images: vec![ndarray::Array4::zeros((1, shape[0], shape[1], shape[2]))] };
        default_window(&[task], &scans, Rank::Three, unet.networks(Rank::Three)).unwrap()
    };
    assert_eq!(uneven(TaskKind::Mae, [50, 70, 34]), [48, 64, 32]);
    assert_eq!(uneven(TaskKind::Vf, [50, 70, 13]), [48, 64, 8], "four levels, so that the thin axis is not pooled away");
    assert_eq!([TaskKind::Rpl, TaskKind::Rot].map(|task| uneven(task, [35, 51, 17])), [[35, 51, 17], [35, 35, 17]]);
    let named = EncoderFlags { levels: Some(5), ..unet };
    assert_eq!(window(TaskKind::Mae, 47, &named), (32, 5));
    assert_eq!(window(TaskKind::Mae, 31, &named).0, 31, "is refused, with the sizes that work");
    let flat = Arrays { ids: vec!["a".into()], images: vec![ndarray::Array4::zeros((1, 1, 20, 20))] };
    let densenet = EncoderFlags { encoder: Some(Architecture::DenseNet121), ..Default::default() };
    let flat = default_window(&[TaskKind::Mae], &flat, Rank::Two, densenet.networks(Rank::Two)).unwrap();
    assert_eq!(flat, [1, 32, 32], "its levels are no choice: padded to what it pools by");
}
