//! Files of scans and photographs, one format a file.

pub mod image;
pub mod nifti;
