//! The voxels of a series as one stream, slice by slice: one slice, or one compressed file, is held at a time.

use super::file::{self, MOST_PACKED, Place, encapsulated, native_bytes};
use super::image::{Image, Piece, Word};
use super::jpegls;
use crate::data::formats::Stored;
use anyhow::{Context, Result, bail, ensure};
use dicom_dictionary_std::{tags, uids};
use dicom_encoding::adapters::PixelDataObject;
use dicom_object::DefaultDicomObject;
use dicom_pixeldata::PixelDecoder;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

/// Transfer syntaxes of compressed pixels that are read.
const READ: [&str; 9] = [
    uids::RLE_LOSSLESS,
    uids::JPEG_BASELINE8_BIT,
    uids::JPEG_EXTENDED12_BIT,
    uids::JPEG_LOSSLESS,
    uids::JPEG_LOSSLESS_SV1,
    JPEG_LS[0],
    JPEG_LS[1],
    uids::JPEG2000_LOSSLESS,
    uids::JPEG2000,
];
const JPEG_LS: [&str; 2] = [uids::JPEGLS_LOSSLESS, uids::JPEGLS_NEAR_LOSSLESS];
/// Names of those that are not.
const NOT_READ: [(&str, &str); 6] = [
    ("1.2.840.10008.1.2.4.20", "High-Throughput JPEG 2000"),
    ("1.2.840.10008.1.2.4.11", "JPEG XL"),
    ("1.2.840.10008.1.2.4.10", "MPEG video"),
    ("1.2.840.10008.1.2.4.9", "JPEG 2000 of several components"),
    ("1.2.840.10008.1.2.4.", "JPEG of another kind"),
    ("", "an unknown syntax"),
];

/// Bytes of pixels that a byte of RLE may stand for, and one of a file of JPEG-LS, in which a bit is a row of one value.
const MOST_RUN: usize = 64;
const MOST_ROWS: usize = 1 << 14;

/// A stream of bytes in the series' stored type, or of float32.
pub struct Pixels<I, P> {
    images: I,
    pieces: P,
    /// Whether values are handed over as stored; otherwise as float32 with slope and intercept.
    uniform: bool,
    /// Whether messages may name files.
    revealed: bool,
    next: usize,
    slice: Vec<u8>,
    at: usize,
    /// The file whose frames are read, with its number.
    loaded: Option<(usize, Loaded)>,
}

/// A file that is read as a whole.
enum Loaded {
    /// The bytes that its pixels' place counts in.
    Native(Vec<u8>),
    Encapsulated(Box<DefaultDicomObject>),
}

impl<I: AsRef<[Image]>, P: AsRef<[Piece]>> Pixels<I, P> {
    pub fn new(images: I, pieces: P, uniform: bool, revealed: bool) -> Self {
        Pixels { images, pieces, uniform, revealed, next: 0, slice: vec![], at: 0, loaded: None }
    }

    fn read_slice(&mut self, piece: Piece) -> Result<()> {
        let image = &self.images.as_ref()[piece.image];
        if self.loaded.as_ref().is_some_and(|(of, _)| *of != piece.image) {
            self.loaded = None;
        }
        let bytes = image.rows * image.columns * image.word.stored.size();
        let raw = frame(image, piece, bytes, &mut self.loaded)?;
        ensure!(raw.len() == bytes, "{} bytes of pixels, expected {bytes} ({} x {})", raw.len(), image.columns, image.rows);
        let (word, big_endian) = (image.word, image.big_endian);
        self.slice.clear();
        match image.word.stored.size() {
            1 => self.convert::<1>(&raw, word, big_endian, piece.scale),
            2 => self.convert::<2>(&raw, word, big_endian, piece.scale),
            _ => self.convert::<4>(&raw, word, big_endian, piece.scale),
        }
        self.at = 0;
        Ok(())
    }

    fn convert<const N: usize>(&mut self, raw: &[u8], word: Word, big_endian: bool, (slope, intercept): (f64, f64)) {
        let (words, _) = raw.as_chunks::<N>();
        let values = words.iter().map(|&bytes| word.value(bytes, big_endian));
        match self.uniform {
            true => {
                self.slice.resize(raw.len(), 0);
                let (out, _) = self.slice.as_chunks_mut::<N>();
                out.iter_mut().zip(values).for_each(|(out, value)| out.copy_from_slice(&value.to_le_bytes()[..N]));
            }
            false => {
                values.for_each(|value| self.slice.extend(((value as f64 * slope + intercept) as f32).to_le_bytes()));
            }
        }
    }

    fn name(&self, piece: Piece) -> String {
        let place = format!("slice at {:.2} mm along the normal", piece.at);
        match &self.images.as_ref()[piece.image].place {
            Place::File(path) if self.revealed => format!("{place}, {}", path.display()),
            _ => place,
        }
    }
}

impl Word {
    /// The value that a pixel's bytes hold, whatever is in the bits around it.
    fn value<const N: usize>(self, mut bytes: [u8; N], big_endian: bool) -> i64 {
        if big_endian {
            bytes.reverse();
        }
        let mut all = [0; 4];
        all[..N].copy_from_slice(&bytes);
        // Its bits to the upper end, then all of them to the lower one.
        let all = u32::from_le_bytes(all) << (u32::BITS - self.bits - self.lowest);
        let down = u32::BITS - self.bits;
        match self.stored {
            Stored::Int8 | Stored::Int16 | Stored::Int32 => (all as i32 >> down).into(),
            _ => (all >> down).into(),
        }
    }
}

/// The bytes of one frame, in the file's byte order.
fn frame(image: &Image, piece: Piece, bytes: usize, loaded: &mut Option<(usize, Loaded)>) -> Result<Vec<u8>> {
    let file::Pixels::Native { at, bytes: there } = image.pixels else {
        return decoded(image, piece, bytes, loaded);
    };
    let (from, size) = (piece.frame as u64 * bytes as u64, bytes as u64);
    ensure!(
        from + size <= there,
        "{there} bytes of pixels, expected {} ({} x {} pixels of {} bytes, frame {} of it)",
        from + size,
        image.columns,
        image.rows,
        image.word.stored.size(),
        piece.frame + 1
    );
    let mut raw = vec![];
    match &image.place {
        Place::File(path) if image.syntax != uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN => {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(at + from))?;
            file.take(size).read_to_end(&mut raw)?;
        }
        place => {
            if loaded.is_none() {
                *loaded = Some((piece.image, Loaded::Native(native_bytes(place.whole()?, &image.syntax)?)));
            }
            if let Some((_, Loaded::Native(all))) = loaded {
                let from = usize::try_from(at + from)?.min(all.len());
                raw.extend_from_slice(&all[from..all.len().min(from.saturating_add(bytes))]);
            }
        }
    }
    ensure!(raw.len() == bytes, "cut off: {} bytes of pixels, expected {bytes}", raw.len());
    Ok(raw)
}

/// A frame of compressed pixels.
fn decoded(image: &Image, piece: Piece, bytes: usize, loaded: &mut Option<(usize, Loaded)>) -> Result<Vec<u8>> {
    if !READ.contains(&image.syntax.as_str()) {
        let (_, name) = NOT_READ.iter().find(|(uid, _)| image.syntax.starts_with(uid)).expect("the last begins all");
        bail!("its pixels are compressed as {name} ({}), which is not read: convert it with dcm2niix", image.syntax);
    }
    if loaded.is_none() {
        let file = image.place.whole()?;
        let most = match image.syntax.as_str() {
            uids::RLE_LOSSLESS => MOST_RUN,
            syntax if JPEG_LS.contains(&syntax) => MOST_ROWS,
            _ => MOST_PACKED,
        };
        ensure!(bytes / most <= file.len(), "{bytes} bytes of pixels in a file of {}, which cannot be", file.len());
        let object = encapsulated(&file, &image.syntax)?;
        *loaded = Some((piece.image, Loaded::Encapsulated(Box::new(object))));
    }
    let Some((_, Loaded::Encapsulated(object))) = loaded else { bail!("mixed pixels") };
    let frame = u32::try_from(piece.frame)?;
    if JPEG_LS.contains(&image.syntax.as_str()) {
        let stream = object.frame_pixel_data(frame).with_context(|| {
            format!("which of its compressed pieces are frame {} is not known: its table of offsets lacks it", piece.frame + 1)
        })?;
        return jpegls::decode(&stream, image.columns, image.rows, image.word.stored.size());
    }
    let fragments = object.get(tags::PIXEL_DATA).and_then(|pixels| pixels.fragments()).unwrap_or_default();
    for fragment in fragments {
        // A plane for each byte of a pixel, whose number the decoder makes room for.
        let planes = fragment.first_chunk().map(|&first| u32::from_le_bytes(first) as usize);
        ensure!(
            image.syntax != uids::RLE_LOSSLESS || fragment.len() >= 64 && planes == Some(image.word.stored.size()),
            "compressed pixels that are damaged: {planes:?} planes, expected {}",
            image.word.stored.size()
        );
        if let Some((columns, rows)) = extents(fragment) {
            ensure!(
                (columns, rows) == (image.columns, image.rows),
                "its compressed pixels are {columns} x {rows}, expected {} x {} as its header says",
                image.columns,
                image.rows
            );
        }
    }
    caught(|| {
        Ok(object
            .decode_pixel_data_frame(frame)
            .with_context(|| {
                format!("pixels of the syntax {}, which could not be decoded: convert it with dcm2niix", image.syntax)
            })?
            .into_data())
    })
}

/// Columns and rows of a JPEG or a JPEG 2000 stream, which a decoder trusts; `None` of what begins neither.
fn extents(stream: &[u8]) -> Option<(usize, usize)> {
    let number = |at: usize, n: usize| Some(stream.get(at..at + n)?.iter().fold(0, |sum, &b| sum << 8 | usize::from(b)));
    match stream {
        [0xff, 0x4f, 0xff, 0x51, ..] => {
            Some((number(8, 4)?.wrapping_sub(number(16, 4)?), number(12, 4)?.wrapping_sub(number(20, 4)?)))
        }
        [0xff, 0xd8, ..] => {
            let mut at = 2;
            loop {
                let (marker, length) = (number(at, 2)?, number(at + 2, 2)?);
                if matches!(marker, 0xffc0..=0xffcf) && !matches!(marker, 0xffc4 | 0xffc8 | 0xffcc) {
                    return Some((number(at + 7, 2)?, number(at + 5, 2)?));
                }
                // Markers may be filled up with more of their first byte.
                at += if marker == 0xffff { 1 } else { 2 + length };
            }
        }
        // A whole file of JPEG 2000, which DICOM does not have.
        [0, 0, 0, 12, b'j', b'P', ..] => Some((0, 0)),
        _ => None,
    }
}

thread_local! {
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// What a decoder gives; where it panics over damaged pixels, that is an error like others.
fn caught<T>(decode: impl FnOnce() -> Result<T>) -> Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !CAUGHT.get() {
                before(info);
            }
        }));
    });
    CAUGHT.set(true);
    let done = panic::catch_unwind(AssertUnwindSafe(decode));
    CAUGHT.set(false);
    done.unwrap_or_else(|_| bail!("compressed pixels that are damaged"))
}

impl<I: AsRef<[Image]>, P: AsRef<[Piece]>> Read for Pixels<I, P> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.slice.len() {
            let Some(&piece) = self.pieces.as_ref().get(self.next) else { return Ok(0) };
            self.next += 1;
            self.read_slice(piece).map_err(|error| io::Error::other(format!("{}: {error:#}", self.name(piece))))?;
        }
        let n = out.len().min(self.slice.len() - self.at);
        out[..n].copy_from_slice(&self.slice[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}
