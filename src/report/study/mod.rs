//! The report on one or several sweeps: tables, statistics, sentences and figures from the records in their folders, without running anything.

mod content;
mod document;
mod figures;
mod given;
mod ranking;
mod rates;
mod settings;
mod words;

use crate::fs::write_atomic;
use crate::study::read::Records;
use crate::study::{convergence, results};
use anyhow::Result;
use document::Block;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Writes `results.csv` (every finished cell), `report.md` with its figures, and `report.html`, which needs no other file,
/// into `out`, for the sweeps in `folders` together. Returns the tables and sentences for a terminal, at the end
/// where the page is. Finished cells are enough; how many are missing stands on top.
///
/// Errors: not a sweep's folder, no finished cell, a record that is malformed or of another cell, sweeps that cannot be compared,
/// all named.
pub fn write_report(folders: &[PathBuf], out: &Path) -> Result<String> {
    let records = Records::read_all(folders)?;
    let own = records.at_own_rates();
    let summary = content::summary(&records, own.as_ref());
    let printed = document::terminal(&summary);
    let mut blocks = summary;
    let shown = own.as_ref().unwrap_or(&records);
    blocks.extend(content::rest(shown, &shown.tables(), &convergence(shown)));

    let title = records.title();
    results::write(&out.join("results.csv"), &records)?;
    for block in &blocks {
        if let Block::Picture(file, _, figure) = block {
            figure.save(&out.join(file))?;
        }
    }
    let page = out.join("report.html");
    for (file, text) in [(&out.join("report.md"), document::markdown(&blocks)), (&page, document::html(&title, &blocks))] {
        write_atomic(file, |f| Ok(f.write_all(text.as_bytes())?))?;
    }
    Ok(format!("{}\n{}", printed.trim_end(), page.display()))
}
