//! What the readers make of files, for comparison with others.
//!
//! `scan_dump OUT FILE...` prints one JSON line a file: what was read, or the error. Voxels go to `OUT/<n>.native.f32` and
//! `OUT/<n>.ras.f32`, `[C, i, j, k]` in little-endian order, and the volume is written again, as
//! `OUT/<n>.copy.nii.gz`: in the file's own type if that is uint8 or int16 without a scale, else as float32. Into the file's
//! own space are written, classes being the row-major voxel number modulo 3: `OUT/<n>.bytes.nii` with the values 0, 1, 4,
//! `OUT/<n>.shorts.nii.gz` with 0, -5, 300, and `OUT/<n>.floats.nii.gz`, two channels of half the class and its negative; of a format
//! that has its own ending with that.

use anyhow::{Context, Result, ensure};
use pretext3d::data::formats::nifti::{self, DataType};
use pretext3d::data::formats::{Stored, open, write_classes, write_floats};
use pretext3d::data::volume::Volume;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let out = arguments.next().context("usage: scan_dump OUT FILE...")?;
    for (n, file) in arguments.enumerate() {
        let line = dump(&file, &out.join(n.to_string())).unwrap_or_else(|error| json!({ "error": format!("{error:#}") }));
        println!("{line}");
    }
    Ok(())
}

fn dump(file: &Path, out: &Path) -> Result<Value> {
    let header = open(file)?.header().clone();
    let native = open(file)?.read()?;
    save(&native, &out.with_extension("native.f32"))?;
    let kind = match (header.stored, header.scale) {
        (Stored::Uint8, None) => DataType::Uint8,
        (Stored::Int16, None) => DataType::Int16,
        _ => DataType::Float32,
    };
    nifti::write(&out.with_extension("copy.nii.gz"), &native, kind)?;
    let [i, j, k] = header.shape;
    let class = |x: usize, y: usize, z: usize| ((x * j * k + y * k + z) % 3) as u8;
    let voxels = || (0..j).flat_map(|y| (0..i).map(move |x| (x, y)));
    let classes = &mut |z: usize, out: &mut [u8]| out.iter_mut().zip(voxels()).for_each(|(out, (x, y))| *out = class(x, y, z));
    let own = header.format.written;
    let written = |name: &str| out.with_extension(format!("{name}{own}"));
    let bytes = if own == ".nii.gz" { out.with_extension("bytes.nii") } else { written("bytes") };
    write_classes(&bytes, &header, classes, &[0, 1, 4])?;
    write_classes(&written("shorts"), &header, classes, &[0, -5, 300])?;
    let halves = &mut |channel: usize, z: usize, out: &mut [f32]| {
        let half = [0.5, -0.5][channel];
        out.iter_mut().zip(voxels()).for_each(|(out, (x, y))| *out = half * f32::from(class(x, y, z)));
        Ok(())
    };
    write_floats(&written("floats"), &header, 2, halves)?;
    let (codes, non_finite) = (native.axis_codes()?, native.non_finite());
    let mut line = json!({
        "format": header.format.name, "written": own, "shape": native.data.shape(), "header_shape": header.shape, "channels": header.channels,
        "spacing": native.spacing(), "affine": native.affine, "codes": codes, "non_finite": non_finite,
    });
    let (ras, orientation) = native.to_ras()?;
    let (once, same) = open(file)?.read_ras()?;
    ensure!(bits(&once) == bits(&ras) && once.affine == ras.affine && same == orientation, "read_ras differs from to_ras");
    save(&ras, &out.with_extension("ras.f32"))?;
    line["ras_shape"] = json!(ras.data.shape());
    line["ras_affine"] = json!(ras.affine);
    Ok(line)
}

fn bits(volume: &Volume) -> Vec<u32> {
    volume.data.iter().map(|v| v.to_bits()).collect()
}

fn save(volume: &Volume, path: &Path) -> Result<()> {
    Ok(std::fs::write(path, volume.data.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?)
}
