//! What people look at: pictures, curves, tables and progress. Formats numbers, computes none.

mod canvas;
pub mod cases;
mod chart;
pub mod classes;
pub mod confusion;
pub mod curves;
pub mod embeddings;
pub mod progress;
pub mod quantities;
pub mod scores;
pub mod sheet;
pub mod study;
mod surface;
mod svg;
pub mod tensorboard;
