//! Features of scans as files.

use crate::fs::write_atomic;
use crate::metrics::agreement::Confusion;
use crate::readout::cross::Readout;
use crate::run::tensors::{EXPORT_VERSION, Tensors, save_safetensors};
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;
use tch::Tensor;

/// Features of one scan.
pub struct Embedding {
    pub id: String,
    pub class: Option<u8>,
    /// The fold that tests it, where it is scored.
    pub fold: Option<u64>,
    /// A vector a level, finest first, float32.
    pub levels: Vec<Tensor>,
}

/// The score of a readout on some of the features.
pub struct Scored {
    /// `deepest` or `all` levels; `None`: on none.
    pub features: Option<&'static str>,
    pub readout: Readout,
    pub confusion: Confusion,
}

/// Writes a row a scan: `id`, `class` and `fold` if any class is known, and each feature, `level0.channel0`, ...
pub fn write_csv(path: &Path, embeddings: &[Embedding]) -> Result<()> {
    let known = embeddings.iter().any(|e| e.class.is_some());
    let mut head = vec!["id".to_owned()];
    head.extend(["class", "fold"].into_iter().filter(|_| known).map(str::to_owned));
    let first = embeddings.first().map_or(&[][..], |e| &e.levels);
    let names = |(level, x): (usize, &Tensor)| (0..x.numel()).map(move |c| format!("level{level}.channel{c}"));
    head.extend(first.iter().enumerate().flat_map(names));
    write_atomic(path, |file| {
        let mut table = csv::Writer::from_writer(file);
        table.write_record(&head)?;
        for Embedding { id, class, fold, levels } in embeddings {
            let mut cells = vec![id.clone()];
            if known {
                cells.push(class.map_or(String::new(), |class| class.to_string()));
                cells.push(fold.map_or(String::new(), |fold| fold.to_string()));
            }
            for level in levels {
                cells.extend(Vec::<f32>::try_from(level)?.iter().map(f32::to_string));
            }
            table.write_record(&cells)?;
        }
        Ok(table.flush()?)
    })
}

/// Writes `level0` `[scans, channels]`, ..., and `class` `[scans]`, -1 where it is not known, if any is; the ids are in the metadata, as a
/// JSON list.
pub fn write_safetensors(path: &Path, embeddings: &[Embedding]) -> Result<()> {
    let levels = embeddings.first().map_or(0, |e| e.levels.len());
    let stack = |level: usize| Tensor::stack(&embeddings.iter().map(|e| &e.levels[level]).collect::<Vec<_>>(), 0);
    let mut tensors: Tensors = (0..levels).map(|level| (format!("level{level}"), stack(level))).collect();
    if embeddings.iter().any(|e| e.class.is_some()) {
        let classes: Vec<i64> = embeddings.iter().map(|e| e.class.map_or(-1, i64::from)).collect();
        tensors.insert("class".into(), Tensor::from_slice(&classes));
    }
    let ids: Vec<&str> = embeddings.iter().map(|e| e.id.as_str()).collect();
    let metadata = [("ids", serde_json::to_string(&ids)?), ("version", EXPORT_VERSION.to_string())];
    save_safetensors(path, &tensors, HashMap::from(metadata.map(|(key, value)| (key.to_owned(), value))))
}

/// Scores by features and readout, for a JSON file.
pub fn scores_json(scores: &[Scored]) -> Value {
    let mut table = Map::new();
    for Scored { features, readout, confusion } in scores {
        let score = json!({ "quadratic_weighted_kappa": confusion.weighted_kappa(), "accuracy": confusion.accuracy() });
        let row = match features {
            Some(features) => table.entry(*features).or_insert_with(|| json!({})).as_object_mut().expect("a table"),
            None => &mut table,
        };
        row.insert(readout.name(), score);
    }
    Value::Object(table)
}

/// A line a score, for people.
pub fn scores_text(scores: &[Scored]) -> Vec<String> {
    let line = |Scored { features, readout, confusion }: &Scored| {
        format!("{:<8} {:<10} {confusion}", features.map_or("", |name| name), readout.name())
    };
    scores.iter().map(line).collect()
}
