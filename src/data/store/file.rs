//! One subject's file: safetensors with `image` `[C, D, H, W]`, optional `label` `[D, H, W]` and text metadata.

use crate::data::identity::hex;
use crate::data::preprocess::Dtype;
use crate::dim::{Region, Shape, voxels};
use crate::fs::write_atomic;
use anyhow::{Context, Result, anyhow, bail, ensure};
use half::f16;
use half::slice::HalfFloatSliceExt;
use memmap2::{Advice, Mmap};
use ndarray::{ArrayView3, ArrayView4};
use safetensors::SafeTensorError;
use safetensors::tensor::{Metadata, SafeTensors, TensorInfo};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{File, Metadata as Attributes};
use std::io::{ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Key of the text with the voxels' fingerprint.
const FINGERPRINT: &str = "fingerprint";

/// What to do about a damaged file.
const MEND: &str = "delete it and preprocess again, then go on";

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
    path: PathBuf,
    map: Mmap,
    header: FileHeader,
    inode: u64,
    /// When its content was known to be that of the header's fingerprint.
    known: Mutex<Changed>,
}

/// When a file's content, name or owner last changed, whatever time a program gave it since: seconds and nanoseconds.
pub type Changed = (i64, i64);

pub fn changed(file: &Attributes) -> Changed {
    (file.ctime(), file.ctime_nsec())
}

/// What a file says about itself.
#[derive(Debug)]
pub struct FileHeader {
    pub channels: usize,
    pub shape: Shape,
    pub dtype: Dtype,
    pub has_label: bool,
    pub text: BTreeMap<String, String>,
    image: Range<usize>,
    label: Range<usize>,
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
    let name = dtype_name(dtype);
    let bytes: &[u8] = match dtype {
        Dtype::F32 => bytemuck::cast_slice(values),
        Dtype::F16 => {
            let mut converted = vec![f16::ZERO; values.len()];
            converted.convert_from_f32_slice(values);
            halves = converted;
            bytemuck::cast_slice(&halves)
        }
    };
    let label_bytes = label.as_ref().map(|l| l.as_slice().context("label is not contiguous")).transpose()?.unwrap_or(&[]);
    if let Some(label) = &label {
        ensure!(label.shape() == &image.shape()[1..], "label of {:?} for an image of {:?}", label.shape(), image.shape());
    }

    let fingerprint = fingerprint(name, image.shape(), bytes, label.as_ref().map(|_| label_bytes));
    text.insert(FINGERPRINT.into(), fingerprint.clone());

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

/// As safetensors calls it.
fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "F16",
        Dtype::F32 => "F32",
    }
}

/// SHA-256 of a file's voxels of the type `name`, and of their shape.
fn fingerprint(name: &str, shape: &[usize], image: &[u8], label: Option<&[u8]>) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{name} {shape:?} {}", label.is_some()));
    hash.update(image);
    hash.update(label.unwrap_or_default());
    hex(&hash.finalize())
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
        let attributes = file.metadata()?;
        ensure!(attributes.len() > 8, "truncated: no header");
        // SAFETY: this program replaces the files of a store by renaming, so that a mapping keeps its contents. Where others write in
        // place, `check_unchanged` says so before what was read is used, and `ffi::name_lost_pages` where pages are gone.
        let map = unsafe { Mmap::map(&file) }?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|e| match e {
            SafeTensorError::MetadataIncompleteBuffer => anyhow!("truncated: {} bytes are not all of its voxels", map.len()),
            SafeTensorError::InvalidHeaderLength => anyhow!("truncated: {} bytes are not all of its header", map.len()),
            other => anyhow!("{other}"),
        })?;
        let (inode, known) = (attributes.ino(), Mutex::new(changed(&attributes)));
        let mapped = Mapped { path: path.to_owned(), header: parse(&metadata, 8 + header)?, map, inode, known };
        mapped.voxels()?;
        Ok(mapped)
    }

    /// The fingerprint of the voxels that the file was written with; other programs' files need none.
    pub fn fingerprint(&self) -> Option<&str> {
        self.header.text.get(FINGERPRINT).map(String::as_str)
    }

    /// Errors if the file was written over since it was mapped, so that what was read from it may be anything. A file that was deleted, or
    /// replaced by renaming, stays mapped as it was. The content is compared only where the file system says that the file was touched.
    pub fn check_unchanged(&self) -> Result<()> {
        let now = match std::fs::metadata(&self.path) {
            Ok(attributes) => attributes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).with_context(|| self.path.display().to_string()),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if now.ino() != self.inode || changed(&now) == *known {
            return Ok(());
        }
        ensure!(now.len() == self.bytes(), "{}: was cut off while it was read: {MEND}", self.path.display());
        self.check_content()?;
        *known = changed(&now);
        Ok(())
    }

    /// Errors if the voxels are not those of the header's fingerprint. Reads them all if the file was touched after `trusted`. Gives when it
    /// was touched.
    pub fn check_since(&self, trusted: Changed) -> Result<Changed> {
        let touched = *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if touched > trusted && self.fingerprint().is_some() {
            self.check_content()?;
        }
        Ok(touched)
    }

    /// As [`Mapped::check_since`], whenever the file was touched.
    pub fn check_content(&self) -> Result<()> {
        let shape = [&[self.header.channels][..], &self.header.shape].concat();
        let found = fingerprint(dtype_name(self.header.dtype), &shape, &self.map[self.header.image.clone()], self.label());
        ensure!(
            Some(&*found) == self.fingerprint(),
            "{}: holds other voxels than it was made with: it was written over in place, or its disk fails: {MEND}",
            self.path.display()
        );
        Ok(())
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

    /// Has the system read these bytes of the file, in the background: over a network each page would else be waited for by itself.
    pub fn read_ahead(&self, bytes: Range<usize>) {
        // Without it reading is slower, and no less right.
        let _ = self.map.advise_range(Advice::WillNeed, bytes.start, bytes.len());
    }

    /// Bytes of the file with these voxels of a channel, from the first to the last.
    pub fn bytes_of(&self, channel: usize, region: Region) -> Range<usize> {
        let FileHeader { shape, dtype, ref image, .. } = self.header;
        let at = |x: Shape| (x[0] * shape[1] + x[1]) * shape[2] + x[2];
        let last = [0, 1, 2].map(|a| (region.start[a] + region.size[a]).saturating_sub(1));
        let (first, channel) = (at(region.start), channel * voxels(shape));
        let byte = |voxel: usize| image.start + (channel + voxel) * dtype.bytes();
        byte(first)..byte(at(last) + 1).max(byte(first))
    }

    /// The whole label, `[D, H, W]`, where there is one.
    pub fn label(&self) -> Option<&[u8]> {
        self.header.has_label.then(|| &self.map[self.header.label.clone()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array4;
    use std::fs::OpenOptions;
    use std::io::{Seek, SeekFrom};

    #[test]
    fn what_is_written_over_is_noticed_and_what_is_touched_or_replaced_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let make = |value| {
            write(&path, Array4::from_elem((1, 8, 8, 8), value).view(), None, Dtype::F32, BTreeMap::new()).unwrap();
            Mapped::open(&path).unwrap()
        };
        let old = make(1.);
        let new = make(2.);
        // Touched: another time, the same content.
        File::options().append(true).open(&path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        for file in [&old, &new] {
            file.check_unchanged().unwrap();
            file.check_since((0, 0)).unwrap();
        }
        let Voxels::F32(voxels) = old.voxels().unwrap() else { panic!("of this type") };
        assert!(voxels.iter().all(|&v| v == 1.));
        // Written over, after which it may be given its time again.
        let mut file = OpenOptions::new().write(true).open(&path).unwrap();
        file.seek(SeekFrom::End(-4)).unwrap();
        file.write_all(&[1; 4]).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
        for error in
            [new.check_unchanged(), new.check_unchanged(), Mapped::open(&path).unwrap().check_since((0, 0)).map(|_| ())]
        {
            let error = error.unwrap_err().to_string();
            assert!(error.contains("a.safetensors") && error.contains("written over"), "{error}");
        }
        Mapped::open(&path).unwrap().check_since(changed(&file.metadata().unwrap())).unwrap();
        // Cut off within its first page, which stays readable.
        let new = make(3.);
        OpenOptions::new().write(true).open(&path).unwrap().set_len(new.bytes() - 1).unwrap();
        assert!(new.check_unchanged().unwrap_err().to_string().contains("cut off"));
        std::fs::remove_file(&path).unwrap();
        old.check_unchanged().unwrap();
    }
}
