//! Between a store and a batch: windows and patches of scans, drawn from (seed, epoch, position) and prepared ahead of the training.

pub mod foreground;
pub mod loader;
pub mod mirror_zoom;
pub mod padded;
pub mod patch;
pub mod sampler;
pub mod size;
pub mod turned;
pub mod windows;
