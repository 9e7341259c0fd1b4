use super::*;
use crate::data::Arrays;
use crate::nn::loss::tests::{values, written_out};
use crate::nn::{UNet, UNetConfig};
use crate::rng::{Stream, rng};
use crate::tasks::tests::{batch, check, encoder, scans};
use crate::tasks::{TaskConfigs, TaskKind};
use tch::Device;

fn task(window: Shape, rank: Rank, classes: usize) -> VolumeFusion {
    VolumeFusion::new(&VfConfig { classes, ..Default::default() }, window, rank).unwrap()
}

#[test]
fn head_runs_forward_and_backward() {
    check(TaskKind::Vf, &TaskConfigs::default(), 16);
}

#[test]
fn samples_replay_from_their_record() {
    for (rank, shape, size) in [(Rank::Three, [17, 16, 18], 4096), (Rank::Two, [1, 17, 19], 256)] {
        let (scans, task) = (scans(shape), task(rank.cube(16), rank, 5));
        let mut others = std::collections::BTreeSet::new();
        for seed in 0..20 {
            let (mut out, mut again) = (vec![f32::NAN; 2 * size], vec![f32::NAN; 2 * size]);
            let drawn = task.sample(&scans, 1, &mut rng(seed, Stream::Train, 0, 0), &mut out).unwrap();
            let record: Params = serde_json::from_str(&drawn.params.to_string()).unwrap();
            assert_eq!(task.render(&scans, &record, &mut again).unwrap(), drawn.targets);
            assert_eq!(out, again);
            assert_eq!(record.front.scan, 1);
            others.insert(record.back.scan);
        }
        assert_eq!(Vec::from_iter(others), [0, 2], "all scans but the own one");
    }
}

#[test]
fn voxels_are_mixed_by_the_last_box_over_them() {
    for (rank, shape) in [(Rank::Three, [12; 3]), (Rank::Two, [1, 12, 12])] {
        let (scans, task) = (scans(shape), task(rank.cube(12), rank, 4));
        let mut random = rng(4, Stream::Train, 0, 0);
        for _ in 0..10 {
            let mut params = task.draw(&scans, 2, &mut random).unwrap();
            assert!((10..40).contains(&params.boxes.len()));
            for source in [&mut params.front, &mut params.back] {
                source.augmentation.channels.fill(Default::default());
            }
            let n = voxels(shape);
            let mut out = vec![f32::NAN; 2 * n];
            let classes = task.render(&scans, &params, &mut out).unwrap();
            for x in ndarray::indices((shape[0], shape[1], shape[2])) {
                let x = [x.0, x.1, x.2];
                let over = |b: &&FusedBox| (0..3).all(|a| (0..b.region.size[a]).any(|i| b.region.start[a] + i == x[a]));
                let class = params.boxes.iter().rev().find(over).map_or(0, |b| b.class);
                let i = (x[0] * shape[1] + x[1]) * shape[2] + x[2];
                assert_eq!(classes[i], class as i64);
                for c in 0..2 {
                    let [f, b] = [&params.front, &params.back].map(|s| f64::from(scans.images[s.scan][[c, x[0], x[1], x[2]]]));
                    let a = class as f64 / 3.;
                    assert!((f64::from(out[c * n + i]) - (a * f + (1. - a) * b)).abs() < 1e-6);
                }
            }
        }
    }
}

#[test]
fn boxes_have_the_sides_that_are_said_and_the_blind_accuracy_is_that_of_what_they_leave() {
    for (rank, window, shortest, longest) in [
        (Rank::Three, [64; 3], [8; 3], [40; 3]),
        (Rank::Three, [16; 3], [4; 3], [10; 3]),
        (Rank::Three, [40, 16, 20], [8, 4, 5], [25, 10, 12]),
        (Rank::Two, [1, 48, 48], [1, 8, 8], [1, 30, 30]),
        (Rank::Two, [1, 15, 32], [1, 3, 8], [1, 9, 20]),
    ] {
        let task = task(window, rank, 5);
        let scans = scans(window);
        let (mut random, mut counts, mut sizes) = (rng(5, Stream::Train, 0, 0), [0usize; 5], vec![]);
        for _ in 0..60 {
            let params = task.draw(&scans, 0, &mut random).unwrap();
            paint(&params.boxes, task.view_shape()).iter().for_each(|&class| counts[class as usize] += 1);
            sizes.extend(params.boxes.iter().map(|b| b.region.size));
        }
        let sides = |a: usize| sizes.iter().map(move |size| size[a]);
        for a in rank.axes() {
            assert_eq!((sides(a).min(), sides(a).max()), (Some(shortest[a]), Some(longest[a])), "{rank:?} {window:?}");
        }
        let share = |count: usize| count as f64 / (60 * voxels(task.view_shape())) as f64;
        assert!((share(counts[0]) - task.blind).abs() < 0.05, "{rank:?} {window:?}: {counts:?}, expected {}", task.blind);
        assert!(counts[1..].iter().all(|&n| (share(n) - (1. - task.blind) / 4.).abs() < 0.05), "{counts:?}");
    }
}

#[test]
fn loss_and_metrics_as_written_out() {
    let k = 4;
    for (rank, shape) in [(Rank::Three, [9, 8, 10]), (Rank::Two, [1, 8, 9])] {
        let task = task(rank.cube(8), rank, k);
        let vs = nn::VarStore::new(Device::Cpu);
        let encoder = encoder(&vs, rank);
        let head = task.network(&(vs.root() / "vf"), &encoder).unwrap();
        let (batch, drawn) = batch(&task, &scans(shape), rank, 3);
        let outcome = head.forward(&encoder, &batch, Mode::Eval);
        let logits = head.decoder.forward(encoder.forward(&batch.views.squeeze_dim(1), Mode::Eval), Mode::Eval).remove(0);
        let classes = Tensor::from_slice(&drawn.iter().flat_map(|d| d.targets.clone()).collect::<Vec<_>>());
        let loss = DiceLoss { weights: &vec![1.; k], background: true, cross_entropy: true, ignore: None };
        let loss = written_out(loss, &logits, &classes);

        let rows: Vec<f64> = values(&logits.movedim_int(1, -1));
        // The first of equals: where no feature is active, all are.
        let largest = |row: &[f64]| (0..k).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        let pairs: Vec<(usize, usize)> =
            rows.chunks_exact(k).map(largest).zip(values(&classes).iter().map(|&c| c as usize)).collect();
        let count = |test: &dyn Fn(usize, usize) -> bool| pairs.iter().filter(|(p, t)| test(*p, *t)).count() as f64;
        let dice = |c| (2. * count(&|p, t| p == c && t == c) + 1.) / (count(&|p, _| p == c) + count(&|_, t| t == c) + 1.);
        let dice = (0..k).map(dice).sum::<f64>() / k as f64;
        let accuracy = count(&|p, t| p == t) / pairs.len() as f64;
        let found = [&outcome.loss, &outcome.metrics[0], &outcome.metrics[1]].map(|t| t.double_value(&[]));
        for (found, expected) in found.iter().zip([loss, dice, accuracy]) {
            assert!((found - expected).abs() < 1e-5, "{rank:?}: {found:?}, expected {expected}");
        }
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let refused = |task: Result<VolumeFusion>| format!("{:#}", task.err().expect("refused"));
    let new = |classes, flip, window| VolumeFusion::new(&VfConfig { classes, flip, mr: 0. }, [window; 3], Rank::Three);
    assert!(refused(new(1, 0., 32)).contains("found 1"));
    assert!(refused(new(5, 1.5, 32)).contains("1.5"));
    assert!(refused(new(5, 0., 3)).contains("at least 4"));
    let mut one: Arrays = scans([16; 3]);
    one.images.truncate(1);
    let mut out = vec![0.; 2 * 4096];
    let error = task([16; 3], Rank::Three, 5).sample(&one, 0, &mut rng(0, Stream::Train, 0, 0), &mut out).err().unwrap();
    assert!(error.to_string().contains("scan0"), "{error}");
    // Sides that do not fit the encoder, with one that does.
    let vs = nn::VarStore::new(Device::Cpu);
    let unet = UNet::new(vs.root() / "encoder", UNetConfig { filters: 2, levels: 4, ..UNetConfig::paper(Rank::Three, 1) });
    let error = task([20; 3], Rank::Three, 5).head(&vs.root(), &unet).err().unwrap();
    assert!(format!("{error:#}").contains("multiple of 8, by which the encoder pools: 16 or 24"), "{error:#}");
}
