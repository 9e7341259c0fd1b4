//! Predicted classes of whole scans as files.

use crate::fs::write_atomic;
use crate::metrics::agreement::Confusion;
use anyhow::Result;
use serde_json::{Map, json};
use std::path::Path;

/// Predictions of scans, for a table.
pub struct Predictions {
    classes: Vec<String>,
    rows: Vec<Prediction>,
}

struct Prediction {
    id: String,
    truth: Option<u8>,
    class: u8,
    probabilities: Vec<f32>,
}

impl Predictions {
    /// `classes`: their names.
    pub fn new(classes: &[String]) -> Predictions {
        Predictions { classes: classes.to_vec(), rows: vec![] }
    }

    /// `truth`: where it is known; `probabilities`: one for each class.
    pub fn add(&mut self, id: &str, truth: Option<u8>, class: u8, probabilities: &[f32]) {
        self.rows.push(Prediction { id: id.to_owned(), truth, class, probabilities: probabilities.to_vec() });
    }

    /// Of the scans whose class is known; `None` if none is.
    pub fn confusion(&self) -> Option<Confusion> {
        let (truth, class): (Vec<u8>, Vec<u8>) = self.rows.iter().filter_map(|r| Some((r.truth?, r.class))).unzip();
        (!truth.is_empty()).then(|| Confusion::of(&truth, &class, self.classes.len()))
    }

    /// Writes a row a scan: `id`, `truth` if any is known, `class`, and the probability of each class, `p0`, `p1`, ...
    pub fn write(&self, path: &Path) -> Result<()> {
        let known = self.rows.iter().any(|row| row.truth.is_some());
        let mut head = vec!["id".to_owned()];
        head.extend(known.then(|| "truth".to_owned()));
        head.push("class".into());
        head.extend((0..self.classes.len()).map(|k| format!("p{k}")));
        write_atomic(path, |file| {
            let mut table = csv::Writer::from_writer(file);
            table.write_record(&head)?;
            for row in &self.rows {
                let mut cells = vec![row.id.clone()];
                cells.extend(known.then(|| row.truth.map_or(String::new(), |t| t.to_string())));
                cells.push(row.class.to_string());
                cells.extend(row.probabilities.iter().map(f32::to_string));
                table.write_record(&cells)?;
            }
            Ok(table.flush()?)
        })
    }

    /// Writes kappa, accuracy, balanced accuracy, each class's recall and the confusion matrix.
    pub fn write_scores(&self, path: &Path, confusion: &Confusion) -> Result<()> {
        let k = self.classes.len();
        let matrix: Vec<Vec<u64>> = (0..k).map(|t| (0..k).map(|p| confusion.count(t, p)).collect()).collect();
        let recall: Map<_, _> =
            self.classes.iter().enumerate().map(|(k, name)| (name.clone(), json!(confusion.recall(k)))).collect();
        let text = json!({
            "quadratic_weighted_kappa": confusion.weighted_kappa(),
            "accuracy": confusion.accuracy(),
            "balanced_accuracy": confusion.balanced_accuracy(),
            "recall": recall,
            "confusion": { "rows": "truth", "columns": "prediction", "classes": self.classes, "counts": matrix },
        });
        write_atomic(path, |file| Ok(serde_json::to_writer_pretty(file, &text)?))
    }
}
