//! What a file says of its voxels, whatever its format.

use super::{Format, nifti};
use crate::data::volume::{Affine, spacing};
use crate::dim::Shape;
use anyhow::{Context, Result, ensure};

/// How a file stores a value.
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
    /// Bytes a value.
    pub fn size(self) -> usize {
        match self {
            Stored::Uint8 | Stored::Int8 => 1,
            Stored::Uint16 | Stored::Int16 => 2,
            Stored::Uint32 | Stored::Int32 | Stored::Float32 => 4,
            Stored::Uint64 | Stored::Int64 | Stored::Float64 => 8,
        }
    }
}

/// What a header says.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    pub format: &'static Format,
    /// Spatial extent `[i, j, k]`; the first axis is the fastest in the file.
    pub shape: Shape,
    /// Values a voxel; 1 for most scans.
    pub channels: usize,
    /// `None`: the channels' volumes follow one another. Otherwise so many values lie side by side for each voxel; those beyond the channels
    /// are left out.
    pub(super) interleaved: Option<usize>,
    pub stored: Stored,
    /// Voxel index to RAS+ millimetres, whatever the file's unit and directions.
    pub affine: Affine,
    /// `(slope, intercept)` to apply to stored values; `None` if they are the values.
    pub scale: Option<(f64, f64)>,
    pub big_endian: bool,
    /// The header as it is in the file, for files that are written in the scan's space.
    pub(super) raw: Vec<u8>,
}

/// Extents under which FreeSurfer stores the 163,842 vertices of its standard surface, as one side of NIfTI-1 holds up to 32,767.
const FOLDED_SURFACE: Shape = [27307, 1, 6];

impl Header {
    /// Distance between neighbouring voxels along each axis, in millimetres.
    pub fn spacing(&self) -> [f64; 3] {
        spacing(&self.affine)
    }

    /// Of a new NIfTI-1 file: sform and qform hold the affine. Errors: a singular affine, an extent of 0 or above 32767.
    pub fn new(shape: Shape, affine: &Affine) -> Result<Header> {
        nifti::made_header(shape, affine)
    }

    /// Bytes of all voxels. Errors: no volume, more bytes than can be counted.
    pub(super) fn bytes(&self) -> Result<usize> {
        let Header { shape, channels, .. } = *self;
        ensure!(
            shape.iter().filter(|&&n| n == 1).count() < 2 && shape != FOLDED_SURFACE,
            "extents {shape:?}: a line of {} values, as of the vertices of a surface, expected a volume or a slice",
            shape.iter().map(|&n| n as u128).product::<u128>()
        );
        let values = self.interleaved.unwrap_or(channels);
        let product = |a: usize, b: usize| a.checked_mul(b);
        let bytes = shape.into_iter().chain([values]).try_fold(self.stored.size(), product);
        bytes.with_context(|| format!("extents {shape:?} with {values} channels overflow"))
    }
}
