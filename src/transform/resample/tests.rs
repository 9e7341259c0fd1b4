use super::*;
use crate::data::{Arrays, Scans};
use crate::dim::Region;
use crate::rng::{Stream, rng};
use crate::transform::spatial::Orientation;

const WILD: ResampleRanges = ResampleRanges { flip: 0.5, right_angle: 0.25, degrees: 180., zoom: [0.5, 2.] };

fn noise(n: usize, rng: &mut Rng) -> Vec<f32> {
    (0..n).map(|_| rng.random()).collect()
}

/// Where an output voxel comes from: zoom, rotation and flip undone one after the other.
fn source(t: &Resample, shape: Shape, x: Shape) -> [f64; 3] {
    let centre = shape.map(|n| (n as f64 - 1.) / 2.);
    let mut y: [f64; 3] = std::array::from_fn(|a| (x[a] as f64 - centre[a]) / f64::from(t.zoom[a]));
    let others: Vec<usize> = (0..3).filter(|&a| a != t.axis).collect();
    let (sin, cos) = f64::from(-t.degrees).to_radians().sin_cos();
    let (b, c) = (y[others[0]], y[others[1]]);
    (y[others[0]], y[others[1]]) = (cos * b - sin * c, sin * b + cos * c);
    std::array::from_fn(|a| centre[a] + if t.flip[a] { -y[a] } else { y[a] })
}

#[test]
fn agrees_with_a_sum_over_all_voxels() {
    let mut rng = rng(1, Stream::Train, 0, 0);
    for shape in [[7, 5, 6], [4, 9, 8], [1, 9, 12], [2, 3, 1]] {
        for _ in 0..30 {
            let t = WILD.draw(Rank::of(shape), shape, &mut rng);
            let n = voxels(shape);
            let (input, fill) = (noise(2 * n, &mut rng), [0.5, -3.]);
            let (mut linear, mut nearest) = (vec![f32::NAN; 2 * n], vec![f32::NAN; 2 * n]);
            t.apply(&input, shape, Interpolation::Linear, &fill, &mut linear).unwrap();
            t.apply(&input, shape, Interpolation::Nearest, &fill, &mut nearest).unwrap();
            let label: Vec<u8> = (0..n).map(|_| rng.random_range(1..=255)).collect();
            let (mut labels, mut floats) = (vec![7; n], vec![f32::NAN; n]);
            t.apply_label(&label, shape, 0, &mut labels).unwrap();
            let label: Vec<f32> = label.into_iter().map(f32::from).collect();
            t.apply(&label, shape, Interpolation::Nearest, &[0.], &mut floats).unwrap();
            assert!(labels.iter().zip(&floats).all(|(&a, &b)| f32::from(a) == b), "{shape:?} {t:?}");
            let voxel = |i: usize| [i / (shape[1] * shape[2]), i / shape[2] % shape[1], i % shape[2]];
            for i in 0..n {
                let y = source(&t, shape, voxel(i));
                for c in 0..2 {
                    let fill = f64::from(fill[c]);
                    let value: f64 = (0..n)
                        .map(|j| {
                            let w: f64 = voxel(j).iter().zip(y).map(|(&v, y)| (1. - (y - v as f64).abs()).max(0.)).product();
                            w * (f64::from(input[c * n + j]) - fill)
                        })
                        .sum();
                    let found = f64::from(linear[c * n + i]);
                    assert!((found - fill - value).abs() < 1e-5, "{shape:?} {t:?} voxel {i}: {found}");
                    // On a tie between two voxels either is right.
                    if y.iter().all(|y| (y - y.floor() - 0.5).abs() > 1e-6) {
                        let close = |j: &usize| voxel(*j).iter().zip(y).all(|(&v, y)| (y - v as f64).abs() < 0.5);
                        let value = (0..n).find(close).map_or(fill, |j| f64::from(input[c * n + j]));
                        assert_eq!(f64::from(nearest[c * n + i]), value, "{shape:?} {t:?} voxel {i}");
                    }
                }
            }
        }
    }
}

#[test]
fn exact_at_right_angles_and_flips() {
    let mut rng = rng(2, Stream::Train, 0, 0);
    for (rank, side) in [(Rank::Two, 8), (Rank::Three, 5), (Rank::Three, 6)] {
        let shape = rank.cube(side);
        let image = ndarray::Array4::from_shape_vec((1, shape[0], side, side), noise(voxels(shape), &mut rng)).unwrap();
        let input = image.as_slice().unwrap().to_vec();
        let scans = Arrays { ids: vec!["scan".into()], images: vec![image] };
        for class in 0..Orientation::rotations(rank) {
            for interpolation in [Interpolation::Linear, Interpolation::Nearest] {
                let degrees = if class == 0 { 0. } else { 90. * ((class - 1) % 3 + 1) as f32 };
                let t = Resample { axis: class.saturating_sub(1) / 3, degrees, ..Resample::IDENTITY };
                let (mut turned, mut expected) = (vec![f32::NAN; input.len()], vec![f32::NAN; input.len()]);
                t.apply(&input, shape, interpolation, &[9.], &mut turned).unwrap();
                scans.read(0, Region::whole(shape), Orientation::rotation(rank, class), &mut expected).unwrap();
                assert_eq!(turned, expected, "{rank:?} class {class}");
            }
        }
        let flip = [rank == Rank::Three, false, true];
        let (mut flipped, mut expected) = (vec![f32::NAN; input.len()], vec![f32::NAN; input.len()]);
        Resample { flip, ..Resample::IDENTITY }.apply(&input, shape, Interpolation::Linear, &[9.], &mut flipped).unwrap();
        scans.read(0, Region::whole(shape), Orientation { flip, ..Orientation::IDENTITY }, &mut expected).unwrap();
        assert_eq!(flipped, expected);
    }
}

#[test]
fn draws_stay_in_range_and_in_plane() {
    let mut rng = rng(3, Stream::Train, 0, 0);
    let ranges = ResampleRanges { flip: 0.5, right_angle: 0.5, degrees: 180., zoom: [0.8, 1.2] };
    let drawn: Vec<Resample> = (0..400).map(|_| ranges.draw(Rank::Three, [12; 3], &mut rng)).collect();
    assert!(drawn.iter().all(|t| t.zoom.iter().all(|z| (0.8..=1.2).contains(z)) && t.degrees.abs() <= 270.));
    let right = drawn.iter().filter(|t| t.degrees % 90. == 0.).count();
    assert!((160..240).contains(&right), "{right} of 400 are right angles");
    for a in 0..3 {
        assert!((100..170).contains(&drawn.iter().filter(|t| t.axis == a).count()));
        assert!((160..240).contains(&drawn.iter().filter(|t| t.flip[a]).count()));
    }
    for t in (0..50).map(|_| ranges.draw(Rank::Two, [1, 12, 12], &mut rng)) {
        assert_eq!((t.axis, t.flip[0], t.zoom[0]), (0, false, 1.));
    }
}

#[test]
fn windows_of_unequal_sides_turn_less_and_flat_ones_in_their_plane_alone() {
    let mut rng = rng(6, Stream::Train, 0, 0);
    let mut drawn = |rank, window| -> Vec<Resample> { (0..300).map(|_| WILD.draw(rank, window, &mut rng)).collect() };
    let most = |drawn: &[Resample], axis: usize, right: bool| {
        let of = drawn.iter().filter(|t| t.axis == axis && (t.degrees % 90. == 0.) == right);
        of.map(|t| t.degrees.abs()).fold(0., f32::max)
    };
    // Up to twice as long: as cubes.
    let similar = drawn(Rank::Three, [12, 20, 20]);
    assert!((0..3).all(|axis| most(&similar, axis, false) > 150. && most(&similar, axis, true) == 270.));
    // Twice and more: in those planes up to 30 degrees, and half turns.
    let long = drawn(Rank::Three, [10, 20, 20]);
    for (axis, degrees, right) in [(0, 150.0..180., 270.), (1, 25.0..30., 180.), (2, 25.0..30., 180.)] {
        assert!(degrees.contains(&most(&long, axis, false)) && most(&long, axis, true) == right);
        assert!(axis == 0 || long.iter().all(|t| t.axis != axis || t.degrees % 180. == 0. || t.degrees.abs() <= 30.));
    }
    // More than three times: not at all.
    let flat = drawn(Rank::Three, [20, 20, 6]);
    assert!(flat.iter().all(|t| t.axis == 2) && most(&flat, 2, false) > 150.);
    assert!(drawn(Rank::Three, [40, 12, 3]).iter().chain(&drawn(Rank::Two, [1, 31, 10])).all(|t| t.degrees == 0.));
}

#[test]
fn bad_input_is_refused() {
    let apply =
        |t: Resample, shape| t.apply(&[0.; 8], shape, Interpolation::Linear, &[0.], &mut [0.; 8]).unwrap_err().to_string();
    assert!(apply(Resample::IDENTITY, [2, 2, 3]).contains("[2, 2, 3]"));
    assert!(apply(Resample { zoom: [1., 0., 1.], ..Resample::IDENTITY }, [2, 2, 2]).contains("zoom"));
    assert!(apply(Resample { degrees: f32::NAN, ..Resample::IDENTITY }, [2, 2, 2]).contains("NaN"));
    assert!(apply(Resample { axis: 3, ..Resample::IDENTITY }, [2, 2, 2]).contains("found 3"));
    assert!(apply(Resample { axis: 2, ..Resample::IDENTITY }, [1, 4, 2]).contains("axis 0"));
}
