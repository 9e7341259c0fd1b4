//! Damaged DICOM files: reading them never panics and never allocates more than their bytes warrant.

mod counting;

use counting::{Counting, fuzz};
use flate2::Compression;
use flate2::write::DeflateEncoder;
use pretext3d::data::formats::open_from;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use std::io::Write;

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

const COLUMNS: u16 = 7;
const ROWS: u16 = 6;
const FRAMES: usize = 3;
/// Frames that tests/data/dicom/make.py wrote, with their bits.
const STREAMS: [(&str, &str, u16, &[u8]); 5] = [
    ("JPEG", "1.2.840.10008.1.2.4.50", 8, include_bytes!("data/dicom/baseline.jpg")),
    ("lossless JPEG", "1.2.840.10008.1.2.4.70", 12, include_bytes!("data/dicom/lossless.jpg")),
    ("JPEG-LS", "1.2.840.10008.1.2.4.80", 12, include_bytes!("data/dicom/lossless.jls")),
    ("near-lossless JPEG-LS", "1.2.840.10008.1.2.4.81", 12, include_bytes!("data/dicom/near.jls")),
    ("JPEG 2000", "1.2.840.10008.1.2.4.90", 12, include_bytes!("data/dicom/lossless.j2k")),
];
const LONG: [&[u8; 2]; 3] = [b"OB", b"OW", b"SQ"];

/// Elements as a transfer syntax writes them.
#[derive(Clone, Copy)]
struct Syntax {
    uid: &'static str,
    explicit: bool,
    big_endian: bool,
}

impl Syntax {
    fn number(self, n: u16) -> [u8; 2] {
        if self.big_endian { n.to_be_bytes() } else { n.to_le_bytes() }
    }

    fn length(self, n: u32) -> [u8; 4] {
        if self.big_endian { n.to_be_bytes() } else { n.to_le_bytes() }
    }

    /// One of undefined length where `value` is `None`.
    fn element(self, tag: (u16, u16), vr: &[u8; 2], value: Option<&[u8]>) -> Vec<u8> {
        let mut out = [self.number(tag.0), self.number(tag.1)].concat();
        let length = value.map_or(u32::MAX, |value| value.len().next_multiple_of(2) as u32);
        match self.explicit && tag.0 != 0xfffe {
            false => out.extend(self.length(length)),
            true if LONG.contains(&vr) => out.extend([&vr[..], &[0, 0], &self.length(length)].concat()),
            true => out.extend([&vr[..], &self.number(length as u16)].concat()),
        }
        out.extend(value.unwrap_or_default());
        out.resize(out.len().next_multiple_of(2), b' ');
        out
    }

    fn sequence(self, tag: (u16, u16), items: &[Vec<u8>]) -> Vec<u8> {
        let items: Vec<u8> = items.iter().flat_map(|item| self.element((0xfffe, 0xe000), b"OB", Some(item))).collect();
        self.element(tag, b"SQ", Some(&items))
    }

    /// A file of several frames with a place for each; `pixels`: the element, of values of `stored` bits.
    fn file(self, stored: u16, pixels: Vec<u8>) -> Vec<u8> {
        let meta = Syntax { uid: "", explicit: true, big_endian: false };
        let text = |tag, vr, text: &str| self.element(tag, vr, Some(text.as_bytes()));
        let short = |tag, n: u16| self.element(tag, b"US", Some(&self.number(n)));
        let frame = |n: usize| {
            let place = text((0x0020, 0x0032), b"DS", &format!("1.5\\-2\\{}", 3 * n));
            self.sequence((0x0020, 0x9113), &[place])
        };
        let mut out = [vec![0; 128], b"DICM".to_vec(), meta.element((2, 0x10), b"UI", Some(self.uid.as_bytes()))].concat();
        let parts = [
            text((8, 0x08), b"CS", "ORIGINAL\\PRIMARY"),
            text((8, 0x16), b"UI", "1.2.840.10008.5.1.4.1.1.4.1"),
            text((8, 0x18), b"UI", "1.2.3"),
            text((8, 0x60), b"CS", "MR"),
            text((8, 0x103e), b"LO", "T1"),
            text((0x10, 0x20), b"LO", "7"),
            text((0x18, 0x50), b"DS", "3"),
            text((0x20, 0x0d), b"UI", "1.2"),
            text((0x20, 0x0e), b"UI", "1.2.9"),
            text((0x20, 0x37), b"DS", "1\\0\\0\\0\\1\\0"),
            short((0x28, 2), 1),
            text((0x28, 4), b"CS", "MONOCHROME2"),
            text((0x28, 8), b"IS", &FRAMES.to_string()),
            short((0x28, 0x10), ROWS),
            short((0x28, 0x11), COLUMNS),
            text((0x28, 0x30), b"DS", "0.5\\0.75"),
            short((0x28, 0x100), stored.next_multiple_of(8)),
            short((0x28, 0x101), stored),
            short((0x28, 0x102), stored - 1),
            short((0x28, 0x103), 0),
            text((0x28, 0x1053), b"DS", "2"),
            self.sequence((0x5200, 0x9230), &[frame(2), frame(0), frame(1)]),
            pixels,
        ];
        out.extend(parts.concat());
        out
    }

    fn native(self) -> Vec<u8> {
        let values: Vec<u8> = (0..ROWS * COLUMNS * FRAMES as u16).flat_map(|n| self.number(n * 5)).collect();
        self.file(12, self.element((0x7fe0, 0x10), b"OW", Some(&values)))
    }

    /// All but the group that names the syntax deflated.
    fn deflated(self) -> Vec<u8> {
        let file = self.native();
        let at = 132 + 8 + self.uid.len().next_multiple_of(2);
        let mut stream = DeflateEncoder::new(file[..at].to_vec(), Compression::fast());
        stream.write_all(&file[at..]).unwrap();
        stream.finish().unwrap()
    }

    /// Each frame in so many pieces; whole ones have an empty table of offsets.
    fn encapsulated(self, stored: u16, frames: &[Vec<u8>], pieces: usize) -> Vec<u8> {
        let item = |bytes: &[u8]| self.element((0xfffe, 0xe000), b"OB", Some(bytes));
        let (mut table, mut fragments) = (vec![], vec![]);
        for frame in frames {
            table.extend(self.length(fragments.len() as u32));
            let size = frame.len().div_ceil(pieces).next_multiple_of(2);
            frame.chunks(size).for_each(|piece| fragments.extend(item(piece)));
        }
        let table = if pieces > 1 { table } else { vec![] };
        let end = self.element((0xfffe, 0xe0dd), b"OB", Some(&[]));
        self.file(stored, [self.element((0x7fe0, 0x10), b"OB", None), item(&table), fragments, end].concat())
    }
}

/// Runs of literal bytes, the high ones of all values first.
fn rle(frame: u16) -> Vec<u8> {
    let plane = |shift: u16| -> Vec<u8> {
        let bytes: Vec<u8> = (0..ROWS * COLUMNS).map(|n| ((n * 11 + frame) >> shift) as u8).collect();
        let mut plane: Vec<u8> = bytes.chunks(21).flat_map(|run| [&[run.len() as u8 - 1][..], run].concat()).collect();
        plane.resize(plane.len().next_multiple_of(2), 0x80);
        plane
    };
    let (high, low) = (plane(8), plane(0));
    let header: Vec<u8> = [2, 64, 64 + high.len() as u32].into_iter().chain([0; 13]).flat_map(u32::to_le_bytes).collect();
    [header, high, low].concat()
}

/// Whole files by their transfer syntax.
fn seeds() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let little = Syntax { uid: "1.2.840.10008.1.2.1", explicit: true, big_endian: false };
    let packed = |uid, stored, frames: &[Vec<u8>], pieces| Syntax { uid, ..little }.encapsulated(stored, frames, pieces);
    let runs: Vec<Vec<u8>> = (0..FRAMES as u16).map(rle).collect();
    let mut files = vec![
        ("explicit little-endian", vec![little.native()]),
        ("implicit little-endian", vec![Syntax { uid: "1.2.840.10008.1.2", explicit: false, ..little }.native()]),
        ("explicit big-endian", vec![Syntax { uid: "1.2.840.10008.1.2.2", big_endian: true, ..little }.native()]),
        ("deflated", vec![Syntax { uid: "1.2.840.10008.1.2.1.99", ..little }.deflated()]),
        ("RLE", vec![packed("1.2.840.10008.1.2.5", 12, &runs, 1)]),
    ];
    files.extend(STREAMS.map(|(name, uid, stored, stream)| {
        let frames = vec![stream.to_vec(); FRAMES];
        (name, [1, 2].map(|pieces| packed(uid, stored, &frames, pieces)).to_vec())
    }));
    files
}

/// One injury.
#[derive(Clone, Debug)]
enum Harm {
    Byte(Index, u8),
    /// An extreme number of two or four bytes, anywhere after the preamble.
    Number(Index, Vec<u8>),
    /// Bytes that are taken out, or put in again.
    Out(Index, usize),
    Twice(Index, usize),
    Cut(Index),
    /// Sequences within sequences, instead of the pixels.
    Deep(usize),
}

fn harm() -> impl Strategy<Value = Harm> {
    let short = [0u16, 1, 2, 8, 32, 0x7fff, 0xffff, 0xfffe, 0x7fe0, 0x0028]
        .iter()
        .flat_map(|n| [n.to_le_bytes().to_vec(), n.to_be_bytes().to_vec()]);
    let long = [0u32, 1, u32::MAX, u32::MAX - 1, 1 << 31, 1 << 20]
        .iter()
        .flat_map(|n| [n.to_le_bytes().to_vec(), n.to_be_bytes().to_vec()]);
    let numbers: Vec<Vec<u8>> = short.chain(long).collect();
    prop_oneof![
        3 => (any::<Index>(), any::<u8>()).prop_map(|(at, v)| Harm::Byte(at, v)),
        4 => (any::<Index>(), select(numbers)).prop_map(|(at, number)| Harm::Number(at, number)),
        1 => (any::<Index>(), 1..40usize).prop_map(|(at, n)| Harm::Out(at, n)),
        1 => (any::<Index>(), 1..40usize).prop_map(|(at, n)| Harm::Twice(at, n)),
        1 => any::<Index>().prop_map(Harm::Cut),
        1 => (1..20_000usize).prop_map(Harm::Deep),
    ]
}

fn injure(file: &mut Vec<u8>, harm: &Harm) {
    if file.len() < 200 {
        return;
    }
    let place = |at: &Index, file: &[u8]| 132 + at.index(file.len() - 132);
    match harm {
        Harm::Byte(at, v) => {
            let at = place(at, file);
            file[at] = *v;
        }
        Harm::Number(at, number) => {
            let at = place(at, file).min(file.len() - number.len());
            file[at..at + number.len()].copy_from_slice(number);
        }
        Harm::Out(at, n) => {
            let at = place(at, file);
            file.drain(at..(at + n).min(file.len()));
        }
        Harm::Twice(at, n) => {
            let at = place(at, file);
            let piece = file[at..(at + n).min(file.len())].to_vec();
            file.splice(at..at, piece);
        }
        Harm::Cut(at) => file.truncate(place(at, file)),
        Harm::Deep(n) => {
            let level = [&[0x52, 0x00, 0x29, 0x92][..], b"SQ\0\0", &[0xff; 4], &[0xfe, 0xff, 0x00, 0xe0], &[0xff; 4]].concat();
            file.truncate(file.len() - 60);
            file.extend(level.repeat(*n));
        }
    }
}

#[test]
fn damaged_files_neither_panic_nor_claim_memory() {
    let read = |file: &[u8]| open_from("slices.dcm", file).and_then(|opened| opened.read_ras());
    let values = usize::from(COLUMNS) * usize::from(ROWS) * FRAMES;
    for seed in seeds().into_iter().flat_map(|(_, seeds)| seeds) {
        let (whole, _) = read(&seed).unwrap_or_else(|error| panic!("{error:#}"));
        assert_eq!((whole.channels(), whole.data.len()), (1, values));
    }
    for (name, seeds) in seeds() {
        fuzz(name, 1_000, &(select(seeds), prop::collection::vec(harm(), 1..4)), |(mut file, harms), outcomes| {
            harms.iter().for_each(|h| injure(&mut file, h));
            let before = ALLOCATOR.start();
            let result = read(&file);
            let peak = ALLOCATOR.peak() - before;
            // A run of RLE is 64 times its bytes, which are held as stored, in order, and as values.
            prop_assert!(peak < 1024 * file.len() + (1 << 20), "{peak} bytes allocated for {}", file.len());
            match result {
                Ok((volume, _)) => {
                    outcomes.read.set(outcomes.read.get() + 1);
                    prop_assert!(!volume.data.is_empty() && volume.data.len() <= 1100 * file.len());
                    prop_assert!(volume.spacing().iter().all(|s| s.is_finite() && *s > 0.0));
                }
                Err(error) => {
                    outcomes.refused.set(outcomes.refused.get() + 1);
                    let message = format!("{error:#}");
                    prop_assert!(message.contains("slices.dcm"), "{}", message);
                }
            }
            Ok(())
        });
    }
}
