//! Writing what `torch.load(weights_only=True)` reads, also with `mmap=True`.

use super::{KINDS, Value};
use crate::fs::write_atomic;
use crate::run::tensors::bytes;
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::io::{Seek, Write};
use std::path::Path;
use tch::{Kind, Tensor};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Folder within the archive; torch takes any.
const ROOT: &str = "archive";
/// Of the storages within the file, as torch aligns them, so that they can be mapped.
const ALIGNMENT: u16 = 64;

/// Writes a file of `torch.save`, atomically. Tensors that are views of the same memory are stored once, if contiguous. Equal values give
/// equal files. Errors if a tensor's type is not among those of [`KINDS`], or a value is [`Value::Opaque`].
pub fn write(path: &Path, value: &Value<Tensor>) -> Result<()> {
    let mut pickler = Pickler { out: b"\x80\x02".to_vec(), storages: vec![], known: HashMap::new() };
    pickler.value(value)?;
    pickler.out.push(b'.');
    write_atomic(path, |file| {
        let mut zip = ZipWriter::new(file);
        member(&mut zip, "data.pkl", &pickler.out)?;
        member(&mut zip, "byteorder", b"little")?;
        for (key, tensor) in pickler.storages.iter().enumerate() {
            member(&mut zip, &format!("data/{key}"), &bytes(tensor))?;
        }
        member(&mut zip, "version", b"3\n")?;
        zip.finish()?;
        Ok(())
    })
}

fn member<W: Write + Seek>(zip: &mut ZipWriter<W>, name: &str, bytes: &[u8]) -> Result<()> {
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).with_alignment(ALIGNMENT);
    zip.start_file(format!("{ROOT}/{name}"), options.large_file(bytes.len() as u64 >= u64::from(u32::MAX)))?;
    Ok(zip.write_all(bytes)?)
}

struct Pickler {
    out: Vec<u8>,
    storages: Vec<Tensor>,
    /// Number of the storage of a tensor by the address of its first element, its type and length.
    known: HashMap<(usize, Kind, usize), usize>,
}

impl Pickler {
    fn value(&mut self, value: &Value<Tensor>) -> Result<()> {
        match value {
            Value::None => self.out.push(b'N'),
            Value::Bool(value) => self.out.push(if *value { 0x88 } else { 0x89 }),
            Value::Int(value) => self.int(*value),
            Value::Float(value) => {
                self.out.push(b'G');
                self.out.extend(value.to_be_bytes());
            }
            Value::Text(text) => self.text(text)?,
            Value::List(items) => {
                self.out.extend(b"](");
                items.iter().try_for_each(|item| self.value(item))?;
                self.out.push(b'e');
            }
            Value::Dict(entries) => {
                self.out.extend(b"}(");
                for (key, value) in entries {
                    self.value(key)?;
                    self.value(value).with_context(|| key.to_string())?;
                }
                self.out.push(b'u');
            }
            Value::Tensor(tensor) => self.tensor(tensor)?,
            Value::Opaque(name) => anyhow::bail!("{name} cannot be written"),
        }
        Ok(())
    }

    fn int(&mut self, value: i64) {
        match i32::try_from(value) {
            Ok(small) => {
                self.out.push(b'J');
                self.out.extend(small.to_le_bytes());
            }
            Err(_) => {
                self.out.extend([0x8a, size_of::<i64>() as u8]);
                self.out.extend(value.to_le_bytes());
            }
        }
    }

    fn text(&mut self, text: &str) -> Result<()> {
        self.out.push(b'X');
        self.out.extend(u32::try_from(text.len()).context("a text of 4 GiB")?.to_le_bytes());
        self.out.extend(text.as_bytes());
        Ok(())
    }

    fn ints(&mut self, values: &[i64]) {
        self.out.push(b'(');
        values.iter().for_each(|&value| self.int(value));
        self.out.push(b't');
    }

    fn tensor(&mut self, tensor: &Tensor) -> Result<()> {
        let (kind, numel) = (tensor.kind(), tensor.numel());
        let storage = KINDS.iter().find(|entry| entry.2 == kind).with_context(|| format!("a tensor of type {kind:?}"))?.0;
        let next = self.storages.len();
        // What is not contiguous is stored as if it were, and so is memory of its own.
        let key = match tensor.is_contiguous() && numel > 0 {
            true => *self.known.entry((tensor.data_ptr() as usize, kind, numel)).or_insert(next),
            false => next,
        };
        if key == next {
            self.storages.push(tensor.shallow_clone());
        }
        let size = tensor.size();
        let stride: Vec<i64> = (1..=size.len()).map(|axis| size[axis..].iter().product()).collect();
        self.out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        self.text("storage")?;
        self.out.extend(format!("ctorch\n{storage}\n").as_bytes());
        self.text(&key.to_string())?;
        self.text("cpu")?;
        self.int(numel as i64);
        self.out.extend(b"tQ");
        self.int(0);
        self.ints(&size);
        self.ints(&stride);
        // No gradients, no hooks.
        self.out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
        Ok(())
    }
}
