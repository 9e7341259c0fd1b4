//! JPEG-LS (ITU-T T.87): one grey image of 2 to 16 bits, lossless or near-lossless.
//!
//! CharLS, which others use, is C++ that CMake builds: with it, so would this program be. Names of variables are the standard's.

mod scan;

use anyhow::{Context, Result, bail, ensure};
use scan::Decoder;

/// Pixels in lines from the top, each a little-endian number of `size` bytes.
pub fn decode(stream: &[u8], columns: usize, rows: usize, size: usize) -> Result<Vec<u8>> {
    let (header, scan) = Header::read(stream)?;
    ensure!(
        (header.columns, header.rows) == (columns, rows),
        "its compressed pixels are {} x {}, expected {columns} x {rows} as its header says",
        header.columns,
        header.rows
    );
    ensure!(
        header.precision as usize <= 8 * size,
        "JPEG-LS of {} bits, expected at most {} as its header says",
        header.precision,
        8 * size
    );
    let mut decoder = Decoder::new(header.coding()?, scan);
    // With a pixel before and one after.
    let (mut previous, mut current) = (vec![0u16; columns + 2], vec![0u16; columns + 2]);
    let mut pixels = vec![];
    for row in 0..rows {
        previous[columns + 1] = previous[columns];
        current[0] = previous[1];
        decoder.line(&previous, &mut current).with_context(|| format!("JPEG-LS, row {row} of {rows}"))?;
        // Room is made for what was there, not for what the header claims.
        current[1..=columns].iter().for_each(|&value| pixels.extend_from_slice(&u64::from(value).to_le_bytes()[..size]));
        std::mem::swap(&mut previous, &mut current);
    }
    Ok(pixels)
}

/// What the segments before a scan say.
#[derive(Default)]
struct Header {
    precision: u32,
    rows: usize,
    columns: usize,
    near: i64,
    /// MAXVAL, three thresholds and RESET; 0 where it is the default.
    preset: [i64; 5],
}

impl Header {
    /// With what follows it.
    fn read(stream: &[u8]) -> Result<(Header, &[u8])> {
        let mut rest = stream.strip_prefix(&[0xff, 0xd8]).context("no JPEG-LS: it does not begin with ff d8")?;
        let mut header = Header::default();
        loop {
            let cut = || format!("JPEG-LS, cut off or damaged before its pixels, at byte {}", stream.len() - rest.len());
            // Markers may be filled up with more of their first byte.
            let filled = rest.iter().take_while(|&&byte| byte == 0xff).count();
            let (&[marker, high, low], after) = rest[filled..].split_first_chunk().with_context(cut)?;
            let length = usize::from(u16::from_be_bytes([high, low]));
            let segment = after.get(..length.wrapping_sub(2)).filter(|_| filled > 0).with_context(cut)?;
            rest = &after[segment.len()..];
            match (marker, segment) {
                (0xf7, &[precision, y0, y1, x0, x1, components, ..]) => {
                    ensure!(components == 1, "JPEG-LS of {components} components, expected 1");
                    ensure!((2..=16).contains(&precision), "JPEG-LS of {precision} bits, expected 2 to 16");
                    header.precision = precision.into();
                    (header.rows, header.columns) = (u16::from_be_bytes([y0, y1]).into(), u16::from_be_bytes([x0, x1]).into());
                }
                (0xf8, &[1, ref numbers @ ..]) => {
                    let (numbers, _) = numbers.as_chunks();
                    ensure!(numbers.len() == 5, "JPEG-LS with {} presets, expected 5", numbers.len());
                    header.preset = std::array::from_fn(|n| u16::from_be_bytes(numbers[n]).into());
                }
                (0xda, &[components, _, table, near, _, transform]) => {
                    ensure!(header.precision > 0, "JPEG-LS without a frame (ff f7)");
                    ensure!(
                        components == 1 && table == 0,
                        "JPEG-LS of more components or with a table of values, which is not read"
                    );
                    ensure!(transform == 0, "JPEG-LS with a point transform, which is not read");
                    header.near = near.into();
                    return Ok((header, rest));
                }
                (0xdd, interval) if interval.iter().any(|&byte| byte > 0) => {
                    bail!("JPEG-LS with restart intervals, which are not read")
                }
                (0xf7 | 0xda, _) => bail!("JPEG-LS with a damaged segment ff {marker:02x} of {length} bytes"),
                (0xc0..=0xcf, _) => bail!("no JPEG-LS: a frame of another kind of JPEG (ff {marker:02x})"),
                // Comments, applications', and tables that no scan asks for.
                _ => (),
            }
        }
    }

    fn coding(&self) -> Result<Coding> {
        let [maxval, t1, t2, t3, reset] = self.preset;
        let (near, highest) = (self.near, (1 << self.precision) - 1);
        // Writers of others do not agree on what they are.
        ensure!([0, highest].contains(&maxval), "JPEG-LS of values up to {maxval}, expected {highest}, all of its bits");
        let maxval = highest;
        let given = |preset, default| if preset == 0 { default } else { preset };
        let bounded = |threshold: i64, least: i64| if (least..=maxval).contains(&threshold) { threshold } else { least };
        let (many, few) = ((maxval.min(4095) + 128) / 256, 256 / (maxval + 1));
        let default = |basic: i64, nears: i64, small: i64, least: i64| match maxval >= 128 {
            true => bounded(many * (basic - small) + small + nears * near, least),
            false => bounded((basic / few + nears * near).max(small), least),
        };
        let t1 = given(t1, default(3, 3, 2, near + 1));
        let t2 = given(t2, default(7, 5, 3, t1));
        let t3 = given(t3, default(21, 7, 4, t2));
        let coding = Coding { maxval, near, t1, t2, t3, reset: given(reset, 64) };
        let ordered = near < t1 && t1 <= t2 && t2 <= t3 && t3 <= maxval;
        let valid = near <= maxval / 2 && ordered && (3..=maxval.max(255)).contains(&coding.reset);
        ensure!(valid, "JPEG-LS with parameters that cannot be: {coding:?}");
        Ok(coding)
    }
}

/// How a scan is coded.
#[derive(Clone, Copy, Debug)]
struct Coding {
    maxval: i64,
    near: i64,
    t1: i64,
    t2: i64,
    t3: i64,
    reset: i64,
}

impl Coding {
    /// Values that an error can have.
    fn range(self) -> i64 {
        (self.maxval + 2 * self.near) / (2 * self.near + 1) + 1
    }

    /// Class of a gradient, -4 to 4.
    fn class(self, gradient: i64) -> i64 {
        let size = gradient.abs();
        let class = match size {
            _ if size <= self.near => 0,
            _ if size < self.t1 => 1,
            _ if size < self.t2 => 2,
            _ if size < self.t3 => 3,
            _ => 4,
        };
        class * gradient.signum()
    }

    /// A predicted value and its error, which wraps around.
    fn value(self, predicted: i64, error: i64) -> u16 {
        let step = 2 * self.near + 1;
        let value = predicted + error * step;
        let value = match value {
            _ if value < -self.near => value + self.range() * step,
            _ if value > self.maxval + self.near => value - self.range() * step,
            _ => value,
        };
        value.clamp(0, self.maxval) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the standard's example (H.3): the stream and its 4 x 4 pixels.
    const STREAM: [u8; 57] = [
        0xff, 0xd8, 0xff, 0xf7, 0x00, 0x0b, 0x08, 0x00, 0x04, 0x00, 0x04, 0x01, 0x01, 0x11, 0x00, 0xff, 0xda, 0x00, 0x08, 0x01,
        0x01, 0x00, 0x00, 0x00, 0x00, 0xc0, 0x00, 0x00, 0x6c, 0x80, 0x20, 0x8e, 0x01, 0xc0, 0x00, 0x00, 0x57, 0x40, 0x00, 0x00,
        0x6e, 0xe6, 0x00, 0x00, 0x01, 0xbc, 0x18, 0x00, 0x00, 0x05, 0xd8, 0x00, 0x00, 0x91, 0x60, 0xff, 0xd9,
    ];
    const PIXELS: [u8; 16] = [0, 0, 90, 74, 68, 50, 43, 205, 64, 145, 145, 145, 100, 145, 145, 145];

    /// The stream with a segment before the scan, or with one byte changed.
    fn with(segment: &[u8]) -> Vec<u8> {
        [&STREAM[..15], segment, &STREAM[15..]].concat()
    }

    fn changed(at: usize, byte: u8) -> Vec<u8> {
        let mut stream = STREAM.to_vec();
        stream[at] = byte;
        stream
    }

    #[test]
    fn the_standards_example() {
        assert_eq!(decode(&STREAM, 4, 4, 1).unwrap(), PIXELS);
        for size in [2, 4] {
            let words: Vec<u8> = PIXELS.iter().flat_map(|&byte| [&[byte][..], &[0; 3][..size - 1]].concat()).collect();
            assert_eq!(decode(&STREAM, 4, 4, size).unwrap(), words);
        }
        // Defaults that are written out, a comment, no restarts, a filled marker.
        let defaults = [0xff, 0xf8, 0, 13, 1, 0, 255, 0, 3, 0, 7, 0, 21, 0, 64];
        for segment in [&defaults[..], &[0xff, 0xfe, 0, 4, 7, 7], &[0xff, 0xdd, 0, 4, 0, 0], &[0xff, 0xff, 0xff, 0xe0, 0, 2]] {
            assert_eq!(decode(&with(segment), 4, 4, 1).unwrap(), PIXELS, "{segment:x?}");
        }
        assert_ne!(
            decode(&with(&[0xff, 0xf8, 0, 13, 1, 0, 255, 0, 9, 0, 10, 0, 11, 0, 64]), 4, 4, 1).ok(),
            Some(PIXELS.to_vec())
        );
    }

    #[test]
    fn what_is_refused() {
        let error = |stream: &[u8]| format!("{:#}", decode(stream, 4, 4, 1).unwrap_err());
        // The last bits of the scan fill up a byte.
        for end in 0..STREAM.len() - 3 {
            let found = error(&STREAM[..end]);
            assert!(found.contains("cut off") || found.contains("ff d8"), "{end}: {found}");
        }
        for (stream, part) in [
            (changed(8, 5), "4 x 5, expected 4 x 4"),
            (changed(6, 12), "12 bits, expected at most 8"),
            (changed(6, 17), "17 bits, expected 2 to 16"),
            (changed(11, 3), "3 components"),
            (changed(3, 0xc3), "another kind of JPEG (ff c3)"),
            (changed(21, 1), "table of values"),
            (changed(22, 200), "cannot be"),
            (changed(24, 1), "point transform"),
            (changed(1, 0xd9), "ff d8"),
            (changed(3, 0xfe), "without a frame"),
            (changed(25, 0), "row 0 of 4: damaged: a code of more than 22 zeros"),
            (with(&[0xff, 0xdd, 0, 4, 0, 1]), "restart intervals"),
            (with(&[0xff, 0xf8, 0, 13, 1, 1, 0xff, 0, 3, 0, 7, 0, 21, 0, 64]), "values up to 511"),
            (with(&[0xff, 0xf8, 0, 13, 1, 0, 255, 0, 7, 0, 3, 0, 21, 0, 64]), "t1: 7"),
            (with(&[0xff, 0xf8, 0, 13, 1, 0, 254, 0, 3, 0, 7, 0, 21, 0, 64]), "values up to 254"),
            (with(&[0xff, 0xf8, 0, 5, 1, 0, 255]), "presets"),
            (with(&[0xff, 0xfe, 0, 1]), "cut off or damaged before its pixels"),
        ] {
            assert!(error(&stream).contains(part), "expected \"{part}\", found \"{}\"", error(&stream));
        }
    }
}
