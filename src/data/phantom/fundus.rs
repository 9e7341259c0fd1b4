//! A photograph of the eye's fundus: disc, macula, vessel tree, illumination, lesions. Lengths are in radii of the field of view,
//! about 22 degrees; x points right and y down in the photograph, from the field's centre.

use super::appearance::texture;
use super::eye::{Eye, Point, Spot, distance};
use super::field::{blur, smooth};
use super::geometry::smoothstep;
use super::retinopathy::{Lesion, Retinopathy};
use super::{Phantom, part, volume};
use crate::data::volume::Affine;
use crate::dim::{Shape, voxels};
use crate::rng::{Rng, normal};
use rand::Rng as _;

pub const CHANNELS: [&str; 3] = ["red", "green", "blue"];

/// Shape `[1, H, W]` of a photograph whose field of view is about `size` pixels wide.
pub fn shape(size: usize) -> Shape {
    [1, size, size * 5 / 4]
}

/// A photograph being drawn.
struct Canvas {
    shape: Shape,
    /// Pixels a radius of the field.
    scale: f32,
    /// Pixel of the field's centre, row and column.
    centre: Point,
}

impl Canvas {
    fn point(&self, row: usize, column: usize) -> Point {
        [(column as f32 - self.centre[1]) / self.scale, (row as f32 - self.centre[0]) / self.scale]
    }

    /// Calls `draw(pixel, coverage)` for the pixels within `reach` of `around` which a shape covers in part, by its signed distance.
    fn cover(&self, around: &[Point], reach: f32, shape: impl Fn(Point) -> f32, mut draw: impl FnMut(usize, f32)) {
        let [_, height, width] = self.shape;
        let range = |axis: usize, n: usize, centre: f32| {
            let low = around.iter().map(|p| p[axis]).fold(f32::INFINITY, f32::min) - reach;
            let high = around.iter().map(|p| p[axis]).fold(f32::NEG_INFINITY, f32::max) + reach;
            let pixel = |v: f32| (v * self.scale + centre).clamp(0., n as f32) as usize;
            pixel(low - 1. / self.scale)..(pixel(high + 1. / self.scale) + 1).min(n)
        };
        for row in range(1, height, self.centre[0]) {
            for column in range(0, width, self.centre[1]) {
                let coverage = (0.5 - shape(self.point(row, column)) * self.scale).clamp(0., 1.);
                if coverage > 0. {
                    draw(row * width + column, coverage);
                }
            }
        }
    }

    fn line(&self, [a, b]: [Point; 2], radius: f32, draw: impl FnMut(usize, f32)) {
        let (along, length) = ([b[0] - a[0], b[1] - a[1]], distance(a, b).max(1e-6));
        let away = |p: Point| {
            let t = ((p[0] - a[0]) * along[0] + (p[1] - a[1]) * along[1]) / (length * length);
            let t = t.clamp(0., 1.);
            distance(p, [a[0] + t * along[0], a[1] + t * along[1]]) - radius
        };
        self.cover(&[a, b], radius, away, draw);
    }
}

/// Draws one eye: the photograph `[3, 1, H, W]` with whole values 0 to 255, and its lesions `[1, 1, H, W]`, values of [`Lesion`].
pub fn case(size: usize, part: impl Fn(u64) -> Rng) -> Phantom {
    let shape = shape(size);
    let (n, width) = (voxels(shape), shape[2]);
    let eye = Eye::draw(&mut part(part::ANATOMY));
    let retinopathy = Retinopathy::draw(&eye, &mut part(part::LESION));
    let mut look = part(part::LOOK);
    // The field is cut off at the top and the bottom in some cameras.
    let scale = size as f32 * look.random_range(0.47..0.54);
    let shift = [0.01, 0.03].map(|s| s * size as f32 * normal(&mut look).clamp(-2., 2.));
    let centre = [(shape[1] as f32 - 1.) / 2. + shift[0], (width as f32 - 1.) / 2. + shift[1]];
    let canvas = Canvas { shape, scale, centre };

    let skin = look.random_range(0. ..1f32);
    let mut colour = [0.78 - 0.16 * skin, 0.40 - 0.14 * skin, 0.20 - 0.09 * skin];
    colour.iter_mut().for_each(|c| *c *= 1. + 0.06 * normal(&mut look).clamp(-2., 2.));
    let grain = texture(shape, [300. / size as f32; 3], 0.07, &mut part(part::TEXTURE));
    let mut image = vec![0f32; 3 * n];
    for pixel in 0..n {
        let p = canvas.point(pixel / width, pixel % width);
        let macula = (-distance(p, eye.macula).powi(2) / (2. * 0.13f32.powi(2))).exp();
        let fovea = (-distance(p, eye.macula).powi(2) / (2. * 0.035f32.powi(2))).exp();
        for c in 0..3 {
            image[c * n + pixel] = colour[c] * grain[pixel] * (1. - [0.12, 0.26, 0.3][c] * macula - 0.12 * fovea);
        }
    }
    let mix = |image: &mut [f32], pixel: usize, to: [f32; 3], share: f32| {
        (0..3).for_each(|c| image[c * n + pixel] += share * (to[c] - image[c * n + pixel]));
    };
    let darken = |image: &mut [f32], pixel: usize, factor: [f32; 3], share: f32| {
        (0..3).for_each(|c| image[c * n + pixel] *= 1. - share * (1. - factor[c]));
    };

    let disc = Spot { centre: eye.disc, radii: eye.disc_radii, angle: 0., wave: (0., 0., 0.) };
    let pallor = [0.98, 0.78, 0.50].map(|v| v * (1. - 0.15 * skin));
    canvas.cover(&[eye.disc], 0.2, |p| disc.distance(p), |pixel, share| mix(&mut image, pixel, pallor, 0.85 * share));
    let cup = Spot { radii: disc.radii.map(|r| r * eye.cup), ..Spot::round(eye.disc, 0.) };
    canvas.cover(&[eye.disc], 0.2, |p| cup.distance(p), |pixel, share| mix(&mut image, pixel, [1., 0.92, 0.75], 0.8 * share));

    // Where vessels overlap the darkest counts.
    let mut vessels = vec![0f32; n];
    for &(a, b, radius, darkness) in &eye.vessels {
        canvas.line([a, b], radius, |pixel, share| vessels[pixel] = vessels[pixel].max(darkness * share));
    }
    (0..n).for_each(|pixel| darken(&mut image, pixel, [0.68, 0.42, 0.5], vessels[pixel]));

    let mut lesions = vec![0f32; n];
    for (lesion, spot) in &retinopathy.spots {
        canvas.cover(
            &[spot.centre],
            spot.reach(),
            |p| spot.distance(p),
            |pixel, share| {
                match lesion {
                    Lesion::Exudate => mix(&mut image, pixel, [0.98, 0.88, 0.5], 0.75 * share),
                    _ => darken(&mut image, pixel, [0.6, 0.32, 0.4], 0.9 * share),
                }
                if share >= 0.5 {
                    lesions[pixel] = *lesion as u8 as f32;
                }
            },
        );
    }
    for (line, radius) in &retinopathy.tufts {
        for pair in line.windows(2) {
            canvas.line([pair[0], pair[1]], *radius, |pixel, share| {
                darken(&mut image, pixel, [0.8, 0.5, 0.55], 0.6 * share);
                if share >= 0.5 {
                    lesions[pixel] = Lesion::Proliferation as u8 as f32;
                }
            });
        }
    }
    expose(&mut image, &mut lesions, &canvas, &mut look, &mut part(part::SCAN));
    let affine: Affine = std::array::from_fn(|r| std::array::from_fn(|c| f64::from(u8::from(r == c))));
    let photograph = volume(image, shape, affine);
    Phantom { images: vec![("photograph", photograph)], label: volume(lesions, shape, affine) }
}

/// Illumination, focus, noise and the border around the field.
fn expose(image: &mut [f32], lesions: &mut [f32], canvas: &Canvas, look: &mut Rng, noise: &mut Rng) {
    let (n, width) = (lesions.len(), canvas.shape[2]);
    let fall = look.random_range(0.15..0.45f32);
    // Lids shade the upper part, and the flash is rarely in the middle.
    let tilt = [0.06 * normal(look).clamp(-2., 2.), look.random_range(0.02..0.14f32)];
    let gain = look.random_range(0.75..1.1f32);
    let uneven = smooth(canvas.shape, [1.; 3], canvas.shape[1] as f32 / 2., look);
    let focus = look.random_range(0.35..0.8) * canvas.scale / 200.;
    let sd = look.random_range(0.006..0.018);
    for channel in image.chunks_exact_mut(n) {
        blur(channel, canvas.shape, [0.3, focus.max(0.3), focus.max(0.3)]);
        for (pixel, value) in channel.iter_mut().enumerate() {
            let p = canvas.point(pixel / width, pixel % width);
            let r = distance(p, [0.; 2]);
            let light = gain * (1. - fall * r * r) * (1. + tilt[0] * p[0] + tilt[1] * p[1]) * (1. + 0.05 * uneven[pixel]);
            let field = 1. - smoothstep(1. - 1. / canvas.scale, 1. + 1. / canvas.scale, r);
            let level = *value * light * field + sd * (0.2 + 0.8 * field) * normal(noise);
            *value = (255. * level).round().clamp(0., 255.);
            if field == 0. {
                lesions[pixel] = 0.;
            }
        }
    }
}
