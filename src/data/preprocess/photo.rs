//! Photographs of the eye's fundus: the dark border is cut off, the rest centred on a black square and resized.

use super::Threshold;
use crate::data::formats::image::{IN_PIXELS, Photograph, Sample, Samples};
use crate::data::volume::Volume;
use crate::dim::Region;
use anyhow::{Result, bail};
use ndarray::Array4;

/// Brightest black of a border, noise and compression included: 10 of 255. [`Threshold::Auto`].
const BLACK: f32 = 0.04;
/// Share of a line's pixels that must be brighter, so that dust and captions do not count. A circle's outermost line of pixels has 6 % of
/// its diameter at 1000 pixels, so no more than one line is lost.
const SHARE: f64 = 0.02;

/// The part of a photograph that is brighter than black in any of these channels, in the middle of a black square (aspect is kept), resized to
/// `side` x `side` pixels: `[C, 1, H, W]` from 0 to 1, in that order. Also returns the box. What lies in the square and in the photograph but
/// outside of the box stays.
///
/// Resizing weighs all pixels that an output pixel covers (a triangle as wide as the reduction, as Pillow's `BILINEAR` and
/// `interpolate(antialias=True)` do): photographs are reduced ten times, and plain interpolation would turn vessels into dots. It begins with
/// the samples as they are stored: as float32 a photograph of 12 megapixels would be 146 MB, and take longer to make than to resize.
///
/// Errors: no foreground.
pub fn fit(photograph: &Photograph, wanted: &[usize], side: usize, foreground: Threshold) -> Result<(Volume, Region)> {
    let threshold = match foreground {
        Threshold::Auto => BLACK,
        Threshold::Above { value } => value,
    };
    match &photograph.samples {
        Samples::Eight(samples) => fit_samples(samples, photograph, wanted, side, threshold),
        Samples::Sixteen(samples) => fit_samples(samples, photograph, wanted, side, threshold),
    }
}

fn fit_samples<S: Sample>(
    samples: &[S],
    photograph: &Photograph,
    wanted: &[usize],
    side: usize,
    threshold: f32,
) -> Result<(Volume, Region)> {
    let Some(crop) = bright(samples, photograph, wanted, threshold) else {
        bail!("no foreground: nothing is brighter than {threshold} (of 1)")
    };
    let square = crop.size[1].max(crop.size[2]);
    // First pixel of the square; it may lie outside of the photograph.
    let first = [1, 2].map(|a| crop.start[a] as isize - (square - crop.size[a]) as isize / 2);
    let data = resized(samples, photograph, wanted, first, square, side);
    let (mut affine, step) = (IN_PIXELS, square as f64 / side as f64);
    for row in affine.iter_mut().take(3) {
        for (a, first) in [1, 2].into_iter().zip(first) {
            row[3] += row[a] * (first as f64 + (step - 1.) / 2.);
            row[a] *= step;
        }
    }
    Ok((Volume { data, affine }, crop))
}

/// The box of the lines with enough bright pixels.
fn bright<S: Sample>(samples: &[S], photograph: &Photograph, wanted: &[usize], threshold: f32) -> Option<Region> {
    let &Photograph { channels, height, width, .. } = photograph;
    let least = S::brighter_than(threshold)?;
    let (mut rows, mut columns, mut bright) = (vec![0; height], vec![0u32; width], vec![false; width]);
    for (line, row) in samples.chunks_exact(width * channels).zip(&mut rows) {
        bright.fill(false);
        for &c in wanted {
            bright.iter_mut().zip(line.iter().skip(c).step_by(channels)).for_each(|(bright, &v)| *bright |= v >= least);
        }
        *row = bright.iter().map(|&bright| u32::from(bright)).sum();
        columns.iter_mut().zip(&bright).for_each(|(column, &bright)| *column += u32::from(bright));
    }
    let range = |lines: &[u32], across: usize| {
        let enough = |&n: &u32| n > 0 && f64::from(n) >= SHARE * across as f64;
        Some((lines.iter().position(enough)?, lines.iter().rposition(enough)?))
    };
    let ((top, bottom), (left, right)) = (range(&rows, width)?, range(&columns, height)?);
    Some(Region { start: [0, top, left], size: [1, bottom + 1 - top, right + 1 - left] })
}

/// A square of the photograph from pixel `first` on, black outside of it. First the lines of each output line are added up, then the columns.
fn resized<S: Sample>(
    samples: &[S],
    photograph: &Photograph,
    wanted: &[usize],
    first: [isize; 2],
    square: usize,
    side: usize,
) -> Array4<f32> {
    let &Photograph { channels, height, width, .. } = photograph;
    let [lines, columns] = [(first[0], height), (first[1], width)].map(|(first, n)| taps(first, square, n, side));
    let mut data = Array4::zeros((wanted.len(), 1, side, side));
    let mut sums = vec![0f32; width * channels];
    for (y, taps) in lines.iter().enumerate() {
        sums.fill(0.);
        for (line, weight) in taps {
            let line = &samples[line * width * channels..][..width * channels];
            sums.iter_mut().zip(line).for_each(|(sum, &v)| *sum += weight * v.into());
        }
        for (out, &c) in wanted.iter().enumerate() {
            for (x, taps) in columns.iter().enumerate() {
                let sum: f32 = taps.iter().map(|&(column, weight)| weight * sums[column * channels + c]).sum();
                data[[out, 0, y, x]] = sum / S::FULL.into();
            }
        }
    }
    data
}

/// Of `out` pixels over `square`, which begins at pixel `first`: those of the `n` there are that each covers, and their weights.
fn taps(first: isize, square: usize, n: usize, out: usize) -> Vec<Vec<(usize, f32)>> {
    let step = square as f64 / out as f64;
    let reach = step.max(1.);
    let of = |i: usize| {
        let centre = (i as f64 + 0.5) * step;
        let covered = (centre - reach).floor().max(0.) as usize..((centre + reach).ceil() as usize).min(square);
        let weight = |x: usize| (1. - ((x as f64 + 0.5 - centre) / reach).abs()).max(0.);
        let sum: f64 = covered.clone().map(weight).sum();
        let there = |x: usize| first.checked_add_unsigned(x).and_then(|x| usize::try_from(x).ok()).filter(|&x| x < n);
        covered.filter_map(|x| Some((there(x)?, (weight(x) / sum) as f32))).collect()
    };
    (0..out).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a photograph of 16 bits.
    fn photograph(data: &Array4<f32>) -> Photograph {
        let (channels, _, height, width) = data.dim();
        let samples = data.view().permuted_axes([1, 2, 3, 0]).iter().map(|v| (v * 65535.).round() as u16).collect();
        Photograph { samples: Samples::Sixteen(samples), channels, height, width }
    }

    /// A disc of grey 0.5 with a bright pixel and a noisy border.
    fn disc([height, width]: [usize; 2], centre: [f64; 2], radius: f64) -> Photograph {
        let mut data = Array4::from_shape_fn((3, 1, height, width), |(c, _, y, x)| {
            let r = ((y as f64 - centre[0]).powi(2) + (x as f64 - centre[1]).powi(2)).sqrt();
            if r <= radius { 0.5 - 0.1 * c as f32 } else { 0.03 * ((x * 7 + y * 3) % 5) as f32 / 4. }
        });
        data[[0, 0, 1, 2]] = 1.;
        photograph(&data)
    }

    #[test]
    fn the_disc_fills_the_square_and_keeps_its_shape() {
        // Whole, and cut at the top and the bottom, where black is put.
        for (shape, centre) in [([300, 500], [150., 260.]), ([160, 500], [79.5, 260.])] {
            let (fitted, crop) = fit(&disc(shape, centre, 100.), &[0, 1, 2], 50, Threshold::Auto).unwrap();
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
                    assert!((value - (0.5 - 0.1 * c as f32)).abs() < 2e-5, "{at:?}: {value}");
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
        let (fitted, _) = fit(&photograph(&board), &[0], 8, Threshold::Auto).unwrap();
        assert!(fitted.data.iter().all(|v| (v - 0.5).abs() < 0.02), "{:?}", fitted.data);
        let steps = Array4::from_shape_fn((1, 1, 9, 9), |(_, _, y, x)| 0.1 + (y * 9 + x) as f32 / 100.);
        let (same, crop) = fit(&photograph(&steps), &[0], 9, Threshold::Auto).unwrap();
        assert!(same.data.iter().zip(&steps).all(|(a, b)| (a - b).abs() < 1e-5) && same.affine == IN_PIXELS);
        assert_eq!(crop, Region::whole([1, 9, 9]));
        let black = photograph(&Array4::from_elem((1, 1, 9, 9), 0.01));
        assert!(fit(&black, &[0], 9, Threshold::Auto).unwrap_err().to_string().contains("0.04"));
    }
}
