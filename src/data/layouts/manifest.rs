//! A CSV with one row a subject: columns `subject`, optionally `label` and `split`, and every other column one channel.

use super::{Dataset, Layout, Source, Subject, dicom};
use crate::data::formats;
use anyhow::{Context, Result, bail, ensure};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// What a column holds; channels are named by their column.
#[derive(Clone, Copy, PartialEq)]
enum Column {
    Subject,
    Label,
    Split,
    Channel,
}

/// Relative paths start at the CSV's folder; `archive.zip:member` reads from a zip. Empty cells are allowed in `label`
/// (unlabelled) and `split` (to be drawn), with `separate` in the channels that a scan does not have. Several scans of one person are written `person/scan` in `subject`.
pub fn open(path: &Path, separate: bool) -> Result<Dataset> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}: expected CSV text in UTF-8", path.display()))?;
    // Spreadsheets put a byte order mark first.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let header = reader.headers().with_context(|| path.display().to_string())?.clone();
    let columns = columns(&header).with_context(|| path.display().to_string())?;
    let channels = header.iter().zip(&columns).filter(|(_, c)| **c == Column::Channel).map(|(name, _)| name.into()).collect();
    let folder = path.parent().unwrap_or(Path::new(""));

    let mut subjects = vec![];
    let mut rows: HashMap<String, usize> = HashMap::new();
    for record in reader.records() {
        let record = record.with_context(|| path.display().to_string())?;
        let row = record.position().map_or(0, |at| line(text, at));
        let mut subject = Subject::default();
        for ((cell, name), column) in record.iter().zip(&header).zip(&columns) {
            let place = || format!("{}, row {row}, column `{name}`", path.display());
            match column {
                Column::Label | Column::Split if cell.is_empty() => {}
                Column::Channel if cell.is_empty() && separate => {}
                _ if cell.is_empty() => bail!("{}: the cell is empty", place()),
                Column::Subject => {
                    if let Some(earlier) = rows.insert(cell.into(), row) {
                        bail!("{}: duplicate subject `{cell}`, first in row {earlier}", place());
                    }
                    subject.id = cell.into();
                }
                Column::Split => {
                    let known = ["train", "val", "test"].contains(&cell);
                    ensure!(known, "{}: expected train, val, test or nothing, found {cell:?}", place());
                    subject.split = Some(cell.into());
                }
                Column::Label => subject.label = Some(source(folder, cell).with_context(place)?),
                Column::Channel => {
                    subject.channels.push(source(folder, cell).with_context(place)?);
                    subject.contrasts.extend(separate.then(|| name.to_owned()));
                }
            }
        }
        ensure!(!subject.channels.is_empty(), "{}, row {row}: no channel of `{}`", path.display(), subject.id);
        subjects.push(subject);
    }
    ensure!(!subjects.is_empty(), "{}: a header, but no row below it", path.display());
    Ok(Dataset { layout: Layout::Manifest, channels, labels: None, classes: None, subjects, problems: vec![], ignored: vec![] })
}

/// The line a record begins in; its position is that of the empty lines before it.
fn line(text: &str, position: &csv::Position) -> usize {
    let before = text.bytes().skip(position.byte() as usize).take_while(|b| b"\r\n".contains(b));
    position.line() as usize + before.filter(|b| *b == b'\n').count()
}

fn columns(header: &csv::StringRecord) -> Result<Vec<Column>> {
    let found = header.iter().collect::<Vec<_>>().join(", ");
    let columns: Vec<Column> = header
        .iter()
        .map(|name| match name {
            "subject" => Column::Subject,
            "label" => Column::Label,
            "split" => Column::Split,
            _ => Column::Channel,
        })
        .collect();
    let mut seen = HashSet::new();
    for (i, name) in header.iter().enumerate() {
        ensure!(!name.is_empty(), "row 1: column {} has no name", i + 1);
        ensure!(seen.insert(name), "row 1: column `{name}` occurs twice");
    }
    ensure!(columns.contains(&Column::Subject), "row 1: no column `subject`; found {found}");
    ensure!(columns.contains(&Column::Channel), "row 1: no column of scans beside subject, label and split; found {found}");
    Ok(columns)
}

fn source(folder: &Path, cell: &str) -> Result<Source> {
    let source = match Source::parse(cell) {
        Source::File(file) => Source::File(folder.join(file)),
        Source::Zip { archive, member } => Source::Zip { archive: folder.join(archive), member },
        series @ Source::Series(_) => return Ok(series),
    };
    let (path, known) = match &source {
        Source::File(path) if path.is_dir() => return dicom::only_series(path),
        Source::File(path) => (path, formats::is_scan(path)),
        Source::Zip { archive, member } => (archive, formats::stem(Path::new(member)).is_some()),
        Source::Series(_) => unreachable!("returned above"),
    };
    if !known {
        let foreign = formats::foreign(path).map_or(String::new(), |foreign| format!(": {foreign}"));
        bail!(
            "expected a scan ({}; columns other than subject, label and split are scans), found {cell:?}{foreign}",
            formats::endings()
        );
    }
    ensure!(path.is_file(), "{}: no such file", path.display());
    Ok(source)
}
