//! What people look at: pictures, curves, tables and progress. Formats numbers, computes none.

mod canvas;
pub mod sheet;
