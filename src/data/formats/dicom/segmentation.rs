//! DICOM Segmentation objects (PS3.3 A.51): masks in the grid of a series, one segment each, for viewers and archives.

use super::arrange::Arranged;
use super::file::Elements;
use super::image::{Image, Says, Slice};
use crate::data::volume::spacing;
use crate::fs::write_atomic;
use anyhow::{Context, Result, ensure};
use dicom_core::chrono::Local;
use dicom_core::dictionary::{DataDictionary, DataDictionaryEntry};
use dicom_core::value::{DataSetSequence, PrimitiveValue, Value};
use dicom_core::{DataElement, Tag, VR};
use dicom_dictionary_std::{StandardDataDictionary, tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use std::path::Path;

/// Who made it: manufacturer, model and algorithm.
const MAKER: &str = env!("CARGO_PKG_NAME");
/// What a segmentation must say of patient and study, and say alike in all objects of a study; empty where the series does not have it.
const OF_STUDY: [Tag; 9] = [
    tags::PATIENT_NAME,
    tags::PATIENT_ID,
    tags::PATIENT_BIRTH_DATE,
    tags::PATIENT_SEX,
    tags::STUDY_DATE,
    tags::STUDY_TIME,
    tags::STUDY_ID,
    tags::ACCESSION_NUMBER,
    tags::REFERRING_PHYSICIAN_NAME,
];
/// What is computed from lossy pixels says so too.
const LOSSY: [Tag; 3] =
    [tags::LOSSY_IMAGE_COMPRESSION, tags::LOSSY_IMAGE_COMPRESSION_RATIO, tags::LOSSY_IMAGE_COMPRESSION_METHOD];
/// Characters of a segment's label, and of a decimal number.
const LABEL: usize = 64;
const DECIMAL: usize = 16;

/// A code: value, scheme, meaning.
type Code = [&'static str; 3];
/// Labels of a dataset have names, not codes: the most general category and type.
const TISSUE: Code = ["85756007", "SCT", "Tissue"];
const DERIVED: Code = ["113076", "DCM", "Segmentation"];
const PURPOSE: Code = ["121322", "DCM", "Source image for image processing operation"];

/// One mask.
pub struct Segment<'a> {
    pub name: &'a str,
    /// Whose voxels are in it. A class may be in several.
    pub classes: Vec<u8>,
}

/// What the object says of a series, read before the work whose result it holds.
pub struct Referenced {
    source: Arranged,
    /// Elements of the first file.
    first: InMemDicomObject,
}

impl Referenced {
    /// Errors: a series that lacks the identifiers to refer to.
    pub fn new(source: Arranged) -> Result<Referenced> {
        let (images, _) = source.parts();
        let first = Elements::read(&images[0].place)?.object;
        for (tag, name) in [(tags::STUDY_INSTANCE_UID, "StudyInstanceUID"), (tags::SERIES_INSTANCE_UID, "SeriesInstanceUID")] {
            ensure!(!first.text(tag).is_empty(), "no {name}, which a segmentation has to refer to");
        }
        let without = images.iter().filter(|image| image.uid.is_empty() || image.class.is_empty()).count();
        ensure!(without == 0, "{without} files without SOPInstanceUID or SOPClassUID, which a segmentation has to refer to");
        Ok(Referenced { source, first })
    }

    /// Writes the masks. `slice` fills in the classes at a place of the third axis, the first axis fastest; a frame is written where a
    /// segment has voxels, or, if none has any, the first one without. The file appears whole or not at all.
    pub fn write(&self, path: &Path, segments: &[Segment], slice: &mut dyn FnMut(usize, &mut [u8])) -> Result<()> {
        let meta = FileMetaTableBuilder::new().transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN);
        let object = self.object(segments, slice).and_then(|object| Ok(object.with_meta(meta)?));
        let object = object.with_context(|| path.display().to_string())?;
        write_atomic(path, |file| Ok(object.write_all(file)?))
    }

    fn object(&self, segments: &[Segment], slice: &mut dyn FnMut(usize, &mut [u8])) -> Result<InMemDicomObject> {
        let (now, organization) = (Local::now(), new_uid());
        let (images, pieces) = self.source.parts();
        let header = self.source.header()?;
        let Masks { frames, bits } = Masks::pack(segments, header.shape, slice);
        // Even in length.
        let bits = [&bits[..], &[0][..bits.len() % 2]].concat();
        ensure!(
            u32::try_from(bits.len()).is_ok_and(|n| n < u32::MAX),
            "{} bytes of masks, expected less than 4 GiB",
            bits.len()
        );
        let per_frame = frames.iter().map(|&(segment, k)| {
            let (image, slice) = self.source.slice(k);
            let frame = Some(pieces[k].frame + 1).filter(|_| image.slices.as_ref().is_some_and(|slices| slices.len() > 1));
            frame_groups(segment + 1, k + 1, image, frame, slice)
        });
        let (_, Slice { axes, spacing: [columns, rows], .. }) = self.source.slice(0);
        let between = spacing(&header.affine)[2];
        let shared = item()
            .items(
                tags::PIXEL_MEASURES_SEQUENCE,
                [item()
                    .decimals(tags::PIXEL_SPACING, &[*rows, *columns])
                    .decimals(tags::SLICE_THICKNESS, &[between])
                    .decimals(tags::SPACING_BETWEEN_SLICES, &[between])],
            )
            .items(tags::PLANE_ORIENTATION_SEQUENCE, [item().decimals(tags::IMAGE_ORIENTATION_PATIENT, axes.as_flattened())]);
        let dimension = |pointer: Tag, group: Tag| {
            item()
                .put(tags::DIMENSION_INDEX_POINTER, pointer)
                .put(tags::FUNCTIONAL_GROUP_POINTER, group)
                .text(tags::DIMENSION_ORGANIZATION_UID, &organization)
        };
        let described = segments.iter().zip(1u16..).map(|(segment, number)| {
            item()
                .put(tags::SEGMENT_NUMBER, number)
                .text(tags::SEGMENT_LABEL, &label(segment.name))
                .code(tags::SEGMENTED_PROPERTY_CATEGORY_CODE_SEQUENCE, TISSUE)
                .code(tags::SEGMENTED_PROPERTY_TYPE_CODE_SEQUENCE, TISSUE)
                .text(tags::SEGMENT_ALGORITHM_TYPE, "AUTOMATIC")
                .text(tags::SEGMENT_ALGORITHM_NAME, MAKER)
        });
        let overlap = (0..=u8::MAX).any(|class| segments.iter().filter(|segment| segment.classes.contains(&class)).count() > 1);
        let series = item()
            .text(tags::SERIES_INSTANCE_UID, &self.first.text(tags::SERIES_INSTANCE_UID))
            .items(tags::REFERENCED_INSTANCE_SEQUENCE, images.iter().map(reference));
        // Frames lie where the series' slices do, also where these do not say that they share a frame of reference.
        let frame_of_reference = Some(self.first.text(tags::FRAME_OF_REFERENCE_UID)).filter(|uid| !uid.is_empty());
        let object = item()
            .text(tags::SPECIFIC_CHARACTER_SET, "ISO_IR 192")
            .text(tags::SOP_CLASS_UID, uids::SEGMENTATION_STORAGE)
            .text(tags::SOP_INSTANCE_UID, &new_uid())
            .copies(&self.first, &OF_STUDY)
            .text(tags::STUDY_INSTANCE_UID, &self.first.text(tags::STUDY_INSTANCE_UID))
            .text(tags::MODALITY, "SEG")
            .text(tags::SERIES_INSTANCE_UID, &new_uid())
            .text(tags::SERIES_NUMBER, "1")
            .text(tags::SERIES_DESCRIPTION, &format!("Segmentation by {MAKER}"))
            .text(tags::INSTANCE_NUMBER, "1")
            .text(tags::FRAME_OF_REFERENCE_UID, &frame_of_reference.unwrap_or_else(new_uid))
            .text(tags::POSITION_REFERENCE_INDICATOR, "")
            .text(tags::MANUFACTURER, MAKER)
            .text(tags::MANUFACTURER_MODEL_NAME, MAKER)
            .text(tags::DEVICE_SERIAL_NUMBER, "none")
            .text(tags::SOFTWARE_VERSIONS, env!("CARGO_PKG_VERSION"))
            .text(tags::IMAGE_TYPE, "DERIVED\\PRIMARY")
            .text(tags::CONTENT_DATE, &now.format("%Y%m%d").to_string())
            .text(tags::CONTENT_TIME, &now.format("%H%M%S").to_string())
            .text(tags::CONTENT_LABEL, "SEGMENTATION")
            .text(tags::CONTENT_DESCRIPTION, "")
            .text(tags::CONTENT_CREATOR_NAME, "")
            .text(tags::LOSSY_IMAGE_COMPRESSION, "00")
            .copies_there(&self.first, &LOSSY)
            .text(tags::SEGMENTATION_TYPE, "BINARY")
            .text(tags::SEGMENTS_OVERLAP, if overlap { "YES" } else { "NO" })
            .items(tags::SEGMENT_SEQUENCE, described)
            .items(tags::REFERENCED_SERIES_SEQUENCE, [series])
            .items(tags::DIMENSION_ORGANIZATION_SEQUENCE, [item().text(tags::DIMENSION_ORGANIZATION_UID, &organization)])
            .items(
                tags::DIMENSION_INDEX_SEQUENCE,
                [
                    dimension(tags::REFERENCED_SEGMENT_NUMBER, tags::SEGMENT_IDENTIFICATION_SEQUENCE),
                    dimension(tags::IMAGE_POSITION_PATIENT, tags::PLANE_POSITION_SEQUENCE),
                ],
            )
            .items(tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, [shared])
            .text(tags::NUMBER_OF_FRAMES, &frames.len().to_string())
            .items(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, per_frame)
            .put(tags::ROWS, u16::try_from(header.shape[1])?)
            .put(tags::COLUMNS, u16::try_from(header.shape[0])?)
            .put(tags::SAMPLES_PER_PIXEL, 1u16)
            .text(tags::PHOTOMETRIC_INTERPRETATION, "MONOCHROME2")
            .put(tags::BITS_ALLOCATED, 1u16)
            .put(tags::BITS_STORED, 1u16)
            .put(tags::HIGH_BIT, 0u16)
            .put(tags::PIXEL_REPRESENTATION, 0u16);
        let mut object = object.0;
        object.put(DataElement::new(tags::PIXEL_DATA, VR::OB, PrimitiveValue::from(bits)));
        Ok(object)
    }
}

/// What a frame says: its segment, from 1 on, its place among the slices, from 1 on, and which slice that is.
fn frame_groups(segment: usize, place: usize, image: &Image, frame: Option<usize>, slice: &Slice) -> Item {
    let source =
        reference(image).text(tags::SPATIAL_LOCATIONS_PRESERVED, "YES").code(tags::PURPOSE_OF_REFERENCE_CODE_SEQUENCE, PURPOSE);
    let source = match frame {
        Some(frame) => source.text(tags::REFERENCED_FRAME_NUMBER, &frame.to_string()),
        None => source,
    };
    let indices = PrimitiveValue::from([segment as u32, place as u32]);
    item()
        .items(tags::FRAME_CONTENT_SEQUENCE, [item().put(tags::DIMENSION_INDEX_VALUES, indices)])
        .items(tags::PLANE_POSITION_SEQUENCE, [item().decimals(tags::IMAGE_POSITION_PATIENT, &slice.position)])
        .items(tags::SEGMENT_IDENTIFICATION_SEQUENCE, [item().put(tags::REFERENCED_SEGMENT_NUMBER, segment as u16)])
        .items(
            tags::DERIVATION_IMAGE_SEQUENCE,
            [item().code(tags::DERIVATION_CODE_SEQUENCE, DERIVED).items(tags::SOURCE_IMAGE_SEQUENCE, [source])],
        )
}

fn reference(image: &Image) -> Item {
    item().text(tags::REFERENCED_SOP_CLASS_UID, &image.class).text(tags::REFERENCED_SOP_INSTANCE_UID, &image.uid)
}

/// Masks as frames, one bit a voxel.
struct Masks {
    /// Segment and slice of each.
    frames: Vec<(usize, usize)>,
    /// All frames, one right after another, the lowest bit first.
    bits: Vec<u8>,
}

impl Masks {
    fn pack(segments: &[Segment], [columns, rows, slices]: [usize; 3], slice: &mut dyn FnMut(usize, &mut [u8])) -> Masks {
        let mut classes = vec![0; columns * rows];
        let mut frames = vec![];
        for k in 0..slices {
            slice(k, &mut classes);
            let mut there = [false; 256];
            classes.iter().for_each(|&class| there[usize::from(class)] = true);
            let found = (0..segments.len()).filter(|&s| segments[s].classes.iter().any(|&class| there[usize::from(class)]));
            frames.extend(found.map(|segment| (segment, k)));
        }
        frames.sort_unstable();
        if frames.is_empty() {
            frames.push((0, 0));
        }
        let mut bits = vec![0; (frames.len() * classes.len()).div_ceil(8)];
        for (frame, &(segment, k)) in frames.iter().enumerate() {
            slice(k, &mut classes);
            let mut within = [0; 256];
            segments[segment].classes.iter().for_each(|&class| within[usize::from(class)] = 1);
            for (at, &class) in (frame * classes.len()..).zip(&classes) {
                bits[at / 8] |= within[usize::from(class)] << (at % 8);
            }
        }
        Masks { frames, bits }
    }
}

/// An identifier that no other object has (PS3.5 B.2): a random UUID.
fn new_uid() -> String {
    const VERSION: u128 = 0xf << 76;
    const VARIANT: u128 = 0b11 << 62;
    let uuid = rand::random::<u128>() & !VERSION & !VARIANT | 4 << 76 | 0b10 << 62;
    format!("2.25.{uuid}")
}

/// A label without what separates values, no longer than it may be.
fn label(name: &str) -> String {
    let plain = |c: char| if c == '\\' || c.is_control() { '_' } else { c };
    name.chars().map(plain).take(LABEL).collect()
}

/// A decimal number in the characters that it may have: all digits where they have room.
fn decimal(value: f64) -> String {
    let all = std::iter::once(format!("{value}"));
    let fewer = (0..DECIMAL).rev().map(|digits| match value.abs() < 1e-4 {
        true => format!("{value:.digits$e}"),
        false => format!("{value:.digits$}"),
    });
    all.chain(fewer).find(|text| text.len() <= DECIMAL).unwrap_or_else(|| format!("{value:.8e}"))
}

/// Elements of an object or of an item within it; what type each has is in the dictionary.
struct Item(InMemDicomObject);

fn item() -> Item {
    Item(InMemDicomObject::new_empty())
}

impl Item {
    fn put(mut self, tag: Tag, value: impl Into<PrimitiveValue>) -> Item {
        let entry = StandardDataDictionary.by_tag(tag).expect("in the dictionary");
        self.0.put(DataElement::new(tag, entry.vr().relaxed(), value.into()));
        self
    }

    fn text(self, tag: Tag, value: &str) -> Item {
        self.put(tag, if value.is_empty() { PrimitiveValue::Empty } else { value.into() })
    }

    fn decimals(self, tag: Tag, values: &[f64]) -> Item {
        self.text(tag, &values.iter().map(|&value| decimal(value)).collect::<Vec<_>>().join("\\"))
    }

    fn items(mut self, tag: Tag, items: impl IntoIterator<Item = Item>) -> Item {
        let items: Vec<InMemDicomObject> = items.into_iter().map(|item| item.0).collect();
        self.0.put(DataElement::new(tag, VR::SQ, Value::from(DataSetSequence::from(items))));
        self
    }

    fn code(self, tag: Tag, [value, scheme, meaning]: Code) -> Item {
        let code = item().text(tags::CODE_VALUE, value).text(tags::CODING_SCHEME_DESIGNATOR, scheme);
        self.items(tag, [code.text(tags::CODE_MEANING, meaning)])
    }

    /// Elements as another object has them; those that it has not are empty.
    fn copies(self, from: &InMemDicomObject, tags: &[Tag]) -> Item {
        let empty = tags.iter().fold(self, |item, &tag| item.text(tag, ""));
        empty.copies_there(from, tags)
    }

    fn copies_there(mut self, from: &InMemDicomObject, tags: &[Tag]) -> Item {
        tags.iter().filter_map(|&tag| from.get(tag)).for_each(|element| drop(self.0.put(element.clone())));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_keep_what_sixteen_characters_hold() {
        let digits = [
            (-0.0, "-0"),
            (1.5, "1.5"),
            (-0.087155742747658, "-0.0871557427477"),
            (123_456.789_012_345_67, "123456.789012346"),
        ];
        for (value, text) in digits {
            assert_eq!(decimal(value), text);
        }
        for value in [1.0 / 3.0, -2e-7 / 3.0, 1e22 / 7.0, -1e-300 / 3.0, 99999.99999999999] {
            let text = decimal(value);
            assert!(text.len() <= DECIMAL && (text.parse::<f64>().unwrap() / value - 1.0).abs() < 1e-8, "{value} {text}");
        }
    }

    #[test]
    fn frames_follow_each_other_bit_by_bit() {
        // Of two slices of five voxels.
        let classes = [[0, 1, 2, 0, 2], [0, 2, 0, 0, 1]];
        let segment = |name, classes: &[u8]| Segment { name, classes: classes.to_vec() };
        let pack = |segments: &[Segment]| Masks::pack(segments, [5, 1, 2], &mut |k, out| out.copy_from_slice(&classes[k]));
        let Masks { frames, bits } = pack(&[segment("both", &[1, 2]), segment("none", &[3]), segment("first", &[1])]);
        assert_eq!(frames, [(0, 0), (0, 1), (2, 0), (2, 1)]);
        let expected = [0, 1, 1, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1];
        assert!(expected.iter().enumerate().all(|(n, &bit)| bits[n / 8] >> (n % 8) & 1 == bit), "{bits:?}");
        assert_eq!(bits.len(), 3);
        let Masks { frames, bits } = pack(&[segment("none", &[3])]);
        assert_eq!((frames, bits), (vec![(0, 0)], vec![0]));
    }

    #[test]
    fn identifiers_are_uuids() {
        let [a, b] = [new_uid(), new_uid()];
        assert_ne!(a, b);
        let uuid: u128 = a.strip_prefix("2.25.").unwrap().parse().unwrap();
        assert_eq!((uuid >> 76 & 0xf, uuid >> 62 & 0b11), (4, 0b10));
        assert_eq!(label("a\\b\n"), "a_b_");
        assert_eq!(label(&"ü".repeat(70)).chars().count(), 64);
    }
}
