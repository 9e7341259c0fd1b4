//! What a network expects of its scans.

use crate::data::preprocess::Settings;
use crate::data::slices::Slices;
use crate::data::store::Store;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What an encoder expects of its input: how the scans it was trained on were prepared.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Input {
    /// Channel names, in order.
    pub channels: Vec<String>,
    pub preprocessing: Settings,
    /// Millimetres along the RAS+ axes of the stored grid, averaged over the scans (a cube's spacing differs from scan to scan).
    pub mean_spacing: [f64; 3],
    /// Of the store.
    pub fingerprint: String,
    /// How volumes are sliced for a network of images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slices: Option<Slices>,
}

impl Input {
    pub fn of(store: &Store) -> Self {
        let index = store.index();
        let n = index.subjects.len().max(1) as f64;
        Input {
            channels: index.channels.clone(),
            preprocessing: index.settings.clone(),
            mean_spacing: std::array::from_fn(|a| index.subjects.iter().map(|s| s.spacing[a]).sum::<f64>() / n),
            fingerprint: index.fingerprint.clone(),
            slices: store.slices(),
        }
    }

    /// What the description of a run (`input` as it is kept) or of an export says of the input; `None`: nothing.
    pub fn described(description: &Value) -> Result<Option<Input>> {
        let Some(input) = description.get("input") else { return Ok(None) };
        let mut input = input.clone();
        let map = input.as_object_mut().context("not a table")?;
        // An export's has the unit in the name, and the store's fingerprint stands beside it.
        if let Some(spacing) = map.remove("mean_spacing_mm") {
            map.insert("mean_spacing".into(), spacing);
            map.insert("fingerprint".into(), description.get("data_fingerprint").cloned().unwrap_or_default());
        }
        Ok(Some(serde_json::from_value(input)?))
    }
}
