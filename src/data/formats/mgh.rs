//! MGH, and compressed MGZ: the volumes of FreeSurfer. A header of 284 bytes, then the voxels of one frame after another, all big-endian.
//!
//! No crate reads it; the tests compare with nibabel.

use super::content::Content;
use super::voxels::Voxels;
use super::write::Made;
use super::{Format, Header, Stored};
use crate::data::volume::Affine;
use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};

pub static FORMAT: Format = Format {
    name: "MGH",
    endings: &[".mgh", ".mgz"],
    headers: &[],
    is: |start| fields(start).is_some_and(|fields| fields.plausible()),
    open,
    written: ".mgz",
    interleaves: false,
    write,
};

const SIZE: usize = 284;

/// Types of voxels and their codes.
const TYPES: [(i32, Stored); 5] =
    [(0, Stored::Uint8), (1, Stored::Int32), (3, Stored::Float32), (4, Stored::Int16), (10, Stored::Uint16)];

/// Where fields are that are written anew.
const FRAMES: usize = 16;
const TYPE: usize = 20;

struct Fields {
    version: u32,
    /// Extents, then frames.
    dim: [i32; 4],
    kind: i32,
    /// Whether the header says where the volume lies.
    placed: bool,
    spacing: [f64; 3],
    /// Directions of the three axes in RAS.
    axes: [[f64; 3]; 3],
    /// Of the voxel with index `dim / 2`, in RAS.
    centre: [f64; 3],
}

fn fields(start: &[u8]) -> Option<Fields> {
    /// Up to here there are fields; what follows in the header is not used.
    const USED: usize = 90;
    let start: &[u8; USED] = start.first_chunk()?;
    let word = |at: usize| -> [u8; 4] { start[at..at + 4].try_into().expect("four bytes") };
    let float = |at: usize| f64::from(f32::from_be_bytes(word(at)));
    Some(Fields {
        version: u32::from_be_bytes(word(0)),
        dim: std::array::from_fn(|a| i32::from_be_bytes(word(4 + 4 * a))),
        kind: i32::from_be_bytes(word(TYPE)),
        placed: start[28..30] != [0, 0],
        spacing: std::array::from_fn(|a| float(30 + 4 * a)),
        axes: std::array::from_fn(|a| std::array::from_fn(|r| float(42 + 12 * a + 4 * r))),
        centre: std::array::from_fn(|r| float(78 + 4 * r)),
    })
}

impl Fields {
    /// The version is 1; newer files keep what the numbers mean in the byte above.
    fn known_version(&self) -> bool {
        self.version & 0xffff_00ff == 1
    }

    /// Whether a file may begin so: the version alone is little to know it by.
    fn plausible(&self) -> bool {
        self.known_version() && self.dim.iter().all(|&n| n > 0) && TYPES.iter().any(|(code, _)| *code == self.kind)
    }

    fn affine(&self) -> Affine {
        // Without a place FreeSurfer takes coronal slices of 1 mm: left, inferior, anterior.
        let unplaced = ([1.0; 3], [[-1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]], [0.0; 3]);
        let (spacing, axes, centre) = if self.placed { (self.spacing, self.axes, self.centre) } else { unplaced };
        let mut affine = [[0.0; 4], [0.0; 4], [0.0; 4], [0.0, 0.0, 0.0, 1.0]];
        for (r, row) in affine.iter_mut().take(3).enumerate() {
            (0..3).for_each(|a| row[a] = axes[a][r] * spacing[a]);
            row[3] = centre[r] - (0..3).map(|a| row[a] * f64::from(self.dim[a]) / 2.0).sum::<f64>();
        }
        affine
    }
}

fn open(content: Content) -> Result<(Header, Voxels)> {
    let mut stream = content.stream;
    let mut raw = Vec::with_capacity(SIZE);
    (&mut stream).take(SIZE as u64).read_to_end(&mut raw).context("reading the header")?;
    ensure!(raw.len() == SIZE, "file ends after {} bytes of header, expected {SIZE}", raw.len());
    let fields = fields(&raw).context("a header of 284 bytes")?;
    ensure!(fields.known_version(), "not an MGH file: version {}, expected 1", fields.version);
    let stored = TYPES.iter().find(|(code, _)| *code == fields.kind).map(|(_, stored)| *stored);
    let stored = stored.with_context(|| {
        format!("data type {}, expected 0 (uchar), 1 (int), 3 (float), 4 (short) or 10 (unsigned short)", fields.kind)
    })?;
    ensure!(fields.dim.iter().all(|&n| n > 0), "extents {:?}, expected positive ones", fields.dim);
    let [i, j, k, frames] = fields.dim.map(|n| n as usize);
    let header = Header {
        format: &FORMAT,
        shape: [i, j, k],
        channels: frames,
        interleaved: None,
        stored,
        affine: fields.affine(),
        scale: None,
        big_endian: true,
        raw,
    };
    Ok((header, Voxels::here(stream, SIZE, SIZE as u64)))
}

fn write(like: &Header, made: &mut Made, out: &mut dyn Write) -> Result<()> {
    let code = TYPES.iter().find(|(_, stored)| *stored == made.stored).map(|(code, _)| *code);
    let code = code.with_context(|| format!("{:?} voxels, which MGH does not hold", made.stored))?;
    let frames = i32::try_from(made.channels.unwrap_or(1))?;
    let mut header = like.raw.clone();
    header[FRAMES..FRAMES + 4].copy_from_slice(&frames.to_be_bytes());
    header[TYPE..TYPE + 4].copy_from_slice(&code.to_be_bytes());
    out.write_all(&header)?;
    (made.voxels)(like.big_endian, out)
}
