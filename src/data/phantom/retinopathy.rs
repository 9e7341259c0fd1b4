//! Diabetic retinopathy: lesions, and the grade that they make by the international scale.

use super::eye::{Eye, Spot};
use crate::rng::Rng;
use rand::Rng as _;
use std::f32::consts::TAU;

/// Shares of the grades 0 to 4 among the 3662 training images of APTOS 2019.
pub const SHARES: [f64; 5] = [0.493, 0.101, 0.273, 0.053, 0.080];
/// Share of the photographs to which a grader gives a neighbouring grade.
const DISAGREEMENT: f64 = 0.1;

/// Value of a lesion in the label map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lesion {
    Microaneurysm = 1,
    Haemorrhage = 2,
    Exudate = 3,
    /// New vessels.
    Proliferation = 4,
}

/// The lesions of an eye, in drawing order.
pub struct Retinopathy {
    pub spots: Vec<(Lesion, Spot)>,
    /// Tufts of new vessels: polylines of a radius.
    pub tufts: Vec<(Vec<[f32; 2]>, f32)>,
}

/// A grade by [`SHARES`].
fn draw_grade(rng: &mut Rng) -> usize {
    let mut left = rng.random::<f64>() * SHARES.iter().sum::<f64>();
    for (grade, share) in SHARES.iter().enumerate() {
        left -= share;
        if left < 0. {
            return grade;
        }
    }
    SHARES.len() - 1
}

/// The grade of the lesions, and the one that the grader gave: mostly the same, otherwise a neighbour. The lesions' generator starts with
/// this draw.
pub fn grades(rng: &mut Rng) -> (usize, usize) {
    let grade = draw_grade(rng);
    let (disagrees, up) = (rng.random_bool(DISAGREEMENT), rng.random_bool(0.5));
    let given = match (disagrees, grade, up) {
        (false, _, _) => grade,
        (true, 0, _) | (true, 1..=3, true) => grade + 1,
        _ => grade - 1,
    };
    (grade, given)
}

impl Retinopathy {
    /// Lesions of an eye. 0: none. 1: microaneurysms only. 2: also haemorrhages and mostly exudates. 3: more than twenty haemorrhages, all
    /// over. 4: new vessels, and often a large haemorrhage before the retina.
    pub fn draw(eye: &Eye, rng: &mut Rng) -> Retinopathy {
        let (grade, _) = grades(rng);
        let mut found = Retinopathy { spots: vec![], tufts: vec![] };
        let [dots, blots, clusters] = match grade {
            0 => [0..=0, 0..=0, 0..=0],
            1 => [3..=8, 0..=0, 0..=0],
            2 => [8..=20, 2..=9, 0..=3],
            3 => [15..=30, 22..=40, 1..=4],
            _ => [10..=25, 6..=25, 0..=4],
        }
        .map(|range| rng.random_range::<usize, _>(range));
        for _ in 0..clusters {
            let centre = eye.near_macula(0.45, rng);
            for _ in 0..rng.random_range(6..=18) {
                let (angle, away) = (rng.random_range(0. ..TAU), 0.1 * rng.random::<f32>().sqrt());
                let at = [centre[0] + away * angle.cos(), centre[1] + away * angle.sin()];
                found.spots.push((Lesion::Exudate, Spot::round(at, rng.random_range(0.008..0.02))));
            }
        }
        for _ in 0..blots {
            let radius = rng.random_range(0.018..0.05);
            found.spots.push((Lesion::Haemorrhage, Spot::drawn(eye.anywhere(rng), radius, rng)));
        }
        for _ in 0..dots {
            found.spots.push((Lesion::Microaneurysm, Spot::round(eye.anywhere(rng), rng.random_range(0.011..0.016))));
        }
        if grade == 4 {
            if rng.random_bool(0.5) {
                found
                    .spots
                    .push((Lesion::Haemorrhage, Spot::drawn(eye.near_macula(0.6, rng), rng.random_range(0.12..0.22), rng)));
            }
            for n in 0..rng.random_range(1..=3) {
                let root = if n == 0 { eye.disc } else { eye.anywhere(rng) };
                (0..rng.random_range(8..=16)).for_each(|_| found.tufts.push((wriggle(root, rng), 0.006)));
            }
        }
        found
    }
}

/// A short winding line.
fn wriggle(from: [f32; 2], rng: &mut Rng) -> Vec<[f32; 2]> {
    let (mut at, mut angle) = (from, rng.random_range(0. ..TAU));
    let mut line = vec![at];
    for _ in 0..rng.random_range(8..=14) {
        angle += rng.random_range(-0.9..0.9f32);
        at = [at[0] + 0.014 * angle.cos(), at[1] + 0.014 * angle.sin()];
        line.push(at);
    }
    line
}
