//! NIfTI-1 and NIfTI-2 files: bytes to voxels and affine, and back.
//!
//! The `nifti` crate is not used: it has no NIfTI-2, reads extents as 16-bit numbers, allocates what a header claims before it
//! looks at the data, and converts voxels one at a time. The format is small, so header, reader and writer are our own; the
//! affine follows nibabel's rules and the tests compare every data type and orientation with nibabel.

mod analyze;
mod header;
mod like;
mod pair;
mod write;

pub use analyze::ANALYZE;
pub use like::made_header;
pub use pair::{header_file, header_stem, voxels_file, voxels_stem};
pub use write::{DataType, write};

use super::content::Content;
use super::voxels::{Voxels, skip_bytes};
use super::{Format, Header, compression};
use anyhow::{Context, Result};
use header::{Parsed, parse, read_header, size};
use std::fs::File;
use std::io::Read;
use std::path::Path;

pub static FORMAT: Format = Format {
    name: "NIfTI",
    endings: &[".nii", ".hdr"],
    headers: &[],
    is: |start| size(start).is_some(),
    open,
    written: ".nii.gz",
    interleaves: false,
    write: like::write_like,
};

/// Size of a NIfTI-1 header, its first field.
const NIFTI1: usize = 348;
/// Size of a NIfTI-2 header, its first field.
const NIFTI2: usize = 540;

fn open(content: Content) -> Result<(Header, Voxels)> {
    let Content { mut stream, path } = content;
    let parsed = parse(&read_header(&mut stream)?)?;
    if parsed.pair {
        let path = path.context("header of a .hdr/.img pair, expected a single file")?;
        return Ok(open_voxels(parsed, &path));
    }
    let Parsed { header, offset, .. } = parsed;
    let passed = header.raw.len();
    Ok((header, Voxels::here(stream, passed, offset)))
}

/// The voxels of a pair whose header is `path`.
fn open_voxels<'a>(parsed: Parsed, path: &Path) -> (Header, Voxels<'a>) {
    let Parsed { header, offset, .. } = parsed;
    let voxels = pair::voxels_file(path);
    let beside = voxels.as_ref().ok().cloned().into_iter().collect();
    let open = move || {
        let mut stream = compression::decompressed(File::open(voxels?)?)?;
        skip_bytes(&mut stream, offset)?;
        Ok(Box::new(stream) as Box<dyn Read>)
    };
    (header, Voxels { beside, ..Voxels::from_stream(open) })
}
