//! Tumours: irregular solids whose place, size and build are drawn per subject, in template space.

use super::brain::{Brain, Tissue};
use super::field::Waves;
use super::geometry::{Point, norm, sub};
use crate::rng::{Rng, normal};
use rand::Rng as _;

/// A ball with an irregular outline.
pub struct Blob {
    pub centre: Point,
    squash: Point,
    lobes: Waves,
    fringe: Waves,
}

impl Blob {
    pub fn draw(centre: Point, rng: &mut Rng) -> Blob {
        Blob {
            centre,
            squash: [0; 3].map(|_| rng.random_range(0.8..1.25)),
            lobes: Waves::draw(10, 22.0, 45.0, rng),
            fringe: Waves::draw(10, 8.0, 14.0, rng),
        }
    }

    /// Irregular distance from the centre, millimetres: level sets of it are the lesion's shells.
    pub fn level(&self, p: Point) -> f32 {
        let from_centre = sub(p, self.centre);
        let r = norm(std::array::from_fn(|a| from_centre[a] * self.squash[a]));
        r * (1.0 + (0.16 * self.lobes.value(p) + 0.05 * self.fringe.value(p)).clamp(-0.3, 0.5))
    }
}

/// A high-grade glioma: necrosis inside an enhancing rim inside oedema that follows the white matter.
pub struct Glioma {
    blob: Blob,
    spread: Waves,
    necrosis: f32,
    core: f32,
    oedema: f32,
    /// Thinnest rim, so that no necrosis touches what lies outside.
    rim: f32,
    /// Share of the distance by which tissue near the centre is pushed away.
    push: f32,
}

impl Glioma {
    /// Draws a tumour in the white or grey matter of the cerebrum. Shells are at least about one voxel (`voxel` millimetres)
    /// thick, so that every label is there at any resolution.
    pub fn draw(brain: &Brain, voxel: f32, rng: &mut Rng) -> Glioma {
        let rim = (1.15 * voxel).max(2.2);
        let thickness = rng.random_range(rim..rim + 4.0);
        let necrosis = (1.2 * voxel).max(rng.random_range(3.0f32..13.0));
        let core = necrosis + thickness;
        let oedema = core + (1.3 * voxel).max(rng.random_range(5.0..17.0));
        let centre = loop {
            let p = [rng.random_range(-58.0..58.0), rng.random_range(-74.0..70.0), rng.random_range(-30.0..70.0)];
            let fits = brain.cerebral_depth(p) > (0.6 * core).max(9.0);
            if fits && matches!(brain.tissue(p), Tissue::White | Tissue::Grey) {
                break p;
            }
        };
        Glioma {
            blob: Blob::draw(centre, rng),
            spread: Waves::draw(12, 14.0, 36.0, rng),
            necrosis,
            core,
            oedema,
            rim,
            push: rng.random_range(0.1..0.35),
        }
    }

    /// Where the tissue at `p` was before the tumour grew.
    pub fn before(&self, p: Point) -> Point {
        let from_centre = sub(p, self.blob.centre);
        let r = norm(from_centre) / (1.7 * self.core);
        let pulled = 1.0 - self.push * (-r * r).exp();
        std::array::from_fn(|a| self.blob.centre[a] + pulled * from_centre[a])
    }

    /// What the tumour makes of `host` at `p`, if anything.
    pub fn tissue(&self, p: Point, host: Tissue, depth: f32) -> Option<Tissue> {
        if depth < 0.0 || norm(sub(p, self.blob.centre)) > 3.0 * self.oedema {
            return None;
        }
        let level = self.blob.level(p);
        if level > 1.4 * self.oedema {
            return None;
        }
        let spread = self.spread.value(p);
        let necrosis = (self.necrosis * (1.0 + 0.12 * spread)).min(self.core - self.rim);
        let reach = self.oedema * (1.0 + (0.16 * spread).clamp(-0.3, 0.35));
        // At the surface of the brain, too, a rim lies outside the necrosis.
        if level < necrosis && depth > self.rim {
            return Some(Tissue::Necrosis);
        }
        if level < self.core {
            return Some(Tissue::Enhancing);
        }
        let infiltrated = match host {
            Tissue::White | Tissue::Gliosis | Tissue::Stem => level < reach,
            Tissue::Grey | Tissue::DeepGrey | Tissue::Pallidum => level < self.core + 0.55 * (reach - self.core),
            _ => false,
        };
        infiltrated.then_some(Tissue::Oedema)
    }
}

/// A tumour of the pancreas.
pub struct PancreasTumour {
    blob: Blob,
    radius: f32,
}

impl PancreasTumour {
    /// A tumour somewhere along the gland's axis, given as knots (centre, radius); most often in the head, the first knots.
    pub fn draw(axis: &[(Point, f32)], voxel: f32, rng: &mut Rng) -> PancreasTumour {
        let along = rng.random::<f32>().powf(1.6) * (axis.len() - 1) as f32;
        let knot = (along as usize).min(axis.len() - 2);
        let t = along - knot as f32;
        let (from, to) = (axis[knot].0, axis[knot + 1].0);
        let centre = std::array::from_fn(|a| from[a] + t * (to[a] - from[a]) + 2.5 * normal(rng).clamp(-1.5, 1.5));
        PancreasTumour { blob: Blob::draw(centre, rng), radius: rng.random_range(6.0f32..16.0).max(1.3 * voxel) }
    }

    pub fn contains(&self, p: Point) -> bool {
        norm(sub(p, self.blob.centre)) < 3.0 * self.radius && self.blob.level(p) < self.radius
    }
}
