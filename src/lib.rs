//! Self-supervised pretraining of 3D and 2D encoders on medical volumes.
//!
//! Arrays are `[C, D, H, W]`, row-major. The three spatial axes are the RAS+ axes in nibabel's order: `D` runs from left to
//! right, `H` from posterior to anterior, `W` from inferior to superior. A 2D image is a volume with `D = 1`.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod cli;
pub mod data;
pub mod device;
pub mod dim;
pub mod ffi;
pub mod finetune;
pub mod fs;
pub mod group;
pub mod machine;
pub mod metrics;
pub mod nn;
pub mod predict;
pub mod print;
pub mod pth;
pub mod readout;
pub mod report;
pub mod rng;
pub mod run;
pub mod sample;
pub mod settings;
pub mod shard;
pub mod study;
pub mod sweep;
pub mod tasks;
pub mod train;
pub mod transform;
