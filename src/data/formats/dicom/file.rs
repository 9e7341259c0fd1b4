//! One DICOM file up to its pixels: which transfer syntax it has, its elements, where the pixels begin.
//!
//! `dicom-object` gives the elements. It allocates what an element claims and recurses into sequences, so lengths and nesting are
//! checked here first, against the bytes that are there.

use anyhow::{Context, Result, anyhow, bail, ensure};
use dicom_core::dictionary::{DataDictionary, DataDictionaryEntry};
use dicom_core::{Tag, VR};
use dicom_dictionary_std::{StandardDataDictionary, uids};
use dicom_object::{DefaultDicomObject, FileMetaTableBuilder, InMemDicomObject};
use dicom_transfer_syntax_registry::entries;
use flate2::read::DeflateDecoder;
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes before the magic.
const PREAMBLE: usize = 128;
const MAGIC: &[u8] = b"DICM";
/// Bytes of a file that are read at first; most headers are shorter.
const FIRST: usize = 1 << 16;
/// Sequences within sequences beyond which a file is not meant.
const DEEPEST: usize = 32;
/// Most bytes that a compressed byte may stand for, as of an image of one value; more is a claim.
pub const MOST_PACKED: usize = 1100;
const UNDEFINED: u32 = u32::MAX;
const ITEM: Tag = Tag(0xfffe, 0xe000);
const ITEM_END: Tag = Tag(0xfffe, 0xe00d);
const SEQUENCE_END: Tag = Tag(0xfffe, 0xe0dd);
const PIXEL_DATA: Tag = Tag(PIXELS, 0x10);
/// Floating point numbers of 4 and 8 bytes, and integers.
const PIXEL_TYPES: [Tag; 3] = [Tag(PIXELS, 0x08), Tag(PIXELS, 0x09), PIXEL_DATA];
/// Group of the pixels, of whatever type.
const PIXELS: u16 = 0x7fe0;

/// Where a file's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    File(PathBuf),
    Memory(Arc<Vec<u8>>),
}

impl Place {
    /// How many there are; 0 where that is not known.
    pub fn bytes(&self) -> u64 {
        match self {
            Place::File(path) => path.metadata().map_or(0, |file| file.len()),
            Place::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Its first bytes; all of them where it has no more than `most`.
    fn start(&self, most: usize) -> Result<Vec<u8>> {
        match self {
            Place::Memory(bytes) => Ok(bytes[..bytes.len().min(most)].to_vec()),
            Place::File(path) => {
                let mut bytes = vec![];
                fs::File::open(path)?.take(most as u64).read_to_end(&mut bytes)?;
                Ok(bytes)
            }
        }
    }

    pub fn whole(&self) -> Result<Vec<u8>> {
        self.start(usize::MAX)
    }
}

/// Whether a file that begins so is DICOM: with its magic, or, as old ones do, with the elements themselves.
pub fn is(start: &[u8]) -> bool {
    if beginning(start) > 0 {
        return true;
    }
    let Some((&[g0, g1, e0, e1, a, b, c, d], _)) = start.split_first_chunk() else { return false };
    let explicit = [[a, b], [b'U', b'L'], [b'U', b'I'], [b'C', b'S'], [b'D', b'A']][1..].contains(&[a, b]);
    let short = (1..=64).contains(&u32::from_le_bytes([a, b, c, d]));
    // Group length, character set, kind of image.. or the group of the syntax.
    let first = [0x00, 0x01, 0x05, 0x08, 0x12, 0x16].contains(&e0) && e1 == 0;
    match [g0, g1] {
        [2, 0] => e0 <= 1 && e1 == 0 && (explicit || [a, b] == *b"OB"),
        [8, 0] => first && (explicit || short),
        _ => false,
    }
}

/// Where the elements begin.
fn beginning(file: &[u8]) -> usize {
    let magic = file.get(PREAMBLE..).is_some_and(|file| file.starts_with(MAGIC));
    if magic { PREAMBLE + MAGIC.len() } else { 0 }
}

/// How elements are written.
#[derive(Clone, Copy)]
struct Encoding {
    explicit: bool,
    big_endian: bool,
}

/// A file's elements before its pixels.
pub struct Elements {
    /// UID of its transfer syntax.
    pub syntax: String,
    pub big_endian: bool,
    pub object: InMemDicomObject,
    pub pixels: Option<Pixels>,
}

/// Where the pixels are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pixels {
    /// So many bytes from this place of the file on, or of what it deflates.
    Native {
        at: u64,
        bytes: u64,
    },
    Encapsulated,
    /// Floating point numbers.
    Float,
}

/// Why elements cannot be gone through.
enum Fault {
    /// More bytes are needed.
    Short(String),
    Bad(String),
}

struct Element {
    tag: Tag,
    vr: Option<VR>,
    length: u32,
    /// Place of its value.
    value: usize,
}

/// Bytes of each value of a type.
fn unit(vr: VR) -> u32 {
    match vr {
        VR::US | VR::SS | VR::OW => 2,
        VR::UL | VR::SL | VR::FL | VR::AT | VR::OF | VR::OL => 4,
        VR::FD | VR::OD | VR::SV | VR::UV | VR::OV => 8,
        _ => 1,
    }
}

struct Walk<'a> {
    bytes: &'a [u8],
    encoding: Encoding,
}

impl Walk<'_> {
    fn number<const N: usize>(&self, at: usize) -> Result<u32, Fault> {
        let bytes = self.bytes.get(at..at.saturating_add(N)).ok_or_else(|| Fault::Short(format!("it ends at byte {at}")))?;
        let add = |sum: u32, byte: &u8| sum << 8 | u32::from(*byte);
        Ok(if self.encoding.big_endian { bytes.iter().fold(0, add) } else { bytes.iter().rev().fold(0, add) })
    }

    fn element(&self, at: usize) -> Result<Element, Fault> {
        let tag = Tag(self.number::<2>(at)? as u16, self.number::<2>(at + 2)? as u16);
        if tag.group() == ITEM.group() || !self.encoding.explicit {
            return Ok(Element { tag, vr: None, length: self.number::<4>(at + 4)?, value: at + 8 });
        }
        self.number::<2>(at + 4)?;
        let code = [self.bytes[at + 4], self.bytes[at + 5]];
        let vr = VR::from_binary(code)
            .ok_or_else(|| Fault::Bad(format!("element {tag} has the type \"{}\", which is not known", code.escape_ascii())))?;
        let long = [VR::OB, VR::OD, VR::OF, VR::OL, VR::OV, VR::OW, VR::SQ, VR::SV, VR::UC, VR::UN, VR::UR, VR::UT, VR::UV];
        Ok(match long.contains(&vr) {
            true => Element { tag, vr: Some(vr), length: self.number::<4>(at + 8)?, value: at + 12 },
            false => Element { tag, vr: Some(vr), length: self.number::<2>(at + 6)?, value: at + 8 },
        })
    }

    /// What is not written is in the dictionary.
    fn vr(&self, element: &Element) -> VR {
        let known = || StandardDataDictionary.by_tag(element.tag).map_or(VR::UN, |entry| entry.vr().relaxed());
        element.vr.unwrap_or_else(known)
    }

    /// Where an element ends.
    fn end(&self, element: &Element, depth: usize) -> Result<usize, Fault> {
        let end = (element.length != UNDEFINED).then(|| element.value.saturating_add(element.length as usize));
        if let Some(end) = end.filter(|&end| end > self.bytes.len()) {
            let (tag, missing) = (element.tag, end - self.bytes.len());
            return Err(Fault::Short(format!("element {tag} has {} bytes, of which {missing} are missing", element.length)));
        }
        let vr = self.vr(element);
        if let Some(end) = end.filter(|_| vr != VR::SQ) {
            // The parser would go on elsewhere.
            let whole = element.length.is_multiple_of(unit(vr));
            return match whole {
                true => Ok(end),
                false => Err(Fault::Bad(format!("element {} has {} bytes of the type {vr}", element.tag, element.length))),
            };
        }
        if depth == DEEPEST {
            return Err(Fault::Bad(format!("more than {DEEPEST} sequences within one another")));
        }
        // What is unknown and of undefined length is written without types.
        let explicit = self.encoding.explicit && element.vr != Some(VR::UN);
        let inside =
            Walk { bytes: &self.bytes[..end.unwrap_or(self.bytes.len())], encoding: Encoding { explicit, ..self.encoding } };
        let mut at = element.value;
        while Some(at) != end {
            let item = inside.element(at)?;
            match item.tag {
                // The parser goes on right after it, whatever the length says.
                SEQUENCE_END if end.is_none_or(|end| end == item.value) => return Ok(item.value),
                // Pixels of a picture within, compressed.
                ITEM if element.tag == PIXEL_DATA && item.length != UNDEFINED => {
                    at = inside.end(&Element { vr: Some(VR::OB), ..item }, depth)?;
                }
                ITEM => at = inside.item(&item, depth)?,
                tag => return Err(Fault::Bad(format!("{tag} in the sequence {}, expected an item", element.tag))),
            }
        }
        Ok(at)
    }

    fn item(&self, item: &Element, depth: usize) -> Result<usize, Fault> {
        let end = (item.length != UNDEFINED).then(|| item.value.saturating_add(item.length as usize));
        if end.is_some_and(|end| end > self.bytes.len()) {
            return Err(Fault::Short(format!("an item has {} bytes, more than there are", item.length)));
        }
        let inside = Walk { bytes: &self.bytes[..end.unwrap_or(self.bytes.len())], ..*self };
        let mut at = item.value;
        while Some(at) != end {
            let element = inside.element(at)?;
            if element.tag == ITEM_END && end.is_none_or(|end| end == element.value) {
                return Ok(element.value);
            }
            if element.tag.group() == ITEM.group() {
                return Err(Fault::Bad(format!("{} among the elements of an item", element.tag)));
            }
            at = inside.end(&element, depth + 1)?;
        }
        Ok(at)
    }

    /// From the element at `at` on those before the pixels: where they end, and the pixels' own.
    fn elements(&self, mut at: usize) -> Result<(usize, Option<Element>), Fault> {
        while at < self.bytes.len() {
            let element = self.element(at)?;
            // Tables of offsets come before the pixels, in their group.
            if PIXEL_TYPES.contains(&element.tag) {
                return Ok((at, Some(element)));
            }
            if element.tag.group() > PIXELS {
                return Ok((at, None));
            }
            at = self.end(&element, 0)?;
        }
        // Where bytes are missing, that is not the end.
        Ok((at, None))
    }
}

/// The group of the syntax: its UID if it has one, and where the group ends.
fn syntax(bytes: &[u8]) -> Result<(Option<String>, usize), Fault> {
    let walk = Walk { bytes, encoding: Encoding { explicit: true, big_endian: false } };
    let (mut at, mut found) = (beginning(bytes), None);
    while walk.number::<2>(at)? == 2 {
        let element = walk.element(at)?;
        let end = walk.end(&element, 0)?;
        if element.tag == Tag(2, 0x10) {
            found = Some(String::from_utf8_lossy(&bytes[element.value..end]).trim_end_matches(['\0', ' ']).to_string());
        }
        at = end;
    }
    Ok((found, at))
}

impl Elements {
    /// Reads no more of a file than it needs.
    pub fn read(place: &Place) -> Result<Elements> {
        let mut most = FIRST;
        loop {
            let start = place.start(most)?;
            let whole = start.len() < most;
            match Elements::parse(&start, whole)? {
                Ok(elements) => return Ok(elements),
                Err(missing) if whole => bail!("cut off or damaged: {missing}"),
                Err(_) => most = most.saturating_mul(8),
            }
        }
    }

    /// Of a file's first bytes, which may be all; within, what is missing.
    fn parse(start: &[u8], whole: bool) -> Result<Result<Elements, String>> {
        let faulty = |fault| match fault {
            Fault::Short(missing) => Ok(missing),
            Fault::Bad(reason) => Err(anyhow!("damaged: {reason}")),
        };
        let (uid, at) = match syntax(start) {
            Ok(found) => found,
            Err(fault) => return faulty(fault).map(Err),
        };
        let explicit = start.get(at + 4..at + 6).is_some_and(|vr| vr.iter().all(u8::is_ascii_uppercase));
        let guessed = if explicit { uids::EXPLICIT_VR_LITTLE_ENDIAN } else { uids::IMPLICIT_VR_LITTLE_ENDIAN };
        let syntax = uid.unwrap_or_else(|| guessed.into());
        if syntax == uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN && !whole {
            return Ok(Err("all of it is compressed".into()));
        }
        let inflated = inflated(start, at, &syntax)?;
        let (bytes, at) = inflated.as_ref().map_or((start, at), |bytes| (bytes, 0));
        let encoding = Encoding {
            explicit: syntax != uids::IMPLICIT_VR_LITTLE_ENDIAN,
            // Retired, but there are files.
            #[allow(deprecated)]
            big_endian: syntax == uids::EXPLICIT_VR_BIG_ENDIAN,
        };
        let (end, pixels) = match (Walk { bytes, encoding }).elements(at) {
            Ok((end, None)) if !whole && end >= bytes.len() => return Ok(Err("its end".into())),
            Ok(found) => found,
            Err(fault) => return faulty(fault).map(Err),
        };
        let written = match encoding {
            Encoding { explicit: false, .. } => entries::IMPLICIT_VR_LITTLE_ENDIAN.erased(),
            Encoding { big_endian: true, .. } => entries::EXPLICIT_VR_BIG_ENDIAN.erased(),
            _ => entries::EXPLICIT_VR_LITTLE_ENDIAN.erased(),
        };
        let object = InMemDicomObject::read_dataset_with_ts(&bytes[at..end], &written).context("its elements")?;
        let pixels = pixels.map(|element| match element {
            Element { tag, .. } if tag != PIXEL_DATA => Pixels::Float,
            Element { length: UNDEFINED, .. } => Pixels::Encapsulated,
            Element { length, value, .. } => Pixels::Native { at: value as u64, bytes: length.into() },
        });
        Ok(Ok(Elements { syntax, big_endian: encoding.big_endian, object, pixels }))
    }
}

/// What follows `at` in a file whose syntax deflates that; otherwise `None`.
fn inflated(file: &[u8], at: usize, syntax: &str) -> Result<Option<Vec<u8>>> {
    if syntax != uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN {
        return Ok(None);
    }
    let most = file.len().saturating_mul(MOST_PACKED);
    let mut bytes = vec![];
    DeflateDecoder::new(&file[at..]).take(most as u64).read_to_end(&mut bytes).context("inflating it")?;
    ensure!(bytes.len() < most, "it inflates to more than {MOST_PACKED} times its size");
    Ok(Some(bytes))
}

/// The bytes in which [`Pixels::Native`] counts.
pub fn native_bytes(file: Vec<u8>, of: &str) -> Result<Vec<u8>> {
    let at = match syntax(&file) {
        Ok((_, at)) => at,
        Err(Fault::Short(reason) | Fault::Bad(reason)) => bail!("damaged: {reason}"),
    };
    Ok(inflated(&file, at, of)?.unwrap_or(file))
}

/// A whole file of compressed pixels, after all lengths are checked, which its parser and decoders trust.
pub fn encapsulated(file: &[u8], of: &str) -> Result<DefaultDicomObject> {
    let walk = Walk { bytes: file, encoding: Encoding { explicit: true, big_endian: false } };
    let check = || {
        let (_, start) = syntax(file)?;
        let (_, pixels) = walk.elements(start)?;
        let mut at = pixels.map_or(file.len(), |pixels| pixels.value);
        while at < file.len() {
            let item = walk.element(at)?;
            at = match item.tag {
                SEQUENCE_END => return Ok((start, item.value)),
                ITEM if item.length != UNDEFINED => walk.end(&Element { vr: Some(VR::OB), ..item }, 0)?,
                tag => return Err(Fault::Bad(format!("{tag} among the pixels, expected an item"))),
            };
        }
        // The end may be missing where all fragments are there.
        Ok((start, at))
    };
    let (start, end) = check().map_err(|fault| match fault {
        Fault::Short(reason) | Fault::Bad(reason) => anyhow!("cut off or damaged: {reason}"),
    })?;
    let written = entries::EXPLICIT_VR_LITTLE_ENDIAN.erased();
    let object = InMemDicomObject::read_dataset_with_ts(&file[start..end], &written).context("its compressed pixels")?;
    // What a decoder asks is the syntax; old files lack other parts of this group.
    let meta =
        FileMetaTableBuilder::new().transfer_syntax(of).media_storage_sop_class_uid("").media_storage_sop_instance_uid("");
    Ok(object.with_exact_meta(meta.build()?))
}
