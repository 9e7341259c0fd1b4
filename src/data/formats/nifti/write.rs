//! Writing NIfTI-1.

use super::NIFTI1;
use crate::data::formats::voxels::encode;
use crate::data::formats::write::write_file;
use crate::data::volume::{Affine, Volume, determinant, rotation, spacing};
use crate::dim::Shape;
use anyhow::{Context, Result, bail, ensure};
use std::path::Path;

/// How voxels are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataType {
    Uint8,
    Int16,
    Float32,
}

/// Voxels begin here: the header, and four bytes that say "no extensions".
const OFFSET: usize = NIFTI1 + 4;

/// Writes `[C, i, j, k]` as a NIfTI-1 file, compressed if the name ends in `.gz`; with `C > 1` it is 4D, channels last. Both
/// sform and qform hold the affine (the qform without its shears), in millimetres. The file appears whole or not at all.
///
/// For integer types voxels are rounded to the nearest (ties to even). Errors: a voxel that is not finite or does not fit the
/// integer type, a singular affine, an extent of 0 or above 32767.
pub fn write(path: &Path, volume: &Volume, kind: DataType) -> Result<()> {
    let named = || path.display().to_string();
    let header = header(volume.shape(), volume.channels(), &volume.affine, kind).with_context(named)?;
    let voxels = match kind {
        DataType::Uint8 => integers(volume, 0.0, 255.0, "uint8", |v| [v as u8]),
        DataType::Int16 => integers(volume, -32768.0, 32767.0, "int16", |v| (v as i16).to_le_bytes()),
        DataType::Float32 => Ok(encode(volume.data.view(), f32::to_le_bytes)),
    }
    .with_context(named)?;
    write_file(path, |file| {
        file.write_all(&header)?;
        Ok(file.write_all(&voxels)?)
    })
}

fn integers<const N: usize>(
    volume: &Volume,
    low: f32,
    high: f32,
    name: &str,
    bytes: impl Fn(f32) -> [u8; N],
) -> Result<Vec<u8>> {
    // NaN is in no range, so it is an error too.
    let fits = |v: f32| (low..=high).contains(&v.round_ties_even());
    if !volume.data.iter().all(|&v| fits(v)) {
        let (at, v) = volume.data.indexed_iter().find(|&(_, &v)| !fits(v)).expect("one does not fit");
        bail!("voxel {at:?} is {v}, expected {low} to {high} for {name}");
    }
    Ok(encode(volume.data.view(), |v| bytes(v.round_ties_even())))
}

pub(super) fn header(shape: Shape, channels: usize, affine: &Affine, kind: DataType) -> Result<[u8; OFFSET]> {
    for n in shape.into_iter().chain([channels]) {
        ensure!(
            (1..=i16::MAX as usize).contains(&n),
            "extents {shape:?} with {channels} channels, expected 1 to {} each",
            i16::MAX
        );
    }
    let spacing = spacing(affine);
    let mut turn = rotation(affine)?;
    let reflected = determinant(&turn) < 0.0;
    if reflected {
        turn.iter_mut().for_each(|row| row[2] = -row[2]);
    }
    let quaternion = quaternion(&turn);

    let mut bytes = [0; OFFSET];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let floats = |values: &[f64]| values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect::<Vec<u8>>();
    let shorts = |values: &[i16]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let [i, j, k] = shape.map(|n| n as i16);
    let (code, bits) = match kind {
        DataType::Uint8 => (2, 8),
        DataType::Int16 => (4, 16),
        DataType::Float32 => (16, 32),
    };
    put(0, &(NIFTI1 as i32).to_le_bytes());
    put(40, &shorts(&[if channels > 1 { 4 } else { 3 }, i, j, k, channels as i16, 1, 1, 1]));
    put(70, &shorts(&[code, bits]));
    put(76, &floats(&[if reflected { -1.0 } else { 1.0 }, spacing[0], spacing[1], spacing[2], 1.0, 1.0, 1.0, 1.0]));
    put(108, &floats(&[OFFSET as f64, 1.0, 0.0]));
    put(123, &[2]); // millimetres
    put(252, &shorts(&[1, 1])); // qform and sform: scanner coordinates
    put(256, &floats(&quaternion[1..]));
    put(268, &floats(&affine[..3].iter().map(|row| row[3]).collect::<Vec<_>>()));
    put(280, &floats(affine[..3].as_flattened()));
    put(344, b"n+1\0");
    Ok(bytes)
}

/// Unit quaternion `(w, x, y, z)` with `w >= 0` of a proper rotation, from its largest component for accuracy.
fn quaternion(r: &[[f64; 3]; 3]) -> [f64; 4] {
    let trace = r[0][0] + r[1][1] + r[2][2];
    let diagonal = [trace, r[0][0], r[1][1], r[2][2]];
    let largest = (0..4).max_by(|&a, &b| diagonal[a].total_cmp(&diagonal[b])).expect("four");
    let mut q = [0.0; 4];
    if largest == 0 {
        q[0] = 1.0 + trace;
        for a in 0..3 {
            let (b, c) = ((a + 1) % 3, (a + 2) % 3);
            q[a + 1] = r[c][b] - r[b][c];
        }
    } else {
        let a = largest - 1;
        let (b, c) = ((a + 1) % 3, (a + 2) % 3);
        q[0] = r[c][b] - r[b][c];
        q[a + 1] = 1.0 + r[a][a] - r[b][b] - r[c][c];
        q[b + 1] = r[a][b] + r[b][a];
        q[c + 1] = r[a][c] + r[c][a];
    }
    let norm = q.iter().map(|v| v * v).sum::<f64>().sqrt().copysign(q[0]);
    q.map(|v| v / norm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::formats::open;
    use ndarray::Array4;

    #[test]
    fn integers_are_rounded_and_what_does_not_fit_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scan.nii.gz");
        let affine = [[2.0, 0.0, 0.0, -1.0], [0.0, 3.0, 0.0, 5.0], [0.0, 0.0, 4.0, 0.5], [0.0, 0.0, 0.0, 1.0]];
        let volume = |values: [f32; 4]| Volume { data: Array4::from_shape_vec((1, 1, 2, 2), values.to_vec()).unwrap(), affine };
        for (kind, low, high) in [(DataType::Uint8, 0.0, 255.0), (DataType::Int16, -32768.0, 32767.0)] {
            write(&path, &volume([low - 0.5, high + 0.25, 1.5, 2.5]), kind).unwrap();
            let back = open(&path).unwrap().read().unwrap();
            assert_eq!(back.data.as_slice().unwrap(), [low, high, 2.0, 2.0]);
            assert_eq!(back.affine, affine);
            for bad in [low - 0.6, high + 0.6, f32::NAN, f32::INFINITY] {
                let error = format!("{:#}", write(&path, &volume([0.0, 1.0, bad, 2.0]), kind).unwrap_err());
                assert!(error.contains("scan.nii.gz: voxel (0, 0, 1, 0) is") && error.contains(&bad.to_string()), "{error}");
            }
        }
        let mut flat = volume([0.0; 4]);
        flat.affine[1] = [0.0; 4];
        let error = format!("{:#}", write(&path, &flat, DataType::Float32).unwrap_err());
        assert!(error.contains("scan.nii.gz") && error.contains("singular"), "{error}");
        let empty = Volume { data: Array4::zeros((1, 0, 2, 2)), affine };
        assert!(write(&path, &empty, DataType::Float32).is_err());
        assert_eq!(open(&path).unwrap().read().unwrap().data[[0, 0, 0, 1]], 32767.0, "a refused write leaves the file");
    }
}
