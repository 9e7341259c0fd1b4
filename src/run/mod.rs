//! What a run is on disk: its folder, tensors, split, history and record, and the weights that it hands on. Knows no training loop.

pub mod decoder;
pub mod folder;
pub mod history;
pub mod input;
pub mod means;
pub mod plan;
pub mod published;
pub mod record;
pub mod seen;
pub mod split;
pub mod tensors;
pub mod tuned;
pub mod weights;
