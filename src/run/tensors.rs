//! Tensors on disk, as safetensors: a checkpoint holds the model and the optimizer, an export the model alone.

use crate::fs::write_atomic;
use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorView};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use tch::{Kind, Tensor};

/// Tensors on the CPU, by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// Layout of checkpoints and of `config.json`; a reader refuses newer ones.
pub const VERSION: u64 = 1;
/// Layout of an export.
pub const EXPORT_VERSION: u64 = 1;

/// Prefixes of a checkpoint's tensors.
pub const MODEL: &str = "model.";
pub const OPTIMIZER: &str = "optimizer.";
/// Prefix of every encoder parameter, in checkpoints (after [`MODEL`]), exports and the variable store.
pub const ENCODER: &str = "encoder.";
/// Prefix of a decoder's parameters in exports; in checkpoints and the variable store it follows the task's name.
pub const DECODER: &str = "decoder.";

const DTYPES: [(Kind, Dtype); 6] = [
    (Kind::Float, Dtype::F32),
    (Kind::Half, Dtype::F16),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Int64, Dtype::I64),
    (Kind::Uint8, Dtype::U8),
    (Kind::Double, Dtype::F64),
];

/// Raw little-endian bytes of a tensor, row-major.
pub(crate) fn bytes(tensor: &Tensor) -> Vec<u8> {
    let tensor = tensor.detach().to_device(tch::Device::Cpu).contiguous();
    let mut out = vec![0u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut out, tensor.numel());
    out
}

/// Writes tensors and metadata atomically.
pub fn save_safetensors(path: &Path, tensors: &Tensors, metadata: HashMap<String, String>) -> Result<()> {
    let data: Vec<(&String, Dtype, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let dtype = DTYPES.iter().find(|d| d.0 == tensor.kind()).with_context(|| format!("{name}: {:?}", tensor.kind()))?.1;
            Ok((name, dtype, tensor.size().iter().map(|&n| n as usize).collect(), bytes(tensor)))
        })
        .collect::<Result<_>>()?;
    let views: Vec<(&String, TensorView)> = data
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((*name, TensorView::new(*dtype, shape.clone(), bytes)?)))
        .collect::<Result<_>>()?;
    let mut serialized = safetensors::serialize(views, Some(metadata))?;
    sort_header(&mut serialized)?;
    write_atomic(path, |file| Ok(file.write_all(&serialized)?))
}

/// Sorts the header's keys: the crate writes metadata in a random order, and equal contents are to give equal files.
fn sort_header(file: &mut [u8]) -> Result<()> {
    let (length, rest) = file.split_first_chunk_mut().context("no header")?;
    let header = rest.get_mut(..u64::from_le_bytes(*length) as usize).context("no header")?;
    let sorted: BTreeMap<String, BTreeMap<String, serde_json::Value>> = serde_json::from_slice(header)?;
    let sorted = serde_json::to_vec(&sorted)?;
    ensure!(sorted.len() <= header.len(), "the header grew");
    header.fill(b' ');
    header[..sorted.len()].copy_from_slice(&sorted);
    Ok(())
}

/// Reads every tensor and the metadata; errors name the file.
pub fn load_safetensors(path: &Path) -> Result<(Tensors, HashMap<String, String>)> {
    let read = || -> Result<_> {
        let bytes = std::fs::read(path)?;
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let file = SafeTensors::deserialize(&bytes)?;
        let mut tensors = Tensors::new();
        for (name, view) in file.tensors() {
            let Some((kind, _)) = DTYPES.iter().find(|d| d.1 == view.dtype()) else {
                bail!("tensor {name} has the unsupported type {:?}", view.dtype())
            };
            let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
            tensors.insert(name, Tensor::f_from_data_size(view.data(), &shape, *kind)?);
        }
        Ok((tensors, header.metadata().clone().unwrap_or_default()))
    };
    read().with_context(|| whole_file(path))
}

fn whole_file(path: &Path) -> String {
    format!("reading {} (expected a whole safetensors file)", path.display())
}

/// Metadata of a safetensors file, of which the header alone is read, not its tensors; errors name the file.
pub fn read_metadata(path: &Path) -> Result<HashMap<String, String>> {
    let read = || -> Result<_> {
        let (mut file, mut length) = (File::open(path)?, [0; size_of::<u64>()]);
        file.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        ensure!(length < file.metadata()?.len(), "its header is cut off");
        let mut header = Vec::new();
        file.take(length).read_to_end(&mut header)?;
        let header: Metadata = serde_json::from_slice(&header)?;
        Ok(header.metadata().clone().unwrap_or_default())
    };
    read().with_context(|| whole_file(path))
}

/// Copies `saved` into `target` by name; both must hold the same names and shapes.
pub fn restore(target: &HashMap<String, Tensor>, saved: &Tensors) -> Result<()> {
    let missing: Vec<_> = target.keys().filter(|n| !saved.contains_key(*n)).collect();
    let unknown: Vec<_> = saved.keys().filter(|n| !target.contains_key(*n)).collect();
    ensure!(missing.is_empty() && unknown.is_empty(), "weights do not fit: missing {missing:?}, unknown {unknown:?}");
    for (name, value) in saved {
        let mut tensor = target[name].shallow_clone();
        ensure!(value.size() == tensor.size(), "{name}: expected {:?}, found {:?}", tensor.size(), value.size());
        tch::no_grad(|| tensor.copy_(value));
    }
    Ok(())
}

/// A checkpoint's tensors, with their prefixes.
pub fn join_checkpoint(model: &Tensors, optimizer: &Tensors) -> Tensors {
    let named = |prefix: &'static str, tensors: &Tensors| -> Vec<(String, Tensor)> {
        tensors.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.shallow_clone())).collect()
    };
    named(MODEL, model).into_iter().chain(named(OPTIMIZER, optimizer)).collect()
}

/// A checkpoint's tensors as (model, optimizer state), without their prefixes.
pub fn split_checkpoint(tensors: Tensors) -> (Tensors, Tensors) {
    let (mut model, mut optimizer) = (Tensors::new(), Tensors::new());
    for (name, tensor) in tensors {
        if let Some(name) = name.strip_prefix(MODEL) {
            model.insert(name.to_owned(), tensor);
        } else if let Some(name) = name.strip_prefix(OPTIMIZER) {
            optimizer.insert(name.to_owned(), tensor);
        }
    }
    (model, optimizer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn equal_contents_give_equal_files() {
        let dir = tempfile::tempdir().unwrap();
        let tensors = Tensors::from(["b", "a"].map(|n| (n.to_owned(), Tensor::ones([2, 3], (Kind::Float, Device::Cpu)))));
        let metadata: Vec<(String, String)> = (0..6).map(|i| (format!("key{i}"), format!("\"value\" {i}"))).collect();
        let files = [0, 1].map(|i| {
            let path = dir.path().join(i.to_string());
            save_safetensors(&path, &tensors, metadata.iter().cloned().collect()).unwrap();
            let (read, found) = load_safetensors(&path).unwrap();
            assert_eq!(found, metadata.iter().cloned().collect());
            assert!(read.iter().eq(tensors.iter()));
            std::fs::read(path).unwrap()
        });
        assert_eq!(files[0], files[1]);
    }

    #[test]
    fn metadata_needs_the_header_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let tensors = Tensors::from([("a".to_owned(), Tensor::ones([500], (Kind::Float, Device::Cpu)))]);
        let metadata = HashMap::from(["key", "other"].map(|key| (key.to_owned(), format!("{key} value"))));
        save_safetensors(&path, &tensors, metadata.clone()).unwrap();
        assert_eq!(read_metadata(&path).unwrap(), metadata);
        // Without a tensor's last bytes it cannot be loaded.
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1000]).unwrap();
        assert_eq!(read_metadata(&path).unwrap(), metadata);
        assert!(load_safetensors(&path).is_err());
        for damaged in [&b""[..], &[255; 20], &[9, 0, 0, 0, 0, 0, 0, 0, b'{'], b"\x02\0\0\0\0\0\0\0no tensors"] {
            std::fs::write(&path, damaged).unwrap();
            let error = format!("{:#}", read_metadata(&path).unwrap_err());
            assert!(error.contains("file (expected a whole safetensors file)"), "{error}");
        }
    }
}
