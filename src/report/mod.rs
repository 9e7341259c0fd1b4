//! What people look at: pictures, curves, tables and progress. Formats numbers, computes none.

mod canvas;
pub mod cases;
pub mod curves;
pub mod history;
pub mod progress;
pub mod scores;
pub mod sheet;
pub mod tensorboard;
