//! Every finished cell as a row.

use super::read::Records;
use crate::fs::write_atomic;
use anyhow::Result;
use serde_json::Value;
use std::path::Path;

/// All fields that are one value; the further means as `scores.NAME`. What a cell does not have is empty.
pub fn write(path: &Path, records: &Records) -> Result<()> {
    let mut columns: Vec<String> = vec!["id".into()];
    let mut rows: Vec<Vec<(String, String)>> = Vec::new();
    for (cell, finished) in records.runs() {
        let mut row = vec![("id".to_string(), cell.id.clone())];
        row.extend(cell.base.as_ref().map(|_| ("variant".to_string(), cell.arm.clone())));
        row.extend(cell.lr.map(|lr| ("lr".to_string(), lr.to_string())));
        let Value::Object(fields) = serde_json::to_value(&finished.result)? else { unreachable!("a struct is an object") };
        for (name, value) in fields {
            match value {
                Value::Object(scores) => row.extend(scores.into_iter().map(|(k, v)| (format!("{name}.{k}"), scalar(&v)))),
                Value::Array(_) => {}
                value => row.push((name, scalar(&value))),
            }
        }
        columns.extend(row.iter().map(|(name, _)| name).filter(|name| !columns.contains(name)).cloned().collect::<Vec<_>>());
        rows.push(row);
    }
    write_atomic(path, |file| {
        let mut table = csv::Writer::from_writer(file);
        table.write_record(&columns)?;
        for row in &rows {
            table.write_record(columns.iter().map(|c| row.iter().find(|(name, _)| name == c).map_or("", |(_, v)| v)))?;
        }
        Ok(table.flush()?)
    })
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
