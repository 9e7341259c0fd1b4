use super::*;
use crate::sample::sampler::Sampler;
use crate::tasks::tests::{batch, check, encoder, scans};
use crate::tasks::{TaskConfigs, TaskKind};
use crate::transform::spatial::Orientation;
use std::sync::Arc;
use tch::{Device, nn::VarStore};

/// Without changes of the input.
fn plain() -> MaeConfig {
    MaeConfig { spatial: 0., intensity: 0., ..Default::default() }
}

#[test]
fn head_runs_forward_and_backward() {
    for fill in [None, Some(Fill::Learnt)] {
        for loss in [Counted::Masked, Counted::All] {
            let mut configs = TaskConfigs::default();
            (configs.mae.fill, configs.mae.loss) = (fill, loss);
            check(TaskKind::Mae, &configs, 12);
        }
    }
}

#[test]
fn exactly_the_ratio_is_masked_and_the_rest_is_the_scan() {
    // 12 voxels are 3 blocks of 4, 13 have a fourth that sticks out.
    for (rank, window, block) in [
        (Rank::Two, [1, 12, 12], "4"),
        (Rank::Two, [1, 13, 13], "4"),
        (Rank::Three, [12; 3], "4"),
        (Rank::Three, [13; 3], "4"),
        (Rank::Three, [12, 13, 7], "4,5,2"),
        (Rank::Two, [1, 12, 9], "4,3"),
    ] {
        let shape: Shape = std::array::from_fn(|a| if window[a] == 1 { 1 } else { window[a] + 1 });
        let block: Sides = block.parse().unwrap();
        let [p, q, r] = block.shape("", rank).unwrap();
        for (ratio, fill) in [(0.6, Fill::Zero), (0.3, Fill::Mean), (0.9, Fill::Learnt)] {
            let config = MaeConfig { block: Some(block.clone()), ratio: Some(ratio), fill: Some(fill), ..plain() };
            let task = Mae::new(&config, window, rank).unwrap();
            let (batch, drawn) = batch(&task, &scans(shape), rank, 4);
            let grid = [window[0].div_ceil(p), window[1].div_ceil(q), window[2].div_ceil(r)];
            let all = grid.iter().product::<usize>();
            let (views, clean) = (batch.views.squeeze_dim(1), batch.clean.unwrap().squeeze_dim(1));
            let mask = task.blocks.mask(&batch.targets);
            for (i, drawn) in drawn.iter().enumerate() {
                assert_eq!(drawn.targets.len(), all);
                assert_eq!(drawn.targets.iter().sum::<i64>(), (ratio * all as f64).round() as i64);
                let masked = task.blocks.voxels(&drawn.targets);
                for c in 0..2 {
                    let values = |t: &Tensor| Vec::<f32>::try_from(t.get(i as i64).get(c).flatten(0, -1)).unwrap();
                    let (input, clean) = (values(&views), values(&clean));
                    let visible: Vec<f64> = (0..input.len()).filter(|&v| !masked[v]).map(|v| f64::from(clean[v])).collect();
                    let expected = if fill == Fill::Mean { visible.iter().sum::<f64>() / visible.len() as f64 } else { 0. };
                    for v in 0..input.len() {
                        // Row-major: the block of a voxel, written out.
                        let (x, y, z) = (v / window[2] / window[1], v / window[2] % window[1], v % window[2]);
                        let row = x / p * grid[1] + y / q;
                        assert_eq!(masked[v], drawn.targets[row * grid[2] + z / r] == 1);
                        match masked[v] {
                            true => assert!((f64::from(input[v]) - expected).abs() < 1e-6),
                            false => assert_eq!(input[v], clean[v]),
                        }
                    }
                }
                let on_device: Vec<f32> = Vec::try_from(mask.get(i as i64).flatten(0, -1)).unwrap();
                assert!(on_device.iter().zip(&masked).all(|(a, &b)| *a == f32::from(u8::from(b))));
            }
        }
    }
}

#[test]
fn the_input_is_changed_and_the_target_is_not() {
    let config = MaeConfig { intensity: 1., fill: Some(Fill::Zero), ..plain() };
    let task = Mae::new(&config, [12; 3], Rank::Three).unwrap();
    let scans = scans([14; 3]);
    let (batch, drawn) = batch(&task, &scans, Rank::Three, 3);
    for (i, drawn) in drawn.iter().enumerate() {
        let mut expected = vec![0f32; 2 * 12usize.pow(3)];
        let window = serde_json::from_value(drawn.params["window"].clone()).unwrap();
        scans.read(i, window, Orientation::IDENTITY, &mut expected).unwrap();
        let values = |t: &Tensor| Vec::<f32>::try_from(t.get(i as i64).flatten(0, -1)).unwrap();
        assert_eq!(values(batch.clean.as_ref().unwrap()), expected);
        // The record replays the sample.
        let augmentation: crate::transform::augment::Augmentation =
            serde_json::from_str(&drawn.params["augmentation"].to_string()).unwrap();
        augmentation.apply(&mut expected, None, task.view_shape()).unwrap();
        assert!(!augmentation.spatial.resamples());
        let masked = task.blocks.voxels(&drawn.targets);
        expected.iter_mut().enumerate().filter(|(v, _)| masked[v % masked.len()]).for_each(|(_, x)| *x = 0.);
        assert_eq!(values(&batch.views), expected);
        assert_ne!(values(&batch.views), values(batch.clean.as_ref().unwrap()));
    }
}

#[test]
fn spatial_changes_move_input_and_target_alike() {
    let config = MaeConfig { spatial: 1., flip: 0.5, intensity: 0., ..Default::default() };
    let task = Mae::new(&config, [12; 3], Rank::Three).unwrap();
    let (batch, drawn) = batch(&task, &scans([14; 3]), Rank::Three, 3);
    let visible = task.blocks.mask(&batch.targets).eq(0.).to_kind(Kind::Float);
    let difference = (batch.views.squeeze_dim(1) - batch.clean.unwrap().squeeze_dim(1)) * visible;
    assert_eq!(difference.abs().max().double_value(&[]), 0.);
    assert!(drawn.iter().all(|d| d.params["augmentation"]["spatial"]["degrees"] != 0.));
}

#[test]
fn loss_and_metric_as_written_out() {
    for (rank, loss) in [(Rank::Three, Counted::Masked), (Rank::Two, Counted::All)] {
        let task = Mae::new(&MaeConfig { loss, ..plain() }, rank.cube(8), rank).unwrap();
        let vs = VarStore::new(Device::Cpu);
        let encoder = encoder(&vs, rank);
        let head = task.network(&vs.root(), &encoder).unwrap();
        // A decoder that has learnt something.
        let mut output = vs.variables()["decoder.output.weight"].shallow_clone();
        no_grad(|| output.copy_(&Tensor::randn_like(&output)));
        let (batch, drawn) = batch(&task, &scans(rank.cube(9)), rank, 3);
        let restored = no_grad(|| head.restorer.forward(&encoder, &restoration::inputs(&batch), Mode::Eval));
        let values = |t: &Tensor, b: usize, c: i64| {
            Vec::<f64>::try_from(t.get(b as i64).get(c).flatten(0, -1).to_kind(Kind::Double)).unwrap()
        };
        let clean = restoration::targets(&batch);
        // Sums over the masked voxels and over all of them.
        let (mut error, mut spread) = ([0.; 2], [0.; 2]);
        for (b, drawn) in drawn.iter().enumerate() {
            let masked = task.blocks.voxels(&drawn.targets);
            for c in 0..2 {
                let (restored, clean) = (values(&restored, b, c), values(&clean, b, c));
                for (which, counts) in [masked.clone(), vec![true; masked.len()]].iter().enumerate() {
                    let counted: Vec<usize> = (0..masked.len()).filter(|&v| counts[v]).collect();
                    let mean = counted.iter().map(|&v| clean[v]).sum::<f64>() / counted.len() as f64;
                    error[which] += counted.iter().map(|&v| (restored[v] - clean[v]).powi(2)).sum::<f64>();
                    spread[which] += counted.iter().map(|&v| (mean - clean[v]).powi(2)).sum::<f64>();
                }
            }
        }
        let outcome = head.forward(&encoder, &batch, Mode::Eval);
        let relative = |which: usize| error[which] / spread[which];
        for (found, expected) in
            [(&outcome.loss, relative(usize::from(loss == Counted::All))), (&outcome.metrics[0], relative(0))]
        {
            let found = f64::try_from(found).unwrap();
            assert!((found - expected).abs() < 1e-4 * expected, "{rank:?}: {found}, expected {expected}");
        }
    }
}

#[test]
fn nothing_learnt_is_1_and_perfect_is_0_whatever_the_scale() {
    let mask = Tensor::from_slice(&[1f32, 1., 0., 1.]).view([1, 1, 4]).expand([2, 1, 4], false);
    for scale in [1., 1000., 0.1] {
        let clean = Tensor::randn([2, 3, 4], (Kind::Float, Device::Cpu)) * scale + 5. * scale;
        let mean = (&clean * &mask).sum_dim_intlist(2, true, Kind::Float) / 3.;
        let error = |restored: &Tensor| f64::try_from(relative_error(restored, &clean, Some(&mask))).unwrap();
        assert!((error(&mean.expand_as(&clean)) - 1.).abs() < 1e-3);
        assert_eq!(error(&clean), 0.);
        // What is not masked does not count.
        assert_eq!(error(&(&clean + 7. * (1. - &mask))), 0.);
    }
}

#[test]
fn blank_windows_have_a_finite_error_and_gradient() {
    let mut blank = scans([12; 3]);
    blank.images.iter_mut().for_each(|image| image.fill(0.25));
    for loss in [Counted::Masked, Counted::All] {
        let task = Mae::new(&MaeConfig { loss, intensity: 1., ..Default::default() }, [12; 3], Rank::Three).unwrap();
        let vs = VarStore::new(Device::Cpu);
        let encoder = encoder(&vs, Rank::Three);
        let head = task.head(&vs.root(), &encoder).unwrap();
        let (batch, _) = batch(&task, &blank, Rank::Three, 2);
        let outcome = head.forward(&encoder, &batch, Mode::Train);
        outcome.loss.backward();
        assert!(f64::try_from(&outcome.loss).unwrap().is_finite() && f64::try_from(&outcome.metrics[0]).unwrap().is_finite());
        assert!(vs.trainable_variables().iter().all(|v| bool::try_from(v.grad().isfinite().all()).unwrap()));
    }
}

#[test]
fn the_target_is_never_rounded() {
    let task: Arc<dyn Task> = Arc::new(Mae::new(&plain(), [12; 3], Rank::Three).unwrap());
    let given = scans([12; 3]);
    let expected: Vec<f32> = given.images[0].iter().copied().collect();
    let sampler = Sampler { task, scans: Arc::new(given), rank: Rank::Three, seed: 0, slot: 0, mirror_zoom: None, bf16: true };
    let loaded = sampler.valid(0..2).unwrap().on(Device::Cpu);
    let clean = loaded.clean.unwrap();
    assert_eq!((loaded.views.kind(), clean.kind()), (Kind::BFloat16, Kind::Float));
    assert_eq!((loaded.views.size(), clean.size()), (vec![2, 1, 2, 12, 12, 12], vec![2, 1, 2, 12, 12, 12]));
    assert_eq!(Vec::<f32>::try_from(clean.get(0).flatten(0, -1)).unwrap(), expected);
}

#[test]
fn impossible_settings_are_refused_with_the_numbers() {
    let refused = |config: MaeConfig, window, parts: &[&str]| {
        let error = Mae::new(&config, window, Rank::Three).err().expect("refused").to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    refused(MaeConfig { block: Some(Sides::all(13)), ..plain() }, [12; 3], &["--mae-block", "13", "12"]);
    refused(MaeConfig { block: Some(Sides::all(12)), ..plain() }, [12; 3], &["masks 1 of the 1 blocks"]);
    refused(MaeConfig { ratio: Some(1.), ..plain() }, [12; 3], &["--mae-ratio", "found 1"]);
    refused(MaeConfig { intensity: 1.5, ..plain() }, [12; 3], &["--mae-intensity", "1.5"]);

    // The encoder of three levels pools by 4.
    for (window, parts) in [(14, ["14 voxels", "12 or 16"]), (3, ["3 voxels", "multiple of 4"])] {
        let task = Mae::new(&MaeConfig { block: Some(Sides::all(1)), ..plain() }, [window; 3], Rank::Three).unwrap();
        let vs = VarStore::new(Device::Cpu);
        let error = task.head(&vs.root(), &encoder(&vs, Rank::Three)).err().expect("refused");
        let error = format!("{error:#}");
        assert!(error.contains("--window") && parts.iter().all(|part| error.contains(part)), "{error}");
    }
}

#[test]
fn small_windows_have_small_blocks_by_default() {
    let drawn = |window, rank| {
        let task = Mae::new(&MaeConfig::default(), window, rank).unwrap();
        (task.blocks.side, task.masked, voxels(task.blocks.grid()))
    };
    assert_eq!(drawn([32; 3], Rank::Three), ([4; 3], 307, 512));
    assert_eq!(drawn([64; 3], Rank::Three), ([8; 3], 384, 512));
    assert_eq!(drawn([128; 3], Rank::Three), ([16; 3], 384, 512));
    assert_eq!(drawn([1, 224, 224], Rank::Two), ([1, 16, 16], 147, 196));
    // Along each axis by itself; of 8 x 8 x 8 blocks 60 percent, as they are thin.
    assert_eq!(drawn([128, 64, 32], Rank::Three), ([16, 8, 4], 307, 512));
}
