//! What each does to an image is compared with TorchIO and MONAI in tests/python/test_mr.py.

use super::*;
use crate::rng::{Stream, rng};
use clap::ValueEnum;

#[test]
fn draws_replay_and_stay_in_their_ranges() {
    let mut rng = rng(1, Stream::Train, 0, 0);
    for shape in [[12, 9, 16], [1, 16, 11], [4, 24, 24], [5, 5, 5], [1, 2, 2]] {
        let rank = Rank::of(shape);
        let before: Vec<f32> = (0..voxels(shape)).map(|_| rng.random_range(-2. ..3.)).collect();
        for kind in MrKind::value_variants().iter().cycle().take(120) {
            let drawn = kind.draw(rank, shape, &mut rng);
            let record: MrChange = serde_json::from_str(&serde_json::to_string(&drawn).unwrap()).unwrap();
            let run = |change: &MrChange| {
                let mut channel = before.clone();
                change.apply(&mut channel, shape);
                channel
            };
            let after = run(&drawn);
            assert_eq!(after, run(&record), "{drawn:?}");
            assert!(after.iter().all(|value| value.is_finite()), "{drawn:?} {shape:?}");
            let mut blank = vec![0.25; voxels(shape)];
            drawn.apply(&mut blank, shape);
            assert!(blank.iter().all(|value| (value - 0.25).abs() < 1e-5), "{drawn:?} of a blank {shape:?}");
            let used = |axis: usize| rank.axes().contains(&axis);
            match drawn {
                MrChange::BiasField { coefficients } => {
                    assert_eq!(coefficients.len(), 20);
                    assert!(coefficients.iter().all(|c| c.abs() <= 0.5));
                }
                MrChange::Motion { axis, movements } => {
                    assert!(used(axis) && movements.len() == 2);
                    for (i, m) in movements.iter().enumerate() {
                        assert!((m.time - (i + 1) as f32 / 3.).abs() <= 0.1001, "{m:?}");
                        for a in 0..3 {
                            let still = if shape[0] <= 4 { a > 0 } else { false };
                            assert!(m.degrees[a].abs() <= if still { 0. } else { 10. }, "{m:?} of {shape:?}");
                            assert!(m.translation[a].abs() <= if used(a) { shape[a] as f32 / 8. } else { 0. }, "{m:?}");
                        }
                    }
                }
                MrChange::Ghosting { axis, ghosts, intensity } => {
                    assert!(used(axis) && (4..=10).contains(&ghosts) && (0.5..=1.).contains(&intensity));
                }
                MrChange::Gibbs { alpha } => assert!((0.3..=0.7).contains(&alpha)),
                MrChange::LowResolution { axis, thickness } => assert!(used(axis) && (1.5..=5.).contains(&thickness)),
                MrChange::Blur { sigma } => {
                    (0..3).for_each(|a| assert!(sigma[a] >= 0. && sigma[a] <= if used(a) { 2. } else { 0. }));
                }
            }
        }
    }
}

#[test]
fn a_bias_field_has_its_zero_at_the_least_intensity() {
    // Also of intensities that were centred: what is darkest stays, and air does not become a pattern.
    let coefficients: Vec<f32> = (0..20).map(|i| i as f32 / 40.).collect();
    let field = MrChange::BiasField { coefficients };
    let before: Vec<f32> = (0..216).map(|i| (i % 7) as f32).collect();
    let (mut plain, mut centred) = (before.clone(), before.iter().map(|x| x - 3.).collect::<Vec<_>>());
    field.apply(&mut plain, [6; 3]);
    field.apply(&mut centred, [6; 3]);
    for ((x, y), centred) in before.iter().zip(&plain).zip(&centred) {
        assert!((y - 3. - centred).abs() < 1e-3 * y.abs().max(1.), "{y} {centred}");
        assert_eq!(*x == 0., *y == 0.);
    }
    assert_ne!(plain, before);
}
