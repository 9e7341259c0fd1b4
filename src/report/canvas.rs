//! An RGB picture with text and smooth lines. Positions are pixels from the top left corner.

use super::surface::{Align, Color, Surface};
use crate::fs::write_atomic;
use ab_glyph::{Font, FontRef, GlyphId, PxScale, ScaleFont, point};
use anyhow::Result;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use std::path::Path;
use std::sync::LazyLock;

/// Hack, compiled in: MIT and Bitstream Vera licences, in `FONT-LICENSE.txt`.
static FONT: LazyLock<FontRef<'static>> =
    LazyLock::new(|| FontRef::try_from_slice(epaint_default_fonts::HACK_REGULAR).expect("the compiled-in font is whole"));

pub struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

/// Width of a text in pixels; `size` is the height of a line in pixels.
pub fn text_width(text: &str, size: f32) -> f32 {
    let font = FONT.as_scaled(PxScale::from(size));
    text.chars().map(|c| font.h_advance(font.glyph_id(c))).sum()
}

/// Breaks a text at spaces into lines of at most `width` pixels; a longer word, and what exceeds `lines` lines, is cut with
/// an ellipsis.
pub fn wrap(text: &str, size: f32, width: f32, lines: usize) -> Vec<String> {
    let fits = |s: &str| text_width(s, size) <= width;
    let mut out: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match out.last_mut().map(|line| (format!("{line} {word}"), line)) {
            Some((longer, line)) if fits(&longer) => *line = longer,
            _ => out.push(word.to_string()),
        }
    }
    let cut = out.len() > lines;
    out.truncate(lines);
    let last = out.len().saturating_sub(1);
    for (i, line) in out.iter_mut().enumerate() {
        if !fits(line) || (cut && i == last) {
            while !line.is_empty() && !fits(&format!("{line}…")) {
                line.pop();
            }
            line.push('…');
        }
    }
    out
}

impl Canvas {
    pub fn new(width: usize, height: usize, background: Color) -> Self {
        Canvas { width, height, pixels: background.repeat(width * height) }
    }

    /// Mixes a colour into a pixel; outside the canvas nothing happens.
    pub fn blend(&mut self, x: i64, y: i64, color: Color, alpha: f32) {
        if (0..self.width as i64).contains(&x) && (0..self.height as i64).contains(&y) {
            let at = 3 * (y as usize * self.width + x as usize);
            for (old, new) in self.pixels[at..at + 3].iter_mut().zip(color) {
                *old = (*old as f32 + (new as f32 - *old as f32) * alpha.clamp(0.0, 1.0)).round() as u8;
            }
        }
    }

    pub fn rectangle(&mut self, x: i64, y: i64, width: usize, height: usize, color: Color) {
        for v in y..y + height as i64 {
            for u in x..x + width as i64 {
                self.blend(u, v, color, 1.0);
            }
        }
    }

    /// Calls `put` with every covered pixel's place along and across the line, and its coverage.
    fn glyphs(&mut self, size: f32, align: Align, text: &str, put: impl Fn(f32, f32, f32, &mut Canvas)) {
        let font = FONT.as_scaled(PxScale::from(size));
        let mut along = match align {
            Align::Start => 0.0,
            Align::Middle => -text_width(text, size) / 2.0,
            Align::End => -text_width(text, size),
        }
        .round();
        let baseline = font.ascent().round();
        for c in text.chars() {
            let id: GlyphId = font.glyph_id(c);
            if let Some(outline) = FONT.outline_glyph(id.with_scale_and_position(size, point(along, baseline))) {
                let corner = outline.px_bounds().min;
                outline.draw(|u, v, alpha| put(corner.x + u as f32, corner.y + v as f32, alpha, self));
            }
            along += font.h_advance(id);
        }
    }

    /// Writes the canvas as PNG, atomically.
    pub fn save(&self, path: &Path) -> Result<()> {
        write_atomic(path, |file| {
            let encoder = PngEncoder::new_with_quality(file, CompressionType::Fast, FilterType::Sub);
            Ok(encoder.write_image(&self.pixels, self.width as u32, self.height as u32, ExtendedColorType::Rgb8)?)
        })
    }
}

impl Surface for Canvas {
    fn line(&mut self, points: &[(f32, f32)], width: f32, color: Color) {
        let reach = width / 2.0 + 0.5;
        // Pixels within reach of two coordinates along one side of the canvas.
        let within = |low: f32, high: f32, size: usize| {
            let end = ((high + reach).ceil().max(0.0) as usize + 1).min(size);
            ((low - reach).floor().max(0.0) as usize).min(end)..end
        };
        let bounds = |points: &[(f32, f32)], size: usize, of: fn(&(f32, f32)) -> f32| {
            let values = || points.iter().map(of);
            within(values().fold(f32::INFINITY, f32::min), values().fold(f32::NEG_INFINITY, f32::max), size)
        };
        let (across, down) = (bounds(points, self.width, |p| p.0), bounds(points, self.height, |p| p.1));
        // Each pixel takes the coverage of its nearest segment once, so that corners are no darker than the line.
        let mut coverage = vec![0f32; across.len() * down.len()];
        for pair in points.windows(2) {
            let ((ax, ay), (bx, by)) = (pair[0], pair[1]);
            let (dx, dy) = (bx - ax, by - ay);
            let square = (dx * dx + dy * dy).max(1e-12);
            for y in bounds(pair, self.height, |p| p.1) {
                for x in bounds(pair, self.width, |p| p.0) {
                    let (px, py) = (x as f32 + 0.5 - ax, y as f32 + 0.5 - ay);
                    let t = ((px * dx + py * dy) / square).clamp(0.0, 1.0);
                    let near = &mut coverage[(y - down.start) * across.len() + x - across.start];
                    *near = near.max(reach - (px - t * dx).hypot(py - t * dy));
                }
            }
        }
        for (i, &alpha) in coverage.iter().enumerate().filter(|(_, alpha)| **alpha > 0.0) {
            let (x, y) = (across.start + i % across.len(), down.start + i / across.len());
            self.blend(x as i64, y as i64, color, alpha);
        }
    }

    fn text(&mut self, x: f32, y: f32, size: f32, color: Color, align: Align, text: &str) {
        self.glyphs(size, align, text, |u, v, alpha, canvas| canvas.blend((x + u) as i64, (y + v) as i64, color, alpha));
    }

    fn text_upwards(&mut self, x: f32, y: f32, size: f32, color: Color, align: Align, text: &str) {
        self.glyphs(size, align, text, |u, v, alpha, canvas| canvas.blend((x + v) as i64, (y - u) as i64, color, alpha));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapped_lines_fit_and_lose_no_word_without_an_ellipsis() {
        let text = "rotation 90 degrees about axis 0 of the scan subject-0000000000000000000042 and more";
        for width in (60..700).step_by(7) {
            let lines = wrap(text, 16.0, width as f32, 4);
            assert!(lines.len() <= 4 && lines.iter().all(|l| text_width(l, 16.0) <= width as f32), "{width}: {lines:?}");
            assert!(lines.join(" ") == text || lines.concat().contains('…'), "{width}: {lines:?}");
        }
        assert_eq!(wrap(text, 16.0, 2000.0, 4), [text]);
        assert!(wrap("", 16.0, 10.0, 4).is_empty());
    }

    #[test]
    fn a_line_covers_its_length_times_its_width() {
        let mut canvas = Canvas::new(60, 60, [0; 3]);
        canvas.line(&[(10.0, 12.0), (40.0, 52.0)], 4.0, [255; 3]);
        let covered = canvas.pixels.iter().step_by(3).map(|&v| v as f32 / 255.0).sum::<f32>();
        let expected = 50.0 * 4.0 + std::f32::consts::PI * 4.0;
        assert!((covered - expected).abs() < 0.02 * expected, "{covered}, expected {expected}");
        // Outside the canvas nothing is drawn and nothing fails.
        canvas.line(&[(-50.0, -50.0), (-20.0, 500.0)], 4.0, [255; 3]);
        canvas.line(&[(f32::NAN, 5.0), (70.0, 70.0)], 4.0, [255; 3]);
        canvas.line(&[], 4.0, [255; 3]);
    }
}
