//! Writing what was computed from a scan into the scan's own space: its format and its header, with other voxels.

use super::voxels::encode;
use super::{Header, Stored};
use crate::fs::write_atomic;
use anyhow::{Context, Result, bail, ensure};
use flate2::{Compression, write::GzEncoder};
use ndarray::{ArrayView3, ArrayView4, Axis};
use std::io::Write;
use std::path::Path;

/// Voxels to write in a scan's space, in the scan's byte order, the first axis fastest.
pub struct Made {
    /// `None`: a label, of one value a voxel.
    pub channels: Option<usize>,
    pub stored: Stored,
    pub voxels: Vec<u8>,
}

/// Writes classes `[i, j, k]` of a scan's voxels as label values (class `n` is `values[n]`) in a file with the scan's header
/// `like`: same format, shape, affine, units and text; as a whole compressed if the name ends in `.gz` or `.mgz`. The type is the first of
/// uint8, int16 and int32 that holds every value, also one that does not occur. The file appears whole or not at all.
///
/// Errors: classes of another shape than the header's, a class without a value, a value that int32 does not hold.
pub fn write_classes(path: &Path, like: &Header, classes: ArrayView3<u8>, values: &[i64]) -> Result<()> {
    let classes = classes.insert_axis(Axis(0));
    let made = same_shape(like, classes).and_then(|()| {
        let highest = classes.iter().max().map_or(0, |&class| class as usize);
        ensure!(highest < values.len(), "class {highest}, but there are {} label values", values.len());
        let value = |class: u8| values[class as usize];
        let (stored, voxels) = if values.iter().all(|&v| u8::try_from(v).is_ok()) {
            (Stored::Uint8, encode(classes, false, |class| [value(class) as u8]))
        } else if values.iter().all(|&v| i16::try_from(v).is_ok()) {
            let bytes = if like.big_endian { i16::to_be_bytes } else { i16::to_le_bytes };
            (Stored::Int16, encode(classes, false, |class| bytes(value(class) as i16)))
        } else if let Some(value) = values.iter().find(|&&v| i32::try_from(v).is_err()) {
            bail!("label value {value}, expected {} to {}", i32::MIN, i32::MAX)
        } else {
            let bytes = if like.big_endian { i32::to_be_bytes } else { i32::to_le_bytes };
            (Stored::Int32, encode(classes, false, |class| bytes(value(class) as i32)))
        };
        Ok(Made { channels: None, stored, voxels })
    });
    write(path, like, made)
}

/// As [`write_classes`], of float32 values `[C, i, j, k]`: a file of `C` channels.
pub fn write_floats(path: &Path, like: &Header, data: ArrayView4<f32>) -> Result<()> {
    let bytes = if like.big_endian { f32::to_be_bytes } else { f32::to_le_bytes };
    let made = same_shape(like, data).map(|()| {
        let voxels = encode(data, like.format.interleaves, bytes);
        Made { channels: Some(data.dim().0), stored: Stored::Float32, voxels }
    });
    write(path, like, made)
}

fn same_shape<T>(like: &Header, data: ArrayView4<T>) -> Result<()> {
    let (_, i, j, k) = data.dim();
    ensure!([i, j, k] == like.shape, "{:?} voxels, expected {:?} as in the scan's header", [i, j, k], like.shape);
    Ok(())
}

fn write(path: &Path, like: &Header, made: Result<Made>) -> Result<()> {
    let made = made.with_context(|| path.display().to_string())?;
    write_file(path, |file| (like.format.write)(like, &made, file))
}

/// Writes a whole file, compressed if its name says so.
pub fn write_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let gz = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz") || e.eq_ignore_ascii_case("mgz"));
    write_atomic(path, |file| {
        if gz {
            let mut stream = GzEncoder::new(file, Compression::fast());
            write(&mut stream)?;
            stream.finish()?;
            Ok(())
        } else {
            write(file)
        }
    })
}
