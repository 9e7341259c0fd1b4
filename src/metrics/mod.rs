//! Scores of segmentations and of classes: numbers only. Knows no libtorch and no files.

pub mod agreement;
pub mod brats;
pub mod case;
pub mod overlap;
pub mod summary;
pub mod surface;
pub mod table;
