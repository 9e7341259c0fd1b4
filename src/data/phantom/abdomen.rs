//! A trunk from the heart to the iliac wings: body wall, spine, ribs, lungs, liver, spleen, kidneys, great vessels, stomach,
//! bowel and a curved pancreas.
//!
//! Template space is millimetres from the centre of the field of view; the body leaves it above and below, as in a scan.

use super::field::{Variation, Waves};
use super::geometry::{Point, column, cuboid, ellipsoid, smooth_union, tube};
use super::lesion::PancreasTumour;
use crate::rng::Rng;
use rand::Rng as _;

/// Side of the cubic field of view, millimetres.
pub const FIELD_OF_VIEW: f32 = 307.2;

/// How subjects differ in size and shape.
pub const VARIATION: Variation =
    Variation { scale: (0.93, 1.04), stretch: 0.03, turn: 0.06, shift: 6.0, displacement: 4.5, knot: 70.0 };

/// What fills a voxel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Tissue {
    Outside,
    Skin,
    Fat,
    Muscle,
    Cortical,
    Spongy,
    Disc,
    Cord,
    Lung,
    Heart,
    Liver,
    LiverVessel,
    Bile,
    Spleen,
    KidneyCortex,
    KidneyMedulla,
    Aorta,
    Vein,
    Wall,
    Fluid,
    Gas,
    Stool,
    Pancreas,
    Tumour,
}

/// Hounsfield units of each tissue in the portal venous phase: mean over subjects, and standard deviation between them.
pub const HOUNSFIELD: [(Tissue, f32, f32); 24] = [
    (Tissue::Outside, -1000.0, 0.0),
    (Tissue::Skin, 20.0, 15.0),
    (Tissue::Fat, -102.0, 7.0),
    (Tissue::Muscle, 60.0, 8.0),
    (Tissue::Cortical, 620.0, 90.0),
    (Tissue::Spongy, 190.0, 45.0),
    (Tissue::Disc, 85.0, 10.0),
    (Tissue::Cord, 25.0, 6.0),
    (Tissue::Lung, -840.0, 30.0),
    (Tissue::Heart, 140.0, 15.0),
    (Tissue::Liver, 108.0, 12.0),
    (Tissue::LiverVessel, 160.0, 15.0),
    (Tissue::Bile, 8.0, 5.0),
    (Tissue::Spleen, 122.0, 10.0),
    (Tissue::KidneyCortex, 195.0, 20.0),
    (Tissue::KidneyMedulla, 140.0, 20.0),
    (Tissue::Aorta, 165.0, 18.0),
    (Tissue::Vein, 155.0, 15.0),
    (Tissue::Wall, 72.0, 12.0),
    (Tissue::Fluid, 18.0, 10.0),
    (Tissue::Gas, -950.0, 15.0),
    (Tissue::Stool, -10.0, 25.0),
    (Tissue::Pancreas, 92.0, 11.0),
    // Relative to the gland: see the appearance model.
    (Tissue::Tumour, 0.0, 0.0),
];

/// One subject's anatomy in template space.
pub struct Abdomen {
    pancreas: Vec<(Point, f32)>,
    tumour: PancreasTumour,
    loops: Waves,
    gas: Waves,
    vessels: [Waves; 2],
    outline: Waves,
    fat: f32,
    visceral_fat: f32,
    liver: f32,
    spleen: f32,
    stomach: f32,
    fluid_level: f32,
}

impl Abdomen {
    /// `voxel` is the voxels' side in millimetres: the tumour is at least about one voxel in radius.
    pub fn draw(voxel: f32, rng: &mut Rng) -> Abdomen {
        let gland = [
            ([28.0, 16.0, -26.0], 11.0),
            ([31.0, 20.0, -10.0], 15.0),
            ([12.0, 33.0, 2.0], 10.5),
            ([-10.0, 36.0, 8.0], 10.5),
            ([-38.0, 20.0, 18.0], 10.0),
            ([-66.0, -8.0, 34.0], 8.0),
        ];
        let thickness = rng.random_range(0.85..1.1);
        let bend = [0; 6].map(|_| [0; 3].map(|_| rng.random_range(-4.0..4.0)));
        let pancreas: Vec<(Point, f32)> =
            gland.iter().zip(bend).map(|(&(p, r), b)| (std::array::from_fn(|a| p[a] + b[a]), r * thickness)).collect();
        Abdomen {
            tumour: PancreasTumour::draw(&pancreas, voxel, rng),
            pancreas,
            loops: Waves::draw(14, 38.0, 56.0, rng),
            gas: Waves::draw(8, 50.0, 90.0, rng),
            vessels: [0; 2].map(|_| Waves::draw(12, 42.0, 70.0, rng)),
            outline: Waves::draw(8, 50.0, 90.0, rng),
            fat: rng.random_range(7.0..20.0),
            visceral_fat: rng.random_range(-0.25..0.15),
            liver: rng.random_range(0.93..1.07),
            spleen: rng.random_range(0.85..1.2),
            stomach: rng.random_range(0.75..1.15),
            fluid_level: rng.random_range(30.0..62.0),
        }
    }

    /// What is at a point of template space.
    pub fn tissue(&self, p: Point) -> Tissue {
        let [x, y, z] = p;
        // Broad hips and chest, a waist between, flatter behind than in front.
        let waist = 1.0 - 0.05 * (-((z + 30.0) / 50.0).powi(2)).exp();
        let depth = if y < 0.0 { 98.0 } else { 100.0 };
        let body = column(p, [0.0, 0.0], [137.0 * waist, depth]) + 1.5 * self.outline.value(p);
        if body > 0.0 {
            return Tissue::Outside;
        }
        if let Some(tissue) = spine(p) {
            return tissue;
        }
        // More fat in front and at the flanks than behind.
        let fat = self.fat * (1.0 + 0.35 * (y / 98.0));
        let wall = body + fat;
        if body > -2.2 {
            return Tissue::Skin;
        }
        if wall > 0.0 {
            return Tissue::Fat;
        }
        let (right, left) = ([x - 58.0, y + 5.0], [x + 62.0, y + 5.0]);
        let dome = (112.0 - 0.012 * right[0].powi(2) - 0.016 * right[1].powi(2))
            .max(96.0 - 0.012 * left[0].powi(2) - 0.016 * left[1].powi(2));
        if let Some(tissue) = self.wall(p, wall, dome) {
            return tissue;
        }
        if let Some(tissue) = great_vessels(p) {
            return tissue;
        }
        if z > dome {
            let heart = ellipsoid(p, [-22.0, 38.0, 138.0], [52.0, 42.0, 42.0]);
            return match heart {
                h if h < -9.0 || (h < 0.0 && x < -10.0) => Tissue::Heart,
                h if h < 3.0 => Tissue::Fat,
                _ if cuboid(p, [0.0, -20.0, 150.0], [22.0, 45.0, 60.0]) < 0.0 => Tissue::Fat,
                _ => Tissue::Lung,
            };
        }
        if z > dome - 3.0 {
            return Tissue::Muscle;
        }
        self.organ(p, wall + 11.0)
    }

    /// Muscles of the wall, ribs and pelvis; `wall` is the depth under the subcutaneous fat, negative inside.
    fn wall(&self, p: Point, wall: f32, dome: f32) -> Option<Tissue> {
        let [x, y, z] = p;
        let side = [x.abs(), y, z];
        // Ribs slope downwards to the front and end at the costal arch.
        let arch = -25.0 + 0.9 * (y + 20.0).max(0.0) - 0.15 * side[0];
        let spacing = 27.0;
        let phase = ((z + 0.42 * y) / spacing).rem_euclid(1.0) - 0.5;
        let rib = norm2(phase * spacing, 0.85 * (wall + 6.0)) - 5.2;
        if rib < 0.0 && z > arch && (y < 55.0 || side[0] > 45.0) {
            return Some(if rib < -2.2 { Tissue::Spongy } else { Tissue::Cortical });
        }
        let sternum = cuboid(p, [0.0, 0.0, 150.0], [14.0, 400.0, 50.0]).max((wall + 5.5).abs() - 4.5);
        if sternum < 0.0 && y > 0.0 {
            return Some(if sternum < -2.0 { Tissue::Spongy } else { Tissue::Cortical });
        }
        let iliac = (ellipsoid(side, [30.0, 10.0, -178.0], [84.0, 78.0, 102.0]).abs() - 5.5).max(24.0 - side[0]).max(y - 45.0);
        let iliac = iliac.max(z + 86.0 - 0.2 * y);
        if iliac < 0.0 {
            return Some(if iliac < -2.5 { Tissue::Spongy } else { Tissue::Cortical });
        }
        let back = ellipsoid([side[0], y, 0.0], [33.0, -72.0, 0.0], [27.0, 17.0, 1.0]);
        let psoas = column(side, [37.0, -42.0], [8.0 + 0.1 * (30.0 - z), 9.0 + 0.1 * (30.0 - z)]).max(z - 25.0);
        let linea_alba = y > 0.0 && side[0] < 2.5 && z < 60.0;
        let thickness = if z > dome { 9.0 } else { 11.0 };
        let wall_muscle = wall > -thickness && !linea_alba && !(-5.5..=-4.8).contains(&wall);
        if back.min(psoas) < 0.0 || wall_muscle {
            return Some(Tissue::Muscle);
        }
        (wall > -thickness).then_some(Tissue::Fat)
    }

    /// Organs inside the peritoneum and behind it; `inside` is negative within the muscular wall.
    fn organ(&self, p: Point, inside: f32) -> Tissue {
        let [x, y, z] = p;
        let pancreas = tube(p, &self.pancreas) + 1.3 * self.outline.value([3.0 * x, 3.0 * y, 3.0 * z]);
        if self.tumour.contains(p) {
            return Tissue::Tumour;
        }
        for (centre, tilt) in [([60.0, -40.0, 2.0], 0.14f32), ([-62.0, -40.0, 18.0], -0.14)] {
            let upright = [x + tilt * (z - centre[2]), y - 0.1 * (z - centre[2]), z];
            let kidney = ellipsoid(upright, centre, [25.0, 23.0, 52.0]);
            if kidney < 0.0 {
                let towards_middle = -centre[0].signum() * 12.0;
                let hilum = ellipsoid(upright, [centre[0] + towards_middle, centre[1] + 6.0, centre[2]], [13.0, 9.0, 25.0]);
                let pyramid = (z * 0.35).sin() * 2.0;
                return match kidney {
                    _ if hilum < -6.0 => Tissue::Fluid,
                    _ if hilum < 0.0 => Tissue::Fat,
                    k if k > -6.5 + pyramid => Tissue::KidneyCortex,
                    _ => Tissue::KidneyMedulla,
                };
            }
            if kidney < 6.0 {
                return Tissue::Fat;
            }
        }
        if pancreas < 0.0 {
            return Tissue::Pancreas;
        }
        let s = self.spleen;
        let spleen = ellipsoid(p, [-92.0, -34.0, 54.0], [30.0 * s, 42.0 * s, 46.0 * s])
            .max(-ellipsoid(p, [-58.0, -14.0, 48.0], [32.0, 34.0, 50.0]))
            .max(inside + 1.0);
        if spleen < 0.0 {
            return Tissue::Spleen;
        }
        let gallbladder = ellipsoid(p, [48.0, 46.0, 6.0], [13.0, 20.0, 15.0]);
        if gallbladder < 0.0 {
            return if gallbladder < -2.0 { Tissue::Bile } else { Tissue::Wall };
        }
        let l = self.liver;
        let right_lobe = ellipsoid([x, y, z - 0.25 * (x - 60.0)], [62.0, 2.0, 50.0], [66.0 * l, 82.0 * l, 72.0 * l]);
        let left_lobe = ellipsoid([x, y, z - 0.25 * x], [0.0, 48.0, 68.0], [66.0 * l, 32.0 * l, 34.0 * l]);
        let fissure = cuboid(p, [6.0, 90.0, 40.0], [1.2, 40.0, 26.0]);
        let hilum = ellipsoid(p, [22.0, 12.0, 22.0], [26.0, 22.0, 34.0]);
        let liver = smooth_union(right_lobe, left_lobe, 14.0).max(inside + 1.0).max(-hilum).max(-fissure);
        if liver < 0.0 {
            let branches = norm2(self.vessels[0].value(p), self.vessels[1].value(p));
            return if branches < 0.2 && liver < -8.0 { Tissue::LiverVessel } else { Tissue::Liver };
        }
        self.gut(p, inside)
    }

    /// Stomach, duodenum, colon and small bowel, with fluid below gas (the patient lies on the back), in fat.
    fn gut(&self, p: Point, inside: f32) -> Tissue {
        let [x, y, z] = p;
        let s = self.stomach;
        let stomach = tube(
            p,
            &[
                ([-48.0, 0.0, 84.0], 24.0 * s),
                ([-60.0, 28.0, 60.0], 29.0 * s),
                ([-50.0, 56.0, 28.0], 22.0 * s),
                ([-14.0, 62.0, 14.0], 15.0 * s),
                ([24.0, 46.0, 10.0], 10.0 * s),
            ],
        )
        .max(inside + 1.0);
        if stomach < 0.0 {
            return match stomach {
                d if d > -4.0 + self.outline.value([2.0 * x, 2.0 * y, 2.0 * z]) => Tissue::Wall,
                _ if y > self.fluid_level => Tissue::Gas,
                _ => Tissue::Fluid,
            };
        }
        let duodenum = tube(
            p,
            &[
                ([30.0, 44.0, 8.0], 11.0),
                ([54.0, 20.0, 0.0], 12.0),
                ([52.0, 8.0, -42.0], 12.0),
                ([0.0, 8.0, -46.0], 10.5),
                ([-30.0, 16.0, -22.0], 11.0),
            ],
        );
        if duodenum < 0.0 {
            return if duodenum > -3.2 { Tissue::Wall } else { Tissue::Fluid };
        }
        let haustra = 2.5 * ((x + z) * 0.24).sin();
        let colon = tube(
            p,
            &[
                ([86.0, -4.0, -128.0], 25.0),
                ([94.0, -12.0, -60.0], 21.0),
                ([84.0, 10.0, -30.0], 18.0),
                ([40.0, 62.0, -48.0], 18.0),
                ([-30.0, 66.0, -42.0], 18.0),
                ([-92.0, 14.0, 14.0], 17.0),
                ([-98.0, -22.0, -30.0], 15.0),
                ([-94.0, -12.0, -120.0], 15.0),
                ([-50.0, -10.0, -160.0], 16.0),
            ],
        ) + haustra;
        let colon = colon.max(inside + 1.0);
        if colon < 0.0 {
            return match colon {
                d if d > -3.0 => Tissue::Wall,
                _ if self.gas.value([x, 0.6 * y, z]) + 0.02 * (y - 10.0) > 0.5 => Tissue::Gas,
                _ => Tissue::Stool,
            };
        }
        let mesentery = ellipsoid(p, [0.0, 22.0, -92.0], [84.0, 58.0, 76.0]).max(inside + 3.0);
        if mesentery < 0.0 {
            let level = self.loops.value(p) - self.visceral_fat;
            return match level {
                l if l < -0.12 => Tissue::Fat,
                l if l < 0.22 => Tissue::Wall,
                _ if self.gas.value(p) > 1.2 && y > 25.0 => Tissue::Gas,
                _ => Tissue::Fluid,
            };
        }
        Tissue::Fat
    }
}

/// Vertebrae with discs, canal and processes.
fn spine(p: Point) -> Option<Tissue> {
    let [x, y, z] = p;
    // Lumbar lordosis.
    let y = y - 9.0 * (-((z + 50.0) / 60.0).powi(2)).exp();
    let phase = (z / 34.0).rem_euclid(1.0);
    let canal = column([x, y, z], [0.0, -68.0], [9.0, 7.5]);
    if canal < 0.0 {
        return Some(Tissue::Cord);
    }
    let body = column([x, y, z], [0.0, -45.0], [22.0, 16.0]);
    if body < 0.0 {
        return Some(match body {
            _ if phase < 0.22 => Tissue::Disc,
            _ if body > -2.2 || !(0.28..0.94).contains(&phase) => Tissue::Cortical,
            _ => Tissue::Spongy,
        });
    }
    let ring = canal < 4.5 && phase > 0.3;
    let spinous = cuboid([x, y, (phase - 0.6) * 34.0], [0.0, -84.0, 0.0], [3.0, 11.0, 10.0]);
    let transverse = cuboid([x, y, (phase - 0.65) * 34.0], [0.0, -66.0, 0.0], [36.0, 4.0, 5.0]);
    (ring || spinous.min(transverse) < 0.0).then_some(if spinous < -2.0 { Tissue::Spongy } else { Tissue::Cortical })
}

/// Aorta, vena cava, portal, splenic and renal veins, the mesenteric vessels.
fn great_vessels(p: Point) -> Option<Tissue> {
    let artery = tube(p, &[([-14.0, -22.0, 170.0], 12.0), ([-8.0, -16.0, -70.0], 9.0)])
        .min(tube(p, &[([-8.0, -16.0, -70.0], 6.5), ([44.0, -14.0, -160.0], 5.5)]))
        .min(tube(p, &[([-8.0, -16.0, -70.0], 6.5), ([-50.0, -14.0, -160.0], 5.5)]))
        .min(tube(p, &[([-8.0, -14.0, 4.0], 3.5), ([-6.0, 12.0, -20.0], 3.5), ([4.0, 22.0, -110.0], 3.0)]));
    if artery < 0.0 {
        return Some(Tissue::Aorta);
    }
    let vein = tube(p, &[([20.0, 4.0, 125.0], 13.0), ([20.0, -14.0, 40.0], 11.0), ([15.0, -17.0, -76.0], 10.5)])
        .min(tube(
            p,
            &[([10.0, 18.0, -90.0], 4.5), ([11.0, 20.0, -4.0], 6.0), ([22.0, 12.0, 26.0], 7.0), ([44.0, 8.0, 48.0], 6.0)],
        ))
        .min(tube(p, &[([11.0, 20.0, 2.0], 5.0), ([-34.0, 8.0, 14.0], 4.5), ([-72.0, -24.0, 38.0], 4.0)]))
        .min(tube(p, &[([-40.0, -34.0, 14.0], 4.5), ([12.0, -14.0, 8.0], 4.5), ([38.0, -34.0, 2.0], 4.5)]));
    (vein < 0.0).then_some(Tissue::Vein)
}

fn norm2(a: f32, b: f32) -> f32 {
    (a * a + b * b).sqrt()
}
