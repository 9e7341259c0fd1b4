//! Learning curves: loss and task metrics against the epoch.

use super::canvas::{Align, Canvas, Color, text_width};
use super::history::Row;
use anyhow::Result;
use std::path::Path;

/// A metric to draw beside the loss.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Its column without `train/` or `val/`, e.g. `rot.accuracy`.
    pub column: String,
    /// Value of a network that knows nothing: drawn as a dashed line.
    pub chance: Option<f64>,
}

const PAPER: Color = [255, 255, 255];
const INK: Color = [40, 44, 52];
const GREY: Color = [120, 124, 132];
const GRID: Color = [228, 230, 234];
/// Blue and vermilion of the Okabe-Ito palette, told apart by colour-blind readers too.
const HALVES: [(&str, &str, Color); 2] = [("train", "training", [0, 114, 178]), ("val", "validation", [213, 94, 0])];
/// Pixels.
const TEXT: f32 = 17.0;
const SMALL: f32 = 15.0;
const TITLE: f32 = 24.0;
const MARGIN: f32 = 16.0;
const HEAD: f32 = 48.0;

/// Draws a panel for the loss and one for every metric as PNG, about 1200 x 800 pixels, taller or wider for many metrics.
/// A value that is not finite breaks its line. Rows without any of the columns leave the panels empty.
pub fn write_curves(path: &Path, title: &str, rows: &[Row], metrics: &[Metric]) -> Result<()> {
    let mut panels = vec![Metric { column: "loss".into(), chance: None }];
    panels.extend_from_slice(metrics);
    let (columns, size) = match panels.len() {
        1 => (1, [1200.0, 720.0]),
        2 => (2, [640.0, 520.0]),
        3..=4 => (2, [600.0, 380.0]),
        _ => (3, [520.0, 360.0]),
    };
    let lines = panels.len().div_ceil(columns);
    let mut canvas = Canvas::new(columns * size[0] as usize, lines * size[1] as usize + HEAD as usize, PAPER);
    canvas.text(MARGIN + 4.0, MARGIN, TITLE, INK, Align::Start, title);
    for (i, metric) in panels.iter().enumerate() {
        let [width, height] = size;
        let corner = [(i % columns) as f32 * width, HEAD + (i / columns) as f32 * height];
        // The labels of the axes stand left of and below the box.
        let area = [corner[0] + 92.0, corner[1] + 52.0, corner[0] + width - MARGIN, corner[1] + height - 62.0];
        panel(&mut canvas, area, rows, metric);
    }
    canvas.save(path)
}

/// One panel; `area` is the box of the axes: left, top, right, bottom.
fn panel(canvas: &mut Canvas, area: [f32; 4], rows: &[Row], metric: &Metric) {
    let [left, top, right, bottom] = area;
    let points = |half: &str| -> Vec<(f64, f64)> {
        let column = format!("{half}/{}", metric.column);
        rows.iter().filter_map(|r| Some((r.epoch as f64, r.get(&column)?))).collect()
    };
    let series = HALVES.map(|(half, name, color)| (name, color, points(half)));
    let epochs = rows.iter().map(|r| r.epoch as f64);
    let across = Axis::new(epochs.clone().fold(1.0, f64::min), epochs.fold(1.0, f64::max), (right - left) / 90.0, true);
    let values = series.iter().flat_map(|s| &s.2).map(|p| p.1).filter(|v| v.is_finite()).chain(metric.chance);
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
    // A share is seen against zero, a loss is not.
    let low = if metric.chance.is_some() { low.min(0.0) } else { low };
    let up = Axis::new(low, high, (bottom - top) / 50.0, false);
    let x = |v: f64| left + across.place(v) * (right - left);
    let y = |v: f64| bottom - up.place(v) * (bottom - top);

    for &tick in &across.ticks {
        canvas.line(&[(x(tick), top), (x(tick), bottom)], 1.0, GRID);
        canvas.text(x(tick), bottom + 6.0, SMALL, GREY, Align::Middle, &across.label(tick));
    }
    for &tick in &up.ticks {
        canvas.line(&[(left, y(tick)), (right, y(tick))], 1.0, GRID);
        canvas.text(left - 7.0, y(tick) - SMALL / 2.0, SMALL, GREY, Align::End, &up.label(tick));
    }
    canvas.line(&[(left, top), (left, bottom), (right, bottom)], 1.5, GREY);
    canvas.text((left + right) / 2.0, bottom + 28.0, TEXT, INK, Align::Middle, "epoch");
    canvas.text_upwards(left - 84.0, (top + bottom) / 2.0, TEXT, INK, Align::Middle, &metric.column);

    let mut legend = left;
    let mut entry = |canvas: &mut Canvas, text: &str, color: Color, dashed: bool| {
        let middle = top - 24.0;
        let dashes = if dashed { vec![(0.0, 8.0), (13.0, 21.0)] } else { vec![(0.0, 21.0)] };
        dashes.iter().for_each(|(a, b)| canvas.line(&[(legend + a, middle), (legend + b, middle)], 3.0, color));
        canvas.text(legend + 28.0, middle - TEXT / 2.0, TEXT, INK, Align::Start, text);
        legend += 28.0 + text_width(text, TEXT) + 24.0;
    };
    if let Some(chance) = metric.chance {
        let mut dash = left;
        while dash < right {
            canvas.line(&[(dash, y(chance)), ((dash + 8.0).min(right), y(chance))], 2.0, GREY);
            dash += 13.0;
        }
    }
    for (name, color, points) in &series {
        if points.is_empty() {
            continue;
        }
        for run in points.split(|p| !p.1.is_finite()) {
            let run: Vec<(f32, f32)> = run.iter().map(|&(e, v)| (x(e), y(v))).collect();
            canvas.line(&run, 2.5, *color);
            // Single epochs stay visible, long runs uncluttered.
            if points.len() <= 40 {
                run.iter().for_each(|&p| canvas.line(&[p, p], 7.0, *color));
            }
        }
        entry(canvas, name, *color, false);
    }
    if metric.chance.is_some() {
        entry(canvas, "chance", GREY, true);
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

    #[test]
    fn curves_are_where_their_values_are() {
        let rows: Vec<Row> = (1..=300)
            .map(|e| {
                let mut row = Row::new(e);
                row.set("train/loss", if e == 50 { f64::NAN } else { 2.0 / e as f64 });
                row.set("val/loss", f64::INFINITY);
                row.set("train/rot.accuracy", 0.5);
                row
            })
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("curves.png");
        let metric = Metric { column: "rot.accuracy".into(), chance: Some(0.1) };
        let start = std::time::Instant::now();
        write_curves(&path, "rot", &rows, &[metric]).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        assert!(seconds < 0.5, "{seconds} s a picture");
        let picture = image::open(&path).unwrap().into_rgb8();
        // Height of the training colour in a column of pixels right of the axis' middle.
        let height = |x: u32| {
            let ys: Vec<u32> = (90..picture.height()).filter(|&y| picture.get_pixel(x, y).0 == HALVES[0].2).collect();
            (ys.iter().sum::<u32>() as f64 / ys.len() as f64, ys.len())
        };
        let ((loss, n), (accuracy, m)) = (height(500), height(1140));
        assert!((1..6).contains(&n) && (1..6).contains(&m), "{n} and {m} pixels of a 2.5 pixel line");
        // The box reaches from 100 to 506 pixels: a loss near 0 lies on its floor, 0.5 of [0, 0.5] on its ceiling.
        assert!(loss > 500.0 && accuracy < 104.0, "{loss} {accuracy}");
        for rows in [&rows[..0], &rows[..1]] {
            write_curves(&path, "short", rows, &vec![Metric { column: "x".into(), chance: None }; 7]).unwrap();
        }
    }
}
