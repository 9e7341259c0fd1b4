//! A figure of single cases: image, true and predicted segmentation.

use super::canvas::{Canvas, text_width, wrap};
use super::sheet::{BACKGROUND, BRIGHT, DIM, FAINT, MARGIN, Panel, TEXT, TITLE, Zoom, grey, upright, window};
use super::surface::{Align, Color, Surface};
use crate::data::labelling::is_foreground;
use anyhow::{Result, ensure};
use ndarray::{ArrayView2, ArrayView3, Axis};
use std::path::Path;

/// One row of the figure. Arrays are `[D, H, W]` on one grid, axes as in the store (RAS+: x, y, z); `D = 1` is an image.
pub struct CaseView<'a> {
    /// Why it is shown, which it is, and its scores.
    pub caption: String,
    pub image: ArrayView3<'a, f32>,
    /// Classes; 0 is background, [`IGNORE`](crate::data::labelling::IGNORE) is drawn as it.
    pub truth: ArrayView3<'a, u8>,
    pub prediction: ArrayView3<'a, u8>,
}

/// Bright colours of the Okabe-Ito palette, told apart by colour-blind readers too; class 1 gets the first.
const CLASSES: [Color; 7] =
    [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [213, 94, 0], [204, 121, 167], [0, 114, 178]];
const COLUMNS: [&str; 3] = ["image", "truth", "prediction"];
const FILL: f32 = 0.35;
/// Pixels.
const PICTURE: usize = 320;
const GAP: usize = 8;
const SWATCH: usize = 12;

fn color(class: u8) -> Color {
    CLASSES[(class as usize + CLASSES.len() - 1) % CLASSES.len()]
}

/// Writes a PNG: a row a case, with the image, the truth and the prediction side by side.
///
/// A volume shows the axial slice with most true foreground (of the prediction, if there is no truth; otherwise the middle one),
/// in radiological orientation. Voxels are drawn square. Classes are tinted and outlined over the grey image, whose window runs
/// from its 0.5th to its 99.5th percentile; `names[k]` is class `k` in the legend. Errors: no case, arrays of different shapes.
pub fn write_cases(path: &Path, title: &str, names: &[String], cases: &[CaseView]) -> Result<()> {
    ensure!(!cases.is_empty(), "{}: nothing to draw", path.display());
    for case in cases {
        let (image, truth, prediction) = (case.image.dim(), case.truth.dim(), case.prediction.dim());
        ensure!(
            image == truth && image == prediction && !case.image.is_empty(),
            "{}: {}: image {image:?}, truth {truth:?} and prediction {prediction:?}, expected one shape of at least a voxel",
            path.display(),
            case.caption
        );
    }
    let rows: Vec<CaseRow> = cases.iter().map(CaseRow::new).collect();
    let width = rows.iter().map(|r| 3 * (r.size[0] + GAP) - GAP).max().unwrap_or(1).max(600);
    let caption = |c: &CaseView| wrap(&c.caption, TEXT, width as f32, 2);
    let captions: Vec<Vec<String>> = cases.iter().map(caption).collect();
    let line = (TEXT * 1.25) as usize;
    let title = wrap(title, TITLE, width as f32, 2);
    let legend = legend(names, width);
    let head = MARGIN + (title.len() as f32 * TITLE * 1.2) as usize + legend.len() * line + GAP;
    let height = |(row, caption): (&CaseRow, &Vec<String>)| row.size[1] + (caption.len() + 1) * line + MARGIN;
    let total = head + rows.iter().zip(&captions).map(height).sum::<usize>();

    let mut canvas = Canvas::new(width + 2 * MARGIN, total, BACKGROUND);
    for (i, text) in title.iter().enumerate() {
        canvas.text(MARGIN as f32, MARGIN as f32 + i as f32 * TITLE * 1.2, TITLE, BRIGHT, Align::Start, text);
    }
    let mut y = head - legend.len() * line - GAP;
    for entries in &legend {
        for &(x, class, name) in entries {
            canvas.rectangle((MARGIN + x) as i64, (y + 3) as i64, SWATCH, SWATCH, color(class));
            canvas.text((MARGIN + x + SWATCH + 6) as f32, y as f32, TEXT, DIM, Align::Start, name);
        }
        y += line;
    }
    let mut top = head;
    for (row, caption) in rows.iter().zip(&captions) {
        canvas.rectangle(MARGIN as i64, top as i64, width, 1, FAINT);
        let pictures = top + GAP + caption.len() * line;
        for (i, text) in caption.iter().enumerate() {
            canvas.text(MARGIN as f32, (top + GAP + i * line) as f32, TEXT, BRIGHT, Align::Start, text);
        }
        for (i, (name, classes)) in COLUMNS.into_iter().zip([None, Some(row.truth), Some(row.prediction)]).enumerate() {
            let x = MARGIN + i * (row.size[0] + GAP);
            row.draw(&mut canvas, [x, pictures], classes);
            canvas.text(x as f32, (pictures + row.size[1] + 2) as f32, TEXT, DIM, Align::Start, name);
        }
        top += height((row, caption));
    }
    canvas.save(path)
}

/// Lines of the legend: each entry's place, class and name.
fn legend(names: &[String], width: usize) -> Vec<Vec<(usize, u8, &str)>> {
    let mut lines = vec![];
    let mut x = usize::MAX;
    for (class, name) in names.iter().enumerate().skip(1) {
        let wide = SWATCH + 24 + text_width(name, TEXT).ceil() as usize;
        if x.saturating_add(wide) > width {
            lines.push(vec![]);
            x = 0;
        }
        lines.last_mut().expect("just pushed").push((x, class as u8, name.as_str()));
        x += wide;
    }
    lines
}

/// A case's slices, as they are drawn.
struct CaseRow<'a> {
    image: ArrayView2<'a, f32>,
    truth: ArrayView2<'a, u8>,
    prediction: ArrayView2<'a, u8>,
    window: [f32; 2],
    zoom: Zoom,
    /// Width and height of a picture in pixels.
    size: [usize; 2],
}

impl<'a> CaseRow<'a> {
    fn new(case: &CaseView<'a>) -> Self {
        let (image, truth, prediction) = match case.image.dim() {
            (1, _, _) => {
                let flat = |classes: ArrayView3<'a, u8>| classes.index_axis_move(Axis(0), 0);
                (case.image.index_axis_move(Axis(0), 0), flat(case.truth), flat(case.prediction))
            }
            (_, _, w) => {
                let slice = fullest(case.truth).or(fullest(case.prediction)).unwrap_or(w / 2);
                (upright(case.image, 2, slice), upright(case.truth, 2, slice), upright(case.prediction, 2, slice))
            }
        };
        let zoom = Zoom::to(image.nrows().max(image.ncols()), PICTURE);
        let size = [zoom.size(image.ncols()), zoom.size(image.nrows())];
        let window = window(&[Panel::new(case.image, String::new())]);
        CaseRow { image, truth, prediction, window, zoom, size }
    }

    fn draw(&self, canvas: &mut Canvas, [left, top]: [usize; 2], classes: Option<ArrayView2<u8>>) {
        let Zoom { up, down } = self.zoom;
        let (rows, columns) = self.image.dim();
        for (v, row) in (0..rows).step_by(down).enumerate() {
            for (u, column) in (0..columns).step_by(down).enumerate() {
                let value = self.image[[row, column]];
                let shade = if value.is_finite() { grey(value, self.window) } else { 0 };
                let (x, y) = ((left + u * up) as i64, (top + v * up) as i64);
                canvas.rectangle(x, y, up, up, [shade; 3]);
                let Some(classes) = classes.filter(|c| is_foreground(c[[row, column]])) else { continue };
                let class = classes[[row, column]];
                let other = |dv: isize, du: isize| {
                    let at = (row.checked_add_signed(dv * down as isize), column.checked_add_signed(du * down as isize));
                    let (Some(r), Some(c)) = at else { return true };
                    classes.get([r, c]).is_none_or(|&found| found != class)
                };
                let edges = [other(-1, 0), other(1, 0), other(0, -1), other(0, 1)];
                let last = up - 1;
                for py in 0..up {
                    for px in 0..up {
                        let on = [py == 0, py == last, px == 0, px == last];
                        let edge = edges.iter().zip(on).any(|(&edge, on)| edge && on);
                        canvas.blend(x + px as i64, y + py as i64, color(class), if edge { 1.0 } else { FILL });
                    }
                }
            }
        }
    }
}

/// The slice along the last axis with most foreground, the first of equals; `None` without foreground.
fn fullest(classes: ArrayView3<u8>) -> Option<usize> {
    let counts = classes.axis_iter(Axis(2)).map(|slice| slice.iter().filter(|&&c| is_foreground(c)).count());
    let (slice, count) = counts.enumerate().max_by(|a, b| a.1.cmp(&b.1).then(b.0.cmp(&a.0)))?;
    (count > 0).then_some(slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array3;

    #[test]
    fn the_figure_shows_the_slice_with_most_truth_in_class_colours() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cases.png");
        let image = Array3::from_shape_fn((20, 30, 10), |(x, y, z)| (x + y + z) as f32);
        // Slice 7 has two voxels of class 2, slice 3 one of class 1; the prediction is wrong in slice 7.
        let mut truth = Array3::zeros((20, 30, 10));
        (truth[[5, 5, 7]], truth[[5, 6, 7]], truth[[1, 1, 3]]) = (2, 2, 1);
        let mut prediction = Array3::zeros((20, 30, 10));
        prediction[[15, 25, 7]] = 1;
        assert_eq!((fullest(truth.view()), fullest(Array3::zeros((2, 2, 2)).view())), (Some(7), None));
        let case = || CaseView {
            caption: "best: case".into(),
            image: image.view(),
            truth: truth.view(),
            prediction: prediction.view(),
        };
        let names = ["background", "one", "two"].map(String::from);
        write_cases(&path, "Cases", &names, &[case(), case()]).unwrap();
        let picture = image::open(&path).unwrap().into_rgb8();
        let pixels = |wanted: Color| {
            let found = picture.enumerate_pixels().filter(|(_, _, p)| p.0 == wanted);
            found.map(|(x, y, _)| (x as usize, y as usize)).collect::<Vec<_>>()
        };
        // Beside the legend's squares, outlines: zoom 10, two voxels of truth (outline of 10 x 20) and one predicted, two rows.
        assert_eq!(pixels(color(2)).len(), SWATCH * SWATCH + 2 * 56);
        assert_eq!(pixels(color(1)).len(), SWATCH * SWATCH + 2 * 36);
        // Radiological: x = 5 of 20 is in the right half of its picture, which is the second of three, 200 wide.
        let (x, _) = *pixels(color(2)).last().unwrap();
        assert_eq!(x, MARGIN + 200 + GAP + (20 - 5) * 10 - 1);
        let (x, _) = *pixels(color(1)).last().unwrap();
        assert_eq!(x, MARGIN + 2 * (200 + GAP) + (20 - 15) * 10 - 1);

        assert!(write_cases(&path, "", &names, &[]).is_err());
        let short = CaseView { truth: truth.slice(ndarray::s![..19, .., ..]), ..case() };
        assert!(write_cases(&path, "", &names, &[short]).unwrap_err().to_string().contains("expected one shape"));
        let large = Array3::zeros((1, 700, 500));
        let (classes, plane) = (Array3::ones((1, 700, 500)), large.view());
        let flat = CaseView { caption: String::new(), image: plane, truth: classes.view(), prediction: classes.view() };
        write_cases(&path, "", &names, &[flat]).unwrap();
    }
}
