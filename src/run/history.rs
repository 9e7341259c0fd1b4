//! A run's numbers, one row an epoch: `metrics.jsonl`, which resuming reads back, and `metrics.csv`, for spreadsheets.

use crate::fs::write_atomic;
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};
use std::io::Write;
use std::path::{Path, PathBuf};

/// One epoch's numbers, in the order they were added. Columns of the two halves of the data are `train/...` and `val/...`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// From 1.
    pub epoch: usize,
    values: Vec<(String, f64)>,
}

impl Row {
    pub fn new(epoch: usize) -> Self {
        Row { epoch, values: Vec::new() }
    }

    /// Sets a column; `epoch` is the row's own.
    pub fn set(&mut self, column: impl Into<String>, value: f64) {
        let column = column.into();
        match self.values.iter_mut().find(|(c, _)| *c == column) {
            Some(old) => old.1 = value,
            None => self.values.push((column, value)),
        }
    }

    pub fn get(&self, column: &str) -> Option<f64> {
        self.values.iter().find(|(c, _)| c == column).map(|&(_, v)| v)
    }

    /// Columns and values beside the epoch.
    pub fn values(&self) -> &[(String, f64)] {
        &self.values
    }

    fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("epoch".into(), self.epoch.into());
        // JSON knows no NaN or infinity: they become null.
        map.extend(self.values.iter().map(|(c, v)| (c.clone(), Value::from(*v))));
        Value::Object(map)
    }

    fn from_json(line: &str) -> Result<Row> {
        let map: Map<String, Value> = serde_json::from_str(line)?;
        let epoch = map.get("epoch").and_then(Value::as_u64).context("expected a whole number as \"epoch\"")?;
        let mut row = Row::new(epoch as usize);
        for (column, value) in map.into_iter().filter(|(c, _)| c != "epoch") {
            let value = if value.is_null() { Some(f64::NAN) } else { value.as_f64() };
            let value = value.with_context(|| format!("expected a number as {column:?}"))?;
            row.values.push((column, value));
        }
        Ok(row)
    }
}

/// The rows of a run and their two files, which are whole at every moment.
pub struct History {
    folder: PathBuf,
    rows: Vec<Row>,
}

impl History {
    /// The history of the run in `folder`, up to and including epoch `upto_epoch`: a killed run may have written rows beyond
    /// its last checkpoint, and they are removed from the files. `None` starts an empty history.
    pub fn open(folder: &Path, upto_epoch: Option<usize>) -> Result<History> {
        let mut rows = Vec::new();
        if let Some(last) = upto_epoch {
            rows = History::read(folder)?;
            rows.retain(|r| r.epoch <= last);
        }
        let history = History { folder: folder.to_path_buf(), rows };
        history.write()?;
        Ok(history)
    }

    /// The rows in a run's folder; none if it has no history yet. An incomplete last line is left out; any other malformed
    /// line is an error with its number.
    pub fn read(folder: &Path) -> Result<Vec<Row>> {
        let path = folder.join("metrics.jsonl");
        let text = match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            text => text.with_context(|| path.display().to_string())?,
        };
        let mut rows = Vec::new();
        let mut lines = text.split_inclusive('\n').enumerate().peekable();
        while let Some((i, line)) = lines.next() {
            match Row::from_json(line) {
                Ok(row) => rows.push(row),
                Err(_) if lines.peek().is_none() && !line.ends_with('\n') => {}
                Err(e) => bail!("{} line {}: {e}", path.display(), i + 1),
            }
        }
        Ok(rows)
    }

    /// Adds a row and writes both files. To be called before the epoch's checkpoint is written, so that no checkpoint lacks
    /// its row.
    pub fn append(&mut self, row: Row) -> Result<()> {
        self.rows.push(row);
        self.write()
    }

    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Both files anew: they are small, and so neither a crash nor a new column leaves anything to repair.
    fn write(&self) -> Result<()> {
        write_atomic(&self.folder.join("metrics.jsonl"), |file| {
            for row in &self.rows {
                writeln!(file, "{}", row.to_json())?;
            }
            Ok(())
        })?;
        let mut columns: Vec<&str> = Vec::new();
        for (column, _) in self.rows.iter().flat_map(|r| &r.values) {
            if !columns.contains(&column.as_str()) {
                columns.push(column);
            }
        }
        write_atomic(&self.folder.join("metrics.csv"), |file| {
            let mut table = csv::Writer::from_writer(file);
            table.write_record(std::iter::once("epoch").chain(columns.iter().copied()))?;
            for row in &self.rows {
                let cells = columns.iter().map(|c| row.get(c).map(|v| v.to_string()).unwrap_or_default());
                table.write_record(std::iter::once(row.epoch.to_string()).chain(cells))?;
            }
            Ok(table.flush()?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn row(epoch: usize, values: &[(&str, f64)]) -> Row {
        let mut row = Row::new(epoch);
        values.iter().for_each(|&(c, v)| row.set(c, v));
        row
    }

    #[test]
    fn resuming_restores_the_rows_up_to_the_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let rows = [
            row(1, &[("train/loss", 0.1 + 0.2), ("lr", 1e-3)]),
            row(2, &[("train/loss", f64::NAN), ("lr", 1e-300)]),
            row(3, &[("train/loss", -1.5), ("lr", 0.0), ("val/loss", 2.0)]),
        ];
        let mut history = History::open(folder.path(), None).unwrap();
        rows.iter().for_each(|r| history.append(r.clone()).unwrap());
        let csv = fs::read_to_string(folder.path().join("metrics.csv")).unwrap();
        let expected = format!("epoch,train/loss,lr,val/loss\n1,{},0.001,\n2,NaN,{},\n3,-1.5,0,2\n", 0.1 + 0.2, 1e-300);
        assert_eq!(csv, expected);

        // A process killed within a line, two rows past its checkpoint.
        let path = folder.path().join("metrics.jsonl");
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{whole}{{\"epoch\":4,\"train/lo")).unwrap();
        assert_eq!(History::read(folder.path()).unwrap().len(), 3);
        let history = History::open(folder.path(), Some(2)).unwrap();
        assert_eq!(history.rows()[0], rows[0]);
        assert!(history.rows()[1].get("train/loss").unwrap().is_nan());
        assert_eq!(history.rows()[1].get("lr"), Some(1e-300));
        assert_eq!(fs::read_to_string(&path).unwrap(), whole.lines().take(2).map(|l| format!("{l}\n")).collect::<String>());

        fs::write(&path, format!("nonsense\n{whole}")).unwrap();
        let error = format!("{:#}", History::read(folder.path()).unwrap_err());
        assert!(error.contains("metrics.jsonl line 1"), "{error}");
        assert!(History::open(folder.path(), None).unwrap().rows().is_empty());
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
    }
}
