//! One of the fine-tunings that a sweep compares.

use crate::run::record::{RANDOM, SCRATCH};
use serde::{Deserialize, Serialize};

/// One fine-tuning of a sweep.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// Its folder in `cells/`.
    pub id: String,
    /// Tasks of the pretraining, or the name of given weights.
    pub pretext: String,
    /// From weights that the sweep is given, not from a pretraining of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub given: bool,
    pub arm: String,
    /// What the arm is a variant of, as `finetune --arm` takes it; none: itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Share of the labelled training subjects, 0 to 1.
    pub fraction: f64,
    /// How many they are, where the sweep says that and not the share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labelled: Option<u64>,
    pub seed: u64,
    /// Of a cross-validation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fold: Option<u64>,
    /// Share of the unlabelled scans that pretraining saw, 0 to 1.
    pub unlabelled: f64,
    pub rank: usize,
    /// Of a sweep that chooses rates: the learning rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
}

impl Cell {
    /// Not from pretrained weights.
    pub fn is_baseline(&self) -> bool {
        self.pretext == SCRATCH || self.pretext == RANDOM
    }

    /// From a pretraining of the sweep. Of other cells the share of unlabelled scans means nothing.
    pub fn is_pretrained_here(&self) -> bool {
        !self.given && !self.is_baseline()
    }

    /// As `finetune --arm` takes it.
    pub fn base(&self) -> &str {
        self.base.as_deref().unwrap_or(&self.arm)
    }
}
