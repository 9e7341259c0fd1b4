//! Trained networks at work: their inputs, the sliding window, back to a scan's own space, and the export.

pub mod embed;
pub mod ensemble;
pub mod export;
pub mod inputs;
pub mod model;
pub mod statistics;
pub mod targets;
pub mod window;
