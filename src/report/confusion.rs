//! A figure of a classification: true against predicted classes.

use super::canvas::{Canvas, text_width, wrap};
use super::sheet::{BACKGROUND, BRIGHT, DIM, MARGIN, TEXT, TITLE};
use super::surface::{Align, Color, Surface};
use crate::metrics::agreement::Confusion;
use anyhow::{Result, ensure};
use std::path::Path;

/// Sky blue of the Okabe-Ito palette: a cell that holds all cases of its row.
const FULL: Color = [86, 180, 233];
/// A cell that holds none.
const EMPTY: Color = [34, 37, 43];
/// Pixels.
const CELL: usize = 116;
const GAP: usize = 3;
/// A class's name gets at most this width beside its row, and a cell's above its column.
const NAME: f32 = 260.0;
const LINES: usize = 2;
const LINE: f32 = TEXT * 1.25;

/// Writes a PNG: a row a true class, a column a predicted one. A cell holds its count and its share of the row, which also
/// shades it; `names[k]` is class `k`. Accuracy and kappa stand below the title. Errors: no class, or another number of names.
pub fn write_confusion(path: &Path, title: &str, names: &[String], confusion: &Confusion) -> Result<()> {
    let classes = confusion.classes();
    ensure!(
        classes > 0 && names.len() == classes,
        "{}: {} names, expected one for each of {classes} classes",
        path.display(),
        names.len()
    );
    let label = |k: usize| format!("{} ({})", names[k], confusion.of_class(k));
    let rows: Vec<Vec<String>> = (0..classes).map(|k| wrap(&label(k), TEXT, NAME, LINES)).collect();
    let columns: Vec<Vec<String>> = names.iter().map(|name| wrap(name, TEXT, (CELL - 2 * GAP) as f32, LINES)).collect();
    let widest = rows.iter().flatten().map(|line| text_width(line, TEXT)).fold(text_width("truth", TEXT), f32::max);
    let left = MARGIN + widest.ceil() as usize + 12;
    let grid = classes * (CELL + GAP) - GAP;
    let width = (left + grid).max(MARGIN + 520) + MARGIN;
    let inner = (width - 2 * MARGIN) as f32;
    let score = |value: Option<f64>| value.map_or("undefined".to_owned(), |v| format!("{v:.3}"));
    let about = format!(
        "{} cases, accuracy {}, quadratic weighted kappa {}; shares are of the true class",
        confusion.total(),
        score(confusion.accuracy()),
        score(confusion.weighted_kappa())
    );
    let (title, about) = (wrap(title, TITLE, inner, 2), wrap(&about, TEXT, inner, 3));
    let above = title.len() as f32 * TITLE * 1.2 + about.len() as f32 * LINE;
    let heads = columns.iter().map(Vec::len).max().unwrap_or(1);
    let heading = MARGIN + above as usize + MARGIN;
    let top = heading + ((heads + 1) as f32 * LINE) as usize + 6;

    let mut canvas = Canvas::new(width, top + grid + MARGIN, BACKGROUND);
    let mut y = MARGIN as f32;
    for (lines, size, color, step) in [(&title, TITLE, BRIGHT, TITLE * 1.2), (&about, TEXT, DIM, LINE)] {
        for line in lines {
            canvas.text(MARGIN as f32, y, size, color, Align::Start, line);
            y += step;
        }
    }
    canvas.text((left + grid / 2) as f32, heading as f32, TEXT, DIM, Align::Middle, "prediction");
    canvas.text((left - 12) as f32, top as f32 - LINE - 6., TEXT, DIM, Align::End, "truth");
    let centre = |k: usize| k * (CELL + GAP) + CELL / 2;
    for (k, lines) in columns.iter().enumerate() {
        let first = top as f32 - 6. - lines.len() as f32 * LINE;
        for (i, line) in lines.iter().enumerate() {
            canvas.text((left + centre(k)) as f32, first + i as f32 * LINE, TEXT, BRIGHT, Align::Middle, line);
        }
    }
    for (k, lines) in rows.iter().enumerate() {
        let first = (top + centre(k)) as f32 - lines.len() as f32 * LINE / 2.;
        for (i, line) in lines.iter().enumerate() {
            canvas.text((left - 12) as f32, first + i as f32 * LINE, TEXT, BRIGHT, Align::End, line);
        }
        for predicted in 0..classes {
            let (count, cases) = (confusion.count(k, predicted), confusion.of_class(k));
            let share = if cases > 0 { count as f32 / cases as f32 } else { 0. };
            let (x, y) = (left + predicted * (CELL + GAP), top + k * (CELL + GAP));
            canvas.rectangle(x as i64, y as i64, CELL, CELL, mixed(share));
            let ink = match share {
                0.6.. => BACKGROUND,
                0.1.. => BRIGHT,
                _ => DIM,
            };
            let (x, y) = ((x + CELL / 2) as f32, (y + CELL / 2) as f32);
            canvas.text(
                x,
                y - 24.,
                24.,
                if count > 0 && share < 0.6 { BRIGHT } else { ink },
                Align::Middle,
                &count.to_string(),
            );
            if cases > 0 {
                canvas.text(x, y + 6., TEXT, ink, Align::Middle, &format!("{:.0} %", 100. * share));
            }
        }
    }
    canvas.save(path)
}

/// The colour of a share in [0, 1].
fn mixed(share: f32) -> Color {
    std::array::from_fn(|i| (EMPTY[i] as f32 + share * (FULL[i] as f32 - EMPTY[i] as f32)).round() as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shades_are_shares_of_the_true_class() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("confusion.png");
        let names = ["none", "mild", "severe"].map(String::from);
        // Mild: half right, half severe. Severe does not occur.
        let confusion = Confusion::of(&[0, 0, 0, 1, 1], &[0, 0, 0, 1, 2], 3);
        write_confusion(&path, "Test", &names, &confusion).unwrap();
        let picture = image::open(&path).unwrap().into_rgb8();
        // The first line of a row of cells is free of text.
        let (width, height) = picture.dimensions();
        let top = height as usize - MARGIN - 3 * CELL - 2 * GAP;
        let cells = |y: usize, color: Color| (0..width).filter(|&x| picture.get_pixel(x, y as u32).0 == color).count() / CELL;
        let starts = |color: Color| [0, 1, 2].map(|row| cells(top + row * (CELL + GAP), color));
        assert_eq!(starts(mixed(1.)), [1, 0, 0]);
        assert_eq!(starts(mixed(0.5)), [0, 2, 0]);
        assert_eq!(starts(mixed(0.)), [2, 1, 3]);
        assert!(write_confusion(&path, "", &names[1..], &confusion).unwrap_err().to_string().contains("2 names"));
    }
}
