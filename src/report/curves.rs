//! Learning curves: loss and task metrics against the epoch.

use super::chart::{Across, ChartPanel, Figure, Point, Series, Style};
use super::surface::Color;
use crate::run::history::Row;
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

/// Blue and vermilion of the Okabe-Ito palette, told apart by colour-blind readers too.
const HALVES: [(&str, &str, Color); 2] = [("train", "training", [0, 114, 178]), ("val", "validation", [213, 94, 0])];

/// Draws a panel for the loss and one for every metric as PNG, about 1200 x 800 pixels, taller or wider for many metrics.
/// A value that is not finite breaks its line. Rows without any of the columns leave the panels empty.
pub fn write_curves(path: &Path, title: &str, rows: &[Row], metrics: &[Metric]) -> Result<()> {
    let loss = Metric { column: "loss".into(), chance: None };
    let panels: Vec<ChartPanel> = std::iter::once(&loss).chain(metrics).map(|metric| panel(rows, metric)).collect();
    let (columns, size) = match panels.len() {
        1 => (1, [1200.0, 720.0]),
        2 => (2, [640.0, 520.0]),
        3..=4 => (2, [600.0, 380.0]),
        _ => (3, [520.0, 360.0]),
    };
    Figure { title: title.into(), panels, columns, size, same_up: false }.save(path)
}

fn panel(rows: &[Row], metric: &Metric) -> ChartPanel {
    let series = HALVES.map(|(half, name, color)| {
        let column = format!("{half}/{}", metric.column);
        let points: Vec<Point> =
            rows.iter().filter_map(|r| Some(Point { x: r.epoch as f64, y: r.get(&column)?, range: None })).collect();
        // Single epochs stay visible, long runs uncluttered.
        let marker = usize::from(points.len() <= 40);
        Series { name: name.into(), style: Style { color, dashes: &[], marker }, shift: 0.0, points }
    });
    let epochs = rows.iter().map(|r| r.epoch as f64);
    ChartPanel {
        title: None,
        across: Across::Whole(epochs.clone().fold(1.0, f64::min), epochs.fold(1.0, f64::max)),
        across_label: "epoch".into(),
        up_label: metric.column.clone(),
        // A share is seen against zero, a loss is not.
        from_zero: metric.chance.is_some(),
        level: metric.chance.map(|chance| ("chance".into(), chance)),
        series: series.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        write_curves(&path, "rot", &rows, &[metric]).unwrap();
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
