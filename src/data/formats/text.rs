//! What the formats with a header of text have in common: lines, numbers, and voxels written as text.

use super::Stored;
use anyhow::{Context, Result, ensure};
use std::io::{self, BufRead, ErrorKind, Read};
use std::str::FromStr;

/// More bytes of header than this are no header.
const MOST: usize = 1 << 20;

/// The next line of a header without its end, which is added to `raw`; `None` at the end of the stream.
pub fn line(stream: &mut impl BufRead, raw: &mut Vec<u8>) -> Result<Option<String>> {
    let start = raw.len();
    stream.take((MOST - start) as u64 + 1).read_until(b'\n', raw).context("reading the header")?;
    ensure!(raw.len() <= MOST, "a header of more than {MOST} bytes of text");
    if raw.len() == start {
        return Ok(None);
    }
    let line = std::str::from_utf8(&raw[start..]).ok();
    let line = line.with_context(|| format!("header line \"{}\", expected text", shown(&raw[start..])))?;
    Ok(Some(line.trim_end_matches(['\n', '\r']).to_string()))
}

/// The beginning of a text that may be long or no text.
pub fn shown(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(60)].escape_ascii().to_string()
}

/// Numbers between blanks. Errors: one that is none, another count than `n`.
pub fn numbers<T: FromStr>(text: &str, n: usize) -> Result<Vec<T>> {
    let numbers: Option<Vec<T>> = text.split_whitespace().map(|word| word.parse().ok()).collect();
    let numbers = numbers.filter(|numbers| numbers.len() == n);
    numbers.with_context(|| format!("expected {n} numbers, found \"{}\"", shown(text.as_bytes())))
}

/// Numbers written as text, as the little-endian bytes of a type.
pub struct Decimal<R> {
    text: R,
    stored: Stored,
    /// Of the last number.
    bytes: Vec<u8>,
    taken: usize,
}

impl<R: BufRead> Decimal<R> {
    pub fn new(text: R, stored: Stored) -> Self {
        Decimal { text, stored, bytes: vec![], taken: 0 }
    }

    /// The next word between blanks; empty at the end.
    fn word(&mut self) -> io::Result<Vec<u8>> {
        /// No number is written with more characters.
        const LONGEST: usize = 400;
        let mut word = vec![];
        loop {
            let buffer = self.text.fill_buf()?;
            let Some(&byte) = buffer.first() else { return Ok(word) };
            if !byte.is_ascii_whitespace() {
                word.push(byte);
            } else if !word.is_empty() {
                return Ok(word);
            }
            self.text.consume(1);
            if word.len() > LONGEST {
                return Err(not_a("number", &word));
            }
        }
    }
}

fn not_a(what: &str, found: &[u8]) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("\"{}\" among the voxels, expected a {what}", shown(found)))
}

impl<R: BufRead> Read for Decimal<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < out.len() {
            if self.taken == self.bytes.len() {
                let word = self.word()?;
                if word.is_empty() {
                    break;
                }
                let bytes = std::str::from_utf8(&word).ok().and_then(|word| self.stored.parse(word));
                self.bytes = bytes.ok_or_else(|| not_a(&format!("number that {:?} holds", self.stored), &word))?;
                self.taken = 0;
            }
            let n = (out.len() - done).min(self.bytes.len() - self.taken);
            out[done..done + n].copy_from_slice(&self.bytes[self.taken..self.taken + n]);
            done += n;
            self.taken += n;
        }
        Ok(done)
    }
}

impl Stored {
    /// Little-endian bytes of a number that is written as text; `None` of what the type does not hold.
    fn parse(self, word: &str) -> Option<Vec<u8>> {
        macro_rules! bytes {
            ($t:ty) => {
                word.parse::<$t>().ok().map(|value| value.to_le_bytes().to_vec())
            };
        }
        match self {
            Stored::Uint8 => bytes!(u8),
            Stored::Int8 => bytes!(i8),
            Stored::Uint16 => bytes!(u16),
            Stored::Int16 => bytes!(i16),
            Stored::Uint32 => bytes!(u32),
            Stored::Int32 => bytes!(i32),
            Stored::Uint64 => bytes!(u64),
            Stored::Int64 => bytes!(i64),
            Stored::Float32 => bytes!(f32),
            Stored::Float64 => bytes!(f64),
        }
    }
}

/// Bytes written as two hexadecimal digits each.
pub struct Hexadecimal<R>(pub R);

impl<R: BufRead> Hexadecimal<R> {
    /// The next digit that is no blank.
    fn digit(&mut self) -> io::Result<Option<u8>> {
        loop {
            let Some(&byte) = self.0.fill_buf()?.first() else { return Ok(None) };
            self.0.consume(1);
            if !byte.is_ascii_whitespace() {
                let digit = char::from(byte).to_digit(16).ok_or_else(|| not_a("hexadecimal digit", &[byte]))?;
                return Ok(Some(digit as u8));
            }
        }
    }
}

impl<R: BufRead> Read for Hexadecimal<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        for (done, out) in out.iter_mut().enumerate() {
            let Some(high) = self.digit()? else { return Ok(done) };
            let low = self.digit()?.ok_or_else(|| not_a("second hexadecimal digit", b""))?;
            *out = high << 4 | low;
        }
        Ok(out.len())
    }
}
