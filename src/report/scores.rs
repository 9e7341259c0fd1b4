//! Scores of segmentations as files and as a table.

use crate::fs::write_atomic;
use crate::metrics::case::Scores;
use crate::metrics::summary::{Statistics, Summary, summarise};
use crate::metrics::table::{METRICS, MaskMetric};
use anyhow::{Result, ensure};
use serde::Serialize;
use serde_json::json;
use std::path::Path;

/// Writes `scores.csv`, one row a case and group with an empty cell for an undefined score, and `scores.json`, the summary with
/// `settings` (what was scored, and how) under that key. `groups`: names, in the order of every case's scores. Errors: a case
/// with another number of scores, a folder that cannot be written.
pub fn write_scores(
    folder: &Path,
    groups: &[String],
    cases: &[(String, Vec<Scores>)],
    settings: &impl Serialize,
) -> Result<Summary> {
    for (id, scores) in cases {
        ensure!(scores.len() == groups.len(), "{id}: {} scores, expected one for each of {}", scores.len(), groups.join(", "));
    }
    write_atomic(&folder.join("scores.csv"), |file| {
        let mut table = csv::Writer::from_writer(file);
        let columns = METRICS.iter().map(MaskMetric::column).chain(["truth_ml", "prediction_ml"].map(String::from));
        table.write_record(["case", "group"].map(String::from).into_iter().chain(columns))?;
        for (id, scores) in cases {
            for (group, s) in groups.iter().zip(scores) {
                let cell = |value: Option<f64>| value.map_or(String::new(), |v| v.to_string());
                let numbers = s.values.into_iter().chain([Some(s.truth_ml), Some(s.prediction_ml)]).map(cell);
                table.write_record([id, group].into_iter().cloned().chain(numbers))?;
            }
        }
        Ok(table.flush()?)
    })?;
    let summary = summarise(groups, cases);
    let text = json!({ "settings": settings, "summary": summary });
    write_atomic(&folder.join("scores.json"), |file| Ok(serde_json::to_writer_pretty(file, &text)?))?;
    Ok(summary)
}

/// A line for every group, mean and standard deviation of each metric with the number of cases that they rest on, and one for the mean
/// Dice over all. `tolerance`: of the normalised surface Dice, in millimetres.
pub fn table(summary: &Summary, tolerance: f64) -> String {
    let cell = |s: &Statistics, digits: usize| {
        let value = match (s.mean, s.sd) {
            (Some(mean), Some(sd)) => format!("{mean:.digits$} ± {sd:.digits$}"),
            (Some(mean), None) => format!("{mean:.digits$}"),
            (None, _) => "-".into(),
        };
        format!("{value} ({})", s.cases)
    };
    let mut lines = vec![vec!["group".to_string()]];
    lines[0].extend(METRICS.iter().map(|metric| format!("{} (cases)", metric.title())));
    lines.extend(summary.groups.iter().map(|g| {
        let cells = METRICS.iter().map(|metric| cell(&g.metrics[&metric.column()], metric.digits));
        std::iter::once(g.group.clone()).chain(cells).collect()
    }));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text += &format!("nsd: share of both surfaces that is within {tolerance} mm of the other\n");
    let counted = summary.cases - summary.cases_undefined;
    match summary.mean_dice {
        Some(mean) => text += &format!("mean dice {mean:.4} over {counted} of {} cases", summary.cases),
        None => text += &format!("mean dice undefined in all {} cases: every mask is empty", summary.cases),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undefined_scores_are_empty_cells_and_are_said() {
        let folder = tempfile::tempdir().unwrap();
        let values = [Some(0.5), Some(1.0 / 3.0), Some(2.0), Some(0.25), Some(0.75)];
        let found = Scores { values, truth_ml: 1.5, prediction_ml: 2.0 };
        let groups = ["WT", "a, b"].map(String::from);
        let cases = [("p/1".to_string(), vec![found, Scores::EMPTY]), ("q".to_string(), vec![found, found])];
        let summary = write_scores(folder.path(), &groups, &cases, &json!({ "empty": "skip" })).unwrap();
        let text = std::fs::read_to_string(folder.path().join("scores.csv")).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "case,group,dice,jaccard,hd95_mm,asd_mm,nsd,truth_ml,prediction_ml");
        assert_eq!(lines[1..3], ["p/1,WT,0.5,0.3333333333333333,2,0.25,0.75,1.5,2", "p/1,\"a, b\",,,,,,0,0"]);
        assert_eq!(lines.len(), 5);
        let text = std::fs::read(folder.path().join("scores.json")).unwrap();
        let read: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(serde_json::from_value::<Summary>(read["summary"].clone()).unwrap(), summary);
        assert_eq!(read["settings"]["empty"], "skip");
        let table = table(&summary, 2.0);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].contains("hd95 mm (cases)") && lines[1].contains("2.00 ± 0.00 (2)"), "{table}");
        assert!(lines[2].contains("0.5000 (1)") && lines[2].contains("2.00 (1)"), "{table}");
        assert!(table.contains("within 2 mm") && table.ends_with("2 of 2 cases"), "{table}");
        assert!(write_scores(folder.path(), &groups[..1], &cases, &()).unwrap_err().to_string().contains("p/1: 2 scores"));
    }
}
