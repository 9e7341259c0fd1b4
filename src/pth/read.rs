//! Opening a checkpoint, and its tensors.

use super::Value;
use super::machine::checked_name;
use super::pickle::{Unpickled, unpickle};
use super::tensors::MOST_REPEATED;
use super::view::{Storage, View};
use crate::fs::open_zip;
use anyhow::{Context, Result, bail, ensure};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use tch::{Kind, Tensor};
use zip::read::ZipReadOptions;
use zip::{CompressionMethod, ZipArchive};

/// How zip archives begin.
const ZIP: &[u8] = b"PK\x03\x04";
/// How the files of torch before 1.6 begin: a pickle of the number 0x1950a86a20f9469cfc6c.
const LEGACY: &[u8] = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.";
/// Where tar archives name themselves, as those of torch before 0.1.10.
const TAR: (usize, &[u8]) = (257, b"ustar");
/// Of the pickle, in bytes. Those of networks of a thousand layers have less than one million.
const LARGEST_PICKLE: u64 = 1 << 26;
/// Of the tensors' names together, in bytes. Those of networks of a thousand layers have less than one million.
const MOST_NAMES: usize = 1 << 24;

/// What a file of weights is, by its first bytes and its members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Of `torch.save`.
    Checkpoint,
    TorchScript,
    /// None of these; safetensors, say.
    Other,
}

impl Format {
    /// Errors if the file cannot be read.
    pub fn of(path: &Path) -> Result<Format> {
        let mut start = Vec::new();
        let opened = File::open(path).and_then(|file| file.take((TAR.0 + TAR.1.len()) as u64).read_to_end(&mut start));
        opened.with_context(|| format!("reading {}", path.display()))?;
        if !start.starts_with(ZIP) {
            let ours = start.starts_with(LEGACY) || start.first() == Some(&0x80) && start.get(8) != Some(&b'{');
            return Ok(if ours || start.get(TAR.0..) == Some(TAR.1) { Format::Checkpoint } else { Format::Other });
        }
        // A damaged archive is refused by the reader of checkpoints, which says what it is.
        let zip = File::open(path).ok().and_then(|file| open_zip(BufReader::new(file)).ok());
        let script = zip.is_some_and(|zip| zip.file_names().flatten().any(|name| name.ends_with("/constants.pkl")));
        Ok(if script { Format::TorchScript } else { Format::Checkpoint })
    }
}

/// Where the storages lie.
enum Source {
    /// With the folder within the archive.
    Zip(Box<ZipArchive<BufReader<File>>>, String),
    /// With the place of each storage's bytes.
    Stream(File, HashMap<String, u64>),
}

/// A file of `torch.save`, whose storages are read when a tensor is. What it is asked later does not name it in errors.
pub struct Checkpoint {
    length: u64,
    /// What was saved.
    pub value: Value<View>,
    storages: BTreeMap<String, Storage>,
    source: RefCell<Source>,
    /// Storages that were read, each once, by name and type.
    read: RefCell<HashMap<(String, Option<Kind>), Tensor>>,
}

impl Checkpoint {
    /// Reads all but the storages. Errors, which name the file, if it is damaged, if it calls functions that make no weights, or if a
    /// storage is not all there.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        Self::opened(path).with_context(|| path.display().to_string())
    }

    fn opened(path: &Path) -> Result<Checkpoint> {
        let mut file = File::open(path).context("it cannot be opened")?;
        let length = file.metadata()?.len();
        let mut start = [0; LEGACY.len()];
        let found = (&mut file).take(LEGACY.len() as u64).read(&mut start)?;
        file.rewind()?;
        let (Unpickled { value, storages, .. }, source) = match &start[..found] {
            start if start.starts_with(ZIP) => from_zip(file)?,
            LEGACY => from_stream(file, length)?,
            _ => bail!(
                "no file that torch 0.1.10 or later saved: expected a zip archive, or a pickle with torch's mark; where Python can read \
                 it: torch.save(torch.load(FILE, map_location=\"cpu\"), NEW)"
            ),
        };
        // As each has bytes of its own. What is read later is no larger.
        let size = storages.values().filter_map(Storage::bytes).try_fold(0i64, i64::checked_add);
        ensure!(
            size.is_some_and(|size| size as u64 <= length),
            "its storages are larger than the file: it is cut off, or no file of torch.save"
        );
        Ok(Checkpoint { length, value, storages, source: RefCell::new(source), read: RefCell::default() })
    }

    /// The tensors of a dictionary, by their names; those of dictionaries in it by both names with a `.` between. What else it holds is
    /// left out. Errors if names are longer than those of any network.
    pub fn tensors<'a>(&self, dict: &'a Value<View>) -> Result<BTreeMap<String, &'a View>> {
        let mut found = BTreeMap::new();
        collect(dict, "", &mut MOST_NAMES.clone(), &mut found)?;
        Ok(found)
    }

    /// Errors if tensors have far more elements together than the file has bytes, as only those have that repeat
    /// some: a copy of each would take any memory.
    pub fn check_elements<'a>(&self, views: impl Iterator<Item = &'a View>) -> Result<()> {
        let numel = views.fold(0i64, |sum, view| sum.saturating_add(view.numel()));
        ensure!(
            numel as u64 <= self.length + MOST_REPEATED as u64,
            "its tensors have {numel} elements, more than the file has bytes ({}), as some repeat theirs: save copies of them (tensor.clone())",
            self.length
        );
        Ok(())
    }

    /// A tensor on the CPU; those of one storage share it. Errors if its type is not known here, or it is damaged.
    pub fn tensor(&self, view: &View) -> Result<Tensor> {
        let read = || -> Result<Tensor> {
            let kind = view.kind().with_context(|| format!("a tensor of type {}, which is not read", view.dtype))?;
            let key = (view.storage.clone(), Some(kind));
            if !self.read.borrow().contains_key(&key) {
                let bytes = self.bytes(&view.storage)?;
                let numel = bytes.len() / kind.elt_size_in_bytes();
                // Any byte but 0 is true, where torch's own are 0 and 1.
                let stored = if kind == Kind::Bool { Kind::Uint8 } else { kind };
                let flat = Tensor::f_from_data_size(&bytes[..numel * kind.elt_size_in_bytes()], &[numel as i64], stored)?;
                self.read.borrow_mut().insert(key.clone(), flat.to_kind(kind));
            }
            let flat = &self.read.borrow()[&key];
            Ok(flat.f_as_strided(&view.size, &view.stride, Some(view.offset))?)
        };
        read().with_context(|| format!("storage {}", view.storage))
    }

    fn bytes(&self, key: &str) -> Result<Vec<u8>> {
        let size = self.storages.get(key).and_then(Storage::bytes).context("of a type that is not read")? as u64;
        let mut bytes = Vec::new();
        match &mut *self.source.borrow_mut() {
            Source::Zip(zip, root) => bytes = member(zip, &format!("{root}data/{key}"), size)?,
            Source::Stream(file, places) => {
                file.seek(SeekFrom::Start(*places.get(key).context("it is missing")?))?;
                file.take(size).read_to_end(&mut bytes)?;
            }
        }
        ensure!(bytes.len() as u64 == size, "{size} bytes expected, {} found", bytes.len());
        Ok(bytes)
    }
}

fn from_zip(file: File) -> Result<(Unpickled, Source)> {
    let damaged = "no whole zip archive: it is cut off, or damaged";
    let mut zip = open_zip(BufReader::new(file)).context(damaged)?;
    let names = zip.file_names().collect::<Result<Vec<_>, _>>().context(damaged)?;
    let roots = names.iter().filter_map(|name| name.strip_suffix("data.pkl"));
    let root = roots.filter(|root| root.is_empty() || root.ends_with('/')).min_by_key(|root| root.len());
    let root = root.context("a zip archive without data.pkl: no file of torch.save")?.to_owned();
    let byteorder = format!("{root}byteorder");
    if names.iter().any(|name| *name == byteorder) {
        let order = member(&mut zip, &byteorder, LARGEST_PICKLE)?;
        ensure!(
            order.trim_ascii() == b"little",
            "saved on a machine of another byte order ({}): load it in Python and save it on this one",
            String::from_utf8_lossy(&order)
        );
    }
    let pickle = member(&mut zip, &format!("{root}data.pkl"), LARGEST_PICKLE)?;
    let unpickled = unpickle(&pickle)?;
    for key in unpickled.storages.keys() {
        let name = format!("{root}data/{key}");
        ensure!(zip.index_for_name(&name).is_some(), "{name} is missing");
    }
    Ok((unpickled, Source::Zip(Box::new(zip), root)))
}

/// A member of an archive, of at most so many bytes, which has to lie there as it is: compressed bytes can be of any size.
fn member(zip: &mut ZipArchive<BufReader<File>>, name: &str, most: u64) -> Result<Vec<u8>> {
    let at = zip.index_for_name(name).with_context(|| format!("{name} is missing"))?;
    let found = zip.by_index_raw(at)?;
    let (method, size) = (found.compression(), found.size());
    ensure!(
        method == CompressionMethod::Stored,
        "{name} is compressed ({method}), which torch.save never does: repack it without"
    );
    ensure!(found.compressed_size() == size && size <= most, "{name}: at most {most} bytes expected, {size} found");
    // torch writes 0 where it is told to compute no checksum.
    let options = ZipReadOptions::new().ignore_crc32(found.crc32() == 0);
    drop(found);
    let mut bytes = Vec::new();
    zip.by_index_with_options(at, options)?.read_to_end(&mut bytes).with_context(|| format!("{name} is damaged"))?;
    Ok(bytes)
}

/// The format before torch 1.6: pickles one after the other, the last with the storages' names in the order in which their bytes follow.
fn from_stream(mut file: File, length: u64) -> Result<(Unpickled, Source)> {
    let mut bytes = Vec::new();
    (&mut file).take(LARGEST_PICKLE).read_to_end(&mut bytes)?;
    let mut at = LEGACY.len();
    let mut next = || {
        let read = unpickle(&bytes[at..])?;
        at += read.length;
        anyhow::Ok(read)
    };
    let version = next()?.value;
    ensure!(version == Value::Int(1001), "of version {}, expected 1001", version.json());
    let system = next()?.value;
    ensure!(
        system.get("little_endian") == Some(&Value::Bool(true)),
        "saved on a machine of another byte order: load it in Python and save it on this one"
    );
    let unpickled = next()?;
    let Value::List(keys) = next()?.value else { bail!("the storages' names are missing") };
    let mut places = HashMap::new();
    let mut place = at as u64;
    for key in keys.iter().map(Value::to_string) {
        checked_name(&key)?;
        let storage = unpickled.storages.get(&key).with_context(|| format!("storage {key} is of no tensor"))?;
        let size = storage.bytes().with_context(|| format!("storage {key} is of type {}, which is not read", storage.name))?;
        let mut numel = [0; size_of::<i64>()];
        file.seek(SeekFrom::Start(place)).and_then(|_| file.read_exact(&mut numel)).context("it is cut off")?;
        ensure!(i64::from_le_bytes(numel) == storage.numel, "storage {key} has another size than its tensors say");
        places.insert(key, place + numel.len() as u64);
        place = (place + numel.len() as u64).checked_add(size as u64).filter(|&end| end <= length).context("it is cut off")?;
    }
    if let Some(missing) = unpickled.storages.keys().find(|key| !places.contains_key(*key)) {
        bail!("storage {missing} is missing");
    }
    Ok((unpickled, Source::Stream(file, places)))
}

/// `left`: bytes that names may still take.
fn collect<'a>(value: &'a Value<View>, name: &str, left: &mut usize, found: &mut BTreeMap<String, &'a View>) -> Result<()> {
    match value {
        Value::Tensor(view) => _ = found.insert(name.to_owned(), view),
        Value::Dict(entries) => {
            for (key, value) in entries.iter().filter(|(_, value)| matches!(value, Value::Tensor(_) | Value::Dict(_))) {
                let dot = if name.is_empty() { "" } else { "." };
                let joined = format!("{name}{dot}{key}");
                checked_name(&joined)?;
                *left = left.checked_sub(joined.len()).with_context(|| {
                    format!("its tensors' names take more than {MOST_NAMES} bytes, which those of no network do")
                })?;
                collect(value, &joined, left, found)?;
            }
        }
        _ => {}
    }
    Ok(())
}
