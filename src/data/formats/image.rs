//! Photographs: PNG, JPEG and TIFF files to volumes of depth 1.
//!
//! `H` counts rows from the top and `W` columns from the left, after the turn that the EXIF orientation asks for. A photograph has
//! no place in the world: its affine is the identity, in pixels.

use crate::data::names::strip_ending;
use crate::data::volume::{Affine, Volume};
use anyhow::{Context, Result, bail, ensure};
use image::codecs::png::PngDecoder;
use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use ndarray::Array4;
use std::collections::HashSet;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use tiff::tags::Tag;

const ENDINGS: [&str; 5] = [".png", ".jpg", ".jpeg", ".tif", ".tiff"];

/// The name of a photograph without its extension, whose case does not matter; `None` for any other file.
pub fn stem(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_string_lossy();
    ENDINGS.iter().find_map(|ending| strip_ending(&name, ending).map(str::to_owned))
}

/// A photograph as it is stored, upright.
pub struct Photograph {
    /// The channels of a pixel side by side, row by row.
    pub samples: Samples,
    /// 1 if it is grey, otherwise red, green and blue.
    pub channels: usize,
    pub height: usize,
    pub width: usize,
}

/// 0 is the darkest and [`Sample::FULL`] the brightest value.
pub enum Samples {
    Eight(Vec<u8>),
    Sixteen(Vec<u16>),
}

pub trait Sample: Copy + Ord + Into<f32> {
    const FULL: Self;

    /// The darkest value that is brighter than `share` of [`Sample::FULL`]; `None`: not even that is.
    fn brighter_than(share: f32) -> Option<Self>;
}

impl Sample for u8 {
    const FULL: u8 = u8::MAX;

    fn brighter_than(share: f32) -> Option<u8> {
        (0..=u8::MAX).find(|&v| f32::from(v) / f32::from(u8::MAX) > share)
    }
}

impl Sample for u16 {
    const FULL: u16 = u16::MAX;

    fn brighter_than(share: f32) -> Option<u16> {
        (0..=u16::MAX).find(|&v| f32::from(v) / f32::from(u16::MAX) > share)
    }
}

/// Reads a photograph. The format is told by the content. Errors name the file: not a whole image, several images in one file, another
/// sample type, transparent pixels.
pub fn open(path: &Path) -> Result<Photograph> {
    decode(path).with_context(|| path.display().to_string())
}

/// As [`open`], as `[C, 1, H, W]` from 0 to 1.
pub fn read(path: &Path) -> Result<Volume> {
    let photograph = open(path)?;
    let data = match &photograph.samples {
        Samples::Eight(samples) => planes(samples, &photograph),
        Samples::Sixteen(samples) => planes(samples, &photograph),
    };
    Ok(Volume { data, affine: IN_PIXELS })
}

/// Of a photograph.
pub const IN_PIXELS: Affine = [[1., 0., 0., 0.], [0., 1., 0., 0.], [0., 0., 1., 0.], [0., 0., 0., 1.]];

/// Channels that [`read`] gives, by the header alone.
pub fn channels(path: &Path) -> Result<usize> {
    let decoder = decoder(path).with_context(|| path.display().to_string())?;
    Ok(if decoder.color_type().has_color() { 3 } else { 1 })
}

fn decoder(path: &Path) -> Result<impl ImageDecoder + use<>> {
    let reader: ImageReader<BufReader<File>> = ImageReader::open(path)?.with_guessed_format()?;
    Ok(reader.into_decoder()?)
}

fn decode(path: &Path) -> Result<Photograph> {
    let reader = || anyhow::Ok(BufReader::new(File::open(path)?));
    match ImageReader::new(reader()?).with_guessed_format()?.format() {
        Some(ImageFormat::Jpeg) => whole_jpeg(&std::fs::read(path)?)?,
        Some(ImageFormat::Tiff) => one_page(reader()?)?,
        Some(ImageFormat::Png) => {
            ensure!(
                !PngDecoder::new(reader()?)?.is_apng()?,
                "an animated PNG, expected one image; save each frame as a file of its own"
            );
        }
        Some(_) => {}
        None => {
            if let Ok(scan) = super::open(path) {
                bail!("a {} scan under the name of a photograph: give it a name of its own", scan.header().format.name);
            }
            if let Some(foreign) = super::foreign::of_file(path) {
                bail!(foreign);
            }
        }
    }
    let mut decoder = decoder(path)?;
    let orientation = decoder.orientation()?;
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    let (width, height) = (image.width() as usize, image.height() as usize);
    ensure!(width > 0 && height > 0, "an image of {height} x {width} pixels");
    if image.color().has_alpha() {
        opaque(&image)?;
    }
    let channels = if image.color().has_color() { 3 } else { 1 };
    // An alpha channel is left out.
    let samples = match image.color() {
        ColorType::L8 | ColorType::La8 => Samples::Eight(image.into_luma8().into_raw()),
        ColorType::Rgb8 | ColorType::Rgba8 => Samples::Eight(image.into_rgb8().into_raw()),
        ColorType::L16 | ColorType::La16 => Samples::Sixteen(image.into_luma16().into_raw()),
        ColorType::Rgb16 | ColorType::Rgba16 => Samples::Sixteen(image.into_rgb16().into_raw()),
        other => bail!("samples are {other:?}, expected whole numbers of 8 or 16 bits"),
    };
    Ok(Photograph { samples, channels, height, width })
}

fn opaque(image: &DynamicImage) -> Result<()> {
    let transparent = image.to_rgba16().pixels().filter(|pixel| pixel.0[3] != u16::MAX).count();
    let pixels = u64::from(image.width()) * u64::from(image.height());
    ensure!(transparent == 0, "{transparent} of {pixels} pixels are transparent, expected an opaque image");
    Ok(())
}

/// Errors unless a JPEG reaches its end-of-image marker: the decoder makes up the pixels of a file that was cut off, or whose end was
/// overwritten. What follows the marker does not matter.
fn whole_jpeg(bytes: &[u8]) -> Result<()> {
    let mut at = 2;
    // Markers are 0xFF and a code. In compressed data 0xFF is followed by 0 or is a restart, both without a length.
    while let Some(found) = bytes.get(at..).and_then(|rest| rest.iter().position(|&b| b == 0xff)) {
        at += found + 1;
        match bytes.get(at) {
            Some(0xd9) => return Ok(()),
            Some(0 | 1 | 0xd0..=0xd8) => at += 1,
            // Any number of these may come before a code.
            Some(0xff) => {}
            _ => match bytes.get(at + 1..at + 3) {
                Some(length) => at += 1 + usize::from(u16::from_be_bytes([length[0], length[1]])),
                None => break,
            },
        }
    }
    bail!("the JPEG is cut off or damaged: {} bytes without its end-of-image marker", bytes.len())
}

/// Errors unless a TIFF holds one image, of which reduced copies may follow: the decoder reads the first page alone.
fn one_page(file: BufReader<File>) -> Result<()> {
    /// Of the tag `NewSubfileType`: a smaller version of another page.
    const REDUCED: u32 = 1;
    let mut tiff = tiff::decoder::Decoder::new(file)?;
    let (mut reduced, mut seen, mut next) = (Vec::new(), HashSet::new(), tiff.ifd_pointer());
    while let Some(pointer) = next {
        ensure!(seen.insert(pointer.0), "the TIFF is damaged: its pages follow one another in a circle");
        let page = tiff.read_directory(pointer)?;
        let kind: u32 = tiff.read_directory_tags(&page).find_tag_unsigned(Tag::NewSubfileType)?.unwrap_or(0);
        reduced.push(kind & REDUCED != 0);
        next = page.next();
    }
    ensure!(
        reduced.first() != Some(&true),
        "the first page of the TIFF is a reduced copy of another one, expected the image first"
    );
    let pages = reduced.iter().filter(|reduced| !**reduced).count();
    ensure!(pages == 1, "a TIFF of {pages} pages, expected one image; save each page as a file of its own");
    Ok(())
}

fn planes<S: Sample>(samples: &[S], &Photograph { channels, height, width, .. }: &Photograph) -> Array4<f32> {
    let full: f32 = S::FULL.into();
    let mut data = Array4::zeros((channels, 1, height, width));
    for (c, plane) in data.as_slice_mut().expect("just made").chunks_exact_mut(height * width).enumerate() {
        let values = samples.iter().skip(c).step_by(channels);
        plane.iter_mut().zip(values).for_each(|(out, &value)| *out = value.into() / full);
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Stream, rng};
    use image::{ExtendedColorType, ImageBuffer, ImageEncoder};
    use rand::Rng as _;

    #[test]
    fn every_sample_type_keeps_its_values() {
        let folder = tempfile::tempdir().unwrap();
        let mut rng = rng(1, Stream::Train, 0, 0);
        let (width, height) = (7, 5);
        for (channels, alpha) in [(1, false), (1, true), (3, false), (3, true)] {
            let samples = channels + usize::from(alpha);
            let values: Vec<u16> = (0..width * height * samples)
                .map(|i| if alpha && i % samples == channels { u16::MAX } else { rng.random() })
                .collect();
            let bytes: Vec<u8> = values.iter().map(|v| (v >> 8) as u8).collect();
            for wide in [false, true] {
                let expected = |c: usize, y: usize, x: usize| {
                    let at = (y * width + x) * samples + c;
                    if wide { f32::from(values[at]) / 65535. } else { f32::from(bytes[at]) / 255. }
                };
                use ExtendedColorType::*;
                let kind = match (channels, alpha, wide) {
                    (1, false, false) => L8,
                    (1, true, false) => La8,
                    (3, false, false) => Rgb8,
                    (3, true, false) => Rgba8,
                    (1, false, true) => L16,
                    (1, true, true) => La16,
                    (3, false, true) => Rgb16,
                    _ => Rgba16,
                };
                let data: Vec<u8> = if wide { bytemuck::cast_slice(&values).to_vec() } else { bytes.clone() };
                // The extension lies: the content decides.
                let path = folder.path().join("x.JPG");
                let file = File::create(&path).unwrap();
                image::codecs::png::PngEncoder::new(file).write_image(&data, width as u32, height as u32, kind).unwrap();
                let volume = read(&path).unwrap();
                assert_eq!(super::channels(&path).unwrap(), channels);
                assert_eq!(volume.data.dim(), (channels, 1, height, width));
                for ((c, _, y, x), &found) in volume.data.indexed_iter() {
                    assert_eq!(found, expected(c, y, x), "{kind:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_image_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let error = || format!("{:#}", read(&path).unwrap_err());
        std::fs::write(&path, "no image").unwrap();
        assert!(error().contains("a.png"), "{}", error());
        let clear = ImageBuffer::from_pixel(4, 4, image::Rgba([9u8, 9, 9, 254]));
        clear.save(&path).unwrap();
        assert!(error().contains("a.png") && error().contains("16 of 16 pixels are transparent"), "{}", error());
        ImageBuffer::from_pixel(40, 40, image::Luma([9u8])).save(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for length in 0..bytes.len() - 12 {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(error().contains("a.png"), "{length} bytes");
        }
        assert_eq!(stem(Path::new("b/c.d.TiFF")).as_deref(), Some("c.d"));
        assert!(stem(Path::new("b/c.nii.gz")).is_none() && stem(Path::new(".png")).is_none());
    }

    #[test]
    fn one_image_a_file() {
        use tiff::encoder::{TiffEncoder, colortype::Gray8};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tif");
        // Sides of the pages, and whether each is a reduced copy.
        let write = |pages: &[(u32, bool)]| {
            let mut tiff = TiffEncoder::new(File::create(&path).unwrap()).unwrap();
            for &(side, reduced) in pages {
                let mut page = tiff.new_image::<Gray8>(side, side).unwrap();
                page.encoder().write_tag(Tag::NewSubfileType, u32::from(reduced)).unwrap();
                page.write_data(&vec![side as u8; (side * side) as usize]).unwrap();
            }
        };
        for pages in [&[(9, false)][..], &[(9, false), (3, true), (1, true)]] {
            write(pages);
            let volume = read(&path).unwrap();
            assert_eq!((volume.data.dim(), volume.data[[0, 0, 0, 0]]), ((1, 1, 9, 9), 9. / 255.));
        }
        for (pages, says) in [
            (&[(9, false), (9, false), (3, true), (9, false)][..], "a.tif: a TIFF of 3 pages"),
            (&[(3, true), (9, false)], "a.tif: the first page of the TIFF is a reduced copy"),
        ] {
            write(pages);
            let error = format!("{:#}", read(&path).unwrap_err());
            assert!(error.contains(says), "{error}");
        }
    }
}
