//! A head: scalp, skull, face, folded cortex, white matter, ventricles, deep grey nuclei, cerebellum and brain stem.
//!
//! Template space is millimetres from the centre of the field of view (about 25 mm below the middle of the brain).

use super::field::{Variation, Waves};
use super::geometry::{Point, column, cuboid, ellipsoid, norm, scaled_norm, smooth_union, smoothstep, sub, tube};
use crate::rng::Rng;
use rand::Rng as _;

/// Side of the cubic field of view, millimetres.
pub const FIELD_OF_VIEW: f32 = 192.0;

/// How subjects differ in size and shape.
pub const VARIATION: Variation =
    Variation { scale: (0.93, 1.02), stretch: 0.025, turn: 0.1, shift: 3.0, displacement: 2.6, knot: 42.0 };

/// What fills a voxel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Tissue {
    Outside,
    Air,
    Skin,
    Fat,
    Muscle,
    Bone,
    Marrow,
    Csf,
    Grey,
    White,
    DeepGrey,
    Pallidum,
    Stem,
    CerebellarGrey,
    Vessel,
    Choroid,
    Gliosis,
    Vitreous,
    Mucosa,
    Necrosis,
    Oedema,
    Enhancing,
}

/// Names of the contrasts, as BraTS 2018 has them.
pub const CONTRASTS: [&str; 4] = ["t1", "t1ce", "t2", "flair"];

/// Mean signal of each tissue on [`CONTRASTS`], before a subject's own draws; white matter is about 600 on T1.
pub const SIGNAL: [(Tissue, [f32; 4]); 22] = [
    (Tissue::Outside, [0.0, 0.0, 0.0, 0.0]),
    (Tissue::Air, [15.0, 15.0, 15.0, 15.0]),
    (Tissue::Skin, [420.0, 520.0, 330.0, 330.0]),
    (Tissue::Fat, [830.0, 830.0, 620.0, 640.0]),
    (Tissue::Muscle, [330.0, 390.0, 180.0, 240.0]),
    (Tissue::Bone, [50.0, 50.0, 40.0, 45.0]),
    (Tissue::Marrow, [480.0, 500.0, 280.0, 280.0]),
    (Tissue::Csf, [130.0, 135.0, 900.0, 110.0]),
    (Tissue::Grey, [420.0, 440.0, 510.0, 540.0]),
    (Tissue::White, [600.0, 615.0, 390.0, 430.0]),
    (Tissue::DeepGrey, [475.0, 495.0, 450.0, 490.0]),
    (Tissue::Pallidum, [540.0, 550.0, 330.0, 390.0]),
    (Tissue::Stem, [565.0, 580.0, 420.0, 450.0]),
    (Tissue::CerebellarGrey, [440.0, 465.0, 490.0, 520.0]),
    (Tissue::Vessel, [280.0, 900.0, 120.0, 150.0]),
    (Tissue::Choroid, [360.0, 780.0, 640.0, 480.0]),
    (Tissue::Gliosis, [500.0, 515.0, 620.0, 700.0]),
    (Tissue::Vitreous, [120.0, 125.0, 880.0, 120.0]),
    (Tissue::Mucosa, [380.0, 760.0, 720.0, 620.0]),
    (Tissue::Necrosis, [230.0, 250.0, 760.0, 400.0]),
    (Tissue::Oedema, [400.0, 410.0, 720.0, 760.0]),
    (Tissue::Enhancing, [400.0, 850.0, 600.0, 640.0]),
];

/// One subject's anatomy in template space.
pub struct Brain {
    gyri: Waves,
    depth: Waves,
    patches: Waves,
    cortex: f32,
    sulcus: f32,
    atrophy: f32,
    ventricle: f32,
    gliosis: f32,
    fat: f32,
    skull: f32,
}

impl Brain {
    pub fn draw(rng: &mut Rng) -> Brain {
        Brain {
            gyri: Waves::draw(20, 17.0, 28.0, rng),
            depth: Waves::draw(8, 45.0, 80.0, rng),
            patches: Waves::draw(10, 14.0, 30.0, rng),
            cortex: rng.random_range(3.0..4.0),
            sulcus: rng.random_range(0.6..1.3),
            atrophy: rng.random_range(1.8..4.0),
            ventricle: rng.random_range(-0.8..2.6),
            gliosis: rng.random_range(0.0..2.6),
            fat: rng.random_range(3.0..6.5),
            skull: rng.random_range(5.0..7.5),
        }
    }

    /// What is at a point of template space.
    pub fn tissue(&self, p: Point) -> Tissue {
        // Petalia: the right frontal and the left occipital pole reach further out.
        let p = [p[0], p[1] - 0.05 * p[0], p[2]];
        let parts = Parts::at(p);
        let inner = parts.intracranial(self.atrophy);
        if inner > 0.0 { self.around(p, inner) } else { self.within(p, &parts, inner) }
    }

    /// Depth below the surface of the cerebrum, millimetres; negative outside it.
    pub fn cerebral_depth(&self, p: Point) -> f32 {
        -Parts::at([p[0], p[1] - 0.05 * p[0], p[2]]).cerebrum
    }

    /// Scalp, skull, face and neck.
    fn around(&self, p: Point, inner: f32) -> Tissue {
        let [x, y, z] = p;
        let side = [x.abs(), y, z];
        let calvaria = inner - self.skull - self.fat - 4.0;
        let face = ellipsoid(p, [0.0, 36.0, -54.0], [57.0, 50.0, 62.0]);
        let nose = ellipsoid(p, [0.0, 84.0, -56.0], [11.0, 11.0, 17.0]);
        let neck = column(p, [0.0, -22.0], [50.0, 55.0]).max(z + 52.0);
        let head = smooth_union(smooth_union(calvaria, smooth_union(face, nose, 8.0), 10.0), neck, 18.0);
        if head > 0.0 {
            return Tissue::Outside;
        }
        let globe = ellipsoid(side, [32.0, 66.0, -30.0], [12.0, 12.5, 12.0]);
        if globe < 0.0 {
            // The wall and the lens.
            let lens = ellipsoid(side, [32.0, 74.5, -30.0], [4.5, 2.5, 4.5]);
            return if globe > -1.6 || lens < 0.0 { Tissue::Muscle } else { Tissue::Vitreous };
        }
        let airway = cuboid(side, [5.0, 58.0, -58.0], [3.0, 26.0, 14.0])
            .min(tube(p, &[([0.0, 34.0, -60.0], 7.0), ([0.0, 12.0, -74.0], 7.0), ([0.0, 10.0, -110.0], 8.0)]))
            .min(ellipsoid(side, [28.0, 56.0, -58.0], [13.0, 14.0, 14.0]))
            .min(ellipsoid(side, [7.0, 27.0, -34.0], [6.0, 10.0, 7.0]))
            .min(ellipsoid(side, [11.0, 81.0, -13.0], [8.0, 3.5, 7.0]));
        if airway < 0.0 {
            return if airway > -1.8 { Tissue::Mucosa } else { Tissue::Air };
        }
        if inner < self.skull {
            let table = 0.27 * self.skull;
            return if inner < table || inner > self.skull - table { Tissue::Bone } else { Tissue::Marrow };
        }
        if ellipsoid(side, [31.0, 56.0, -30.0], [17.0, 22.0, 17.0]) < 0.0 {
            let nerve_and_muscles = (norm([side[0] - 31.0, z + 30.0, 0.0]) - 10.0).abs();
            return if nerve_and_muscles < 1.5 { Tissue::Muscle } else { Tissue::Fat };
        }
        let mandible = (ellipsoid(p, [0.0, 22.0, -88.0], [50.0, 52.0, 60.0]).abs() - 4.5).max(z + 72.0).max(8.0 - y);
        let maxilla =
            (ellipsoid(p, [0.0, 30.0, -76.0], [30.0, 46.0, 60.0]).abs() - 4.0).max((z + 78.0).abs() - 6.0).max(30.0 - y);
        let jaw = mandible.min(maxilla);
        if jaw < 0.0 {
            return if jaw > -2.0 { Tissue::Bone } else { Tissue::Marrow };
        }
        match head {
            h if h > -2.0 => Tissue::Skin,
            h if h > -2.0 - self.fat => Tissue::Fat,
            _ if inner < self.skull + 2.0 && z > 20.0 => Tissue::Fat,
            _ if z < 0.0 && self.patches.value([1.6 * x, 0.8 * y, z]) > 1.2 => Tissue::Fat,
            _ => Tissue::Muscle,
        }
    }

    /// Everything inside the skull.
    fn within(&self, p: Point, parts: &Parts, inner: f32) -> Tissue {
        let [x, y, z] = p;
        let side = [x.abs(), y, z];
        let sagittal = x.abs() < 4.5 && inner > -5.0 && (z > 25.0 || y < -60.0) && z > -15.0;
        let transverse = inner > -5.5 && y < -45.0 && (z + 15.0).abs() < 4.0;
        let cerebral_artery = tube(side, &[([2.0, 8.0, -14.0], 1.6), ([20.0, 8.0, -10.0], 1.5), ([38.0, 2.0, -3.0], 1.4)]);
        let basilar = tube(p, &[([1.0, 2.0, -24.0], 1.7), ([0.0, -4.0, -50.0], 1.7), ([3.0, -10.0, -80.0], 1.7)]);
        if sagittal || transverse || cerebral_artery.min(basilar) < 0.0 {
            return Tissue::Vessel;
        }
        let fourth = ellipsoid(p, [0.0, -31.0, -36.0], [8.0, 5.5, 12.0]);
        let aqueduct = tube(p, &[([0.0, -12.0, 4.0], 1.3), ([0.0, -24.0, -22.0], 1.3)]);
        if fourth.min(aqueduct) < 0.0 {
            return Tissue::Csf;
        }
        if parts.stem < 0.0 {
            return Tissue::Stem;
        }
        if parts.cerebellum < 0.0 && parts.cerebellum < parts.cerebrum {
            return self.cerebellum(p, -parts.cerebellum);
        }
        // The tentorium leaves a gap above the cerebellum.
        if parts.cerebrum < 0.0 && parts.cerebellum > 1.5 { self.cerebrum(p, -parts.cerebrum) } else { Tissue::Csf }
    }

    fn cerebellum(&self, p: Point, depth: f32) -> Tissue {
        // Folia are sheets about the roof of the fourth ventricle; the white matter branches between them.
        let to_roof = sub(p, [0.0, -30.0, -32.0]);
        let fan = to_roof[2].atan2(-to_roof[1]) + 0.12 * self.depth.value(p);
        let ripple = (fan * 17.0).sin();
        let core = ellipsoid([p[0].abs(), p[1], p[2]], [17.0, -42.0, -35.0], [17.0, 12.0, 9.0]);
        if depth < 6.0 && ripple > 0.75 {
            Tissue::Csf
        } else if core < 0.0 || (depth > 4.0 && ripple < -0.45 && depth < 17.0) {
            Tissue::White
        } else {
            Tissue::CerebellarGrey
        }
    }

    fn cerebrum(&self, p: Point, depth: f32) -> Tissue {
        let [x, y, z] = p;
        let side = [x.abs(), y, z];
        let ventricle = lateral_ventricle(side) - self.ventricle;
        let third = cuboid(side, [0.0, -3.0, 12.0], [0.8, 12.0, 9.0]) - 0.8 - 0.4 * self.ventricle.max(0.0);
        if ventricle.min(third) < 0.0 {
            let choroid = tube(side, &[([14.0, -22.0, 33.0], 1.5), ([23.0, -37.0, 22.0], 3.5)]);
            return if choroid < 0.0 { Tissue::Choroid } else { Tissue::Csf };
        }
        if ellipsoid(side, [11.5, -13.0, 15.0], [8.5, 15.0, 10.0]) < 0.0 {
            return Tissue::DeepGrey;
        }
        let caudate = tube(side, &[([13.5, 22.0, 20.0], 6.5), ([18.0, 6.0, 31.0], 4.5), ([22.0, -18.0, 34.0], 2.5)]);
        if ellipsoid(side, [26.5, 3.0, 12.0], [5.5, 17.0, 11.0]).min(caudate) < 0.0 {
            return Tissue::DeepGrey;
        }
        if ellipsoid(side, [19.0, 0.0, 10.0], [4.0, 10.0, 7.0]) < 0.0 {
            return Tissue::Pallidum;
        }
        let pial = depth.min(self.to_sulcus(p, depth));
        if pial < 0.0 {
            Tissue::Csf
        } else if pial < self.cortex {
            Tissue::Grey
        } else if ventricle < self.gliosis + 1.5 * self.patches.value(p) {
            Tissue::Gliosis
        } else {
            Tissue::White
        }
    }

    /// Distance to the nearest fissure or sulcus, negative inside it.
    fn to_sulcus(&self, p: Point, depth: f32) -> f32 {
        let [x, y, z] = p;
        let side = [x.abs(), y, z];
        // Between the hemispheres, down to the corpus callosum and the diencephalon.
        let above_callosum = 25.0 * (scaled_norm([0.0, y + 8.0, z - 14.0], [1.0, 42.0, 29.0]) - 1.0);
        let bend = 1.2 * self.depth.value([0.0, y, z]);
        let midline = ((x - bend).abs() - self.sulcus).max(-above_callosum);
        // The lateral fissure rises backwards between the frontal and the temporal lobe and opens on to the insula.
        let along = ((20.0 - y) / 62.0).clamp(0.0, 1.0);
        let sylvian = ((z - (-9.0 + 24.0 * along)).abs() - self.sulcus - 0.7).max(y - 26.0).max(-44.0 - y).max(36.0 - side[0]);
        let insula = cuboid(side, [38.5, 3.0, 2.0], [self.sulcus, 20.0, 11.0]);
        // The central sulcus runs from the vertex downwards and forwards.
        let central =
            ((y + 12.0 - 0.42 * (66.0 - z)).abs() * 0.92 - self.sulcus).max(depth - 17.0).max(14.0 - z).max(4.0 - side[0]);
        // Gyri: the zero lines of a random field on the surface, continued inwards.
        let centre = [0.0, -2.0, 18.0];
        let radii = [66.0, 79.0, 56.0];
        let from_centre = sub(p, centre);
        let level = scaled_norm(from_centre, radii).max(0.2);
        // Partly projected on to the surface, so that sulci curve on their way in.
        let surface = from_centre.map(|v| v * (0.7 / level + 0.3));
        let (value, gradient) = self.gyri.value_gradient(surface);
        let across = level * value.abs() / (norm(gradient) + 0.02);
        let sulcal_depth = (11.0 + 4.5 * self.depth.value(p)).clamp(4.0, 19.0);
        let sulcus =
            (across - self.sulcus * (1.0 - smoothstep(0.4, 1.0, depth / sulcal_depth) * 0.5)).max(depth - sulcal_depth);
        midline.min(sylvian).min(insula).min(central).min(sulcus)
    }
}

/// Frontal horn, body, trigone, occipital and temporal horn, on the side of positive x.
fn lateral_ventricle(side: Point) -> f32 {
    let arch = [
        ([9.0, 30.0, 20.0], 3.0),
        ([10.0, 18.0, 29.0], 4.2),
        ([11.0, -2.0, 35.0], 4.2),
        ([15.0, -24.0, 34.0], 4.6),
        ([23.0, -38.0, 24.0], 6.0),
        ([27.0, -30.0, 4.0], 3.0),
        ([31.0, -10.0, -10.0], 2.4),
        ([30.0, 0.0, -14.0], 2.2),
    ];
    let occipital = [([23.0, -38.0, 24.0], 5.5), ([22.0, -62.0, 18.0], 1.6)];
    tube(side, &arch).min(tube(side, &occipital))
}

/// Signed distances to the parts of the brain.
struct Parts {
    cerebrum: f32,
    cerebellum: f32,
    stem: f32,
}

impl Parts {
    fn at(p: Point) -> Parts {
        let [x, y, z] = p;
        let side = [x.abs(), y, z];
        // Narrow in front, widest over the parietal lobes.
        let width = 1.0 - 0.10 * smoothstep(-25.0, 80.0, y) - 0.03 * smoothstep(-35.0, -80.0, y);
        let vault = ellipsoid([x / width, y, z], [0.0, -2.0, 20.0], [66.0, 79.0, 56.0]);
        let base = -12.0 + 0.12 * y.max(0.0) - 0.1 * y.min(0.0);
        let flattened = -smooth_union(-vault, z - base, 12.0);
        let temporal = ellipsoid([side[0], y - 0.3 * (z + 14.0), z], [42.0, 0.0, -14.0], [21.0, 37.0, 21.0]);
        Parts {
            cerebrum: smooth_union(flattened, temporal, 5.0),
            cerebellum: smooth_union(
                ellipsoid(side, [23.0, -48.0, -37.0], [28.0, 29.0, 21.0]),
                ellipsoid(p, [0.0, -44.0, -36.0], [12.0, 25.0, 22.0]),
                4.0,
            ),
            stem: smooth_union(
                tube(
                    p,
                    &[
                        ([0.0, -13.0, 2.0], 13.0),
                        ([0.0, -17.0, -22.0], 11.0),
                        ([0.0, -22.0, -48.0], 8.5),
                        ([0.0, -32.0, -75.0], 6.5),
                        ([0.0, -36.0, -120.0], 6.0),
                    ],
                ),
                ellipsoid(p, [0.0, -14.0, -32.0], [16.0, 12.0, 14.0]),
                6.0,
            ),
        }
    }

    /// Distance to the inner table of the skull.
    fn intracranial(&self, gap: f32) -> f32 {
        smooth_union(smooth_union(self.cerebrum, self.cerebellum, 14.0), self.stem, 10.0) - gap
    }
}
