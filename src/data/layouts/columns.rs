//! Values of whole scans, such as ages and diagnoses, from columns of tables that stand beside the scans.
//!
//! A row belongs to the scans that its id names: a scan's id or file name, or a person, whose scans all get the value. Which column
//! holds the ids shows in its cells.

mod known;

use super::table::{Table, is_table};
use super::{Dataset, Layout, Problem, Subject, sides};
use crate::data::names::some;
use anyhow::{Context, Result, bail, ensure};
use known::{Known, sided};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What stands where there is no value, in any case: as pandas reads tables.
const MISSING: [&str; 8] = ["", "nan", "na", "n/a", "#n/a", "<na>", "null", "none"];
/// Columns that tell the sessions of a person apart.
const SESSIONS: [&str; 4] = ["session_id", "session", "ses", "visit"];
/// How the name of a BIDS table of a person's sessions ends.
const SESSIONS_TABLE: &str = "_sessions";
/// Rows that are looked at for the column of ids.
const LOOKED_AT: usize = 1000;

/// What is said of a scan in a column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    Number(f64),
    Text(String),
}

impl Value {
    pub fn number(&self) -> Option<f64> {
        match self {
            Value::Number(number) => Some(*number),
            Value::Text(_) => None,
        }
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Value::Number(number) => number.fmt(f),
            Value::Text(text) => text.fmt(f),
        }
    }
}

/// A column that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    /// As `participants.json` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
}

impl std::fmt::Display for Column {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match &self.unit {
            Some(unit) => write!(f, "{} ({unit})", self.name),
            None => self.name.fmt(f),
        }
    }
}

/// The columns of a dataset.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    pub kept: Vec<Column>,
    /// How they were read, a line each.
    pub notes: Vec<String>,
}

/// Which columns are asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct WantedColumns<'a> {
    pub names: &'a [String],
    /// Of a file that is named; otherwise of those in the dataset's folder.
    pub table: Option<&'a Path>,
    /// The column of ids; otherwise it is found.
    pub ids: Option<&'a str>,
    /// Scans are wanted without values too.
    pub optional: bool,
}

/// The value in a cell, `None` where it stands for none.
pub fn cell(text: &str, decimal_commas: bool) -> Option<Value> {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let text = text.trim();
    let comma = text.split_once(',').filter(|(whole, rest)| digits(whole.trim_start_matches(['+', '-'])) && digits(rest));
    let missing = MISSING.iter().any(|missing| text.eq_ignore_ascii_case(missing));
    (!missing).then(|| match comma.filter(|_| decimal_commas) {
        Some((whole, rest)) => Value::Text(format!("{whole}.{rest}")),
        None => Value::Text(text.into()),
    })
}

/// Makes numbers of the values of each column that holds nothing else.
pub fn settle(subjects: &mut [Subject], columns: &[Column]) {
    for Column { name, .. } in columns {
        let number = |value: &Value| value.to_string().parse().ok().filter(|number: &f64| number.is_finite());
        let mut values: Vec<&mut Value> = subjects.iter_mut().filter_map(|subject| subject.values.get_mut(name)).collect();
        if let Some(numbers) = values.iter().map(|value| number(value)).collect::<Option<Vec<f64>>>() {
            values.iter_mut().zip(numbers).for_each(|(value, number)| **value = Value::Number(number));
        }
    }
}

/// What the columns hold, a line each.
pub fn describe(dataset: &Dataset) -> Vec<String> {
    let mut lines = dataset.columns.notes.clone();
    for column in &dataset.columns.kept {
        let (with, without): (Vec<&Subject>, Vec<&Subject>) =
            dataset.subjects.iter().partition(|subject| subject.values.contains_key(&column.name));
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        with.iter().for_each(|subject| *counts.entry(subject.values[&column.name].to_string()).or_default() += 1);
        let numbers: Vec<f64> = with.iter().filter_map(|subject| subject.values[&column.name].number()).collect();
        let what = if numbers.is_empty() {
            let counts: Vec<String> = counts.iter().map(|(value, n)| format!("{value} {n}")).collect();
            format!("names: {}", some(&counts.iter().map(String::as_str).collect::<Vec<_>>()))
        } else {
            let [low, high] = [f64::min, f64::max].map(|pick| numbers.iter().copied().reduce(pick).unwrap_or_default());
            format!("numbers from {low} to {high}, {} distinct ones", counts.len())
        };
        lines.push(format!("column {column}: {} of {} scans have a value, {what}", with.len(), dataset.subjects.len()));
        if !without.is_empty() {
            let ids: Vec<&str> = without.iter().map(|subject| subject.id.as_str()).collect();
            lines.push(format!("column {column}: {} scans without a value: {}", ids.len(), some(&ids)));
        }
    }
    lines
}

/// Gives the scans of a dataset their values. `found`: tables of its folder, the outermost first.
///
/// Errors: a column that no table has, a table of which no id is a scan's. Rows that contradict one another are among
/// [`Dataset::problems`], and rows without a scan among [`Dataset::ignored`].
pub fn attach(dataset: &mut Dataset, root: &Path, found: &[PathBuf], wanted: WantedColumns) -> Result<()> {
    if wanted.names.is_empty() {
        return Ok(());
    }
    let tables = match tables(dataset, found, wanted) {
        Err(_) if wanted.optional => return Ok(()),
        tables => tables?,
    };
    // What is read here is not passed over.
    let used = |path: &Path| tables.iter().any(|table| table.path == path || table.path.with_extension("json") == path);
    dataset.ignored.retain(|ignored| !used(&ignored.path));
    // A table may name patients, whose names reach no message.
    let told = |names: &[&str]| if dataset.layout == Layout::Dicom { String::new() } else { format!(": {}", some(names)) };
    // Names that are there on two sides of a dataset are told apart by the side that the table is of.
    let sided = sided(&dataset.subjects, root);
    // By scan and column: the value and where it stands.
    let mut given: BTreeMap<(usize, usize), BTreeMap<String, (Value, String)>> = BTreeMap::new();
    let mut known: BTreeMap<Option<&str>, Known> = BTreeMap::new();
    for table in &tables {
        let below = table.path.strip_prefix(root).unwrap_or(Path::new(table.path.file_name().unwrap_or_default()));
        let side = sides::of(below).filter(|_| sided);
        let patients = dataset.layout == Layout::Dicom;
        let scans = known.entry(side).or_insert_with(|| Known::of(&dataset.subjects, root, side, patients));
        let session = table.columns.iter().position(|name| SESSIONS.iter().any(|known| name.eq_ignore_ascii_case(known)));
        // BIDS has a table of sessions for each person, which is called after the person.
        let person =
            table.path.file_stem().and_then(|stem| stem.to_str()?.strip_suffix(SESSIONS_TABLE)).filter(|_| session.is_some());
        let ids = match person {
            Some(_) => None,
            None => match ids(table, scans, wanted)? {
                None => continue,
                ids => ids,
            },
        };
        let columns: Vec<(usize, usize)> =
            wanted.names.iter().enumerate().filter_map(|(c, name)| Some((c, table.position(name)?))).collect();
        let (mut strangers, mut commas) = (vec![], false);
        for row in &table.rows {
            let id = ids.map_or(person.unwrap_or_default(), |ids| &row.cells[ids]);
            let session = session.filter(|&session| Some(session) != ids).map(|session| row.cells[session].as_str());
            let mine = scans.of_row(id, session);
            if mine.is_empty() {
                strangers.push(if id.is_empty() { "(empty)" } else { id });
            }
            for &(c, at) in &columns {
                let Some(value) = cell(&row.cells[at], table.decimal_commas) else { continue };
                commas |= value != Value::Text(row.cells[at].clone());
                let place = || format!("row {} of {}", row.line, table.path.display());
                for &scan in &mine {
                    given.entry((scan, c)).or_default().entry(value.to_string()).or_insert_with(|| (value.clone(), place()));
                }
            }
        }
        let names = columns.iter().map(|&(_, at)| table.columns[at].as_str()).collect::<Vec<_>>().join(", ");
        let file = table.path.display();
        let said = match ids {
            Some(ids) => format!("{names}: from {file}, whose column `{}` names the scans", table.columns[ids]),
            None => format!("{names}: from the sessions of each person, NAME{SESSIONS_TABLE}"),
        };
        if !dataset.columns.notes.contains(&said) {
            dataset.columns.notes.push(said);
        }
        if commas {
            dataset.columns.notes.push(format!("{file}: commas in numbers are decimal ones"));
        }
        if !strangers.is_empty() {
            let distinct: BTreeSet<&str> = strangers.iter().copied().collect();
            let distinct: Vec<&str> = distinct.into_iter().collect();
            dataset.ignored.push(Problem::new(
                &table.path,
                format!("{} of {} rows have no scan{}", strangers.len(), table.rows.len(), told(&distinct)),
            ));
        }
    }
    for ((scan, c), values) in given {
        let (subject, name) = (&mut dataset.subjects[scan], &wanted.names[c]);
        let numbers: BTreeSet<Option<u64>> = values.keys().map(|text| text.parse().ok().map(f64::to_bits)).collect();
        // 63 and 63.0 are the same.
        if values.len() == 1 || numbers.len() == 1 && !numbers.contains(&None) {
            let (value, _) = values.into_values().next().expect("at least one value");
            subject.values.insert(name.clone(), value);
            continue;
        }
        let all: Vec<String> = values.values().map(|(value, place)| format!("{value} in {place}")).collect();
        let reason = format!(
            "column `{name}`: contradictory values, {}; if they are of several scans, give their ids (person/scan) in the table",
            all.join(", ")
        );
        let told = if wanted.optional { &mut dataset.ignored } else { &mut dataset.problems };
        told.push(Problem::new(&subject.id, reason));
    }
    for name in wanted.names {
        let unit = tables.iter().filter(|table| table.position(name).is_some()).find_map(|table| unit(table, name));
        dataset.columns.kept.push(Column { name: name.clone(), unit });
    }
    settle(&mut dataset.subjects, &dataset.columns.kept);
    Ok(())
}

/// The tables that have one of the columns; each column stands in one of them.
fn tables(dataset: &mut Dataset, found: &[PathBuf], wanted: WantedColumns) -> Result<Vec<Table>> {
    let (mut tables, mut seen): (Vec<Table>, Vec<String>) = (vec![], vec![]);
    match wanted.table {
        Some(path) => tables.push(Table::read(path)?),
        None => {
            let depth = |path: &Path| path.components().count();
            let mut used = None;
            for path in found {
                // Those further below are of single scans where one above them is of all.
                let has = |table: &Table, name: &String| table.position(name).is_some();
                let above = |name: &&String| {
                    used.is_none_or(|used| depth(path) == used) || !tables.iter().any(|table| has(table, name))
                };
                let open: Vec<&String> = wanted.names.iter().filter(above).collect();
                if open.is_empty() {
                    break;
                }
                match Table::read(path) {
                    Ok(table) if open.iter().any(|name| has(&table, name)) => {
                        used = Some(depth(path));
                        tables.push(table);
                    }
                    Ok(table) => seen.push(format!("{} has {}", path.display(), table.columns.join(", "))),
                    Err(error) => dataset.ignored.push(Problem::new(path, format!("{error:#}"))),
                }
            }
        }
    }
    for name in wanted.names {
        if tables.iter().any(|table| table.position(name).is_some()) {
            tables.iter().try_for_each(|table| table.check_once(name).with_context(|| table.path.display().to_string()))?;
            continue;
        }
        let there: Vec<String> =
            tables.iter().map(|t| format!("{} has {}", t.path.display(), t.columns.join(", "))).chain(seen).collect();
        ensure!(
            !there.is_empty(),
            "--column {name}: no table beside the scans (participants.tsv, or another .csv or .tsv); name it with --table"
        );
        bail!("--column {name}: no such column; {}", some(&there.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    Ok(tables)
}

/// The tables among files, the outermost first, BIDS's own before others.
pub fn among(files: &[PathBuf]) -> Vec<PathBuf> {
    let mut tables: Vec<PathBuf> = files.iter().filter(|path| is_table(path)).cloned().collect();
    tables.sort_by_key(|path| (path.components().count(), path.clone()));
    tables
}

/// The column that names most scans; of a table that is found, and names none, nothing.
fn ids(table: &Table, scans: &Known, wanted: WantedColumns) -> Result<Option<usize>> {
    let wants = |name: &String| wanted.names.iter().any(|wanted| wanted.eq_ignore_ascii_case(name));
    let hits = |column: usize| {
        let rows = table.rows.iter().take(LOOKED_AT);
        rows.flat_map(|row| scans.of_row(&row.cells[column], None)).collect::<BTreeSet<usize>>().len()
    };
    let candidates = match wanted.ids {
        Some(name) => vec![table.column(name)?],
        None => (0..table.columns.len()).filter(|&column| !wants(&table.columns[column])).collect(),
    };
    let best = candidates.iter().rev().map(|&column| (hits(column), column)).max_by_key(|found| found.0);
    let Some((hits, column)) = best else { bail!("{}: no column beside the wanted ones", table.path.display()) };
    if hits == 0 && !wanted.optional {
        let example = |texts: &mut dyn Iterator<Item = String>| texts.take(3).collect::<Vec<_>>().join(", ");
        ensure!(
            !scans.patients,
            "{}: no row names a scan; name the column of PatientIDs with --id-column",
            table.path.display()
        );
        bail!(
            "{}: no row names a scan; its column `{}` holds {}, the scans are {}; name the column of ids with --id-column, or write \
             the scans' ids, file names or people there",
            table.path.display(),
            table.columns[candidates[0]],
            example(&mut table.rows.iter().map(|row| row.cells[candidates[0]].clone())),
            example(&mut scans.ids.iter().cloned())
        );
    }
    Ok((hits > 0).then_some(column))
}

/// What the unit of a column is, as the JSON beside a BIDS table says.
fn unit(table: &Table, name: &str) -> Option<String> {
    let text = std::fs::read(table.path.with_extension("json")).ok()?;
    let described: serde_json::Value = serde_json::from_slice(&text).ok()?;
    Some(described.get(name)?.get("Units")?.as_str()?.to_owned())
}
