//! Anatomy of an eye, and the outlines of what is drawn in it. Lengths are in radii of the field of view, as in the photograph.

use crate::rng::{Rng, normal};
use rand::Rng as _;
use std::f32::consts::TAU;

pub type Point = [f32; 2];

/// Anatomy of one eye.
pub struct Eye {
    pub disc: Point,
    pub disc_radii: Point,
    pub cup: f32,
    pub macula: Point,
    /// Segments of the vessels: both ends, radius, and darkness, 1 for veins.
    pub vessels: Vec<(Point, Point, f32, f32)>,
}

/// An ellipse with a wavy outline.
pub struct Spot {
    pub centre: Point,
    pub radii: Point,
    pub angle: f32,
    /// Depth, number and phase of the waves.
    pub wave: (f32, f32, f32),
}

impl Spot {
    pub fn round(centre: Point, radius: f32) -> Spot {
        Spot { centre, radii: [radius; 2], angle: 0., wave: (0., 0., 0.) }
    }

    pub fn drawn(centre: Point, radius: f32, rng: &mut Rng) -> Spot {
        let stretch = rng.random_range(0.6..1.);
        let wave = (rng.random_range(0.05..0.25), f32::from(rng.random_range(2..=6u8)), rng.random_range(0. ..TAU));
        Spot { centre, radii: [radius, radius * stretch], angle: rng.random_range(0. ..TAU), wave }
    }

    /// How far outside of the outline a point lies; negative inside.
    pub fn distance(&self, p: Point) -> f32 {
        let (sin, cos) = self.angle.sin_cos();
        let [x, y] = [p[0] - self.centre[0], p[1] - self.centre[1]];
        let q = [(cos * x + sin * y) / self.radii[0], (cos * y - sin * x) / self.radii[1]];
        let (depth, count, phase) = self.wave;
        let outline = 1. + depth * (count * q[1].atan2(q[0]) + phase).sin();
        ((q[0] * q[0] + q[1] * q[1]).sqrt() - outline) * self.radii[1]
    }

    pub fn reach(&self) -> f32 {
        self.radii[0] * (1. + self.wave.0)
    }
}

pub fn distance(a: Point, b: Point) -> f32 {
    (a[0] - b[0]).hypot(a[1] - b[1])
}

impl Eye {
    pub fn draw(rng: &mut Rng) -> Eye {
        // In the right eye the disc is on the right of the macula.
        let nasal = if rng.random_bool(0.5) { 1. } else { -1. };
        let disc = [nasal * rng.random_range(0.42..0.58), rng.random_range(-0.1..0.06)];
        let radius = rng.random_range(0.115..0.15);
        // Two and a half disc diameters to the temporal side, a little lower.
        let macula = [disc[0] - nasal * rng.random_range(0.62..0.72), disc[1] + rng.random_range(0.06..0.13)];
        let mut eye = Eye {
            disc,
            disc_radii: [radius * rng.random_range(0.85..0.98), radius],
            cup: rng.random_range(0.25..0.6),
            macula,
            vessels: vec![],
        };
        for up in [-1., 1.] {
            for (radius, darkness) in [(0.021, 1.), (0.015, 0.7)] {
                // Arcades arch around the macula; on the nasal side vessels run straight.
                let arcade = rng.random_range(1.05..1.45f32);
                let bend = rng.random_range(0.75..1.05);
                eye.grow(disc, [-nasal * arcade.cos(), up * arcade.sin()], radius, darkness, -nasal * -up * bend, rng);
                let spread = rng.random_range(0.5..1.1f32);
                let bend = rng.random_range(-0.2..0.3);
                eye.grow(disc, [nasal * spread.cos(), up * spread.sin()], 0.75 * radius, darkness, nasal * up * bend, rng);
            }
        }
        eye
    }

    /// Grows a vessel and its branches. `bend` is the curvature, positive clockwise as seen.
    fn grow(&mut self, from: Point, direction: Point, radius: f32, darkness: f32, bend: f32, rng: &mut Rng) {
        const STEP: f32 = 0.03;
        let (mut at, mut radius, mut heading, mut wander) = (from, radius, direction[1].atan2(direction[0]), 0.);
        while radius > 0.0035 && distance(at, [0.; 2]) < 1.05 && distance(at, self.macula) > 0.1 {
            wander = 0.8 * wander + 0.05 * normal(rng);
            heading += STEP * bend + wander;
            let next = [at[0] + STEP * heading.cos(), at[1] + STEP * heading.sin()];
            self.vessels.push((at, next, radius, darkness));
            at = next;
            radius *= 0.99;
            if rng.random_bool(0.09) {
                let side = if rng.random_bool(0.5) { 1. } else { -1. };
                let branch = heading + side * rng.random_range(0.45..0.9f32);
                self.grow(at, [branch.cos(), branch.sin()], 0.68 * radius, darkness, -side * rng.random_range(0. ..0.8), rng);
                radius *= 0.93;
            }
        }
    }

    /// A point of the retina, off the disc.
    pub fn anywhere(&self, rng: &mut Rng) -> Point {
        loop {
            let (angle, r) = (rng.random_range(0. ..TAU), 0.9 * rng.random::<f32>().sqrt());
            let p = [r * angle.cos(), r * angle.sin()];
            if distance(p, self.disc) > 0.2 {
                return p;
            }
        }
    }

    /// As [`Eye::anywhere`], at most `away` from the macula.
    pub fn near_macula(&self, away: f32, rng: &mut Rng) -> Point {
        loop {
            let p = self.anywhere(rng);
            if distance(p, self.macula) < away {
                return p;
            }
        }
    }
}
