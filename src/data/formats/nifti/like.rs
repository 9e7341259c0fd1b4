//! Writing what was computed from a scan into the scan's own space: its header, with other voxels.

use super::header::{code, parse};
use super::write::{DataType, header};
use super::{NIFTI1, NIFTI2};
use crate::data::formats::write::Made;
use crate::data::formats::{Header, Stored};
use crate::data::volume::Affine;
use crate::dim::Shape;
use anyhow::{Result, ensure};
use std::io::Write;

/// Where a version of the format has the fields that depend on the voxels; all bytes are as in the file.
struct Places {
    /// `n+1` or `n+2`.
    magic: usize,
    /// Eight numbers of `dim_bytes` each.
    dim: usize,
    dim_bytes: usize,
    /// Two bytes, then two of `bitpix`.
    datatype: usize,
    offset: usize,
    /// Slope, then intercept.
    scale: usize,
    /// Maximum, then minimum shown.
    shown: usize,
    /// Statistical parameters, code and name of what the numbers mean.
    intent: [std::ops::Range<usize>; 3],
}

const PLACES: [Places; 2] = [
    Places {
        magic: 344,
        dim: 40,
        dim_bytes: 2,
        datatype: 70,
        offset: 108,
        scale: 112,
        shown: 124,
        intent: [56..68, 68..70, 328..344],
    },
    Places {
        magic: 4,
        dim: 16,
        dim_bytes: 8,
        datatype: 12,
        offset: 168,
        scale: 176,
        shown: 192,
        intent: [80..104, 504..508, 508..524],
    },
];

/// As [`Header::new`].
pub fn made_header(shape: Shape, affine: &Affine) -> Result<Header> {
    Ok(parse(&header(shape, 1, affine, DataType::Uint8)?[..NIFTI1])?.header)
}

/// The bytes before the voxels of a file with this one's header, but for what describes the voxels themselves: type, scale,
/// range to show, intent, and the axes after the third. `channels`: extent of the fourth axis, `None` to leave a file of one
/// channel as it is and to make any other 3D. Extensions are not kept.
fn header_like(like: &Header, channels: Option<usize>, stored: Stored) -> Result<Vec<u8>> {
    let second = like.raw.len() == NIFTI2;
    let places = &PLACES[usize::from(second)];
    let mut out = like.raw.clone();
    let mut put = |at: usize, value: &[u8]| {
        let to = &mut out[at..at + value.len()];
        to.copy_from_slice(value);
        if like.big_endian {
            to.reverse();
        }
    };
    let real = |value: f64| if second { value.to_le_bytes().to_vec() } else { (value as f32).to_le_bytes().to_vec() };
    if channels.is_some() || like.channels != 1 {
        let n = channels.unwrap_or(1);
        ensure!(second || n <= i16::MAX as usize, "{n} channels, expected up to {} in NIfTI-1", i16::MAX);
        let axes = [if n == 1 { 3 } else { 4 }, like.shape[0], like.shape[1], like.shape[2], n, 1, 1, 1];
        for (a, n) in axes.into_iter().enumerate() {
            put(places.dim + a * places.dim_bytes, &n.to_le_bytes()[..places.dim_bytes]);
        }
    }
    put(0, &(like.raw.len() as i32).to_le_bytes());
    put(places.datatype, &code(stored).to_le_bytes());
    put(places.datatype + 2, &(8 * stored.size() as i16).to_le_bytes());
    let width = if second { 8 } else { 4 };
    for (at, value) in [(places.scale, 1.0), (places.scale + width, 0.0), (places.shown, 0.0), (places.shown + width, 0.0)] {
        put(at, &real(value));
    }
    let first = like.raw.len() + 4;
    put(places.offset, &if second { (first as i64).to_le_bytes().to_vec() } else { real(first as f64) });
    out[places.magic + 1] = b'+';
    for place in &places.intent {
        out[place.clone()].fill(0);
    }
    out.extend([0; 4]);
    Ok(out)
}

/// Writes a single file with the header of `like`.
pub fn write_like(like: &Header, made: &mut Made, out: &mut dyn Write) -> Result<()> {
    out.write_all(&header_like(like, made.channels, made.stored)?)?;
    (made.voxels)(like.big_endian, out)
}
