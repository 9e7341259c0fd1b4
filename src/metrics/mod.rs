//! Scores of segmentations: numbers only. Knows no libtorch and no files.

pub mod case;
pub mod overlap;
pub mod summary;
pub mod surface;
