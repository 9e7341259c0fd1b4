//! The header of both versions, checked.

use super::{FORMAT, NIFTI1, NIFTI2};
use crate::data::formats::{Header, Stored};
use crate::data::volume::{Affine, rotation};
use crate::dim::Shape;
use anyhow::{Context, Result, bail, ensure};
use std::io::Read;

/// Types of voxels and their code in the header's `datatype`.
const TYPES: [(i16, Stored); 10] = [
    (2, Stored::Uint8),
    (4, Stored::Int16),
    (8, Stored::Int32),
    (16, Stored::Float32),
    (64, Stored::Float64),
    (256, Stored::Int8),
    (512, Stored::Uint16),
    (768, Stored::Uint32),
    (1024, Stored::Int64),
    (1280, Stored::Uint64),
];

/// From the header's `datatype`: how each number is stored and, of colours, how many lie side by side.
fn stored(code: i16) -> Result<(Stored, Option<usize>)> {
    if let Some((_, stored)) = TYPES.iter().find(|(known, _)| *known == code) {
        return Ok((*stored, None));
    }
    let unsupported = match code {
        128 => return Ok((Stored::Uint8, Some(3))),
        2304 => return Ok((Stored::Uint8, Some(4))),
        1 => "binary",
        32 => "complex64",
        1536 => "float128",
        1792 => "complex128",
        2048 => "complex256",
        _ => "unknown",
    };
    let way = if unsupported.starts_with("complex") { "; save the magnitude, or the parts as channels" } else { "" };
    bail!("data type {unsupported} (code {code}), expected integers of 8 to 64 bits, float32, float64 or RGB{way}");
}

/// The code of a type.
pub fn code(stored: Stored) -> i16 {
    TYPES.iter().find(|(_, known)| *known == stored).expect("every type has a code").0
}

/// A header of either version, and where its voxels are.
pub struct Parsed {
    pub header: Header,
    /// Where the voxels begin, in this file or, for a pair, in the `.img` file.
    pub offset: u64,
    /// Whether the voxels are in a separate `.img` file.
    pub pair: bool,
}

/// The bytes of a header of either version, from the beginning of a stream.
pub fn read_header(stream: &mut dyn Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(NIFTI2);
    stream.take(NIFTI1 as u64).read_to_end(&mut bytes).context("reading the header")?;
    let Some((size, _)) = size(&bytes) else {
        let start = bytes[..bytes.len().min(16)].escape_ascii();
        bail!("not a NIfTI file: it begins with \"{start}\", expected a header size of {NIFTI1} or {NIFTI2}")
    };
    stream.take((size - NIFTI1) as u64).read_to_end(&mut bytes).context("reading the header")?;
    ensure!(bytes.len() == size, "file ends after {} bytes of header, expected {size}", bytes.len());
    Ok(bytes)
}

/// Errors say what is wrong, but not in which file.
pub fn parse(bytes: &[u8]) -> Result<Parsed> {
    let fields = Fields::new(bytes).context("a NIfTI header")?;
    if bytes.len() == NIFTI1 { fields.nifti1() } else { fields.nifti2() }
}

/// The size that a header says it has, and whether it is big-endian; `None`: not the beginning of one.
pub fn size(start: &[u8]) -> Option<(usize, bool)> {
    let size: [u8; 4] = start.get(..4)?.try_into().ok()?;
    match (u32::from_le_bytes(size) as usize, u32::from_be_bytes(size) as usize) {
        (n @ (NIFTI1 | NIFTI2), _) => Some((n, false)),
        (_, n @ (NIFTI1 | NIFTI2)) => Some((n, true)),
        _ => size_by_magic(start),
    }
}

/// As [`size`], of a NIfTI-1 header whose size some tool left empty: its number of axes shows the order of bytes.
fn size_by_magic(start: &[u8]) -> Option<(usize, bool)> {
    let magic = matches!(start.get(344..348)?, b"n+1\0" | b"ni1\0");
    let axes = [start[40], start[41]];
    let little = (1..=7).contains(&i16::from_le_bytes(axes));
    (magic && (little || (1..=7).contains(&i16::from_be_bytes(axes)))).then_some((NIFTI1, !little))
}

/// Access to a header's fields by their offset.
pub struct Fields<'a> {
    bytes: &'a [u8],
    big: bool,
}

/// The fields that both versions have, in one type.
pub struct Common {
    dim: [i64; 8],
    datatype: i16,
    pixdim: [f64; 8],
    offset: f64,
    /// Slope, intercept.
    pub scale: [f64; 2],
    /// `xyzt_units`.
    pub units: i32,
    /// qform, sform.
    pub codes: [i32; 2],
    /// Quaternion b, c, d, then the three offsets.
    qform: [f64; 6],
    sform: [f64; 12],
    /// How far the quaternion's length may exceed 1.
    tolerance: f64,
}

impl<'a> Fields<'a> {
    /// `None` unless the bytes are a whole header.
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let (_, big) = size(bytes).filter(|(size, _)| *size == bytes.len())?;
        Some(Fields { bytes, big })
    }

    fn raw<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes: [u8; N] = self.bytes[at..at + N].try_into().expect("inside the header");
        if self.big {
            bytes.reverse();
        }
        bytes
    }

    pub fn i16(&self, at: usize) -> i16 {
        i16::from_le_bytes(self.raw(at))
    }

    pub fn i32(&self, at: usize) -> i32 {
        i32::from_le_bytes(self.raw(at))
    }

    fn i64(&self, at: usize) -> i64 {
        i64::from_le_bytes(self.raw(at))
    }

    pub fn f32s<const N: usize>(&self, at: usize) -> [f64; N] {
        std::array::from_fn(|i| f32::from_le_bytes(self.raw(at + 4 * i)) as f64)
    }

    fn f64s<const N: usize>(&self, at: usize) -> [f64; N] {
        std::array::from_fn(|i| f64::from_le_bytes(self.raw(at + 8 * i)))
    }

    fn nifti1(&self) -> Result<Parsed> {
        let pair = match &self.bytes[344..348] {
            b"n+1\0" => false,
            b"ni1\0" => true,
            other => bail!("magic \"{}\", expected \"n+1\" or \"ni1\"", other.escape_ascii()),
        };
        self.common1().check(self, pair)
    }

    /// The fields of NIfTI-1, most of which ANALYZE has in the same places.
    pub fn common1(&self) -> Common {
        let [offset, slope, inter] = self.f32s(108);
        Common {
            dim: std::array::from_fn(|a| self.i16(40 + 2 * a) as i64),
            datatype: self.i16(70),
            pixdim: self.f32s(76),
            offset,
            scale: [slope, inter],
            units: i32::from(self.bytes[123]),
            codes: [self.i16(252) as i32, self.i16(254) as i32],
            qform: self.f32s(256),
            sform: self.f32s(280),
            tolerance: 3.0 * f32::EPSILON as f64,
        }
    }

    fn nifti2(&self) -> Result<Parsed> {
        let pair = match &self.bytes[4..8] {
            b"n+2\0" => false,
            b"ni2\0" => true,
            other => bail!("magic \"{}\", expected \"n+2\" or \"ni2\"", other.escape_ascii()),
        };
        let newlines = &self.bytes[8..12];
        let unharmed = newlines == b"\r\n\x1a\n";
        ensure!(
            unharmed,
            "newline check is \"{}\", expected \"\\r\\n\\x1a\\n\": transferred as text?",
            newlines.escape_ascii()
        );
        let intent = self.i32(504);
        ensure!(
            !(3000..3100).contains(&intent),
            "a CIFTI file (intent {intent}): values of surfaces and of parts of the brain, expected a volume"
        );
        let common = Common {
            dim: std::array::from_fn(|a| self.i64(16 + 8 * a)),
            datatype: self.i16(12),
            pixdim: self.f64s(104),
            offset: self.i64(168) as f64,
            scale: self.f64s(176),
            units: self.i32(500),
            codes: [self.i32(344), self.i32(348)],
            qform: self.f64s(352),
            sform: self.f64s(400),
            tolerance: 3.0 * f64::EPSILON,
        };
        common.check(self, pair)
    }
}

impl Common {
    pub fn check(&self, fields: &Fields, pair: bool) -> Result<Parsed> {
        let (shape, channels) = self.extents()?;
        let (stored, colours) = stored(self.datatype)?;
        ensure!(
            colours.is_none() || channels == 1,
            "RGB voxels in a file of {channels} volumes, expected one: save each volume as a file of its own"
        );
        // A single file's voxels come after its header and the four bytes of the extension flag.
        let first = if pair { 0 } else { fields.bytes.len() + 4 };
        let whole = self.offset.fract() == 0.0 && self.offset < 2f64.powi(53);
        ensure!(whole && self.offset >= first as f64, "vox_offset is {}, expected a whole number from {first}", self.offset);
        let [slope, inter] = self.scale;
        let scaled = slope != 0.0 && slope.is_finite();
        ensure!(!scaled || inter.is_finite(), "scl_slope is {slope} but scl_inter is {inter}, expected a finite number");
        let mut affine = self.affine(shape)?;
        let unit = self.millimetres()?;
        affine[..3].iter_mut().flatten().for_each(|v| *v *= unit);
        rotation(&affine).with_context(|| format!("{} of the header", self.affine_name()))?;
        let header = Header {
            format: &FORMAT,
            shape,
            // What shines through does not count.
            channels: colours.map_or(channels, |_| 3),
            interleaved: colours,
            stored,
            affine,
            scale: (scaled && colours.is_none() && (slope, inter) != (1.0, 0.0)).then_some((slope, inter)),
            big_endian: fields.big,
            raw: fields.bytes.to_vec(),
        };
        Ok(Parsed { header, offset: self.offset as u64, pair })
    }

    fn extents(&self) -> Result<(Shape, usize)> {
        let n = self.dim[0];
        ensure!((1..=7).contains(&n), "dim[0] (number of axes) is {n}, expected 2 to 4");
        let dims = &self.dim[1..=n as usize];
        let wanted = || format!("{n}D file with extents {dims:?}, expected 3D, 2D, or 4D with channels last");
        if let Some(bad) = dims.iter().find(|&&d| d < 1) {
            bail!("extents {dims:?} hold {bad}, expected positive ones");
        }
        // A slice is one voxel deep.
        let rest = dims.get(3..).unwrap_or_default();
        let (&[i, j], k) = (dims.first_chunk().with_context(wanted)?, dims.get(2).copied().unwrap_or(1));
        // Axes of extent 1 after the third say nothing: files of vectors have one for the time before their components.
        let channels: Vec<usize> = rest.iter().filter(|&&d| d > 1).map(|&d| d as usize).collect();
        ensure!(channels.len() < 2, wanted());
        Ok(([i, j, k].map(|d| d as usize), channels.first().copied().unwrap_or(1)))
    }

    /// How many of them the header's unit of length is.
    fn millimetres(&self) -> Result<f64> {
        // The higher bits are the unit of time.
        Ok(match self.units & 7 {
            0 | 2 => 1.0,
            1 => 1000.0,
            3 => 0.001,
            other => {
                bail!("xyzt_units: unit of length {other}, expected 0 (unknown), 1 (metre), 2 (millimetre) or 3 (micrometre)")
            }
        })
    }

    fn affine_name(&self) -> &'static str {
        // Other codes are not defined, and mean that there is none.
        match self.codes.map(|code| (1..=5).contains(&code)) {
            [_, true] => "sform",
            [true, false] => "qform",
            [false, false] => "pixdim",
        }
    }

    fn affine(&self, shape: Shape) -> Result<Affine> {
        let last = [0.0, 0.0, 0.0, 1.0];
        // The sign means nothing: qfac and the quaternion say where the axes point.
        let mut spacing: [f64; 3] = std::array::from_fn(|a| self.pixdim[a + 1].abs());
        if self.dim[0] == 2 && (self.affine_name() == "pixdim" || !(spacing[2] * spacing[2]).is_normal()) {
            // Slices have no third spacing.
            spacing[2] = 1.0;
        }
        let [x, y, z] = spacing;
        if self.affine_name() != "sform" {
            for (a, v) in spacing.into_iter().enumerate() {
                // Lengths are taken by squares, which of a NIfTI-2 file's numbers may be too small or large for one.
                ensure!(
                    (v * v).is_normal(),
                    "voxel spacing pixdim[{}] is {}, expected a positive number",
                    a + 1,
                    self.pixdim[a + 1]
                );
            }
        }
        match self.affine_name() {
            "sform" => {
                let row = |r: usize| std::array::from_fn(|c| self.sform[4 * r + c]);
                Ok([row(0), row(1), row(2), last])
            }
            "qform" => {
                let r = self.quaternion_matrix()?;
                let z = if self.pixdim[0] == -1.0 { -z } else { z };
                let row = |a: usize| [r[a][0] * x, r[a][1] * y, r[a][2] * z, self.qform[3 + a]];
                Ok([row(0), row(1), row(2), last])
            }
            _ => {
                let centre = |a: usize, step: f64| -(shape[a] as f64 - 1.0) / 2.0 * step;
                Ok([[-x, 0.0, 0.0, centre(0, -x)], [0.0, y, 0.0, centre(1, y)], [0.0, 0.0, z, centre(2, z)], last])
            }
        }
    }

    /// Rotation matrix of the unit quaternion whose b, c and d the header holds.
    fn quaternion_matrix(&self) -> Result<[[f64; 3]; 3]> {
        let [b, c, d] = [self.qform[0], self.qform[1], self.qform[2]];
        let rest = 1.0 - (b * b + c * c + d * d);
        // Written so that NaN fails it.
        ensure!(
            rest > -self.tolerance,
            "qform quaternion ({b}, {c}, {d}) is longer than 1, expected a unit quaternion's b, c, d"
        );
        let a = if rest < self.tolerance { 0.0 } else { rest.sqrt() };
        let s = 2.0 / (a * a + b * b + c * c + d * d);
        Ok([
            [1.0 - s * (c * c + d * d), s * (b * c - a * d), s * (b * d + a * c)],
            [s * (b * c + a * d), 1.0 - s * (b * b + d * d), s * (c * d - a * b)],
            [s * (b * d - a * c), s * (c * d + a * b), 1.0 - s * (b * b + c * c)],
        ])
    }
}
