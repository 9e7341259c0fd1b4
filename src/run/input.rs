//! What a network expects of its scans.

use crate::data::preprocess::Settings;
use crate::data::slices::Slices;
use crate::data::store::Store;
use serde::{Deserialize, Serialize};

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
}
