//! A CSV with one row a subject: columns `subject`, optionally `label` and `split`, values that are asked for, and every other column one
//! channel.

use super::columns::{self, Column, Columns};
use super::table::{Row, Table};
use super::{Dataset, Layout, Problem, Reading, Source, Subject, dicom, images};
use crate::data::formats::{self, image};
use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What a column holds; channels are named by their column.
#[derive(Clone, Copy, PartialEq)]
enum Content {
    Subject,
    Label,
    Split,
    Channel,
    /// Of the whole scan.
    Value,
    /// No scans, and nobody asks for it.
    Other,
}

/// Relative paths start at the CSV's folder; `archive.zip:member` reads from a zip. Empty cells are allowed in `label`
/// (unlabelled), in `split` (to be drawn) and in columns of values, with `partial` in the channels that a scan does not have. Several scans
/// of one person are written `person/scan` in `subject`.
pub fn open(path: &Path, reading: Reading, partial: bool) -> Result<Dataset> {
    let wanted = reading.columns;
    let table = Table::read(path)?;
    // Where a table is named, the values stand in that.
    let names = if wanted.table.is_some() { &[] } else { wanted.names };
    table.check_names().with_context(|| path.display().to_string())?;
    let contents = contents(&table, names, wanted.optional).with_context(|| path.display().to_string())?;
    let named =
        |content: Content| table.columns.iter().zip(&contents).filter(move |(_, c)| **c == content).map(|(name, _)| name);
    let folder = path.parent().unwrap_or(Path::new(""));

    let mut subjects = vec![];
    let mut rows: HashMap<&str, usize> = HashMap::new();
    for Row { line, cells } in &table.rows {
        let mut subject = Subject::default();
        for ((cell, name), content) in cells.iter().zip(&table.columns).zip(&contents) {
            let place = || format!("{}, row {line}, column `{name}`", path.display());
            match content {
                Content::Other => {}
                Content::Value => {
                    // By the name that it is asked for.
                    let name = names.iter().find(|asked| asked.eq_ignore_ascii_case(name)).unwrap_or(name);
                    subject.values.extend(columns::cell(cell, table.decimal_commas).map(|value| (name.clone(), value)));
                }
                Content::Label | Content::Split if cell.is_empty() => {}
                Content::Channel if cell.is_empty() && partial => {}
                _ if cell.is_empty() => bail!("{}: the cell is empty", place()),
                Content::Subject => {
                    if let Some(earlier) = rows.insert(cell, *line) {
                        bail!("{}: duplicate subject `{cell}`, first in row {earlier}", place());
                    }
                    subject.id = cell.clone();
                }
                Content::Split => {
                    let known = ["train", "val", "test"].contains(&cell.as_str());
                    ensure!(known, "{}: expected train, val, test or nothing, found {cell:?}", place());
                    subject.split = Some(cell.clone());
                }
                Content::Label => subject.label = Some(source(folder, cell).with_context(place)?),
                Content::Channel => {
                    subject.channels.push(source(folder, cell).with_context(place)?);
                    subject.contrasts.extend(partial.then(|| name.to_owned()));
                }
            }
        }
        ensure!(!subject.channels.is_empty(), "{}, row {line}: no channel of `{}`", path.display(), subject.id);
        subjects.push(subject);
    }
    ensure!(!subjects.is_empty(), "{}: a header, but no row below it", path.display());
    let channels: Vec<String> = named(Content::Channel).cloned().collect();
    let channels = photographs(&subjects, &channels, partial).with_context(|| path.display().to_string())?.unwrap_or(channels);
    let kept = names.iter().filter(|name| table.position(name).is_some());
    let kept: Vec<Column> = kept.map(|name| Column { name: name.clone(), unit: None }).collect();
    columns::settle(&mut subjects, &kept);
    let others: Vec<&str> = named(Content::Other).map(String::as_str).collect();
    let ignored = (!others.is_empty()).then(|| Problem::new(path, format!("columns without scans: {}", others.join(", "))));
    Ok(Dataset {
        layout: Layout::Manifest,
        channels,
        labels: None,
        classes: None,
        columns: Columns { kept, notes: vec![] },
        subjects,
        problems: vec![],
        ignored: ignored.into_iter().collect(),
    })
}

/// The channels of photographs, if the scans are such: their colours. Errors where photographs stand beside other scans, or have labels.
fn photographs(subjects: &[Subject], columns: &[String], partial: bool) -> Result<Option<Vec<String>>> {
    let sources = || subjects.iter().flat_map(|subject| &subject.channels);
    let Some(first) = sources().find(|source| source.is_image()) else { return Ok(None) };
    if let Some(other) = sources().find(|source| !source.is_image()) {
        bail!("{} is a photograph, {} is none: give each kind a manifest of its own", first.display(), other.display());
    }
    ensure!(!partial, "photographs: their colours make one image, and are no scans of their own");
    ensure!(columns.len() == 1, "a photograph is one file, found the columns {}", columns.join(", "));
    if let Some(label) = subjects.iter().find_map(|subject| subject.label.as_ref()) {
        bail!("{}: photographs have classes, no labels of pixels; leave the column `label` out", label.display());
    }
    let files: Vec<PathBuf> = sources().map(|source| PathBuf::from(source.display())).collect();
    Ok(Some(images::channels(files.iter())))
}

/// `names`: of the values that are asked for.
fn contents(table: &Table, names: &[String], optional: bool) -> Result<Vec<Content>> {
    let found = table.columns.join(", ");
    let asked = |name: &String| names.iter().any(|asked| asked.eq_ignore_ascii_case(name));
    // Who names the columns of values leaves out the others that hold none of the scans.
    let scans = |column: usize| table.rows.iter().any(|row| looks_like_scan(&row.cells[column]));
    let content = |(column, name): (usize, &String)| match name.as_str() {
        "subject" => Content::Subject,
        "label" => Content::Label,
        "split" => Content::Split,
        _ if asked(name) => Content::Value,
        _ if (optional || !names.is_empty()) && !scans(column) => Content::Other,
        _ => Content::Channel,
    };
    let contents: Vec<Content> = table.columns.iter().enumerate().map(content).collect();
    ensure!(contents.contains(&Content::Subject), "row 1: no column `subject`; found {found}");
    for name in names.iter().filter(|_| !optional) {
        let value = table.position(name).is_some_and(|column| contents[column] == Content::Value);
        ensure!(value, "--column {name}: no column of values of that name; found {found}");
    }
    ensure!(
        contents.contains(&Content::Channel),
        "row 1: no column of scans beside subject, label, split and those that --column names; found {found}"
    );
    Ok(contents)
}

/// By its name, whether it is there or not.
fn looks_like_scan(cell: &str) -> bool {
    match Source::parse(cell) {
        Source::File(path) => cell.contains(['/', '\\']) || formats::stem(&path).is_some() || image::stem(&path).is_some(),
        Source::Zip { .. } | Source::Series(_) => true,
    }
}

fn source(folder: &Path, cell: &str) -> Result<Source> {
    let source = match Source::parse(cell) {
        Source::File(file) => Source::File(folder.join(file)),
        Source::Zip { archive, member } => Source::Zip { archive: folder.join(archive), member },
        series @ Source::Series(_) => return Ok(series),
    };
    let (path, known) = match &source {
        Source::File(path) if path.is_dir() => return dicom::only_series(path),
        Source::File(path) => (path, image::stem(path).is_some() || formats::is_scan(path)),
        Source::Zip { archive, member } => (archive, formats::stem(Path::new(member)).is_some()),
        Source::Series(_) => unreachable!("returned above"),
    };
    if !known {
        let foreign = formats::foreign(path).map_or(String::new(), |foreign| format!(": {foreign}"));
        bail!(
            "expected a scan ({}; columns other than subject, label, split and those that --column names are scans), found \
             {cell:?}{foreign}",
            formats::endings()
        );
    }
    ensure!(path.is_file(), "{}: no such file", path.display());
    Ok(source)
}
