//! Predicted quantities of whole scans as files.

use super::chart::{Across, ChartPanel, Figure, GREY, Point, Series, Style};
use crate::data::layouts::columns::Column;
use crate::fs::write_atomic;
use crate::metrics::errors::Errors;
use anyhow::Result;
use serde_json::json;
use std::path::Path;

/// Of the dots: blue of the Okabe-Ito palette.
const DOT: Style = Style { color: [0, 114, 178], dashes: &[], marker: 1 };
const EQUAL: Style = Style { color: GREY, dashes: &[8.0, 6.0], marker: 0 };

/// Predictions of scans, for a table.
pub struct Quantities {
    column: Column,
    /// Mean of the training scans, the prediction of who knows nothing of a scan.
    mean: f64,
    rows: Vec<(String, Option<f64>, f64)>,
}

impl Quantities {
    pub fn new(column: &Column, mean: f64) -> Quantities {
        Quantities { column: column.clone(), mean, rows: vec![] }
    }

    /// `truth`: where it is known.
    pub fn add(&mut self, id: &str, truth: Option<f64>, predicted: f64) {
        self.rows.push((id.to_owned(), truth, predicted));
    }

    /// Of the scans whose quantity is known; `None` if none is.
    pub fn errors(&self) -> Option<Errors> {
        let errors = Errors::of(self.rows.iter().filter_map(|(_, truth, predicted)| Some(((*truth)?, *predicted))));
        (!errors.pairs().is_empty()).then_some(errors)
    }

    /// Mean absolute error of the training scans' mean.
    pub fn baseline(&self, errors: &Errors) -> Option<f64> {
        errors.with_constant(self.mean).mean_absolute()
    }

    /// Scores in a line, beside what the training scans' mean would have.
    pub fn summary(&self, errors: &Errors) -> String {
        let baseline = self.baseline(errors).map_or("undefined".into(), |mae| format!("{mae:.3}"));
        format!("{}: {errors}; the mean of the training scans has an error of {baseline}", self.column)
    }

    /// Writes a row a scan: `id`, the true value if any is known, under the column's name, and `predicted NAME`.
    pub fn write(&self, path: &Path) -> Result<()> {
        let known = self.rows.iter().any(|row| row.1.is_some());
        let mut head = vec!["id".to_owned()];
        head.extend(known.then(|| self.column.to_string()));
        head.push(format!("predicted {}", self.column));
        write_atomic(path, |file| {
            let mut table = csv::Writer::from_writer(file);
            table.write_record(&head)?;
            for (id, truth, predicted) in &self.rows {
                let mut cells = vec![id.clone()];
                cells.extend(known.then(|| truth.map_or(String::new(), |truth| truth.to_string())));
                cells.push(predicted.to_string());
                table.write_record(&cells)?;
            }
            Ok(table.flush()?)
        })
    }

    /// Writes the errors, and those of the training scans' mean.
    pub fn write_scores(&self, path: &Path, errors: &Errors) -> Result<()> {
        let constant = errors.with_constant(self.mean);
        let text = json!({
            "column": self.column.name,
            "unit": self.column.unit,
            "scans": errors.pairs().len(),
            "mean_absolute_error": errors.mean_absolute(),
            "r_squared": errors.r_squared(),
            "baseline": {
                "prediction": self.mean,
                "mean_absolute_error": constant.mean_absolute(),
                "r_squared": constant.r_squared(),
            },
        });
        write_atomic(path, |file| Ok(serde_json::to_writer_pretty(file, &text)?))
    }

    /// Draws predicted against true quantities as PNG: on the rising line they are the same.
    pub fn draw(&self, path: &Path, title: &str, errors: &Errors) -> Result<()> {
        let all = || errors.pairs().iter().flat_map(|&(truth, predicted)| [truth, predicted]);
        let [low, high] = [all().fold(self.mean, f64::min), all().fold(self.mean, f64::max)];
        let dot = |x: f64, y: f64| Point { x, y, range: None };
        // What is not finite breaks the line, so that none joins the dots.
        let dots = errors.pairs().iter().flat_map(|&(truth, predicted)| [dot(truth, predicted), dot(truth, f64::NAN)]);
        let series = |name: &str, style: Style, points: Vec<Point>| Series { name: name.into(), style, shift: 0.0, points };
        let panel = ChartPanel {
            title: None,
            across: Across::Numbers(low, high),
            across_label: format!("true {}", self.column),
            up_label: format!("predicted {}", self.column),
            from_zero: false,
            level: Some(("mean of the training scans".into(), self.mean)),
            series: vec![
                series("equal", EQUAL, vec![dot(low, low), dot(high, high)]),
                series("test scans", DOT, dots.collect()),
            ],
        };
        let title = format!("{title}: {errors}");
        Figure { title, panels: vec![panel], columns: 1, size: [860.0, 760.0], same_up: false }.save(path)
    }
}
