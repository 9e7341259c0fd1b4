//! Compressed files, told by their content.

use super::super::names;
use anyhow::Result;
use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::GzDecoder;
use libdeflater::Decompressor;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;

/// Bytes read from a file at a time.
const BUFFER: usize = 1 << 17;

/// By how much a scan's file is expected to be compressed at most.
pub const LIKELY: usize = 8;

/// How gzip begins.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// What names of compressed files end in.
pub const ENDINGS: [&str; 3] = [".gz", ".bz2", ".zst"];

/// A file's name without what says that it is compressed.
pub fn strip_ending(name: &str) -> &str {
    ENDINGS.iter().find_map(|ending| names::strip_ending(name, ending)).unwrap_or(name)
}

/// A file's name with each of the endings, the plain one first.
pub fn candidates(name: &str) -> impl Iterator<Item = String> {
    ["".to_string()].into_iter().chain(ENDINGS.map(String::from)).map(move |ending| format!("{name}{ending}"))
}

/// The stream itself, or what it compresses if it begins as gzip, bzip2 or zstd do.
pub fn decompressed<'a>(mut reader: impl Read + 'a) -> Result<Box<dyn BufRead + 'a>> {
    let mut start = Vec::with_capacity(4);
    (&mut reader).take(4).read_to_end(&mut start)?;
    let kind: [u8; 4] = start[..].try_into().unwrap_or_default();
    let stream = BufReader::with_capacity(BUFFER, io::Cursor::new(start).chain(reader));
    let inside: Box<dyn Read> = match kind {
        _ if kind.starts_with(&GZIP) => Box::new(gunzip(stream)),
        [b'B', b'Z', b'h', _] => Box::new(bunzip2(stream)),
        ZSTD => Box::new(Frames::Between(stream)),
        _ => return Ok(Box::new(stream)),
    };
    Ok(Box::new(BufReader::with_capacity(BUFFER, inside)))
}

/// What a bzip2 stream compresses.
pub fn bunzip2<'a>(stream: impl BufRead + 'a) -> impl Read + 'a {
    MultiBzDecoder::new(stream)
}

/// What a gzip stream compresses.
pub fn gunzip<'a>(stream: impl BufRead + 'a) -> impl Read + 'a {
    Members(Some(GzDecoder::new(stream)))
}

/// The largest file that is taken into memory to be inflated at once.
const AT_ONCE: usize = 64 << 20;

/// The whole content of a gzip file that compresses this many bytes, checksum compared: faster than as a stream. `None`: it is something else,
/// is large, holds more or less, is damaged or compressed so much that its claim is not to be trusted; as a stream it is read or says what is
/// wrong.
pub fn gunzip_at_once(file: &File, bytes: usize) -> Option<Vec<u8>> {
    let size = usize::try_from(file.metadata().ok()?.len()).ok()?;
    if size > AT_ONCE {
        return None;
    }
    let (mut start, mut end) = ([0; 2], [0; 4]);
    file.read_exact_at(&mut start, 0).ok()?;
    file.read_exact_at(&mut end, size.checked_sub(4)? as u64).ok()?;
    let claimed = u32::from_le_bytes(end) == bytes as u32;
    if start != GZIP || !claimed || bytes / LIKELY > size || size / LIKELY > bytes {
        return None;
    }
    let room = |n| {
        let mut room = Vec::new();
        room.try_reserve_exact(n).ok()?;
        room.resize(n, 0);
        Some(room)
    };
    let (mut packed, mut out) = (room(size)?, room(bytes)?);
    file.read_exact_at(&mut packed, 0).ok()?;
    let n = Decompressor::new().gzip_decompress(&packed, &mut out).ok()?;
    (n == bytes).then_some(out)
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

/// How a frame of zstd begins.
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// What the frames of a zstd stream hold, one after the other; as with gzip, what follows and is no frame is left alone.
enum Frames<R: BufRead> {
    /// Before a frame or at the end.
    Between(R),
    Inside(Box<StreamingDecoder<R, FrameDecoder>>),
    Done,
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            match std::mem::replace(self, Frames::Done) {
                Frames::Done => return Ok(0),
                Frames::Between(mut stream) => match stream.fill_buf()?.first() {
                    Some(&first) if first == ZSTD[0] => {
                        *self = Frames::Inside(Box::new(StreamingDecoder::new(stream).map_err(io::Error::other)?));
                    }
                    // A frame that says something about the others.
                    Some(0x50..=0x5f) => {
                        let mut head = [0; 8];
                        stream.read_exact(&mut head)?;
                        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
                        io::copy(&mut (&mut stream).take(length.into()), &mut io::sink())?;
                        *self = Frames::Between(stream);
                    }
                    _ => {}
                },
                Frames::Inside(mut frame) => {
                    let n = frame.read(out)?;
                    if n > 0 || out.is_empty() {
                        *self = Frames::Inside(frame);
                        return Ok(n);
                    }
                    let written = frame.decoder.get_checksum_from_data();
                    if written.is_some() && written != frame.decoder.get_calculated_checksum() {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, "the zstd checksum does not match"));
                    }
                    *self = Frames::Between(frame.into_inner());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bzip2::write::BzEncoder;
    use flate2::write::GzEncoder;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    use std::io::Write;

    fn unpacked(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = vec![];
        decompressed(bytes).unwrap().read_to_end(&mut out).map(|_| out)
    }

    fn gz(content: &[u8]) -> Vec<u8> {
        let mut stream = GzEncoder::new(vec![], flate2::Compression::fast());
        stream.write_all(content).unwrap();
        stream.finish().unwrap()
    }

    #[test]
    fn at_once_as_a_stream_or_not_at_all() {
        let content: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(i).wrapping_mul(0x9e37_79b9) >> 26) as u8).collect();
        let at_once = |packed: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(packed).unwrap();
            gunzip_at_once(&file, content.len())
        };
        let packed = gz(&content);
        assert_eq!(at_once(&packed).unwrap(), content);
        // Its first bytes alone, a byte more, two members, padding, nothing, what is not compressed, a wrong checksum, wrong data.
        let (mut checksum, mut data) = (packed.clone(), packed.clone());
        checksum[packed.len() - 5] ^= 1;
        data[packed.len() / 2] ^= 1;
        let members = [gz(&content[..9]), gz(&content[9..])].concat();
        for other in [
            packed[..packed.len() / 2].to_vec(),
            gz(&[&content[..], &[0]].concat()),
            members,
            [&packed[..], &[0; 40]].concat(),
            vec![],
            content.clone(),
            checksum,
            data,
        ] {
            assert!(at_once(&other).is_none());
        }
        // Compressed too much, as what claims memory is.
        let zeros = vec![0; content.len()];
        assert!(at_once(&gz(&zeros)).is_none());
    }

    #[test]
    fn several_members_and_what_follows_them() {
        let parts: Vec<Vec<u8>> = [3, 300_000, 1].iter().map(|&n| (0..n).map(|i: u32| (i / 7 % 251) as u8).collect()).collect();
        let whole = parts.concat();
        let bz2 = |part: &Vec<u8>| {
            let mut stream = BzEncoder::new(vec![], bzip2::Compression::fast());
            stream.write_all(part).unwrap();
            stream.finish().unwrap()
        };
        let zst = |part: &Vec<u8>| compress_to_vec(&part[..], CompressionLevel::Fastest);
        // A frame of zstd that holds three bytes of no content.
        let said = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9].to_vec();
        let [one, two, three] = [&parts[0], &parts[1], &parts[2]];
        for (packed, tail) in [
            ([gz(one), gz(two), gz(three)].concat(), &[0; 40][..]),
            ([bz2(one), bz2(two), bz2(three)].concat(), &[]),
            ([zst(one), said, zst(two), zst(three)].concat(), &[0; 40]),
        ] {
            assert_eq!(unpacked(&packed).unwrap(), whole);
            assert_eq!(unpacked(&[&packed, tail].concat()).unwrap(), whole);
            assert!(unpacked(&packed[..packed.len() / 2]).is_err());
        }
        let mut wrong = zst(two);
        let checksum = wrong.len() - 4;
        wrong[checksum] ^= 1;
        assert!(unpacked(&wrong).unwrap_err().to_string().contains("checksum"));
        assert_eq!(unpacked(b"plain").unwrap(), b"plain");
    }
}
