//! Reading voxels.

use super::header::{Header, Stored};
use crate::data::volume::{Strides, Volume, gather, permute_affine, to_ras};
use crate::dim::voxels;
use crate::transform::spatial::Orientation;
use anyhow::{Context, Result, bail, ensure};
use flate2::bufread::GzDecoder;
use ndarray::Array4;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

const BUFFER: usize = 1 << 17;

/// Reads a scan as it is stored: `.nii`, or either file of a `.hdr`/`.img` pair; compression is recognised by content. Values
/// have slope and intercept applied; NaN and infinite ones are kept ([`Volume::non_finite`] counts them).
///
/// Errors name the file, what was expected and what was found. Memory follows the bytes that are there, not what a header claims.
pub fn read(path: &Path) -> Result<Volume> {
    Ok(load(path, |_| Ok(Orientation::IDENTITY))?.0)
}

/// As [`read`] and then [`Volume::to_ras`], in one pass.
pub fn read_ras(path: &Path) -> Result<(Volume, Orientation)> {
    load(path, |header| to_ras(&header.affine))
}

/// Reads a single-file scan from a stream, e.g. a member of an archive. `name` is for messages.
pub fn read_from(name: &str, reader: impl Read) -> Result<Volume> {
    Ok(load_from(reader, |_| Ok(Orientation::IDENTITY)).with_context(|| name.to_string())?.0)
}

/// As [`read_from`] and then [`Volume::to_ras`], in one pass.
pub fn read_ras_from(name: &str, reader: impl Read) -> Result<(Volume, Orientation)> {
    load_from(reader, |header| to_ras(&header.affine)).with_context(|| name.to_string())
}

/// Reads and checks the header alone, of a single file or of either file of a pair.
pub fn read_header(path: &Path) -> Result<Header> {
    header_file(path).and_then(|path| Header::parse(&mut open(&path)?)).with_context(|| path.display().to_string())
}

/// As [`read_header`], of a stream; `name` is for messages.
pub fn read_header_from(name: &str, reader: impl Read) -> Result<Header> {
    decompressed(reader).and_then(|mut stream| Header::parse(&mut stream)).with_context(|| name.to_string())
}

fn load(path: &Path, choose: impl Fn(&Header) -> Result<Orientation>) -> Result<(Volume, Orientation)> {
    load_file(path, choose).with_context(|| path.display().to_string())
}

fn load_file(path: &Path, choose: impl Fn(&Header) -> Result<Orientation>) -> Result<(Volume, Orientation)> {
    let mut stream = open(&header_file(path)?)?;
    let header = Header::parse(&mut stream)?;
    let orientation = choose(&header)?;
    let raw = if header.pair {
        let image = partner(path, "img")?;
        open(&image)
            .and_then(|stream| raw_voxels(stream, header.offset, &header))
            .with_context(|| format!("voxels in {}", image.display()))?
    } else {
        single_file_voxels(stream, &header)?
    };
    Ok((decode(raw, &header, orientation), orientation))
}

fn load_from(reader: impl Read, choose: impl Fn(&Header) -> Result<Orientation>) -> Result<(Volume, Orientation)> {
    let mut stream = decompressed(reader)?;
    let header = Header::parse(&mut stream)?;
    ensure!(!header.pair, "header of a .hdr/.img pair, expected a single file");
    let orientation = choose(&header)?;
    Ok((decode(single_file_voxels(stream, &header)?, &header, orientation), orientation))
}

fn open(path: &Path) -> Result<Box<dyn Read>> {
    decompressed(File::open(path)?)
}

/// The stream itself, or what it compresses if it begins as gzip does.
fn decompressed<'a>(mut reader: impl Read + 'a) -> Result<Box<dyn Read + 'a>> {
    let mut start = Vec::with_capacity(2);
    (&mut reader).take(2).read_to_end(&mut start)?;
    let gz = start == [0x1f, 0x8b];
    let stream = BufReader::with_capacity(BUFFER, io::Cursor::new(start).chain(reader));
    Ok(if gz { Box::new(Members(Some(GzDecoder::new(stream)))) } else { Box::new(stream) })
}

/// What the members of a gzip stream hold, one after the other. Tapes and some transfers pad files, so what follows the last member
/// and is no other one is left alone, as `gzip` does.
struct Members<R: BufRead>(Option<GzDecoder<R>>);

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.0 {
            let n = member.read(out)?;
            if n > 0 || out.is_empty() {
                return Ok(n);
            }
            // Its end, where the checksum was compared.
            let mut rest = self.0.take().expect("looked at").into_inner();
            if rest.fill_buf()?.starts_with(&[0x1f]) {
                self.0 = Some(GzDecoder::new(rest));
            }
        }
        Ok(0)
    }
}

/// The file with the header: `path` itself, or for an `.img` file the `.hdr` beside it.
fn header_file(path: &Path) -> Result<PathBuf> {
    match pair_stem(path) {
        Some((_, "img")) => partner(path, "hdr"),
        _ => Ok(path.to_path_buf()),
    }
}

/// Path without its ending, and `hdr` or `img`, if it ends so; `.gz` may follow.
fn pair_stem(path: &Path) -> Option<(&str, &'static str)> {
    let name = path.to_str()?;
    let name = name.strip_suffix(".gz").unwrap_or(name);
    ["hdr", "img"].into_iter().find_map(|kind| Some((name.strip_suffix(kind)?.strip_suffix('.')?, kind)))
}

/// The `.hdr` or `.img` file of the pair that `path` belongs to.
fn partner(path: &Path, kind: &str) -> Result<PathBuf> {
    let Some((stem, given)) = pair_stem(path) else {
        bail!("its header says that the voxels are in an .img file beside it, which needs a name that ends in .hdr or .img");
    };
    if given == kind {
        return Ok(path.to_path_buf());
    }
    let candidates = [format!("{stem}.{kind}"), format!("{stem}.{kind}.gz")].map(PathBuf::from);
    let [plain, compressed] = &candidates;
    let found = candidates.iter().find(|path| path.is_file()).cloned();
    found.with_context(|| format!("expected {} or {} beside it, found neither", plain.display(), compressed.display()))
}

fn single_file_voxels(stream: impl Read, header: &Header) -> Result<Vec<u8>> {
    raw_voxels(stream, header.offset - header.raw.len() as u64, header)
}

/// Skips `skip` bytes and reads the voxels. The buffer grows with what arrives, so that a header cannot claim memory.
fn raw_voxels(mut stream: impl Read, skip: u64, header: &Header) -> Result<Vec<u8>> {
    let expected = || {
        let (shape, channels, stored) = (header.shape, header.channels, header.stored);
        format!("expected {} bytes of voxels ({shape:?} x {channels} {stored:?})", header.bytes)
    };
    let skipped = io::copy(&mut (&mut stream).take(skip), &mut io::sink()).context("reading up to the voxels")?;
    ensure!(skipped == skip, "file ends {} bytes before its voxels begin, {}", skip - skipped, expected());
    let mut raw = Vec::new();
    let all = (&mut stream).take(header.bytes as u64).read_to_end(&mut raw);
    all.with_context(|| format!("{}, reading failed after {}", expected(), raw.len()))?;
    ensure!(raw.len() == header.bytes, "{}, found {}", expected(), raw.len());
    // What follows is padding; reading on to the end checks the gzip checksum.
    io::copy(&mut stream, &mut io::sink()).with_context(|| format!("{}, reading failed at their end", expected()))?;
    Ok(raw)
}

/// Stored bytes to values in their place.
fn decode(mut raw: Vec<u8>, header: &Header, orientation: Orientation) -> Volume {
    if header.big_endian {
        raw.chunks_exact_mut(header.stored.size()).for_each(<[u8]>::reverse);
    }
    let [i, j, k] = orientation.output(header.shape);
    let mut data = Array4::zeros((header.channels, i, j, k));
    let out = data.as_slice_mut().expect("just made");
    // Through float64, as nibabel does, which is exact for all but 64-bit integers.
    macro_rules! values {
        ($t:ty) => {
            match header.scale {
                None => place(&raw, header, orientation, out, |b| <$t>::from_le_bytes(b) as f64 as f32),
                Some((slope, inter)) => {
                    place(&raw, header, orientation, out, move |b| (<$t>::from_le_bytes(b) as f64 * slope + inter) as f32)
                }
            }
        };
    }
    match header.stored {
        Stored::Uint8 => values!(u8),
        Stored::Int8 => values!(i8),
        Stored::Uint16 => values!(u16),
        Stored::Int16 => values!(i16),
        Stored::Uint32 => values!(u32),
        Stored::Int32 => values!(i32),
        Stored::Uint64 => values!(u64),
        Stored::Int64 => values!(i64),
        Stored::Float32 => values!(f32),
        Stored::Float64 => values!(f64),
    }
    Volume { data, affine: permute_affine(&header.affine, header.shape, orientation) }
}

fn place<const N: usize>(
    raw: &[u8],
    header: &Header,
    orientation: Orientation,
    out: &mut [f32],
    value: impl Fn([u8; N]) -> f32,
) {
    let (stored, _) = raw.as_chunks::<N>();
    let strides = Strides::column_major(header.shape).oriented(header.shape, orientation);
    let n = voxels(header.shape);
    for (from, to) in stored.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
        gather(from, strides, orientation.output(header.shape), to, &value);
    }
}
