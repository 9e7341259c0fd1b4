//! What one DICOM file says: whose image it is, its slices and where they lie, how its pixels are written; or what it is instead.

use super::file::{Elements, Pixels, Place};
use crate::data::formats::Stored;
use anyhow::{Context, Result, ensure};
use dicom_core::Tag;
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;

/// Modalities of objects that are computed from images or describe them, though some have pixels.
const NO_IMAGES: [&str; 10] = ["SR", "PR", "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTIMAGE", "KO", "REG", "DOC"];
/// Segmentations, which some write as another modality.
const SEGMENTATIONS: [&str; 2] = [uids::SEGMENTATION_STORAGE, uids::LABEL_MAP_SEGMENTATION_STORAGE];
/// Words among the kinds of an image that name a scout.
const SCOUTS: [&str; 3] = ["LOCALIZER", "SCOUT", "TOPOGRAM"];
/// More frames than this are not meant.
const MOST_FRAMES: u32 = 1 << 16;

/// One slice, in LPS millimetres.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slice {
    /// Centre of the first voxel.
    pub position: [f64; 3],
    /// Directions along which columns and rows count up: to the right in a row, and down.
    pub axes: [[f64; 3]; 2],
    /// Between neighbouring columns and neighbouring rows.
    pub spacing: [f64; 2],
    /// Slope and intercept of its values.
    pub scale: (f64, f64),
}

/// How the value of a pixel is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    pub stored: Stored,
    /// Bits that are the value, and the position of its lowest one.
    pub bits: u32,
    pub lowest: u32,
}

/// A slice of one of the files.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Piece {
    pub image: usize,
    pub frame: usize,
    pub scale: (f64, f64),
    /// Along the normal, in millimetres.
    pub at: f64,
}

/// A file with an image.
#[derive(Clone, Debug)]
pub struct Image {
    pub place: Place,
    pub syntax: String,
    pub big_endian: bool,
    pub pixels: Pixels,
    pub word: Word,
    pub columns: usize,
    pub rows: usize,
    /// Of each frame; `None`: it does not say where it lies.
    pub slices: Option<Vec<Slice>>,
    /// Distance to the next slice, of one that has none: between slices, else its thickness.
    pub thickness: Option<f64>,
    /// Of this file: SOPInstanceUID and SOPClassUID.
    pub uid: String,
    pub class: String,
}

/// Whose an image is.
#[derive(Clone, Debug, Default)]
pub struct Labels {
    pub patient: String,
    pub study: String,
    pub series: String,
    /// Of the series; else the protocol's name, else the modality.
    pub description: String,
}

/// What a file holds.
#[derive(Debug)]
pub enum Found {
    Image(Labels, Box<Image>),
    /// No slices of a volume: what it is, in the plural.
    Other(String),
}

/// What an object says.
pub trait Says {
    fn text(&self, tag: Tag) -> String;
    fn numbers(&self, tag: Tag) -> Option<Vec<f64>>;
    fn number(&self, tag: Tag) -> Option<f64> {
        self.numbers(tag)?.first().copied()
    }
    fn whole(&self, tag: Tag) -> Option<u32>;
    /// Items of a sequence; none where it is not there.
    fn items(&self, tag: Tag) -> &[InMemDicomObject];
}

impl Says for InMemDicomObject {
    fn text(&self, tag: Tag) -> String {
        let text = self.get(tag).and_then(|element| Some(element.to_str().ok()?.trim_matches(['\0', ' ']).to_string()));
        text.unwrap_or_default()
    }

    fn numbers(&self, tag: Tag) -> Option<Vec<f64>> {
        let numbers = self.get(tag)?.to_multi_float64().ok()?;
        Some(numbers).filter(|numbers| !numbers.is_empty() && numbers.iter().all(|number| number.is_finite()))
    }

    fn whole(&self, tag: Tag) -> Option<u32> {
        self.get(tag)?.to_int().ok()
    }

    fn items(&self, tag: Tag) -> &[InMemDicomObject] {
        self.get(tag).and_then(|element| element.items()).unwrap_or_default()
    }
}

/// Reads a file's header. Errors say what is damaged or missing.
pub fn read(place: Place) -> Result<Found> {
    let Elements { syntax, big_endian, object, pixels } = Elements::read(&place)?;
    let (class, modality) = (object.text(tags::SOP_CLASS_UID), object.text(tags::MODALITY));
    if object.get(tags::DIRECTORY_RECORD_SEQUENCE).is_some() {
        return Ok(Found::Other("DICOMDIR files".into()));
    }
    if pixels.is_none() || NO_IMAGES.contains(&modality.as_str()) || SEGMENTATIONS.contains(&class.as_str()) {
        let name = if modality.is_empty() { "DICOM" } else { &modality };
        return Ok(Found::Other(format!("{name} objects, which are no images")));
    }
    let kinds = object.text(tags::IMAGE_TYPE).to_ascii_uppercase();
    if kinds.split('\\').any(|kind| SCOUTS.contains(&kind.trim())) {
        return Ok(Found::Other("localizers".into()));
    }
    let photometric = object.text(tags::PHOTOMETRIC_INTERPRETATION);
    let samples = object.whole(tags::SAMPLES_PER_PIXEL).unwrap_or(1);
    if samples != 1 || !photometric.starts_with("MONOCHROME") {
        return Ok(Found::Other({
            let kind = if photometric.is_empty() { "no PhotometricInterpretation" } else { &photometric };
            format!("images that are not grey ({kind}), such as screenshots and secondary captures")
        }));
    }
    let labels = Labels {
        patient: object.text(tags::PATIENT_ID),
        study: object.text(tags::STUDY_INSTANCE_UID),
        series: object.text(tags::SERIES_INSTANCE_UID),
        description: [tags::SERIES_DESCRIPTION, tags::PROTOCOL_NAME, tags::MODALITY]
            .map(|tag| object.text(tag))
            .into_iter()
            .find(|text| !text.is_empty())
            .unwrap_or_default(),
    };
    let pixels = pixels.filter(|&pixels| pixels != Pixels::Float).context("floating point pixels, which are not read")?;
    let table = object.items(tags::MODALITY_LUT_SEQUENCE);
    ensure!(table.is_empty(), "its values are in a table (ModalityLUTSequence), which is not read: convert it with dcm2niix");
    let need = |tag: Tag, name: &str| object.whole(tag).with_context(|| format!("no {name} ({tag}), which an image has"));
    let (rows, columns) = (need(tags::ROWS, "Rows")? as usize, need(tags::COLUMNS, "Columns")? as usize);
    ensure!(rows > 0 && columns > 0, "{columns} columns and {rows} rows, expected positive ones");
    let word = word(&object)?;
    Ok(Found::Image(
        labels,
        Box::new(Image {
            slices: slices(&object, inverted(&photometric, word))?,
            thickness: [tags::SPACING_BETWEEN_SLICES, tags::SLICE_THICKNESS]
                .into_iter()
                .find_map(|tag| object.number(tag).map(f64::abs).filter(|&mm| mm > 0.0)),
            uid: object.text(tags::SOP_INSTANCE_UID),
            class,
            place,
            syntax,
            big_endian,
            pixels,
            word,
            columns,
            rows,
        }),
    ))
}

fn word(object: &InMemDicomObject) -> Result<Word> {
    let whole = |tag| object.whole(tag);
    let allocated = whole(tags::BITS_ALLOCATED).context("no BitsAllocated, which an image has")?;
    let bits = whole(tags::BITS_STORED).unwrap_or(allocated);
    let high = whole(tags::HIGH_BIT).unwrap_or(bits.saturating_sub(1));
    let signed = whole(tags::PIXEL_REPRESENTATION).unwrap_or(0) == 1;
    let stored = match (allocated, signed) {
        (8, false) => Stored::Uint8,
        (8, true) => Stored::Int8,
        (16, false) => Stored::Uint16,
        (16, true) => Stored::Int16,
        (32, false) => Stored::Uint32,
        (32, true) => Stored::Int32,
        _ => anyhow::bail!("{allocated} bits a pixel, expected 8, 16 or 32"),
    };
    ensure!(
        (1..=allocated).contains(&bits) && (bits - 1..allocated).contains(&high),
        "{bits} bits up to bit {high} of {allocated} a pixel, which cannot be"
    );
    Ok(Word { stored, bits, lowest: high + 1 - bits })
}

/// What is to be done to a stored value before its slope and intercept, as those of a line.
///
/// MONOCHROME1 shows the lowest value brightest: it is turned within what its bits can hold, so that dark is low as in other images.
fn inverted(photometric: &str, word: Word) -> (f64, f64) {
    let all = 2f64.powi(word.bits as i32) - 1.0;
    match (photometric, word.stored) {
        ("MONOCHROME1", Stored::Int8 | Stored::Int16 | Stored::Int32) => (-1.0, -1.0),
        ("MONOCHROME1", _) => (-1.0, all),
        _ => (1.0, 0.0),
    }
}

/// Where each frame lies; `None` if the file does not say.
fn slices(object: &InMemDicomObject, turned: (f64, f64)) -> Result<Option<Vec<Slice>>> {
    let frames = object.whole(tags::NUMBER_OF_FRAMES).unwrap_or(1).max(1);
    ensure!(frames <= MOST_FRAMES, "{frames} frames, expected at most {MOST_FRAMES}");
    let shared = object.items(tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE).first();
    let each = object.items(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE);
    ensure!(each.is_empty() || each.len() == frames as usize, "{frames} frames, but it describes {}", each.len());
    let slice = |frame: usize| {
        // What a frame says itself counts, then what is said for all, then what the file says.
        let groups = [each.get(frame), shared];
        let numbers = |group: Tag, tag: Tag| {
            let of_group = |of: &&InMemDicomObject| of.items(group).first()?.numbers(tag);
            groups.iter().flatten().find_map(of_group).or_else(|| object.numbers(tag))
        };
        let axes: [f64; 6] = numbers(tags::PLANE_ORIENTATION_SEQUENCE, tags::IMAGE_ORIENTATION_PATIENT)?.try_into().ok()?;
        let between: [f64; 2] = numbers(tags::PIXEL_MEASURES_SEQUENCE, tags::PIXEL_SPACING)?.try_into().ok()?;
        let of = |tag| numbers(tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE, tag).and_then(|numbers| numbers.first().copied());
        let slope = of(tags::RESCALE_SLOPE).filter(|&slope| slope != 0.0).unwrap_or(1.0);
        let intercept = of(tags::RESCALE_INTERCEPT).unwrap_or(0.0);
        Some(Slice {
            position: numbers(tags::PLANE_POSITION_SEQUENCE, tags::IMAGE_POSITION_PATIENT)?.try_into().ok()?,
            axes: [[axes[0], axes[1], axes[2]], [axes[3], axes[4], axes[5]]],
            // The file has that of rows first.
            spacing: [between[1], between[0]],
            scale: (turned.0 * slope, turned.1 * slope + intercept),
        })
    };
    Ok((0..frames as usize).map(slice).collect())
}
