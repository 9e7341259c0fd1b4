//! Line charts: panels with axes, series with error bars, legends; as PNG, or as SVG for a page.

use super::canvas::{Canvas, text_width};
use super::surface::{Align, Color, Surface};
use super::svg::Svg;
use anyhow::Result;
use std::path::Path;

pub const INK: Color = [40, 44, 52];
pub const GREY: Color = [120, 124, 132];
const PAPER: Color = [255, 255, 255];
const GRID: Color = [228, 230, 234];
/// Pixels.
const TEXT: f32 = 17.0;
const SMALL: f32 = 15.0;
const TITLE: f32 = 24.0;
const MARGIN: f32 = 16.0;
const HEAD: f32 = 48.0;
const LEGEND_LINE: f32 = 26.0;
/// Length of a line in a legend, and the gap to its name.
const SAMPLE: [f32; 2] = [34.0, 8.0];

/// How a series is drawn, so that it is known without its colour too.
#[derive(Clone, Copy, PartialEq)]
pub struct Style {
    pub color: Color,
    /// Lengths of line and gap in turn, pixels; none: a solid line.
    pub dashes: &'static [f32],
    /// Corners of the marker on each point: 0 none, 1 a dot, 3 and more a polygon.
    pub marker: usize,
}

/// A value that is not finite breaks the line.
#[derive(Clone, Copy)]
pub struct Point {
    pub x: f64,
    pub y: f64,
    /// Ends of an error bar; cut at the axes.
    pub range: Option<[f64; 2]>,
}

pub struct Series {
    pub name: String,
    pub style: Style,
    /// Pixels to the right of where its points belong, so that others at the same place are seen too: a few at most.
    pub shift: f32,
    pub points: Vec<Point>,
}

/// The horizontal axis.
pub enum Across {
    /// Whole numbers, such as epochs, from the first to the second.
    Whole(f64, f64),
    /// Any numbers, from the first to the second.
    Numbers(f64, f64),
    /// Names at x = 0, 1, ...
    Names(Vec<String>),
}

pub struct ChartPanel {
    /// Above the box; a panel without a title has its legend there.
    pub title: Option<String>,
    pub across: Across,
    pub across_label: String,
    pub up_label: String,
    /// The vertical axis reaches down to 0.
    pub from_zero: bool,
    /// Name and value of a dashed horizontal line.
    pub level: Option<(String, f64)>,
    pub series: Vec<Series>,
}

pub struct Figure {
    pub title: String,
    pub panels: Vec<ChartPanel>,
    pub columns: usize,
    /// Width and height of a panel, pixels.
    pub size: [f32; 2],
    /// All vertical axes have the same range, so that panels compare.
    pub same_up: bool,
}

const LEVEL: Style = Style { color: GREY, dashes: &[8.0, 5.0], marker: 0 };

impl Figure {
    /// A canvas large enough, and the height of the common legend.
    fn layout(&self) -> (usize, usize, f32) {
        let width = self.columns * self.size[0] as usize;
        let lines = legend_places(&self.common_legend(), width as f32 - 2.0 * MARGIN).last().map_or(0.0, |p| p.1 + 1.0);
        let legend = lines * LEGEND_LINE;
        let rows = self.panels.len().div_ceil(self.columns);
        (width, rows * self.size[1] as usize + (HEAD + legend) as usize, legend)
    }

    /// Entries of the panels that have a title in the place of their own legend.
    fn common_legend(&self) -> Vec<(&str, Style)> {
        let mut entries: Vec<(&str, Style)> = Vec::new();
        for entry in self.panels.iter().filter(|p| p.title.is_some()).flat_map(ChartPanel::legend) {
            if entries.iter().all(|e| e.0 != entry.0) {
                entries.push(entry);
            }
        }
        entries
    }

    fn draw(&self, surface: &mut impl Surface) {
        let (width, _, legend) = self.layout();
        surface.text(MARGIN + 4.0, MARGIN, TITLE, INK, Align::Start, &self.title);
        draw_legend(surface, [MARGIN + 4.0, HEAD], width as f32 - 2.0 * MARGIN, &self.common_legend());
        let own: Vec<[f64; 2]> = self.panels.iter().map(ChartPanel::extent).collect();
        let all = own.iter().fold([f64::INFINITY, f64::NEG_INFINITY], |[l, h], e| [l.min(e[0]), h.max(e[1])]);
        for (i, panel) in self.panels.iter().enumerate() {
            let up = if self.same_up { all } else { own[i] };
            let [width, height] = self.size;
            let corner = [(i % self.columns) as f32 * width, HEAD + legend + (i / self.columns) as f32 * height];
            // The labels of the axes stand left of and below the box.
            let area = [corner[0] + 92.0, corner[1] + 52.0, corner[0] + width - MARGIN, corner[1] + height - 62.0];
            panel.draw(surface, area, up);
        }
    }

    /// Writes the figure as PNG, atomically.
    pub fn save(&self, path: &Path) -> Result<()> {
        let (width, height, _) = self.layout();
        let mut canvas = Canvas::new(width, height, PAPER);
        self.draw(&mut canvas);
        canvas.save(path)
    }

    /// The figure as an `svg` element.
    pub fn svg(&self) -> String {
        let (width, height, _) = self.layout();
        let mut svg = Svg::new(width, height, &self.title);
        self.draw(&mut svg);
        svg.finish()
    }
}

impl ChartPanel {
    fn legend(&self) -> Vec<(&str, Style)> {
        let drawn = self.series.iter().filter(|s| !s.points.is_empty()).map(|s| (s.name.as_str(), s.style));
        drawn.chain(self.level.as_ref().map(|l| (l.0.as_str(), LEVEL))).collect()
    }

    /// `area` is the box of the axes: left, top, right, bottom; `up` what the vertical axis holds.
    fn draw(&self, surface: &mut impl Surface, area: [f32; 4], up: [f64; 2]) {
        let [left, top, right, bottom] = area;
        let across = match &self.across {
            Across::Whole(low, high) => Axis::new(*low, *high, (right - left) / 90.0, true),
            Across::Numbers(low, high) => Axis::new(*low, *high, (right - left) / 90.0, false),
            Across::Names(names) => Axis::of_names(names.len()),
        };
        let up = Axis::new(up[0], up[1], (bottom - top) / 50.0, false);
        let x = |v: f64| left + across.place(v) * (right - left);
        let y = |v: f64| bottom - up.place(v) * (bottom - top);

        for &tick in &across.ticks {
            let label = match &self.across {
                Across::Whole(..) | Across::Numbers(..) => across.label(tick),
                Across::Names(names) => names[tick as usize].clone(),
            };
            surface.line(&[(x(tick), top), (x(tick), bottom)], 1.0, GRID);
            surface.text(x(tick), bottom + 6.0, SMALL, GREY, Align::Middle, &label);
        }
        for &tick in &up.ticks {
            surface.line(&[(left, y(tick)), (right, y(tick))], 1.0, GRID);
            surface.text(left - 7.0, y(tick) - SMALL / 2.0, SMALL, GREY, Align::End, &up.label(tick));
        }
        surface.line(&[(left, top), (left, bottom), (right, bottom)], 1.5, GREY);
        surface.text((left + right) / 2.0, bottom + 28.0, TEXT, INK, Align::Middle, &self.across_label);
        surface.text_upwards(left - 84.0, (top + bottom) / 2.0, TEXT, INK, Align::Middle, &self.up_label);

        if let Some((_, value)) = &self.level {
            stroke(surface, &[(left, y(*value)), (right, y(*value))], 2.0, LEVEL);
        }
        for series in &self.series {
            let x = |v: f64| x(v) + series.shift;
            for p in &series.points {
                if let Some(range) = p.range {
                    let [low, high] = range.map(|v| y(v).clamp(top, bottom));
                    surface.line(&[(x(p.x), low), (x(p.x), high)], 1.5, series.style.color);
                    for end in [low, high].into_iter().filter(|end| *end > top && *end < bottom) {
                        surface.line(&[(x(p.x) - 4.0, end), (x(p.x) + 4.0, end)], 1.5, series.style.color);
                    }
                }
            }
            for run in series.points.split(|p| !p.y.is_finite()) {
                let run: Vec<(f32, f32)> = run.iter().map(|p| (x(p.x), y(p.y))).collect();
                stroke(surface, &run, 2.5, series.style);
                run.iter().for_each(|&p| marker(surface, p, series.style));
            }
        }
        match &self.title {
            Some(title) => surface.text(left, top - 24.0 - TEXT / 2.0, TEXT, INK, Align::Start, title),
            None => draw_legend(surface, [left, top - 24.0 - LEGEND_LINE / 2.0], right - left, &self.legend()),
        }
    }

    /// Lowest and highest place of the vertical axis: it holds every value, and of error bars what lies within half the values' own span
    /// of them.
    fn extent(&self) -> [f64; 2] {
        let points = || self.series.iter().flat_map(|s| &s.points);
        let span = |values: &mut dyn Iterator<Item = f64>| {
            values.filter(|v| v.is_finite()).fold([f64::INFINITY, f64::NEG_INFINITY], |[l, h], v| [l.min(v), h.max(v)])
        };
        let [low, high] = span(&mut points().map(|p| p.y).chain(self.level.as_ref().map(|l| l.1)));
        let [low, high] = if low <= high { [low, high] } else { [0.0, 1.0] };
        let most = 0.5 * (high - low).max(0.05 * high.abs().max(low.abs()));
        let [lowest, highest] = span(&mut points().filter_map(|p| p.range).flatten());
        let (low, high) = (low.min(lowest.max(low - most)), high.max(highest.min(high + most)));
        [if self.from_zero { low.min(0.0) } else { low }, high]
    }
}

/// Column and line of every entry of a legend that is `width` pixels wide; columns are pixels.
fn legend_places(entries: &[(&str, Style)], width: f32) -> Vec<(f32, f32)> {
    let (mut x, mut line) = (0.0, 0.0);
    let mut places = Vec::new();
    for (name, _) in entries {
        let length = SAMPLE[0] + SAMPLE[1] + text_width(name, TEXT);
        if x > 0.0 && x + length > width {
            (x, line) = (0.0, line + 1.0);
        }
        places.push((x, line));
        x += length + 24.0;
    }
    places
}

fn draw_legend(surface: &mut impl Surface, corner: [f32; 2], width: f32, entries: &[(&str, Style)]) {
    for ((name, style), (x, line)) in entries.iter().zip(legend_places(entries, width)) {
        let (x, middle) = (corner[0] + x, corner[1] + (line + 0.5) * LEGEND_LINE);
        stroke(surface, &[(x, middle), (x + SAMPLE[0], middle)], 3.0, *style);
        marker(surface, (x + SAMPLE[0] / 2.0, middle), *style);
        surface.text(x + SAMPLE[0] + SAMPLE[1], middle - TEXT / 2.0, TEXT, INK, Align::Start, name);
    }
}

fn marker(surface: &mut impl Surface, (x, y): (f32, f32), style: Style) {
    match style.marker {
        0 => {}
        1 => surface.line(&[(x, y), (x, y)], 7.0, style.color),
        corners => {
            let turn = |i: usize| std::f32::consts::TAU * (i as f32 / corners as f32 - 0.25);
            let points: Vec<_> = (0..=corners).map(|i| (x + 4.0 * turn(i).cos(), y + 4.0 * turn(i).sin())).collect();
            surface.line(&points, 4.0, style.color);
        }
    }
}

/// Draws a solid or dashed line.
fn stroke(surface: &mut impl Surface, points: &[(f32, f32)], width: f32, style: Style) {
    if style.dashes.is_empty() {
        return surface.line(points, width, style.color);
    }
    let mut pattern = style.dashes.iter().copied().enumerate().cycle();
    let (mut part, mut left) = pattern.next().expect("a cycle of at least one");
    let mut dash: Vec<(f32, f32)> = points.first().copied().into_iter().collect();
    for pair in points.windows(2) {
        let ((ax, ay), (bx, by)) = (pair[0], pair[1]);
        let length = (bx - ax).hypot(by - ay);
        let mut done = 0.0;
        while done < length {
            let step = left.min(length - done);
            (done, left) = (done + step, left - step);
            let end = (ax + (bx - ax) * done / length, ay + (by - ay) * done / length);
            if part % 2 == 0 {
                dash.push(end);
            }
            if left <= 0.0 {
                if part % 2 == 0 {
                    surface.line(&dash, width, style.color);
                }
                dash = vec![end];
                (part, left) = pattern.next().expect("a cycle has no end");
            }
        }
    }
    if part % 2 == 0 {
        surface.line(&dash, width, style.color);
    }
}

/// A range of values with round ticks.
struct Axis {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
    decimals: usize,
}

impl Axis {
    /// An axis over the range with about `ticks` ticks; a tight one ends where the values do, another at ticks. `whole`: ticks
    /// are whole numbers and the axis is tight.
    fn new(low: f64, high: f64, ticks: f32, whole: bool) -> Axis {
        let (low, high) = match high - low > 1e-12 * high.abs().max(low.abs()) {
            true => (low, high),
            false if whole => (low - 0.5, high + 0.5),
            false => (low - 0.1 * low.abs().max(1e-6), high + 0.1 * high.abs().max(1e-6)),
        };
        let rough = (high - low) / ticks.max(2.0) as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough).unwrap_or(10.0 * power);
        let step = if whole { step.round().max(1.0) } else { step };
        let (first, last) = ((low / step).floor(), (high / step).ceil());
        let (low, high) = if whole { (low, high) } else { ((first * step).min(low), (last * step).max(high)) };
        let inside = |t: &f64| (low - 1e-9 * step..=high + 1e-9 * step).contains(t);
        let ticks = (0..=(last - first) as usize).map(|i| (first + i as f64) * step).filter(inside).collect();
        Axis { low, high, ticks, decimals: (-step.log10().floor()).max(0.0) as usize }
    }

    /// Place of a value along the axis, 0 to 1.
    fn place(&self, value: f64) -> f32 {
        ((value - self.low) / (self.high - self.low)) as f32
    }

    /// An axis of the places 0, 1, ... with half a place beyond its ends.
    fn of_names(names: usize) -> Axis {
        Axis { low: -0.5, high: names as f64 - 0.5, ticks: (0..names).map(|i| i as f64).collect(), decimals: 0 }
    }

    fn label(&self, tick: f64) -> String {
        if tick.abs() >= 1e5 || self.decimals > 4 { format!("{tick:.1e}") } else { format!("{tick:.*}", self.decimals) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_ticks_and_hold_their_range() {
        let cases = [(0.0, 1.0), (-3.7, 12.2), (0.97, 0.971), (1e-7, 3e-7), (2.0, 2.0), (0.0, 0.0), (1.0, 4e6), (-1e-9, 5e30)];
        for (low, high) in cases {
            let axis = Axis::new(low, high, 6.0, false);
            assert!(axis.low <= low && high <= axis.high, "{low} {high}");
            assert!((2..=9).contains(&axis.ticks.len()), "{low} {high}: {:?}", axis.ticks);
            assert!(axis.place(low) >= 0.0 && axis.place(high) <= 1.0);
        }
        let epochs = Axis::new(1.0, 13.0, 6.0, true);
        assert_eq!((epochs.low, epochs.high, epochs.ticks), (1.0, 13.0, vec![2.0, 4.0, 6.0, 8.0, 10.0, 12.0]));
    }
}
