use super::*;
use crate::rng::{Stream, rng};
use crate::tasks::tests::{batch, check, encoder, scans};
use crate::tasks::{TaskConfigs, TaskKind};
use crate::transform::resample::Resample;
use tch::Device;

fn task(window: usize, crop: Option<usize>, rank: Rank) -> Simclr {
    Simclr::new(&SimclrConfig { crop: crop.map(Sides::all), ..Default::default() }, rank.cube(window), 2, rank).unwrap()
}

fn values(x: &Tensor) -> Vec<f64> {
    Vec::try_from(x.to_kind(Kind::Double).contiguous().reshape([-1])).unwrap()
}

#[test]
fn head_runs_forward_and_backward() {
    check(TaskKind::Simclr, &TaskConfigs::default(), 16);
}

#[test]
fn loss_and_metrics_as_written_out() {
    let (embedding, temperature) = (6, 0.3);
    // The last two samples are of one scan; then all of one, which leaves nothing to tell apart.
    for of in [[4, 7, 1, 1], [2, 2, 2, 2], [0, 1, 2, 3]] {
        tch::manual_seed(2);
        let x = unit_vectors(&Tensor::randn([8, embedding], (Kind::Float, Device::Cpu))).set_requires_grad(true);
        let rows: Vec<Vec<f64>> = values(&x).chunks_exact(embedding as usize).map(<[f64]>::to_vec).collect();
        assert!(rows.iter().all(|row| (row.iter().map(|v| v * v).sum::<f64>() - 1.).abs() < 1e-5), "unit vectors");
        let cosine = |i: usize, j: usize| rows[i].iter().zip(&rows[j]).map(|(a, b)| a * b).sum::<f64>();
        let partner = |i: usize| i ^ 1;
        let (mut loss, mut right, mut chance, mut together, mut apart) = (0., 0., 0., 0., Vec::new());
        for i in 0..8 {
            let others: Vec<usize> = (0..8).filter(|&j| of[j / 2] != of[i / 2]).collect();
            let mine = cosine(i, partner(i));
            let sum: f64 = others.iter().map(|&j| (cosine(i, j) / temperature).exp()).sum();
            loss -= ((mine / temperature).exp() / ((mine / temperature).exp() + sum)).ln() / 8.;
            right += f64::from(others.iter().all(|&j| cosine(i, j) < mine)) / 8.;
            chance += 1. / (others.len() + 1) as f64 / 8.;
            together += mine / 8.;
            apart.extend(others.iter().map(|&j| cosine(i, j)));
        }
        let apart = if apart.is_empty() { 0. } else { apart.iter().sum::<f64>() / apart.len() as f64 };
        let outcome = nt_xent(&x, &Tensor::from_slice(&of), temperature);
        let found: Vec<f64> = std::iter::once(&outcome.loss).chain(&outcome.metrics).map(|t| t.double_value(&[])).collect();
        for (found, expected) in found.iter().zip([loss, right, chance, together, apart]) {
            assert!((found - expected).abs() < 1e-5, "{of:?}: {found}, expected {expected}");
        }
        outcome.loss.backward();
        assert!(bool::try_from(x.grad().isfinite().all()).unwrap());
    }
}

#[test]
fn crops_that_are_equal_have_the_least_loss_that_there_is() {
    // Partners alike, other scans at a right angle: only the temperature keeps the loss above 0.
    let x = Tensor::eye(4, (Kind::Float, Device::Cpu)).repeat_interleave_self_int(2, 0, None);
    let outcome = nt_xent(&x, &Tensor::arange(4, (Kind::Int64, Device::Cpu)), 0.5);
    let expected = (1. + 6. * (-2f64).exp()).ln();
    assert!((outcome.loss.double_value(&[]) - expected).abs() < 1e-6);
    let metrics: Vec<f64> = outcome.metrics.iter().map(|m| m.double_value(&[])).collect();
    assert_eq!((metrics[0], metrics[2], metrics[3]), (1., 1., 0.));
    assert!((metrics[1] - 1. / 7.).abs() < 1e-6);
}

#[test]
fn partners_stand_beside_each_other_in_the_batch() {
    // One vector a scan and view, made by hand: the head must keep the order of samples and views.
    let rank = Rank::Three;
    let task = task(12, Some(8), rank);
    let vs = nn::VarStore::new(Device::Cpu);
    let encoder = encoder(&vs, rank);
    let head = task.network(&vs.root(), &encoder).unwrap();
    let (batch, _) = batch(&task, &scans([12, 13, 14]), rank, 3);
    assert_eq!(values(&batch.targets), [0., 1., 2.]);
    let all = head.embed(&encoder, &batch.views, Mode::Eval);
    for (sample, view) in [(0, 0), (0, 1), (2, 0), (2, 1)] {
        let one = head.embed(&encoder, &batch.views.narrow(0, sample, 1).narrow(1, view, 1), Mode::Eval);
        assert!((all.get(2 * sample + view) - one.get(0)).abs().max().double_value(&[]) < 1e-5);
    }
}

#[test]
fn samples_replay_from_their_record_and_their_crops_overlap_by_half() {
    for (rank, shape, crop) in
        [(Rank::Three, [17, 16, 18], None), (Rank::Three, [16; 3], Some(5)), (Rank::Two, [1, 17, 19], Some(7))]
    {
        let (scans, task) = (scans(shape), task(16, crop, rank));
        let side = crop.unwrap_or(12);
        assert_eq!(task.view_shape(), rank.cube(side));
        let n = 2 * 2 * voxels(task.view_shape());
        let mut shifts = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let (mut out, mut again) = (vec![f32::NAN; n], vec![f32::NAN; n]);
            let drawn = task.sample(&scans, 1, &mut rng(seed, Stream::Train, 0, 0), &mut out).unwrap();
            let record: Params = serde_json::from_str(&drawn.params.to_string()).unwrap();
            task.render(&scans, 1, &record, &mut again).unwrap();
            assert_eq!((out, drawn.targets), (again, vec![1]));
            let [a, b] = record.crops.map(|crop| crop.region);
            for axis in rank.axes() {
                let shift = a.start[axis].abs_diff(b.start[axis]);
                assert!(2 * shift <= side, "{a:?} and {b:?}");
                shifts.insert(shift);
                for crop in [a, b] {
                    let window = record.window;
                    assert!(window.start[axis] <= crop.start[axis]);
                    assert!(crop.start[axis] + side <= window.start[axis] + window.size[axis]);
                }
            }
        }
        // Every shift occurs that room and overlap allow.
        assert_eq!(Vec::from_iter(shifts), Vec::from_iter(0..=(16 - side).min(side / 2)));
    }
}

#[test]
fn the_first_view_is_the_crop_where_nothing_was_changed() {
    let (scans, task) = (scans([16; 3]), task(16, None, Rank::Three));
    let mut params = task.draw(&scans, 2, &mut rng(3, Stream::Train, 0, 0)).unwrap();
    params.crops[0].augmentation =
        Augmentation { spatial: Resample::IDENTITY, outside: 0, classes: None, channels: vec![Default::default(); 2] };
    let mut out = vec![f32::NAN; 2 * 2 * 12usize.pow(3)];
    task.render(&scans, 2, &params, &mut out).unwrap();
    let Region { start: [i, j, k], .. } = params.crops[0].region;
    let crop = scans.images[2].slice(ndarray::s![.., i..i + 12, j..j + 12, k..k + 12]);
    assert!(crop.iter().zip(&out).all(|(expected, found)| expected == found));
    assert!(crop.iter().zip(&out[2 * 12usize.pow(3)..]).any(|(first, second)| first != second));
}

#[test]
fn what_cannot_be_is_refused() {
    let refused = |change: fn(&mut SimclrConfig)| {
        let mut config = SimclrConfig::default();
        change(&mut config);
        format!("{:#}", Simclr::new(&config, [32; 3], 1, Rank::Three).err().expect("refused"))
    };
    assert!(refused(|c| c.crop = Some(Sides::all(33))).contains("1 to 32, the window's side, found 33"));
    assert!(refused(|c| c.temperature = 0.).contains("found 0"));
    assert!(refused(|c| c.temperature = f64::NAN).contains("found NaN"));
    assert!(refused(|c| c.flip = -0.5).contains("found -0.5"));
    assert!(refused(|c| c.embedding = 1).contains("found 1"));
    let batches = |window, rank| task(window, None, rank).amounts().batch;
    assert_eq!([batches(64, Rank::Three), batches(128, Rank::Three), batches(224, Rank::Two)], [16, 8, 32]);
}
