//! The header of both versions, checked.

use super::{NIFTI1, NIFTI2};
use crate::data::volume::{Affine, rotation, spacing};
use crate::dim::Shape;
use anyhow::{Context, Result, bail, ensure};
use std::io::Read;

/// How a file stores its voxels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    Uint8,
    Int8,
    Uint16,
    Int16,
    Uint32,
    Int32,
    Uint64,
    Int64,
    Float32,
    Float64,
}

impl Stored {
    /// From the header's `datatype`.
    fn from_code(code: i16) -> Result<Stored> {
        let unsupported = match code {
            2 => return Ok(Stored::Uint8),
            4 => return Ok(Stored::Int16),
            8 => return Ok(Stored::Int32),
            16 => return Ok(Stored::Float32),
            64 => return Ok(Stored::Float64),
            256 => return Ok(Stored::Int8),
            512 => return Ok(Stored::Uint16),
            768 => return Ok(Stored::Uint32),
            1024 => return Ok(Stored::Int64),
            1280 => return Ok(Stored::Uint64),
            1 => "binary",
            32 => "complex64",
            128 => "RGB",
            1536 => "float128",
            1792 => "complex128",
            2048 => "complex256",
            2304 => "RGBA",
            _ => "unknown",
        };
        bail!("data type {unsupported} (code {code}), expected integers of 8 to 64 bits, float32 or float64");
    }

    /// Bytes a voxel.
    pub fn size(self) -> usize {
        match self {
            Stored::Uint8 | Stored::Int8 => 1,
            Stored::Uint16 | Stored::Int16 => 2,
            Stored::Uint32 | Stored::Int32 | Stored::Float32 => 4,
            Stored::Uint64 | Stored::Int64 | Stored::Float64 => 8,
        }
    }
}

/// What a header says about its voxels.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// Spatial extent `[i, j, k]`.
    pub shape: Shape,
    /// Extent of the fourth axis; 1 for a 3D file.
    pub channels: usize,
    pub stored: Stored,
    /// Voxel index to RAS+ millimetres, whatever the header's unit: the sform if there is one, else the qform, else the spacing alone with
    /// the world's origin in the centre and the first axis to the left, as nibabel has it.
    pub affine: Affine,
    /// `(slope, intercept)` to apply to stored values; `None` if they are the values.
    pub scale: Option<(f64, f64)>,
    pub big_endian: bool,
    /// Where the voxels begin, in this file or, for a pair, in the `.img` file.
    pub(super) offset: u64,
    /// Whether the voxels are in a separate `.img` file.
    pub(super) pair: bool,
    /// The header as it is in the file.
    pub(super) raw: Vec<u8>,
    /// Bytes of all voxels.
    pub(super) bytes: usize,
}

impl Header {
    /// Distance between neighbouring voxels along each axis, in millimetres.
    pub fn spacing(&self) -> [f64; 3] {
        spacing(&self.affine)
    }

    /// Reads from the beginning of an uncompressed stream. Errors say what is wrong, but not in which file.
    pub(super) fn parse(stream: &mut dyn Read) -> Result<Header> {
        let mut bytes = Vec::with_capacity(NIFTI2);
        stream.take(NIFTI1 as u64).read_to_end(&mut bytes).context("reading the header")?;
        ensure!(!bytes.is_empty(), "empty file, expected a NIfTI header");
        let size: [u8; 4] = bytes.get(..4).and_then(|b| b.try_into().ok()).unwrap_or_default();
        let (size, big) = match (u32::from_le_bytes(size) as usize, u32::from_be_bytes(size) as usize) {
            (n @ (NIFTI1 | NIFTI2), _) => (n, false),
            (_, n @ (NIFTI1 | NIFTI2)) => (n, true),
            _ => {
                let start = bytes[..bytes.len().min(16)].escape_ascii();
                bail!("not a NIfTI file: it begins with \"{start}\", expected a header size of {NIFTI1} or {NIFTI2}")
            }
        };
        stream.take((size - NIFTI1) as u64).read_to_end(&mut bytes).context("reading the header")?;
        ensure!(bytes.len() == size, "file ends after {} bytes of header, expected {size}", bytes.len());
        let fields = Fields { bytes: &bytes, big };
        if size == NIFTI1 { fields.nifti1() } else { fields.nifti2() }
    }
}

/// Access to a header's fields by their offset.
struct Fields<'a> {
    bytes: &'a [u8],
    big: bool,
}

/// The fields that both versions have, in one type.
struct Common {
    dim: [i64; 8],
    datatype: i16,
    pixdim: [f64; 8],
    offset: f64,
    scale: [f64; 2],
    /// `xyzt_units`.
    units: i32,
    /// qform, sform.
    codes: [i32; 2],
    /// Quaternion b, c, d, then the three offsets.
    qform: [f64; 6],
    sform: [f64; 12],
    /// How far the quaternion's length may exceed 1.
    tolerance: f64,
}

impl Fields<'_> {
    fn raw<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes: [u8; N] = self.bytes[at..at + N].try_into().expect("inside the header");
        if self.big {
            bytes.reverse();
        }
        bytes
    }

    fn i16(&self, at: usize) -> i16 {
        i16::from_le_bytes(self.raw(at))
    }

    fn i32(&self, at: usize) -> i32 {
        i32::from_le_bytes(self.raw(at))
    }

    fn i64(&self, at: usize) -> i64 {
        i64::from_le_bytes(self.raw(at))
    }

    fn f32s<const N: usize>(&self, at: usize) -> [f64; N] {
        std::array::from_fn(|i| f32::from_le_bytes(self.raw(at + 4 * i)) as f64)
    }

    fn f64s<const N: usize>(&self, at: usize) -> [f64; N] {
        std::array::from_fn(|i| f64::from_le_bytes(self.raw(at + 8 * i)))
    }

    fn nifti1(&self) -> Result<Header> {
        let pair = match &self.bytes[344..348] {
            b"n+1\0" => false,
            b"ni1\0" => true,
            b"\0\0\0\0" => {
                bail!("ANALYZE 7.5 header (no magic), expected NIfTI; an ANALYZE file does not tell left from right")
            }
            other => bail!("magic \"{}\", expected \"n+1\" or \"ni1\"", other.escape_ascii()),
        };
        let [offset, slope, inter] = self.f32s(108);
        let common = Common {
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
        };
        common.check(self, pair)
    }

    fn nifti2(&self) -> Result<Header> {
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
    fn check(&self, fields: &Fields, pair: bool) -> Result<Header> {
        let (shape, channels) = self.extents()?;
        let stored = Stored::from_code(self.datatype)?;
        let product = |a: usize, b: usize| a.checked_mul(b);
        let bytes = shape.into_iter().chain([channels]).try_fold(stored.size(), product);
        let bytes = bytes.with_context(|| format!("extents {shape:?} with {channels} channels overflow"))?;
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
        Ok(Header {
            shape,
            channels,
            stored,
            affine,
            scale: (scaled && (slope, inter) != (1.0, 0.0)).then_some((slope, inter)),
            big_endian: fields.big,
            offset: self.offset as u64,
            pair,
            raw: fields.bytes.to_vec(),
            bytes,
        })
    }

    fn extents(&self) -> Result<(Shape, usize)> {
        let n = self.dim[0];
        ensure!((1..=7).contains(&n), "dim[0] (number of axes) is {n}, expected 3 or 4");
        let dims = &self.dim[1..=n as usize];
        if let Some(bad) = dims.iter().find(|&&d| d < 1) {
            bail!("extents {dims:?} hold {bad}, expected positive ones");
        }
        let [i, j, k, rest @ ..] = dims else {
            bail!("{n}D file with extents {dims:?}, expected 3D, or 4D with channels last")
        };
        // Axes of extent 1 after the third say nothing: files of vectors have one for the time before their components.
        let channels: Vec<usize> = rest.iter().filter(|&&d| d > 1).map(|&d| d as usize).collect();
        ensure!(channels.len() < 2, "{n}D file with extents {dims:?}, expected 3D, or 4D with channels last");
        Ok(([i, j, k].map(|&d| d as usize), channels.first().copied().unwrap_or(1)))
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
        let spacing: [f64; 3] = std::array::from_fn(|a| self.pixdim[a + 1].abs());
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
