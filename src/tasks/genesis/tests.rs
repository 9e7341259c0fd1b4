use super::*;
use crate::rng::{Stream, rng};
use crate::tasks::tests::{batch, check, encoder, scans};
use crate::tasks::{TaskConfigs, TaskKind};
use tch::{Device, Tensor, nn::VarStore};

const NOTHING: GenesisConfig = GenesisConfig { curve: 0., shuffle: 0., paint: 0., outer: 0., flip: 0. };

fn values(t: &Tensor, b: usize, c: i64) -> Vec<f32> {
    Vec::try_from(t.get(b as i64).get(0).get(c).flatten(0, -1)).unwrap()
}

fn params(drawn: &Drawn) -> Params {
    serde_json::from_str(&drawn.params.to_string()).unwrap()
}

#[test]
fn head_runs_forward_and_backward() {
    check(TaskKind::Gen, &TaskConfigs::default(), 12);
}

#[test]
fn curves_are_bezier_curves_that_rise_or_fall_from_end_to_end() {
    let mut rng = rng(4, Stream::Train, 0, 0);
    let (mut falling, mut bent) = (0, 0f32);
    for _ in 0..200 {
        let curve = Curve::draw(&mut rng);
        let table = curve.table();
        let ends = if curve.reversed { (1., 0.) } else { (0., 1.) };
        assert!((table[0] - ends.0).abs() < 1e-6 && (table[KNOTS] - ends.1).abs() < 1e-6);
        assert!(table.windows(2).all(|pair| if curve.reversed { pair[1] <= pair[0] } else { pair[1] >= pair[0] }));
        // Points of the curve by de Casteljau's construction lie on the table's line.
        for i in 0..=20 {
            let t = i as f32 / 20.;
            let mix = |p: [f32; 2], q: [f32; 2]| [0, 1].map(|a| p[a] + t * (q[a] - p[a]));
            let [p, q] = curve.points;
            let (ab, bc, cd) = (mix([0., 0.], p), mix(p, q), mix(q, [1., 1.]));
            let [x, y] = mix(mix(ab, bc), mix(bc, cd));
            let mut value = [x];
            curve.apply(Stats { min: 0., max: 1., mean: 0. }, &mut value);
            let expected = if curve.reversed { 1. - y } else { y };
            // A steep curve between two places of the table is its chord.
            let nearest = [-1., 0., 1.].map(|step| {
                let mut near = [(x + step / KNOTS as f32).clamp(0., 1.)];
                curve.apply(Stats { min: 0., max: 1., mean: 0. }, &mut near);
                near[0]
            });
            let [low, high] = [f32::min, f32::max].map(|f| nearest.into_iter().reduce(f).unwrap());
            assert!((low - 1e-3..=high + 1e-3).contains(&expected), "{curve:?} at {x}: {value:?}, expected {expected}");
            bent = bent.max((expected - if curve.reversed { 1. - x } else { x }).abs());
        }
        falling += usize::from(curve.reversed);
    }
    assert!((60..140).contains(&falling) && bent > 0.3);
}

#[test]
fn curves_keep_the_channels_range_whatever_it_is() {
    let task = Genesis::new(&GenesisConfig { curve: 1., ..NOTHING }, [12; 3], Rank::Three).unwrap();
    let mut given = scans([12; 3]);
    given.images.iter_mut().for_each(|image| image.mapv_inplace(|v| 70. * v - 30.));
    let (batch, drawn) = batch(&task, &given, Rank::Three, 3);
    for (b, drawn) in drawn.iter().enumerate() {
        for (c, curve) in params(drawn).curves.iter().enumerate() {
            let (input, clean) = (values(&batch.views, b, c as i64), values(batch.clean.as_ref().unwrap(), b, c as i64));
            let (before, after) = (Stats::of(&clean), Stats::of(&input));
            assert!((before.min - after.min).abs() < 1e-2 && (before.max - after.max).abs() < 1e-2);
            // The order of the voxels is kept, or turned round.
            let mut order: Vec<usize> = (0..clean.len()).collect();
            order.sort_by(|&a, &b| clean[a].total_cmp(&clean[b]));
            let sign = if curve.unwrap().reversed { -1. } else { 1. };
            assert!(order.windows(2).all(|pair| sign * (input[pair[1]] - input[pair[0]]) >= -1e-4));
        }
    }
}

#[test]
fn shuffling_moves_voxels_by_less_than_a_box_and_alike_in_all_channels() {
    for (rank, window) in [(Rank::Two, [1, 40, 40]), (Rank::Three, [40; 3]), (Rank::Three, [20, 40, 30])] {
        let task = Genesis::new(&GenesisConfig { shuffle: 1., ..NOTHING }, window, rank).unwrap();
        // The first channel says where a voxel comes from, the second says it too.
        let mut given = scans(window);
        for image in &mut given.images {
            for ((c, x, y, z), v) in image.indexed_iter_mut() {
                *v = ((x * window[1] + y) * window[2] + z) as f32 * if c == 0 { 1. } else { -1. };
            }
        }
        let (batch, _) = batch(&task, &given, rank, 2);
        for b in 0..2 {
            let (first, second) = (values(&batch.views, b, 0), values(&batch.views, b, 1));
            let mut moved = 0;
            for (v, &from) in first.iter().enumerate() {
                assert_eq!(second[v], -from);
                let (to, from) = (v, from as usize);
                let at = |v: usize| [v / window[2] / window[1], v / window[2] % window[1], v % window[2]];
                assert!(
                    (0..3).all(|a| at(to)[a].abs_diff(at(from)[a]) < (window[a] / 10).max(2)),
                    "{:?} from {:?}",
                    at(to),
                    at(from)
                );
                moved += usize::from(to != from);
            }
            let share = moved as f64 / first.len() as f64;
            assert!(share > 0.5, "{share} of the voxels moved");
        }
    }
}

#[test]
fn what_is_painted_over_is_noise_and_the_rest_is_the_window() {
    for (rank, outer, window) in [
        (Rank::Three, 0., [42; 3]),
        (Rank::Three, 1., [42; 3]),
        (Rank::Two, 1., [1, 42, 42]),
        (Rank::Three, 1., [42, 21, 28]),
        (Rank::Two, 0., [1, 84, 42]),
    ] {
        let task = Genesis::new(&GenesisConfig { paint: 1., outer, ..NOTHING }, window, rank).unwrap();
        let (batch, drawn) = batch(&task, &scans(window), rank, 6);
        for (b, drawn) in drawn.iter().enumerate() {
            let painting = params(drawn).painting.unwrap();
            assert_eq!(painting.outer, outer == 1.);
            assert!(BOXES.contains(&painting.boxes.len()));
            // Of the window's side, three to four sevenths and one to two sixths.
            let [least, most] = if painting.outer { [3. / 7., 4. / 7.] } else { [1. / 6., 1. / 3.] };
            let within =
                |a: usize, n: usize| ((window[a] as f64 * least) as usize..=(window[a] as f64 * most) as usize).contains(&n);
            assert!(painting.boxes.iter().all(|region| rank.axes().all(|a| within(a, region.size[a]))));
            for c in 0..2 {
                let (input, clean) = (values(&batch.views, b, c), values(batch.clean.as_ref().unwrap(), b, c));
                let Stats { min, max, .. } = Stats::of(&clean);
                let mut noise = Vec::new();
                for v in 0..input.len() {
                    let at = [v / window[2] / window[1], v / window[2] % window[1], v % window[2]];
                    let inside = painting.boxes.iter().any(|r| (0..3).all(|a| r.ranges()[a].contains(&at[a])));
                    match inside != painting.outer {
                        true => noise.push((input[v] - min) / (max - min)),
                        false => assert_eq!(input[v], clean[v]),
                    }
                }
                let n = noise.len() as f32;
                let mean = noise.iter().sum::<f32>() / n;
                let variance = noise.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n;
                assert!(noise.iter().all(|x| (-1e-6..1.).contains(x)));
                assert!((mean - 0.5).abs() < 2. / n.sqrt() && (variance - 1. / 12.).abs() < 1. / n.sqrt(), "{mean} {variance}");
            }
        }
    }
}

#[test]
fn probabilities_are_those_asked_for_and_records_replay() {
    let config = GenesisConfig { flip: 0.5, ..Default::default() };
    let task = Genesis::new(&config, [8; 3], Rank::Three).unwrap();
    let scans = scans([10; 3]);
    let (length, draws) = (2 * 512, 600);
    let (mut curves, mut shuffled, mut painted, mut outer, mut flips) = (0, 0, 0, 0, 0);
    for seed in 0..draws {
        let mut out = vec![f32::NAN; 2 * length];
        let drawn = task.sample(&scans, 1, &mut rng(seed, Stream::Train, 0, 0), &mut out).unwrap();
        let record = params(&drawn);
        let (input, clean) = out.split_at_mut(length);
        let start = record.window.start;
        let first: Shape = std::array::from_fn(|a| start[a] + if record.flip[a] { 7 } else { 0 });
        assert_eq!(clean[0], scans.images[1][[0, first[0], first[1], first[2]]]);
        task.spoil(&record, clean);
        assert_eq!(input, clean);
        curves += record.curves.iter().flatten().count();
        shuffled += usize::from(record.shuffle.is_some());
        painted += usize::from(record.painting.is_some());
        outer += usize::from(record.painting.is_some_and(|painting| painting.outer));
        flips += record.flip.iter().filter(|flip| **flip).count();
    }
    let n = draws as f64;
    for (what, found, expected) in [
        ("curves", curves as f64 / 2. / n, 0.9),
        ("shuffled", shuffled as f64 / n, 0.5),
        ("painted", painted as f64 / n, 0.9),
        ("outer", outer as f64 / painted as f64, 0.8),
        ("flips", flips as f64 / 3. / n, 0.5),
    ] {
        assert!((found - expected).abs() < 0.06, "{what}: {found}, expected {expected}");
    }
}

#[test]
fn loss_and_metrics_as_written_out() {
    for rank in [Rank::Two, Rank::Three] {
        let task = Genesis::new(&GenesisConfig::default(), rank.cube(8), rank).unwrap();
        let vs = VarStore::new(Device::Cpu);
        let encoder = encoder(&vs, rank);
        let head = task.network(&vs.root(), &encoder).unwrap();
        // A decoder that has learnt something.
        let mut output = vs.variables()["decoder.output.weight"].shallow_clone();
        no_grad(|| output.copy_(&Tensor::randn_like(&output)));
        let (batch, _) = batch(&task, &scans(rank.cube(9)), rank, 3);
        let input = restoration::inputs(&batch);
        let restored = no_grad(|| head.restorer.forward(&encoder, &input, Mode::Eval)).unsqueeze(1);
        let (mut error, mut spread, mut spoilt) = (0., 0., 0.);
        for b in 0..3 {
            for c in 0..2 {
                let [restored, input, clean] = [&restored, &batch.views, batch.clean.as_ref().unwrap()]
                    .map(|t| values(t, b, c).into_iter().map(f64::from).collect::<Vec<_>>());
                let mean = clean.iter().sum::<f64>() / clean.len() as f64;
                for v in 0..clean.len() {
                    error += (restored[v] - clean[v]).powi(2);
                    spread += (mean - clean[v]).powi(2);
                    spoilt += (input[v] - clean[v]).powi(2);
                }
            }
        }
        let outcome = head.forward(&encoder, &batch, Mode::Eval);
        for (found, expected) in
            [(&outcome.loss, error / spread), (&outcome.metrics[0], error / spread), (&outcome.metrics[1], error / spoilt)]
        {
            let found = f64::try_from(found).unwrap();
            assert!((found - expected).abs() < 1e-4 * expected, "{rank:?}: {found}, expected {expected}");
        }
    }
}

#[test]
fn blank_windows_have_a_finite_error() {
    let mut blank = scans([12; 3]);
    blank.images.iter_mut().for_each(|image| image.fill(0.25));
    let task = Genesis::new(&GenesisConfig::default(), [12; 3], Rank::Three).unwrap();
    let vs = VarStore::new(Device::Cpu);
    let encoder = encoder(&vs, Rank::Three);
    let (batch, _) = batch(&task, &blank, Rank::Three, 2);
    let outcome = task.network(&vs.root(), &encoder).unwrap().forward(&encoder, &batch, Mode::Train);
    outcome.loss.backward();
    assert!(outcome.metrics.iter().all(|m| f64::try_from(m).unwrap().is_finite()));
    assert!(vs.trainable_variables().iter().all(|v| bool::try_from(v.grad().isfinite().all()).unwrap()));
}

#[test]
fn impossible_settings_are_refused_with_the_numbers() {
    let refused = |config: GenesisConfig, window, part: &str| {
        let error = Genesis::new(&config, window, Rank::Three).err().expect("refused").to_string();
        assert!(error.contains(part), "{error}");
    };
    refused(GenesisConfig { paint: 1.5, ..NOTHING }, [12; 3], "--gen-paint must lie in 0 to 1, found 1.5");
    refused(NOTHING, [12; 3], "--gen-curve");
    refused(GenesisConfig::default(), [7; 3], "7 voxels");
    refused(GenesisConfig::default(), [16, 16, 6], "16,16,6 voxels");
}
