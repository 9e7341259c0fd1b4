//! Writing what was computed from a scan into the scan's own space: its format and its header, with other voxels.

use super::{Header, Stored};
use crate::fs::write_atomic;
use anyhow::{Context, Result, bail};
use flate2::{Compression, write::GzEncoder};
use std::io::Write;
use std::path::Path;

/// Voxels to write in a scan's space.
pub struct Made<'a> {
    /// `None`: a label, of one value a voxel.
    pub channels: Option<usize>,
    pub stored: Stored,
    /// Writes all of them, the first axis fastest, in big-endian order or not, as often as it is called.
    pub voxels: &'a mut dyn FnMut(bool, &mut dyn Write) -> Result<()>,
}

/// Writes the classes of a scan's voxels as label values (class `n` is `values[n]`) in a file with the scan's header
/// `like`: same format, shape, affine, units and text; as a whole compressed if the name ends in `.gz` or `.mgz`. `slice` fills in the
/// classes at a place of the third axis, the first axis fastest. The type is the first of uint8, int16 and int32 that holds every value,
/// also one that does not occur. The file appears whole or not at all.
///
/// Errors: a class without a value, a value that int32 does not hold.
pub fn write_classes(path: &Path, like: &Header, slice: &mut dyn FnMut(usize, &mut [u8]), values: &[i64]) -> Result<()> {
    let stored = if values.iter().all(|&v| u8::try_from(v).is_ok()) {
        Stored::Uint8
    } else if values.iter().all(|&v| i16::try_from(v).is_ok()) {
        Stored::Int16
    } else if let Some(value) = values.iter().find(|&&v| i32::try_from(v).is_err()) {
        bail!("{}: label value {value}, expected {} to {}", path.display(), i32::MIN, i32::MAX)
    } else {
        Stored::Int32
    };
    let [i, j, k] = like.shape;
    let mut classes = vec![0; i * j];
    let voxels = &mut |big_endian: bool, out: &mut dyn Write| {
        let n = stored.size();
        // The last bytes of a whole number of 64 bits, the first ones in the other order.
        let bytes =
            |value: &i64| if big_endian { value.to_be_bytes()[8 - n..].to_vec() } else { value.to_le_bytes()[..n].to_vec() };
        let values: Vec<Vec<u8>> = values.iter().map(bytes).collect();
        let mut encoded = Vec::with_capacity(n * classes.len());
        for k in 0..k {
            slice(k, &mut classes);
            encoded.clear();
            for &class in &classes {
                let value = values.get(usize::from(class));
                encoded.extend_from_slice(
                    value.with_context(|| format!("class {class}, but there are {} label values", values.len()))?,
                );
            }
            out.write_all(&encoded)?;
        }
        Ok(())
    };
    write(path, like, &mut Made { channels: None, stored, voxels })
}

/// Fills in the values of a channel at a place of the third axis, the first axis fastest.
pub type ChannelSlice<'a> = &'a mut dyn FnMut(usize, usize, &mut [f32]) -> Result<()>;

/// As [`write_classes`], of float32 values: a file of so many channels.
pub fn write_floats(path: &Path, like: &Header, channels: usize, slice: ChannelSlice) -> Result<()> {
    let [i, j, k] = like.shape;
    let interleaved = if like.format.interleaves { channels } else { 1 };
    let mut values = vec![0.0; i * j];
    let voxels = &mut |big_endian: bool, out: &mut dyn Write| {
        let bytes = if big_endian { f32::to_be_bytes } else { f32::to_le_bytes };
        let mut encoded = vec![[0; size_of::<f32>()]; interleaved * values.len()];
        for first in (0..channels).step_by(interleaved.max(1)) {
            for k in 0..k {
                for beside in 0..interleaved {
                    slice(first + beside, k, &mut values)?;
                    let to = encoded.iter_mut().skip(beside).step_by(interleaved);
                    to.zip(&values).for_each(|(to, &value)| *to = bytes(value));
                }
                out.write_all(encoded.as_flattened())?;
            }
        }
        Ok(())
    };
    write(path, like, &mut Made { channels: Some(channels), stored: Stored::Float32, voxels })
}

fn write(path: &Path, like: &Header, made: &mut Made) -> Result<()> {
    write_file(path, |file| (like.format.write)(like, made, file))
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
