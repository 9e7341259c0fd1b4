//! Photographs of the eye's fundus: the dark border is cut off, the rest centred on a black square and resized.

use super::Threshold;
use crate::data::volume::Volume;
use crate::dim::Region;
use anyhow::{Context, Result, bail, ensure};
use image::imageops::{FilterType, resize};
use image::{ImageBuffer, Luma};
use ndarray::Array4;

/// Brightest black of a border, noise and compression included: 10 of 255. [`Threshold::Auto`].
const BLACK: f32 = 0.04;
/// Share of a line's pixels that must be brighter, so that dust and captions do not count. A circle's outermost line of pixels has 6 % of
/// its diameter at 1000 pixels, so no more than one line is lost.
const SHARE: f64 = 0.02;

/// The part of a photograph `[C, 1, H, W]`, in [0, 1], that is brighter than black in any channel, in the middle of a black square
/// (aspect is kept), resized to `side` x `side` pixels. Also returns the box. What lies in the square and in the photograph but outside of
/// the box stays.
///
/// Resizing weighs all pixels that an output pixel covers (a triangle as wide as the reduction, as Pillow's `BILINEAR` and
/// `interpolate(antialias=True)` do): photographs are reduced ten times, and plain interpolation would turn vessels into dots.
///
/// Errors: no foreground.
pub fn fit(volume: &Volume, side: usize, foreground: Threshold) -> Result<(Volume, Region)> {
    let (channels, depth, height, width) = volume.data.dim();
    ensure!(depth == 1, "{depth} planes, expected a photograph");
    let threshold = match foreground {
        Threshold::Auto => BLACK,
        Threshold::Above { value } => value,
    };
    let (mut rows, mut columns) = (vec![0usize; height], vec![0usize; width]);
    for (y, row) in rows.iter_mut().enumerate() {
        for (x, column) in columns.iter_mut().enumerate() {
            let bright = usize::from((0..channels).any(|c| volume.data[[c, 0, y, x]] > threshold));
            *row += bright;
            *column += bright;
        }
    }
    let range = |lines: &[usize], across: usize| {
        let enough = |&n: &usize| n > 0 && n as f64 >= SHARE * across as f64;
        Some((lines.iter().position(enough)?, lines.iter().rposition(enough)?))
    };
    let (Some((top, bottom)), Some((left, right))) = (range(&rows, width), range(&columns, height)) else {
        bail!("no foreground: nothing is brighter than {threshold} (of 1)")
    };
    let crop = Region { start: [0, top, left], size: [1, bottom + 1 - top, right + 1 - left] };
    let square = crop.size[1].max(crop.size[2]);
    // First pixel of the square; it may lie outside of the photograph.
    let first = [1, 2].map(|a| crop.start[a] as isize - (square - crop.size[a]) as isize / 2);

    let mut data = Array4::zeros((channels, 1, side, side));
    for c in 0..channels {
        let plane = ImageBuffer::from_fn(square as u32, square as u32, |x, y| {
            let at = |first: isize, x: u32| usize::try_from(first + x as isize).unwrap_or(usize::MAX);
            Luma([*volume.data.get([c, 0, at(first[0], y), at(first[1], x)]).unwrap_or(&0.)])
        });
        let small = resize(&plane, side as u32, side as u32, FilterType::Triangle);
        let out = data.index_axis_mut(ndarray::Axis(0), c);
        out.into_slice().context("just made")?.copy_from_slice(small.as_raw());
    }
    let (mut affine, step) = (volume.affine, square as f64 / side as f64);
    for row in affine.iter_mut().take(3) {
        for (a, first) in [1, 2].into_iter().zip(first) {
            row[3] += row[a] * (first as f64 + (step - 1.) / 2.);
            row[a] *= step;
        }
    }
    Ok((Volume { data, affine }, crop))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: [[f64; 4]; 4] = [[1., 0., 0., 0.], [0., 1., 0., 0.], [0., 0., 1., 0.], [0., 0., 0., 1.]];

    /// A disc of grey 0.5 with a bright pixel and a noisy border.
    fn disc([height, width]: [usize; 2], centre: [f64; 2], radius: f64) -> Volume {
        let mut data = Array4::from_shape_fn((3, 1, height, width), |(c, _, y, x)| {
            let r = ((y as f64 - centre[0]).powi(2) + (x as f64 - centre[1]).powi(2)).sqrt();
            if r <= radius { 0.5 - 0.1 * c as f32 } else { 0.03 * ((x * 7 + y * 3) % 5) as f32 / 4. }
        });
        data[[0, 0, 1, 2]] = 1.;
        Volume { data, affine: IDENTITY }
    }

    #[test]
    fn the_disc_fills_the_square_and_keeps_its_shape() {
        // Whole, and cut at the top and the bottom, where black is put.
        for (shape, centre) in [([300, 500], [150., 260.]), ([160, 500], [79.5, 260.])] {
            let (fitted, crop) = fit(&disc(shape, centre, 100.), 50, Threshold::Auto).unwrap();
            // The outermost line of pixels holds one pixel, which may be dust.
            assert_eq!((crop.start[2], crop.size), (161, [1, shape[0].min(199), 199]));
            assert_eq!(fitted.data.dim(), (3, 1, 50, 50));
            assert_eq!(fitted.spacing(), [1., 199. / 50., 199. / 50.]);
            for ((c, _, y, x), &value) in fitted.data.indexed_iter() {
                // Where the pixel lies in the photograph.
                let at: [f64; 2] = std::array::from_fn(|r| {
                    let m = fitted.affine[r + 1];
                    m[1] * y as f64 + m[2] * x as f64 + m[3]
                });
                let r = ((at[0] - centre[0]).powi(2) + (at[1] - centre[1]).powi(2)).sqrt();
                let inside = at[0] > 8. && at[0] < shape[0] as f64 - 9.;
                if r < 92. && inside {
                    assert!((value - (0.5 - 0.1 * c as f32)).abs() < 1e-5, "{at:?}: {value}");
                } else if r > 108. || at[0] < -8. || at[0] > shape[0] as f64 + 7. {
                    assert!(value < 0.035, "{at:?}: {value}");
                }
            }
        }
    }

    #[test]
    fn reduction_averages_and_the_same_size_changes_nothing() {
        // A checkerboard: plain interpolation would pick dots, the average is grey.
        let board = Array4::from_shape_fn((1, 1, 64, 64), |(_, _, y, x)| ((x + y) % 2) as f32);
        let (fitted, _) = fit(&Volume { data: board, affine: IDENTITY }, 8, Threshold::Auto).unwrap();
        assert!(fitted.data.iter().all(|v| (v - 0.5).abs() < 0.02), "{:?}", fitted.data);
        let steps = Array4::from_shape_fn((1, 1, 9, 9), |(_, _, y, x)| 0.1 + (y * 9 + x) as f32 / 100.);
        let (same, crop) = fit(&Volume { data: steps.clone(), affine: IDENTITY }, 9, Threshold::Auto).unwrap();
        assert!(same.data.iter().zip(&steps).all(|(a, b)| (a - b).abs() < 1e-6) && same.affine == IDENTITY);
        assert_eq!(crop, Region::whole([1, 9, 9]));
        let black = Volume { data: Array4::from_elem((1, 1, 9, 9), 0.01), affine: IDENTITY };
        assert!(fit(&black, 9, Threshold::Auto).unwrap_err().to_string().contains("0.04"));
    }
}
