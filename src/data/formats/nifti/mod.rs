//! NIfTI-1 and NIfTI-2 files: bytes to voxels and affine, and back.
//!
//! The `nifti` crate is not used: it has no NIfTI-2, reads extents as 16-bit numbers, allocates what a header claims before it
//! looks at the data, and converts voxels one at a time. The format is small, so header, reader and writer are our own; the
//! affine follows nibabel's rules and the tests compare every data type and orientation with nibabel.

mod header;
mod like;
mod read;
mod write;

pub use header::{Header, Stored};
pub use like::{write_classes, write_floats};
pub use read::{read, read_from, read_header, read_header_from, read_ras, read_ras_from};
pub use write::{DataType, write};

/// Size of a NIfTI-1 header, its first field.
const NIFTI1: usize = 348;
/// Size of a NIfTI-2 header, its first field.
const NIFTI2: usize = 540;
