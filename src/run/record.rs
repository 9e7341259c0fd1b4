//! `result.json` of a finished run: what a study compares.

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::Path;

/// Version of results and of `sweep.json`.
pub const VERSION: u64 = 1;

/// `pretext` of the cells without pretrained weights: all trained from random weights, and `frozen` random ones.
pub const SCRATCH: &str = "scratch";
pub const RANDOM: &str = "random";

/// The arm whose encoder is never trained, as `finetune --arm` takes it.
pub const FROZEN: &str = "frozen";

/// Of a fine-tuning.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellResult {
    pub version: u64,
    pub task: String,
    pub pretext: String,
    pub arm: String,
    pub fraction: f64,
    pub seed: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fold: Option<u64>,
    pub unlabelled: f64,
    pub rank: usize,
    pub epochs: usize,
    /// The tested one.
    pub best_epoch: usize,
    /// Column `val/...` of the history.
    pub validation_metric: String,
    pub seconds: f64,
    pub peak_memory_mib: Option<f64>,
    /// As flags name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<String>,
    pub weights: Option<String>,
    pub weights_fingerprint: Option<String>,
    /// Where the weights were trained on another input, or on the subjects of this split.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    pub data_fingerprint: String,
    pub split_fingerprint: String,
    pub train_subjects: usize,
    pub val_subjects: usize,
    pub test_subjects: usize,
    /// Name of the score.
    pub metric: String,
    /// Such as an error.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lower_is_better: bool,
    /// On the test subjects; none where it is undefined.
    pub score: Option<f64>,
    /// Further means.
    pub scores: Map<String, Value>,
    pub cases: Vec<CaseScore>,
}

/// The score of one test case.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseScore {
    pub id: String,
    pub score: Option<f64>,
}

/// Of a pretraining.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainResult {
    pub version: u64,
    pub pretext: String,
    pub unlabelled: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// Where the weights that it started from were trained on another input.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    pub metric: String,
    /// On held-out scans; none where it is undefined.
    pub value: Option<f64>,
    /// Value of a network that knows nothing.
    pub chance: Option<f64>,
    pub seconds: f64,
    pub epochs: usize,
}

/// Where a run's record is; written when all else is done.
pub const RESULT: &str = "result.json";

/// Reads a record; errors on another version, and on unknown or missing fields.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let value: Value = serde_json::from_str(&text).with_context(|| format!("{}: not valid JSON", path.display()))?;
    // A newer file has other fields: its version is the reason to name.
    let version = value.get("version").and_then(Value::as_u64);
    let version = version.with_context(|| format!("{}: expected a whole number as `version`", path.display()))?;
    ensure!(version == VERSION, "{}: version {version}, this program reads {VERSION}", path.display());
    serde_json::from_value(value).with_context(|| path.display().to_string())
}
