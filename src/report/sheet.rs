//! A sheet of small pictures: what the network sees.

use super::canvas::{Canvas, text_width, wrap};
use super::surface::{Align, Color, Surface};
use anyhow::{Result, ensure};
use ndarray::{ArrayView2, ArrayView3, Axis, s};
use std::path::Path;

/// One channel of one view, with what it is.
pub struct Panel<'a> {
    /// `[D, H, W]`, axes as in the store (RAS+: x, y, z); `D = 1` is an image, row 0 at the top.
    pub image: ArrayView3<'a, f32>,
    pub caption: String,
    /// What is black and what is white, where that is not the row's [`window`].
    pub window: Option<[f32; 2]>,
    /// Voxels that are drawn as hidden, whatever their value.
    pub hidden: Option<ArrayView3<'a, bool>>,
}

impl<'a> Panel<'a> {
    /// In the row's window, with nothing hidden.
    pub fn new(image: ArrayView3<'a, f32>, caption: String) -> Self {
        Panel { image, caption, window: None, hidden: None }
    }
}

pub(super) const BACKGROUND: Color = [20, 22, 26];
pub(super) const FAINT: Color = [64, 68, 76];
pub(super) const DIM: Color = [150, 156, 166];
pub(super) const BRIGHT: Color = [232, 234, 238];
/// Of voxels that the network does not see: no grey, so that nobody takes it for an intensity.
const HIDDEN: Color = [38, 56, 92];
/// Heights of a line of text in pixels.
pub(super) const TITLE: f32 = 26.0;
pub(super) const TEXT: f32 = 16.0;
/// Caption lines below a panel; the rest is cut.
const LINES: usize = 4;
/// Pixels.
pub(super) const MARGIN: usize = 20;
const MAX_WIDTH: usize = 2400;
const MAX_HEIGHT: usize = 32_000;
/// A panel is at least this wide if its caption needs it.
const CAPTION_WIDTH: f32 = 200.0;
const SLICE_GAP: usize = 3;
const PANEL_GAP: usize = 16;

/// Writes a PNG of at most 2400 pixels width: one block a row of `rows` (a sample), its panels in reading order, wrapped.
///
/// A volume shows its mid axial, coronal and sagittal slices in radiological orientation (anterior or superior up, the
/// patient's right on the left, the sagittal slice facing left); voxels are drawn square and enlarged, or thinned out, by a
/// whole number. Grey values run from the 0.5th to the 99.5th percentile of the row's finite voxels, unless a panel has a window of its
/// own; a NaN or infinite voxel is red. Errors: an empty sheet or panel, a sheet over 32000 pixels high, an unwritable path.
pub fn write_sheet(path: &Path, title: &str, rows: &[Vec<Panel>]) -> Result<()> {
    let panels = rows.iter().flatten();
    ensure!(panels.clone().count() > 0, "{}: nothing to draw", path.display());
    ensure!(panels.clone().all(|p| !p.image.is_empty()), "{}: a panel without voxels", path.display());
    let many = rows.iter().map(Vec::len).max().unwrap_or(1);
    let blocks: Vec<Block> = rows.iter().filter(|r| !r.is_empty()).map(|r| Block::new(r, many)).collect();
    let volumes = panels.clone().any(|p| p.image.dim().0 > 1);
    let legend = "axial, coronal and sagittal mid slices; up is anterior or superior, left is the patient's right or anterior";
    let legend: &str = if volumes { legend } else { "" };

    let inner = blocks.iter().map(|b| b.columns * (b.cell[0] + PANEL_GAP) - PANEL_GAP).max().unwrap_or(1);
    let heading = text_width(title, TITLE).min((MAX_WIDTH - 2 * MARGIN) as f32).ceil() as usize;
    let inner = inner.max(heading.min(1200)).max(if volumes { 500 } else { 0 });
    let title = wrap(title, TITLE, inner as f32, 2);
    let legend = wrap(legend, TEXT, inner as f32, 3);
    let head = MARGIN + (title.len() as f32 * TITLE * 1.2 + legend.len() as f32 * TEXT * 1.2) as usize + MARGIN;
    let height = head + blocks.iter().map(|b| b.height() + MARGIN).sum::<usize>();
    ensure!(height <= MAX_HEIGHT, "{}: {height} pixels high, at most {MAX_HEIGHT}: ask for fewer samples", path.display());

    let mut canvas = Canvas::new(inner + 2 * MARGIN, height, BACKGROUND);
    let mut y = MARGIN as f32;
    for (lines, size, color) in [(&title, TITLE, BRIGHT), (&legend, TEXT, DIM)] {
        for line in lines {
            canvas.text(MARGIN as f32, y, size, color, Align::Start, line);
            y += size * 1.2;
        }
    }
    let mut top = head;
    for block in &blocks {
        canvas.rectangle(MARGIN as i64, (top - MARGIN / 2) as i64, inner, 1, FAINT);
        block.draw(&mut canvas, top);
        top += block.height() + MARGIN;
    }
    canvas.save(path)
}

/// A row's panels on a regular grid.
struct Block<'a> {
    slices: Vec<Vec<ArrayView2<'a, f32>>>,
    /// Of each panel, as its slices.
    hidden: Vec<Option<Vec<ArrayView2<'a, bool>>>>,
    zoom: Zoom,
    columns: usize,
    /// Width of a panel, height of its pictures, height with the caption.
    cell: [usize; 3],
    captions: Vec<Vec<String>>,
    /// Of each panel.
    windows: Vec<[f32; 2]>,
}

/// Screen pixels a voxel (`up`), or voxels a screen pixel (`down`); one of them is 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Zoom {
    pub up: usize,
    pub down: usize,
}

impl Zoom {
    /// The whole-number zoom that brings `voxels` nearest below `pixels`.
    pub fn to(voxels: usize, pixels: usize) -> Zoom {
        Zoom { up: (pixels / voxels).max(1), down: voxels.div_ceil(pixels) }
    }

    pub fn size(self, voxels: usize) -> usize {
        voxels.div_ceil(self.down) * self.up
    }
}

impl<'a> Block<'a> {
    /// `many` is the largest number of panels in any row: the more, the smaller each.
    fn new(panels: &'a [Panel<'_>], many: usize) -> Self {
        let slices: Vec<Vec<ArrayView2<f32>>> = panels.iter().map(|p| slices(p.image.view())).collect();
        let hidden = panels.iter().map(|p| p.hidden.as_ref().map(|hidden| self::slices(hidden.view()))).collect();
        let side = slices.iter().flatten().flat_map(|s| [s.nrows(), s.ncols()]).max().unwrap_or(1);
        let pixels = match (many, slices[0].len()) {
            (..=2, 1) => 512,
            (..=12, 1) => 256,
            (_, 1) => 160,
            (..=3, _) => 256,
            // The widest that stay in one line.
            (4, _) => 190,
            (..=12, _) => 128,
            _ => 84,
        };
        let zoom = Zoom::to(side, pixels.max(side.min(250)));
        let width =
            |views: &Vec<ArrayView2<f32>>| views.iter().map(|s| zoom.size(s.ncols()) + SLICE_GAP).sum::<usize>() - SLICE_GAP;
        let pictures = slices.iter().map(width).max().unwrap_or(1);
        let caption =
            panels.iter().map(|p| text_width(&p.caption, TEXT)).fold(0.0, f32::max).min(CAPTION_WIDTH).ceil() as usize;
        let width = pictures.max(caption);
        let captions: Vec<_> = panels.iter().map(|p| wrap(&p.caption, TEXT, width as f32, LINES)).collect();
        let lines = captions.iter().map(Vec::len).max().unwrap_or(0);
        let height = slices.iter().flatten().map(|s| zoom.size(s.nrows())).max().unwrap_or(1);
        let room = ((MAX_WIDTH - 2 * MARGIN + PANEL_GAP) / (width + PANEL_GAP)).max(1);
        // Even lines: 27 panels with room for 10 make 3 lines of 9.
        let columns = panels.len().div_ceil(panels.len().div_ceil(room));
        let cell = [width, height, height + 4 + (lines as f32 * TEXT * 1.15) as usize];
        let common = window(panels);
        let windows = panels.iter().map(|p| p.window.unwrap_or(common)).collect();
        Block { windows, slices, hidden, zoom, columns, cell, captions }
    }

    fn height(&self) -> usize {
        self.slices.len().div_ceil(self.columns) * (self.cell[2] + PANEL_GAP) - PANEL_GAP
    }

    fn draw(&self, canvas: &mut Canvas, top: usize) {
        for (i, slices) in self.slices.iter().enumerate() {
            let mut x = MARGIN + i % self.columns * (self.cell[0] + PANEL_GAP);
            let y = top + i / self.columns * (self.cell[2] + PANEL_GAP);
            for (l, line) in self.captions[i].iter().enumerate() {
                let y = (y + self.cell[1] + 4) as f32 + l as f32 * TEXT * 1.15;
                canvas.text(x as f32, y, TEXT, BRIGHT, Align::Start, line);
            }
            for (s, slice) in slices.iter().enumerate() {
                let hidden = self.hidden[i].as_ref().map(|hidden| hidden[s].view());
                self.picture(canvas, x, y, slice.view(), hidden, self.windows[i]);
                x += self.zoom.size(slice.ncols()) + SLICE_GAP;
            }
        }
    }

    fn picture(
        &self,
        canvas: &mut Canvas,
        x: usize,
        y: usize,
        slice: ArrayView2<f32>,
        hidden: Option<ArrayView2<bool>>,
        window: [f32; 2],
    ) {
        let Zoom { up, down } = self.zoom;
        let thin = slice.slice(s![..;down as isize, ..;down as isize]);
        for ((row, column), &value) in thin.indexed_iter() {
            let color = match hidden.is_some_and(|hidden| hidden[[row * down, column * down]]) {
                true => HIDDEN,
                false if value.is_finite() => [grey(value, window); 3],
                false => [220, 40, 40],
            };
            canvas.rectangle((x + column * up) as i64, (y + row * up) as i64, up, up, color);
        }
    }
}

/// The pictures of a volume, rows from the top: axial, coronal, sagittal; of an image: itself.
fn slices<T>(image: ArrayView3<T>) -> Vec<ArrayView2<T>> {
    let (d, h, w) = image.dim();
    if d == 1 {
        return vec![image.index_axis_move(Axis(0), 0)];
    }
    [(2, w), (1, h), (0, d)].map(|(axis, n)| upright(image, axis, n / 2)).into()
}

/// The plane of a volume `[D, H, W]` at `index` along `axis`, rows from the top, in radiological orientation.
pub(super) fn upright<T>(volume: ArrayView3<T>, axis: usize, index: usize) -> ArrayView2<T> {
    // A plane's axes are (columns, rows), both starting at the patient's left, back or feet: turn them round.
    let mut plane = volume.index_axis_move(Axis(axis), index).reversed_axes();
    plane.invert_axis(Axis(0));
    plane.invert_axis(Axis(1));
    plane
}

/// Grey level of a value in a window.
pub(super) fn grey(value: f32, [low, high]: [f32; 2]) -> u8 {
    let span = if high > low { high - low } else { 1.0 };
    (255.0 * ((value - low) / span).clamp(0.0, 1.0)).round() as u8
}

/// 0.5th and 99.5th percentile of the finite voxels of a row's panels without a window of their own, from a sample of at most about a
/// million.
pub fn window(panels: &[Panel]) -> [f32; 2] {
    let panels = || panels.iter().filter(|p| p.window.is_none());
    let step = panels().map(|p| p.image.len()).sum::<usize>().div_ceil(1 << 20).max(1);
    let voxels = panels().flat_map(|p| p.image.iter().copied());
    let mut voxels: Vec<f32> = voxels.step_by(step).filter(|v| v.is_finite()).collect();
    if voxels.is_empty() {
        return [0.0, 1.0];
    }
    let n = voxels.len();
    let mut percentile =
        |share: f64| *voxels.select_nth_unstable_by((share * (n - 1) as f64).round() as usize, f32::total_cmp).1;
    [percentile(0.005), percentile(0.995)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array3;

    #[test]
    fn slices_are_radiological() {
        // RAS+: x grows to the right, y to the front, z upwards; each voxel says where it is.
        let (d, h, w) = (5, 7, 9);
        let image = Array3::from_shape_fn((d, h, w), |(x, y, z)| (100 * x + 10 * y + z) as f32);
        let [axial, coronal, sagittal] = slices(image.view())[..] else { panic!("three planes") };
        assert_eq!((axial.dim(), coronal.dim(), sagittal.dim()), ((h, d), (w, d), (w, h)));
        for ((row, column), &v) in axial.indexed_iter() {
            assert_eq!(v, image[[d - 1 - column, h - 1 - row, w / 2]]);
        }
        for ((row, column), &v) in coronal.indexed_iter() {
            assert_eq!(v, image[[d - 1 - column, h / 2, w - 1 - row]]);
        }
        for ((row, column), &v) in sagittal.indexed_iter() {
            assert_eq!(v, image[[d / 2, h - 1 - column, w - 1 - row]]);
        }
        let flat = image.slice(s![..1, .., ..]);
        assert_eq!(slices(flat)[0], image.index_axis(Axis(0), 0));
    }

    #[test]
    fn a_panel_with_a_window_of_its_own_leaves_the_others_theirs() {
        let image = Array3::from_shape_fn((1, 20, 20), |(_, y, z)| 1000. + (20 * y + z) as f32);
        let classes = Array3::from_elem((1, 20, 20), 3f32);
        let map = Panel { window: Some([0., 4.]), ..Panel::new(classes.view(), String::new()) };
        let both = [Panel::new(image.view(), String::new()), map];
        let alone = window(&both[..1]);
        assert!(alone[0] >= 1000. && alone[1] > 1390.);
        assert_eq!(Block::new(&both, 2).windows, [alone, [0., 4.]]);
    }

    #[test]
    fn sheets_stay_within_the_width_and_show_every_panel() {
        let folder = tempfile::tempdir().unwrap();
        for (n, shape) in [(27, (39, 39, 39)), (9, (1, 13, 13)), (1, (128, 128, 128)), (2, (3, 900, 900)), (1, (1, 3000, 10))] {
            let image = Array3::from_shape_fn(shape, |(x, y, z)| if (7 * x + 3 * y + z) % 5 == 0 { 1.0 } else { 0.0 });
            let row = || (0..n).map(|i| Panel::new(image.view(), format!("view {i} with a caption"))).collect();
            let rows: Vec<Vec<Panel>> = vec![row(), row()];
            let path = folder.path().join("sheet.png");
            write_sheet(&path, "A title", &rows).unwrap();
            let picture = image::open(&path).unwrap().into_rgb8();
            assert!(picture.width() as usize <= MAX_WIDTH, "{n} of {shape:?}: {} wide", picture.width());
            // Every panel has white voxels.
            assert!(picture.pixels().filter(|p| p.0 == [255; 3]).count() >= 2 * n, "{n} of {shape:?}");
        }
        assert!(write_sheet(&folder.path().join("none.png"), "", &[vec![]]).is_err());
    }
}
