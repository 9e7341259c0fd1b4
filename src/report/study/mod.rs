//! The report on one or several sweeps: tables, statistics, sentences and figures from the records in their folders, without running anything.

mod compare;
mod content;
mod converge;
mod document;
mod figures;
pub mod read;
mod results;
mod unite;
mod words;

use crate::fs::write_atomic;
use anyhow::Result;
use compare::{Arm, Table};
use converge::{Curve, Reach, curves, reach};
use document::Block;
use read::Records;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Convergence of one share of labels and of unlabelled scans (none if there is only one).
struct Convergence {
    unlabelled: Option<f64>,
    fraction: f64,
    curves: Vec<Curve>,
    reach: Vec<Reach>,
}

/// Writes `results.csv` (every finished cell), `report.md` with its figures, and `report.html`, which needs no other file,
/// into `out`, for the sweeps in `folders` together. Returns the tables and sentences for a terminal. Finished cells are enough;
/// how many are missing stands on top.
///
/// Errors: not a sweep's folder, no finished cell, a record that is malformed or of another cell, sweeps that cannot be compared,
/// all named.
pub fn write_report(folders: &[PathBuf], out: &Path) -> Result<String> {
    let records = Records::read_all(folders)?;
    let tables = records.tables();
    let convergence = convergence(&records);
    let summary = content::summary(&records, &tables);
    let printed = document::terminal(&summary);
    let mut blocks = summary;
    blocks.extend(content::rest(&records, &tables, &convergence));

    let title = content::title(&records);
    results::write(&out.join("results.csv"), &records)?;
    for block in &blocks {
        if let Block::Picture(file, _, figure) = block {
            figure.save(&out.join(file))?;
        }
    }
    for (file, text) in [("report.md", document::markdown(&blocks)), ("report.html", document::html(&title, &blocks))] {
        write_atomic(&out.join(file), |f| Ok(f.write_all(text.as_bytes())?))?;
    }
    Ok(printed)
}

fn convergence(records: &Records) -> Vec<Convergence> {
    let shares = records.unlabelled();
    let several = shares.len() > 1;
    let mut parts = Vec::new();
    for fraction in records.fractions() {
        for &share in &shares {
            let curves = curves(records, fraction, share);
            let reach = reach(&curves, fraction);
            parts.push(Convergence { unlabelled: several.then_some(share), fraction, curves, reach });
        }
    }
    parts.retain(|p| !p.curves.is_empty());
    parts
}

/// Arms that any table compares with scratch.
fn compared(tables: &[Table]) -> Vec<Arm> {
    let mut arms: Vec<Arm> = Vec::new();
    for comparison in tables.iter().flat_map(|t| &t.scratch) {
        if !arms.contains(&comparison.arm) {
            arms.push(comparison.arm.clone());
        }
    }
    arms
}
