//! Training: device and precision, batches, the loop, and what stops it.

pub mod config;
pub mod network;
pub mod optim;
pub mod pretrain;
pub mod probe;
pub mod schedule;
pub mod session;
pub mod stop;
pub mod trainer;
