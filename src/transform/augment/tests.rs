use super::*;
use crate::data::labelling::LabelValue;
use crate::rng::{Stream, rng};

const ALWAYS: AugmentConfig = AugmentConfig {
    off: false,
    flip: 0.5,
    flip_axes: vec![],
    spatial: 1.,
    degrees: 40.,
    scale: Interval([0.7, 1.4]),
    brightness_p: 1.,
    brightness: 0.2,
    contrast_p: 1.,
    contrast: Interval([0.5, 2.]),
    gamma_p: 1.,
    gamma: Interval([0.5, 2.]),
    noise_p: 1.,
    noise: 0.1,
    mr: 1.,
    mr_kinds: vec![],
};
/// Moves, and leaves intensities alone.
fn spatial() -> AugmentConfig {
    AugmentConfig { brightness_p: 0., contrast_p: 0., gamma_p: 0., noise_p: 0., mr: 0., ..ALWAYS }
}
fn draw(config: &AugmentConfig, rank: Rank, channels: usize, rng: &mut Rng) -> Augmentation {
    config.augmenter(rank, None, &[]).unwrap().draw(channels, rank.cube(16), rng)
}

const SHAPES: [Shape; 3] = [[9, 12, 7], [1, 16, 11], [12, 12, 12]];

fn image(channels: usize, shape: Shape, rng: &mut Rng) -> Vec<f32> {
    (0..channels * voxels(shape)).map(|_| rng.random_range(-2. ..3.)).collect()
}

/// Classes 0, 3 and 4 in random boxes.
fn label(shape: Shape, rng: &mut Rng) -> Vec<u8> {
    let mut label = vec![0; voxels(shape)];
    for class in [3, 4] {
        let start = shape.map(|n| rng.random_range(0..n));
        let end: Shape = std::array::from_fn(|a| rng.random_range(start[a]..shape[a]));
        for (i, voxel) in label.iter_mut().enumerate() {
            let x = [i / (shape[1] * shape[2]), i / shape[2] % shape[1], i % shape[2]];
            if (0..3).all(|a| (start[a]..=end[a]).contains(&x[a])) {
                *voxel = class;
            }
        }
    }
    label
}

#[test]
fn a_record_replays_to_the_same_bits() {
    let mut rng = rng(1, Stream::Train, 0, 0);
    for shape in SHAPES {
        for _ in 0..20 {
            let drawn = draw(&ALWAYS, Rank::of(shape), 2, &mut rng);
            let record: Augmentation = serde_json::from_str(&serde_json::to_string(&drawn).unwrap()).unwrap();
            assert_eq!(record, drawn);
            let (image, label) = (image(2, shape, &mut rng), label(shape, &mut rng));
            let run = |a: &Augmentation| {
                let (mut image, mut label) = (image.clone(), label.clone());
                a.apply(&mut image, Some(&mut label), shape).unwrap();
                (image.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), label)
            };
            assert_eq!(run(&drawn), run(&record));
            assert_ne!(run(&drawn).0, image.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
        }
    }
}

#[test]
fn labels_move_as_the_image_does_and_gain_no_value() {
    let mut rng = rng(2, Stream::Train, 0, 0);
    for config in [spatial(), AugmentConfig { spatial: 0., flip: 0.7, ..spatial() }] {
        for shape in SHAPES {
            for _ in 0..30 {
                let before = label(shape, &mut rng);
                let drawn = draw(&config, Rank::of(shape), 1, &mut rng);
                // The label as an image: where its eight neighbours agree, the interpolated image must say what the label says.
                let mut image: Vec<f32> = before.iter().map(|&v| f32::from(v)).collect();
                let mut after = before.clone();
                drawn.apply(&mut image, Some(&mut after), shape).unwrap();
                assert!(after.iter().all(|v| before.contains(v) || *v == 0));
                let exact = image.iter().zip(&after).filter(|(x, v)| **x == f32::from(**v)).count();
                let far = image.iter().zip(&after).filter(|(x, v)| (**x - f32::from(**v)).abs() > 3.5).count();
                // On the rim of a box a nearest voxel weighs as little as an eighth.
                assert_eq!(far, 0, "{shape:?} {drawn:?}");
                if config.spatial == 0. {
                    assert_eq!(exact, image.len(), "flips are exact");
                    let mut expected = vec![9; before.len()];
                    drawn.spatial.apply_label(&before, shape, 0, &mut expected).unwrap();
                    assert_eq!(after, expected);
                }
            }
        }
    }
}

#[test]
fn what_enters_from_outside_is_labelled_only_where_all_is() {
    let shape = [9, 12, 7];
    let labels = |ignore| Labelling { ignore, ..(0..3).map(LabelValue::unnamed).collect::<Vec<_>>().into() };
    let mut rng = rng(4, Stream::Train, 0, 0);
    for (ignore, class) in [(None, 0), (Some(7), IGNORE)] {
        let labelling = labels(ignore);
        let augmenter = spatial().augmenter(Rank::Three, None, &labelling.outputs()).unwrap().of_labels(&labelling);
        let mut entered = 0;
        for _ in 0..20 {
            let drawn = augmenter.draw(1, shape, &mut rng);
            let (mut image, mut label) = (vec![1.; 756], vec![2; 756]);
            drawn.apply(&mut image, Some(&mut label), shape).unwrap();
            assert!(label.iter().all(|&found| found == 2 || found == class));
            entered += label.iter().filter(|&&found| found == class).count();
        }
        assert!(entered > 0);
    }
}

#[test]
fn classes_with_a_side_change_places_with_left_and_right() {
    let mut rng = rng(8, Stream::Train, 0, 0);
    // Class 3 is the right one of class 4.
    let names = ["background", "spine", "aorta", "Right-Kidney", "Left-Kidney"];
    for (shape, across) in [([9, 12, 7], 0), ([1, 16, 11], 2)] {
        for config in [AugmentConfig { spatial: 0., flip: 0.7, ..spatial() }, spatial()] {
            let augmenter = config.augmenter(Rank::of(shape), None, &names).unwrap();
            assert!(augmenter.note().unwrap().contains("Left-Kidney and Right-Kidney"));
            let mut swapped = 0;
            for _ in 0..30 {
                let drawn = augmenter.draw(1, shape, &mut rng);
                let before = label(shape, &mut rng);
                let (mut image, mut after) = (vec![0.; before.len()], before.clone());
                drawn.apply(&mut image, Some(&mut after), shape).unwrap();
                let mut expected = vec![9; before.len()];
                drawn.spatial.apply_label(&before, shape, 0, &mut expected).unwrap();
                if drawn.spatial.flip[across] {
                    swapped += 1;
                    expected.iter_mut().for_each(|class| *class = [0, 1, 2, 4, 3][usize::from(*class)]);
                }
                assert_eq!(after, expected);
                let record: Augmentation = serde_json::from_str(&serde_json::to_string(&drawn).unwrap()).unwrap();
                assert_eq!(record, drawn);
            }
            assert!((5..30).contains(&swapped));
        }
        // Without its counterpart a side keeps left and right where they are, and that is said only where something is mirrored.
        let half = spatial().augmenter(Rank::of(shape), None, &names[..4]).unwrap();
        assert!(half.note().unwrap().contains("Right-Kidney"));
        let drawn: Vec<Augmentation> = (0..30).map(|_| half.draw(1, shape, &mut rng)).collect();
        assert!(drawn.iter().all(|a| !a.spatial.flip[across] && a.classes.is_none()));
        assert!(drawn.iter().any(|a| a.spatial.flip[1]));
        assert_eq!(AugmentConfig::default().augmenter(Rank::of(shape), None, &names).unwrap().note(), None);
    }
}

/// Centre of mass of a volume.
fn centre(volume: impl Iterator<Item = f64>, shape: Shape) -> [f64; 3] {
    let (mut sum, mut mass) = ([0.; 3], 0.);
    for (i, v) in volume.enumerate() {
        let x = [i / (shape[1] * shape[2]), i / shape[2] % shape[1], i % shape[2]];
        (0..3).for_each(|a| sum[a] += v * x[a] as f64);
        mass += v;
    }
    sum.map(|s| s / mass)
}

#[test]
fn a_blob_moves_where_the_map_says() {
    let mut rng = rng(3, Stream::Train, 0, 0);
    for shape in [[32, 36, 40], [1, 60, 64]] {
        let at: [f64; 3] = std::array::from_fn(|a| if shape[a] == 1 { 0. } else { shape[a] as f64 / 2. - 6. + 2. * a as f64 });
        for _ in 0..20 {
            let inside = |i: usize| {
                let x = [i / (shape[1] * shape[2]), i / shape[2] % shape[1], i % shape[2]];
                (0..3).map(|a| (x[a] as f64 - at[a]).powi(2)).sum::<f64>() <= 16.
            };
            let mut label: Vec<u8> = (0..voxels(shape)).map(|i| u8::from(inside(i))).collect();
            let mut image: Vec<f32> = label.iter().map(|&v| f32::from(v)).collect();
            // Shrunken further, a ball of nine voxels would be sampled too coarsely for its centre to say anything.
            let drawn = draw(&AugmentConfig { scale: Interval([0.9, 1.3]), ..spatial() }, Rank::of(shape), 1, &mut rng);
            let before = centre(label.iter().map(|&v| f64::from(v)), shape);
            drawn.apply(&mut image, Some(&mut label), shape).unwrap();
            let image = centre(image.iter().map(|&v| f64::from(v)), shape);
            let label = centre(label.iter().map(|&v| f64::from(v)), shape);
            // `matrix` leads from the output to the source, so the moved centre must lead back to where the blob was.
            let middle = shape.map(|n| (n as f64 - 1.) / 2.);
            let matrix = drawn.spatial.matrix();
            for moved in [image, label] {
                for a in 0..3 {
                    let back = middle[a] + (0..3).map(|b| matrix[a][b] * (moved[b] - middle[b])).sum::<f64>();
                    assert!((back - before[a]).abs() < 0.25, "{drawn:?}: {back} instead of {}", before[a]);
                }
            }
        }
    }
}

#[test]
fn intensities_as_written_out() {
    let mut rng = rng(4, Stream::Train, 0, 0);
    let config = AugmentConfig { spatial: 0., flip: 0., noise_p: 0., mr: 0., ..ALWAYS };
    for shape in SHAPES {
        let before = image(3, shape, &mut rng);
        let drawn = draw(&config, Rank::of(shape), 3, &mut rng);
        let mut after = before.clone();
        drawn.apply(&mut after, None, shape).unwrap();
        let n = voxels(shape);
        for c in 0..3 {
            let x: Vec<f64> = before[c * n..][..n].iter().map(|&x| f64::from(x)).collect();
            let mean = x.iter().sum::<f64>() / n as f64;
            let range = x.iter().copied().fold(f64::MIN, f64::max) - x.iter().copied().fold(f64::MAX, f64::min);
            let change = drawn.channels[c].intensity.unwrap();
            let y: Vec<f64> =
                x.iter().map(|x| mean + f64::from(change.contrast) * (x - mean) + f64::from(change.shift) * range).collect();
            let (low, high) = (y.iter().copied().fold(f64::MAX, f64::min), y.iter().copied().fold(f64::MIN, f64::max));
            let gamma = f64::from(drawn.channels[c].gamma.unwrap());
            for (y, found) in y.iter().zip(&after[c * n..]) {
                let expected = low + (high - low) * ((y - low) / (high - low)).powf(gamma);
                assert!((expected - f64::from(*found)).abs() < 2e-4, "{expected} {found} {change:?} gamma {gamma}");
            }
        }
        // A blank channel stays finite.
        let mut blank = vec![0.25; 3 * n];
        drawn.apply(&mut blank, None, shape).unwrap();
        assert!(blank.iter().all(|x| (x - 0.25).abs() < 1e-6));
    }
}

#[test]
fn noise_has_its_standard_deviation_and_differs_between_channels() {
    let shape = [32, 32, 33];
    let n = voxels(shape);
    let change = |seed| ChannelChange { noise: Some(Noise { sd: 0.05, seed }), ..Default::default() };
    let drawn = Augmentation { spatial: Resample::IDENTITY, outside: 0, classes: None, channels: vec![change(1), change(2)] };
    // Range 4 in both channels.
    let before: Vec<f32> = (0..2 * n).map(|i| (i % 5) as f32).collect();
    let mut after = before.clone();
    drawn.apply(&mut after, None, shape).unwrap();
    let noise: Vec<f64> = after.iter().zip(&before).map(|(a, b)| f64::from(a - b)).collect();
    let moment = |x: &[f64], k: i32| x.iter().map(|x| x.powi(k)).sum::<f64>() / x.len() as f64;
    for channel in noise.chunks(n) {
        let sd = moment(channel, 2).sqrt();
        assert!(moment(channel, 1).abs() < 4. * 0.2 / (n as f64).sqrt(), "mean {}", moment(channel, 1));
        assert!((sd / 0.2 - 1.).abs() < 0.015, "standard deviation {sd}");
        assert!((moment(channel, 4) / sd.powi(4) - 3.).abs() < 0.15, "not normal");
    }
    let product: f64 = noise[..n].iter().zip(&noise[n..]).map(|(a, b)| a * b).sum::<f64>() / n as f64;
    let neighbours: f64 = noise[..n - 1].iter().zip(&noise[1..n]).map(|(a, b)| a * b).sum::<f64>() / n as f64;
    assert!(product.abs() < 0.04 * 0.025 && neighbours.abs() < 0.04 * 0.025, "{product} {neighbours}");
}

#[test]
fn identity_ranges_and_off_change_no_bit() {
    let mut rng = rng(5, Stream::Train, 0, 0);
    let one = Interval([1., 1.]);
    let identity = AugmentConfig {
        flip: 0.,
        degrees: 0.,
        scale: one,
        brightness: 0.,
        contrast: one,
        gamma: one,
        noise: 0.,
        mr: 0.,
        ..ALWAYS
    };
    for config in [identity, AugmentConfig { off: true, ..ALWAYS }] {
        for shape in SHAPES {
            let before = (image(2, shape, &mut rng), label(shape, &mut rng));
            let mut after = before.clone();
            draw(&config, Rank::of(shape), 2, &mut rng).apply(&mut after.0, Some(&mut after.1), shape).unwrap();
            assert_eq!(after, before);
        }
    }
}

#[test]
fn draws_stay_in_their_ranges_at_their_probabilities() {
    let mut rng = rng(6, Stream::Train, 0, 0);
    // Nothing is mirrored unless it is asked for.
    assert!(!AugmentConfig::default().mirrors());
    let config = AugmentConfig { flip: 0.5, ..AugmentConfig::default() };
    config.check().unwrap();
    let drawn: Vec<Augmentation> = (0..2000).map(|_| draw(&config, Rank::Three, 1, &mut rng)).collect();
    let share = |of: &dyn Fn(&Augmentation) -> bool| drawn.iter().filter(|a| of(a)).count() as f64 / 2000.;
    let near = |found: f64, expected: f64| assert!((found - expected).abs() < 0.04, "{found} instead of {expected}");
    near(share(&|a| a.spatial.degrees != 0. || a.spatial.zoom != [1.; 3]), 0.3);
    (0..3).for_each(|axis| near(share(&|a| a.spatial.flip[axis]), 0.5));
    near(share(&|a| a.channels[0].intensity.is_some_and(|i| i.shift != 0.)), 0.15);
    near(share(&|a| a.channels[0].intensity.is_some_and(|i| i.contrast != 1.)), 0.15);
    near(share(&|a| a.channels[0].gamma.is_some()), 0.3);
    near(share(&|a| a.channels[0].noise.is_some()), 0.1);
    for a in &drawn {
        assert!(a.spatial.degrees.abs() <= 15. && a.spatial.zoom.iter().all(|z| (0.85..=1.15).contains(z)));
        let change = &a.channels[0];
        assert!(change.intensity.is_none_or(|i| i.shift.abs() <= 0.1 && (0.75..=1.25).contains(&i.contrast)));
        assert!(change.gamma.is_none_or(|g| (0.7..=1.5).contains(&g)));
        assert!(change.noise.is_none_or(|n| (0. ..=0.05).contains(&n.sd)));
    }
    let flat = draw(&ALWAYS, Rank::Two, 1, &mut rng).spatial;
    assert_eq!((flat.axis, flat.flip[0], flat.zoom[0]), (0, false, 1.));
}

#[test]
fn artefacts_are_drawn_only_on_request() {
    // The generator's next number was this one before there were artefacts.
    let mut drawing = rng(8, Stream::Train, 0, 0);
    let drawn = draw(&AugmentConfig::default(), Rank::Three, 2, &mut drawing);
    assert_eq!((drawing.random::<u64>(), drawn.channels[0].mr.len()), (814733523095052117, 0));
    assert!(!serde_json::to_string(&drawn).unwrap().contains("mr"), "a record as before");

    let config = AugmentConfig { mr: 0.2, mr_kinds: vec![MrKind::Blur, MrKind::Motion], ..AugmentConfig::default() };
    config.check().unwrap();
    let drawn: Vec<Augmentation> = (0..2000).map(|_| draw(&config, Rank::Three, 2, &mut drawing)).collect();
    for channel in 0..2 {
        let all = || drawn.iter().flat_map(|a| &a.channels[channel].mr);
        let share = |kind: &dyn Fn(&&MrChange) -> bool| all().filter(kind).count() as f64 / 2000.;
        let [blur, motion] = [share(&|c| matches!(c, MrChange::Blur { .. })), share(&|c| matches!(c, MrChange::Motion { .. }))];
        assert!((blur - 0.2).abs() < 0.04 && (motion - 0.2).abs() < 0.04, "{blur} {motion}");
        assert_eq!(all().count() as f64, ((blur + motion) * 2000.).round(), "nothing else");
    }
}

#[test]
fn settings_are_flags_and_bad_ones_are_refused() {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        aug: AugmentConfig,
    }
    let parse = |args: &[std::ffi::OsString]| <Cli as clap::Parser>::try_parse_from(std::iter::once(&"x".into()).chain(args));
    assert_eq!(parse(&[]).unwrap().aug, AugmentConfig::default());
    // What a run records, read back as flags.
    let config = AugmentConfig {
        off: true,
        flip_axes: vec![MirrorAxis::LeftRight, MirrorAxis::BottomTop],
        mr_kinds: vec![MrKind::BiasField],
        ..ALWAYS
    };
    let recorded = serde_json::json!({ "aug": config });
    let mut flat = serde_json::Map::new();
    crate::settings::flatten("", recorded.as_object().unwrap().clone(), &mut flat);
    let known: Vec<String> = flat.keys().cloned().collect();
    let flags = crate::settings::to_flags(&flat, &known, std::path::Path::new("config.json")).unwrap();
    assert_eq!(parse(&flags).unwrap().aug, config);
    assert_eq!(AugmentConfig::of_settings(&flat).unwrap(), config);

    let refused = |config: AugmentConfig, part: &str| {
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    refused(AugmentConfig { flip: 1.5, ..ALWAYS }, "--aug-flip is a probability, 0 to 1, found 1.5");
    refused(
        AugmentConfig { flip: 0., flip_axes: vec![MirrorAxis::LeftRight], ..ALWAYS },
        "--aug-flip-axes goes with --aug-flip",
    );
    refused(AugmentConfig { mr: 1.5, ..ALWAYS }, "--aug-mr is a probability, 0 to 1, found 1.5");
    refused(AugmentConfig { mr: 0., mr_kinds: vec![MrKind::Blur], ..ALWAYS }, "--aug-mr-kinds goes with --aug-mr");
    refused(AugmentConfig { scale: Interval([1.2, 0.8]), ..ALWAYS }, "found 1.2,0.8");
    refused(AugmentConfig { gamma: Interval([0., 1.]), ..ALWAYS }, "--aug-gamma");
    refused(AugmentConfig { noise: f32::NAN, ..ALWAYS }, "--aug-noise");
    assert!("1".parse::<Interval>().unwrap_err().contains("found `1`"));
    let mut rng = rng(7, Stream::Train, 0, 0);
    let error = draw(&ALWAYS, Rank::Three, 2, &mut rng).apply(&mut [0.; 8], None, [2; 3]).unwrap_err().to_string();
    assert!(error.contains("2 channels") && error.contains("image of 8"), "{error}");
}
