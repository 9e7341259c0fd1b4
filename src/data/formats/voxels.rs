//! Voxels between a file's bytes and memory.

use super::compression::{LIKELY, gunzip_at_once};
use super::{Header, Stored};
use crate::data::scan::{self, Channel, Scan};
use crate::data::volume::{Strides, gather, permute_affine};
use crate::dim::voxels;
use crate::transform::spatial::Orientation;
use anyhow::{Context, Result, ensure};
use ndarray::ArrayView4;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

/// How to come by the voxels of a file whose header is read.
pub struct Voxels<'a> {
    /// Gives the bytes from the first voxel on, decompressed, in the stored type; what follows the last voxel does not matter.
    pub open: Box<dyn FnOnce() -> Result<Box<dyn Read + 'a>> + 'a>,
    /// Where the first voxel is in the content of the header's own file, decompressed, if it is there.
    pub at: Option<u64>,
    /// The files that hold them, as far as they are there, if it is not the header's.
    pub beside: Vec<PathBuf>,
    /// Bytes of yet other files that hold them.
    pub there: u64,
}

impl<'a> Voxels<'a> {
    /// In the header's own file from byte `at` on, of which the stream has passed so many.
    pub fn here(mut stream: impl Read + 'a, passed: usize, at: u64) -> Voxels<'a> {
        let open = move || {
            skip_bytes(&mut stream, at - passed as u64)?;
            Ok(Box::new(stream) as Box<dyn Read>)
        };
        Voxels { at: Some(at), ..Voxels::from_stream(open) }
    }

    /// As [`Voxels::open`] says.
    pub fn from_stream(open: impl FnOnce() -> Result<Box<dyn Read + 'a>> + 'a) -> Voxels<'a> {
        Voxels { open: Box::new(open), at: None, beside: vec![], there: 0 }
    }
}

/// Errors if the stream has fewer bytes.
pub fn skip_bytes(stream: &mut dyn Read, n: u64) -> Result<()> {
    let skipped = io::copy(&mut stream.take(n), &mut io::sink()).context("reading up to the voxels")?;
    ensure!(skipped == n, "file ends {} bytes before its voxels begin", n - skipped);
    Ok(())
}

/// Bytes that are read at a time: as many as have come, within these bounds.
const PIECES: [usize; 2] = [1 << 16, 1 << 20];

/// What holds the bytes of all voxels, and where they begin in it. `file`: the header's own; `there`: bytes of the files that hold them, as far
/// as known. The buffer is as large as they warrant, and grows beyond that with what arrives, so that a header cannot claim memory.
pub fn read_raw(voxels: Voxels, header: &Header, bytes: usize, file: Option<&File>, there: u64) -> Result<(Vec<u8>, usize)> {
    let at_once = || {
        let at = usize::try_from(voxels.at?).ok()?;
        Some((gunzip_at_once(file?, at.checked_add(bytes)?)?, at))
    };
    if let Some(whole) = at_once() {
        return Ok(whole);
    }
    let expected = || {
        let (shape, channels, stored) = (header.shape, header.interleaved.unwrap_or(header.channels), header.stored);
        format!("expected {bytes} bytes of voxels ({shape:?} x {channels} {stored:?})")
    };
    // Of several files the one that fails names itself.
    let beside = <[_; 1]>::try_from(voxels.beside.clone()).ok();
    let read = || {
        let mut stream = (voxels.open)().with_context(expected)?;
        let mut raw = Vec::new();
        // Where there is no room for as much, what arrives may be less.
        let _ = raw.try_reserve_exact(bytes.min(LIKELY.saturating_mul(there as usize)));
        fill(&mut raw, bytes, &mut stream).with_context(|| format!("{}, reading failed after {}", expected(), raw.len()))?;
        ensure!(raw.len() == bytes, "{}, found {}", expected(), raw.len());
        // What follows is padding; reading on to the end checks the checksums.
        io::copy(&mut stream, &mut io::sink()).with_context(|| format!("{}, reading failed at their end", expected()))?;
        Ok((raw, 0))
    };
    match beside {
        Some([file]) => read().with_context(|| format!("voxels in {}", file.display())),
        None => read(),
    }
}

/// Reads up to so many bytes. `read_to_end` would read less at a time, through the streams' own buffers.
fn fill(raw: &mut Vec<u8>, bytes: usize, stream: &mut dyn Read) -> io::Result<()> {
    let mut full = 0;
    let mut read = || {
        while full < bytes {
            if full == raw.len() {
                raw.resize(bytes.min(full + full.clamp(PIECES[0], PIECES[1])), 0);
            }
            match stream.read(&mut raw[full..]) {
                Ok(0) => break,
                Ok(n) => full += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    let done = read();
    raw.truncate(full);
    done
}

/// Stored bytes to voxels in their place; numbers of up to 16 bits stay what they are.
pub fn decode(raw: &mut [u8], header: &Header, orientation: Orientation) -> Scan {
    if header.big_endian {
        raw.chunks_exact_mut(header.stored.size()).for_each(<[u8]>::reverse);
    }
    macro_rules! narrow {
        ($t:ty, $voxels:path) => {
            place(raw, header, orientation, <$t>::from_le_bytes, |values| Channel::new($voxels(values), header.scale))
        };
    }
    // Through float64, as nibabel does, which is exact for all but 64-bit integers.
    macro_rules! wide {
        ($t:ty) => {
            match header.scale {
                None => place(raw, header, orientation, |b| <$t>::from_le_bytes(b) as f64 as f32, Channel::float32),
                Some((slope, inter)) => {
                    let value = move |b| (<$t>::from_le_bytes(b) as f64 * slope + inter) as f32;
                    place(raw, header, orientation, value, Channel::float32)
                }
            }
        };
    }
    let channels = match header.stored {
        Stored::Uint8 => narrow!(u8, scan::Voxels::Uint8),
        Stored::Uint16 => narrow!(u16, scan::Voxels::Uint16),
        Stored::Int16 => narrow!(i16, scan::Voxels::Int16),
        Stored::Int8 => wide!(i8),
        Stored::Uint32 => wide!(u32),
        Stored::Int32 => wide!(i32),
        Stored::Uint64 => wide!(u64),
        Stored::Int64 => wide!(i64),
        Stored::Float32 => wide!(f32),
        Stored::Float64 => wide!(f64),
    };
    let affine = permute_affine(&header.affine, header.shape, orientation);
    Scan { channels, shape: orientation.output(header.shape), affine }
}

fn place<const N: usize, T: Copy + Default>(
    raw: &[u8],
    header: &Header,
    orientation: Orientation,
    value: impl Fn([u8; N]) -> T,
    channel: impl Fn(Vec<T>) -> Channel,
) -> Vec<Channel> {
    let (stored, _) = raw.as_chunks::<N>();
    let strides = Strides::column_major(header.shape).oriented(header.shape, orientation);
    let (n, shape) = (voxels(header.shape), orientation.output(header.shape));
    let placed = |from: &[[u8; N]]| {
        let mut out = vec![T::default(); n];
        gather(from, strides, shape, &mut out, &value);
        channel(out)
    };
    match header.interleaved {
        None => stored.chunks_exact(n.max(1)).take(header.channels).map(placed).collect(),
        Some(values) => {
            let of = |channel| stored.iter().skip(channel).step_by(values).copied().collect::<Vec<_>>();
            (0..header.channels).map(|channel| placed(&of(channel))).collect()
        }
    }
}

/// Voxels `[C, i, j, k]` in a file's order: the first axis fastest, and channels last.
pub fn encode<T: Copy, const N: usize>(data: ArrayView4<T>, bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    let (_, i, j, k) = data.dim();
    let data = data.as_standard_layout();
    let data = data.as_slice().expect("standard layout");
    let mut out = vec![0; data.len() * N];
    let (voxels, _) = out.as_chunks_mut::<N>();
    let file_order = Strides::row_major([i, j, k]).reversed();
    for (from, to) in data.chunks_exact(i * j * k).zip(voxels.chunks_exact_mut(i * j * k)) {
        gather(from, file_order, [k, j, i], to, &bytes);
    }
    out
}
