//! Scores of segmentations and of classes and quantities: numbers only. Knows no libtorch and no files.

pub mod agreement;
pub mod brats;
pub mod case;
pub mod errors;
pub mod overlap;
pub mod regions;
pub mod summary;
pub mod surface;
pub mod table;
