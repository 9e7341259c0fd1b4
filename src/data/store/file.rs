//! One subject's file: safetensors with `image` `[C, D, H, W]`, optional `label` `[D, H, W]` and text metadata.

use crate::data::identity::hex;
use crate::data::preprocess::Dtype;
use crate::dim::Shape;
use crate::fs::write_atomic;
use anyhow::{Context, Result, anyhow, bail, ensure};
use half::f16;
use half::slice::HalfFloatSliceExt;
use memmap2::Mmap;
use ndarray::{ArrayView3, ArrayView4};
use safetensors::SafeTensorError;
use safetensors::tensor::{Metadata, SafeTensors, TensorInfo};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Data begins on a multiple of this, so that mapped slices are aligned for any vector load.
const ALIGNMENT: usize = 64;

/// Voxels of a file, borrowed from its mapping.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Voxels<'a> {
    F16(&'a [f16]),
    F32(&'a [f32]),
}

/// A subject's file, mapped.
pub struct Mapped {
    map: Mmap,
    header: FileHeader,
}

/// What a file says about itself.
#[derive(Debug)]
pub struct FileHeader {
    pub channels: usize,
    pub shape: Shape,
    pub dtype: Dtype,
    pub has_label: bool,
    pub text: BTreeMap<String, String>,
    image: std::ops::Range<usize>,
    label: std::ops::Range<usize>,
}

/// Writes a subject's file whole or not at all. `text` gets a `fingerprint`: the SHA-256 of the voxels and their shapes.
/// Returns the file's length in bytes and the fingerprint.
pub fn write(
    path: &Path,
    image: ArrayView4<f32>,
    label: Option<ArrayView3<u8>>,
    dtype: Dtype,
    mut text: BTreeMap<String, String>,
) -> Result<(u64, String)> {
    let values = image.as_slice().context("image is not contiguous")?;
    let halves: Vec<f16>;
    let (bytes, name): (&[u8], _) = match dtype {
        Dtype::F32 => (bytemuck::cast_slice(values), "F32"),
        Dtype::F16 => {
            let mut converted = vec![f16::ZERO; values.len()];
            converted.convert_from_f32_slice(values);
            halves = converted;
            (bytemuck::cast_slice(&halves), "F16")
        }
    };
    let label_bytes = label.as_ref().map(|l| l.as_slice().context("label is not contiguous")).transpose()?.unwrap_or(&[]);
    if let Some(label) = &label {
        ensure!(label.shape() == &image.shape()[1..], "label of {:?} for an image of {:?}", label.shape(), image.shape());
    }

    let mut hash = Sha256::new();
    hash.update(format!("{name} {:?} {}", image.shape(), label.is_some()));
    hash.update(bytes);
    hash.update(label_bytes);
    let fingerprint = hex(&hash.finalize());
    text.insert("fingerprint".into(), fingerprint.clone());

    let mut header = serde_json::json!({
        "__metadata__": text,
        "image": {"dtype": name, "shape": image.shape(), "data_offsets": [0, bytes.len()]},
    });
    if label.is_some() {
        header["label"] = serde_json::json!({
            "dtype": "U8", "shape": &image.shape()[1..], "data_offsets": [bytes.len(), bytes.len() + label_bytes.len()],
        });
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize((8 + header.len()).next_multiple_of(ALIGNMENT) - 8, b' ');
    write_atomic(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        file.write_all(bytes)?;
        file.write_all(label_bytes)?;
        Ok(())
    })?;
    Ok(((8 + header.len() + bytes.len() + label_bytes.len()) as u64, fingerprint))
}

fn parse(metadata: &Metadata, data: usize) -> Result<FileHeader> {
    let image: &TensorInfo = metadata.info("image").context("no tensor `image`")?;
    let dtype = match image.dtype {
        safetensors::Dtype::F16 => Dtype::F16,
        safetensors::Dtype::F32 => Dtype::F32,
        other => bail!("image is {other:?}, expected F16 or F32"),
    };
    let [channels, d, h, w] = image.shape[..] else { bail!("image has shape {:?}, expected [C, D, H, W]", image.shape) };
    let shape = [d, h, w];
    let range = |info: &TensorInfo| data + info.data_offsets.0..data + info.data_offsets.1;
    let label = metadata.info("label");
    if let Some(label) = label {
        ensure!(label.dtype == safetensors::Dtype::U8 && label.shape == shape, "label is {:?} {:?}", label.dtype, label.shape);
    }
    Ok(FileHeader {
        channels,
        shape,
        dtype,
        has_label: label.is_some(),
        text: metadata.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
        image: range(image),
        label: label.map_or(0..0, range),
    })
}

impl Mapped {
    /// Maps a file and checks its header, and that the file has the length it announces. The voxels are not read.
    pub fn open(path: &Path) -> Result<Mapped> {
        Mapped::map(path).with_context(|| format!("{}: not a subject's file of a store", path.display()))
    }

    fn map(path: &Path) -> Result<Mapped> {
        let file = File::open(path)?;
        ensure!(file.metadata()?.len() > 8, "truncated: no header");
        // SAFETY: the files of a store are replaced by renaming, never written in place, so a mapping keeps its contents.
        let map = unsafe { Mmap::map(&file) }?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|e| match e {
            SafeTensorError::MetadataIncompleteBuffer => anyhow!("truncated: {} bytes are not all of its voxels", map.len()),
            other => anyhow!("{other}"),
        })?;
        let mapped = Mapped { header: parse(&metadata, 8 + header)?, map };
        mapped.voxels()?;
        Ok(mapped)
    }

    /// Length of the file in bytes.
    pub fn bytes(&self) -> u64 {
        self.map.len() as u64
    }

    pub fn header(&self) -> &FileHeader {
        &self.header
    }

    /// The whole image, `[C, D, H, W]`.
    pub fn voxels(&self) -> Result<Voxels<'_>> {
        let bytes = &self.map[self.header.image.clone()];
        let misaligned = |_| anyhow!("image is not aligned in the file");
        Ok(match self.header.dtype {
            Dtype::F16 => Voxels::F16(bytemuck::try_cast_slice(bytes).map_err(misaligned)?),
            Dtype::F32 => Voxels::F32(bytemuck::try_cast_slice(bytes).map_err(misaligned)?),
        })
    }

    /// The whole label, `[D, H, W]`, where there is one.
    pub fn label(&self) -> Option<&[u8]> {
        self.header.has_label.then(|| &self.map[self.header.label.clone()])
    }
}
