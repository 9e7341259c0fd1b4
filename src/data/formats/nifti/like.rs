//! Writing what was computed from a scan into the scan's own space: its header, with other voxels.

use super::NIFTI2;
use super::header::Header;
use super::write::{DataType, encode, header, write_bytes};
use crate::data::volume::Affine;
use crate::dim::Shape;
use anyhow::{Context, Result, bail, ensure};
use ndarray::{ArrayView3, ArrayView4, Axis};
use std::path::Path;

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

impl Header {
    /// Of a new NIfTI-1 file: sform and qform hold the affine. Errors: a singular affine, an extent of 0 or above 32767.
    pub fn new(shape: Shape, affine: &Affine) -> Result<Header> {
        Header::parse(&mut &header(shape, 1, affine, DataType::Uint8)?[..])
    }

    /// The bytes before the voxels of a file with this one's header, but for what describes the voxels themselves: type, scale,
    /// range to show, intent, and the axes after the third. `channels`: extent of the fourth axis, `None` to leave a file of one
    /// channel as it is and to make any other 3D. Extensions are not kept.
    fn like(&self, channels: Option<usize>, datatype: i16, bytes: usize) -> Result<Vec<u8>> {
        let second = self.raw.len() == NIFTI2;
        let places = &PLACES[usize::from(second)];
        let mut out = self.raw.clone();
        let mut put = |at: usize, value: &[u8]| {
            let to = &mut out[at..at + value.len()];
            to.copy_from_slice(value);
            if self.big_endian {
                to.reverse();
            }
        };
        let real = |value: f64| if second { value.to_le_bytes().to_vec() } else { (value as f32).to_le_bytes().to_vec() };
        if channels.is_some() || self.channels != 1 {
            let n = channels.unwrap_or(1);
            ensure!(second || n <= i16::MAX as usize, "{n} channels, expected up to {} in NIfTI-1", i16::MAX);
            let axes = [if n == 1 { 3 } else { 4 }, self.shape[0], self.shape[1], self.shape[2], n, 1, 1, 1];
            for (a, n) in axes.into_iter().enumerate() {
                put(places.dim + a * places.dim_bytes, &n.to_le_bytes()[..places.dim_bytes]);
            }
        }
        put(places.datatype, &datatype.to_le_bytes());
        put(places.datatype + 2, &(8 * bytes as i16).to_le_bytes());
        let width = if second { 8 } else { 4 };
        for (at, value) in [(places.scale, 1.0), (places.scale + width, 0.0), (places.shown, 0.0), (places.shown + width, 0.0)]
        {
            put(at, &real(value));
        }
        let first = self.raw.len() + 4;
        put(places.offset, &if second { (first as i64).to_le_bytes().to_vec() } else { real(first as f64) });
        out[places.magic + 1] = b'+';
        for place in &places.intent {
            out[place.clone()].fill(0);
        }
        out.extend([0; 4]);
        Ok(out)
    }
}

/// Writes classes `[i, j, k]` of a scan's voxels as label values (class `n` is `values[n]`) in a file with the scan's header
/// `like`: same shape, affine, units and text; compressed if the name ends in `.gz`. The type is the first of uint8, int16 and int32 that
/// holds every value, also one that does not occur. The file appears whole or not at all.
///
/// Errors: classes of another shape than the header's, a class without a value, a value that int32 does not hold.
pub fn write_classes(path: &Path, like: &Header, classes: ArrayView3<u8>, values: &[i64]) -> Result<()> {
    let classes = classes.insert_axis(Axis(0));
    let made = same_shape(like, classes).and_then(|()| {
        let highest = classes.iter().max().map_or(0, |&class| class as usize);
        ensure!(highest < values.len(), "class {highest}, but there are {} label values", values.len());
        let value = |class: u8| values[class as usize];
        Ok(if values.iter().all(|&v| u8::try_from(v).is_ok()) {
            (like.like(None, 2, 1)?, encode(classes, |class| [value(class) as u8]))
        } else if values.iter().all(|&v| i16::try_from(v).is_ok()) {
            let bytes = if like.big_endian { i16::to_be_bytes } else { i16::to_le_bytes };
            (like.like(None, 4, 2)?, encode(classes, |class| bytes(value(class) as i16)))
        } else if let Some(value) = values.iter().find(|&&v| i32::try_from(v).is_err()) {
            bail!("label value {value}, expected {} to {}", i32::MIN, i32::MAX)
        } else {
            let bytes = if like.big_endian { i32::to_be_bytes } else { i32::to_le_bytes };
            (like.like(None, 8, 4)?, encode(classes, |class| bytes(value(class) as i32)))
        })
    });
    let (header, voxels) = made.with_context(|| path.display().to_string())?;
    write_bytes(path, &header, &voxels)
}

/// As [`write_classes`], of float32 values `[C, i, j, k]`: a 4D file, channels last.
pub fn write_floats(path: &Path, like: &Header, data: ArrayView4<f32>) -> Result<()> {
    let made = same_shape(like, data).and_then(|()| like.like(Some(data.dim().0), 16, 4));
    let header = made.with_context(|| path.display().to_string())?;
    let bytes = if like.big_endian { f32::to_be_bytes } else { f32::to_le_bytes };
    write_bytes(path, &header, &encode(data, bytes))
}

fn same_shape<T>(like: &Header, data: ArrayView4<T>) -> Result<()> {
    let (_, i, j, k) = data.dim();
    ensure!([i, j, k] == like.shape, "{:?} voxels, expected {:?} as in the scan's header", [i, j, k], like.shape);
    Ok(())
}
