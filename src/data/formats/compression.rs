//! Compressed files, told by their content.

use super::super::names;
use anyhow::Result;
use flate2::bufread::GzDecoder;
use std::io::{self, BufRead, BufReader, Read};

/// Bytes read from a file at a time.
const BUFFER: usize = 1 << 17;

/// What names of compressed files end in.
const ENDINGS: [&str; 1] = [".gz"];

/// A file's name without what says that it is compressed.
pub fn strip_ending(name: &str) -> &str {
    ENDINGS.iter().find_map(|ending| names::strip_ending(name, ending)).unwrap_or(name)
}

/// A file's name with each of the endings, the plain one first.
pub fn candidates(name: &str) -> impl Iterator<Item = String> {
    ["".to_string()].into_iter().chain(ENDINGS.map(String::from)).map(move |ending| format!("{name}{ending}"))
}

/// The stream itself, or what it compresses if it begins as gzip does.
pub fn decompressed<'a>(mut reader: impl Read + 'a) -> Result<Box<dyn BufRead + 'a>> {
    let mut start = Vec::with_capacity(2);
    (&mut reader).take(2).read_to_end(&mut start)?;
    let gz = start == [0x1f, 0x8b];
    let stream = BufReader::with_capacity(BUFFER, io::Cursor::new(start).chain(reader));
    Ok(if gz { Box::new(BufReader::with_capacity(BUFFER, gunzip(stream))) } else { Box::new(stream) })
}

/// What a gzip stream compresses.
pub fn gunzip<'a>(stream: impl BufRead + 'a) -> impl Read + 'a {
    Members(Some(GzDecoder::new(stream)))
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
