//! Transforms that draw parameters first and are then deterministic, so that each can be replayed exactly.

pub mod augment;
pub mod intensity;
pub mod mirror;
pub mod mr;
pub mod resample;
pub mod spatial;
