//! Features of scans as files.

use crate::fs::write_atomic;
use crate::readout::cross::Readout;
use crate::readout::truth::Score;
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
    /// Its quantity, where that is asked for.
    pub value: Option<f64>,
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
    pub score: Score,
}

impl Embedding {
    /// Whether something is known of the scan that features are to say.
    pub fn is_known(&self) -> bool {
        self.class.is_some() || self.value.is_some()
    }
}

impl Scored {
    fn readout(&self) -> String {
        match (self.readout, &self.score) {
            (Readout::Baseline, Score::Classes(_)) => "majority".into(),
            (Readout::Baseline, Score::Quantity(_)) => "mean".into(),
            (Readout::Linear, _) => "linear".into(),
            (Readout::Nearest(k), _) => format!("nearest_{k}"),
        }
    }
}

/// Writes a row a scan: `id`, `class` or `value` and `fold` if any is known, and each feature, `level0.channel0`, ...
pub fn write_csv(path: &Path, embeddings: &[Embedding]) -> Result<()> {
    let known = embeddings.iter().any(Embedding::is_known);
    let truth = if embeddings.iter().any(|e| e.value.is_some()) { "value" } else { "class" };
    let mut head = vec!["id".to_owned()];
    head.extend([truth, "fold"].into_iter().filter(|_| known).map(str::to_owned));
    let first = embeddings.first().map_or(&[][..], |e| &e.levels);
    let names = |(level, x): (usize, &Tensor)| (0..x.numel()).map(move |c| format!("level{level}.channel{c}"));
    head.extend(first.iter().enumerate().flat_map(names));
    write_atomic(path, |file| {
        let mut table = csv::Writer::from_writer(file);
        table.write_record(&head)?;
        for Embedding { id, class, value, fold, levels } in embeddings {
            let mut cells = vec![id.clone()];
            if known {
                let truth = class.map(|class| class.to_string()).or(value.map(|value| value.to_string()));
                cells.push(truth.unwrap_or_default());
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

/// Writes `level0` `[scans, channels]`, ..., and, if any is known, `class` `[scans]`, -1 where it is not, or `value` `[scans]`, float64, NaN
/// where it is not; the ids are in the metadata, as a JSON list.
pub fn write_safetensors(path: &Path, embeddings: &[Embedding]) -> Result<()> {
    let levels = embeddings.first().map_or(0, |e| e.levels.len());
    let stack = |level: usize| Tensor::stack(&embeddings.iter().map(|e| &e.levels[level]).collect::<Vec<_>>(), 0);
    let mut tensors: Tensors = (0..levels).map(|level| (format!("level{level}"), stack(level))).collect();
    if embeddings.iter().any(|e| e.class.is_some()) {
        let classes: Vec<i64> = embeddings.iter().map(|e| e.class.map_or(-1, i64::from)).collect();
        tensors.insert("class".into(), Tensor::from_slice(&classes));
    }
    if embeddings.iter().any(|e| e.value.is_some()) {
        let values: Vec<f64> = embeddings.iter().map(|e| e.value.unwrap_or(f64::NAN)).collect();
        tensors.insert("value".into(), Tensor::from_slice(&values));
    }
    let ids: Vec<&str> = embeddings.iter().map(|e| e.id.as_str()).collect();
    let metadata = [("ids", serde_json::to_string(&ids)?), ("version", EXPORT_VERSION.to_string())];
    save_safetensors(path, &tensors, HashMap::from(metadata.map(|(key, value)| (key.to_owned(), value))))
}

/// Scores by features and readout, for a JSON file.
pub fn scores_json(scores: &[Scored]) -> Value {
    let mut table = Map::new();
    for scored in scores {
        let score = match &scored.score {
            Score::Classes(confusion) => {
                json!({ "quadratic_weighted_kappa": confusion.weighted_kappa(), "accuracy": confusion.accuracy() })
            }
            Score::Quantity(errors) => {
                json!({ "mean_absolute_error": errors.mean_absolute(), "r_squared": errors.r_squared() })
            }
        };
        let row = match scored.features {
            Some(features) => table.entry(features).or_insert_with(|| json!({})).as_object_mut().expect("a table"),
            None => &mut table,
        };
        row.insert(scored.readout(), score);
    }
    Value::Object(table)
}

/// A line a score, for people.
pub fn scores_text(scores: &[Scored]) -> Vec<String> {
    let line =
        |scored: &Scored| format!("{:<8} {:<10} {}", scored.features.map_or("", |name| name), scored.readout(), scored.score);
    scores.iter().map(line).collect()
}
