//! ANALYZE 7.5, the format before NIfTI: a `.hdr` of the same size with an `.img`, as SPM99 and SPM2 use it.
//!
//! It says nothing of where the axes point: as nibabel and SPM do, the first is taken for one to the left, the others to the front and the
//! top. `.mat` files beside it, in which SPM99 keeps what the header cannot say, are not read.

use super::header::{Fields, Parsed, read_header, size};
use super::{NIFTI1, like, open_voxels, pair};
use crate::data::formats::content::Content;
use crate::data::formats::voxels::Voxels;
use crate::data::formats::write::Made;
use crate::data::formats::{Format, Header};
use crate::print::note;
use anyhow::{Context, Result, ensure};
use std::io::Write;
use std::path::Path;
use std::sync::Once;

pub static ANALYZE: Format = Format {
    name: "ANALYZE 7.5",
    // Those of NIfTI pairs.
    endings: &[],
    headers: &[],
    is,
    open,
    written: ".nii.gz",
    interleaves: false,
    write,
};

/// A header of the size of NIfTI-1 without its magic, in whose place there are numbers.
fn is(start: &[u8]) -> bool {
    let magic = start.get(344..347).is_some_and(|magic| !magic.iter().all(u8::is_ascii_graphic));
    size(start).is_some_and(|(size, _)| size == NIFTI1) && magic
}

fn open(content: Content) -> Result<(Header, Voxels)> {
    let Content { mut stream, path } = content;
    let bytes = read_header(&mut stream)?;
    let parsed = parse(&bytes)?;
    let path = path.context("an ANALYZE 7.5 header, whose voxels are in an .img file, expected a single file")?;
    placed_elsewhere(&path)?;
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        note!(
            "warning: {}: ANALYZE 7.5 does not say where left is; the first axis is taken for one to the left, as nibabel and SPM do: \
             compare with a scan whose sides are known (said once)",
            path.display()
        );
    });
    Ok(open_voxels(parsed, &path))
}

/// Errors if SPM keeps the orientation in a file of its own.
fn placed_elsewhere(header: &Path) -> Result<()> {
    let matrix = pair::header_stem(header).map(|stem| format!("{stem}.mat")).filter(|path| Path::new(path).is_file());
    let matrix = matrix.unwrap_or_default();
    ensure!(
        matrix.is_empty(),
        "its orientation is in {matrix}, which is not read: convert both to NIfTI, e.g. with nibabel or SPM"
    );
    Ok(())
}

fn parse(bytes: &[u8]) -> Result<Parsed> {
    let fields = Fields::new(bytes).context("an ANALYZE 7.5 header")?;
    let mut common = fields.common1();
    // What stands there says other things in NIfTI.
    (common.units, common.codes) = (2, [0, 0]);
    common.scale = scale(&fields);
    let mut parsed = common.check(&fields, true)?;
    parsed.header.format = &ANALYZE;
    // SPM's origin counts voxels from 1.
    let origin: [f64; 3] = std::array::from_fn(|a| f64::from(fields.i16(253 + 2 * a)));
    let extents = parsed.header.shape.map(|n| n as f64);
    let inside = origin.iter().zip(extents).all(|(&at, n)| at > -n && at < 2.0 * n);
    if inside && origin != [0.0; 3] {
        let affine = &mut parsed.header.affine;
        (0..3).for_each(|a| affine[a][3] = -(origin[a] - 1.0) * affine[a][a]);
    }
    Ok(parsed)
}

/// Slope and intercept by SPM2's rule: as in NIfTI, else from the ranges of stored and of calibrated values.
fn scale(fields: &Fields) -> [f64; 2] {
    let [slope, inter] = fields.f32s(112);
    if slope != 0.0 && slope.is_finite() {
        return [slope, if inter.is_finite() { inter } else { 0.0 }];
    }
    let [high, low] = fields.f32s(124);
    let [stored_high, stored_low] = [140, 144].map(|at| f64::from(fields.i32(at)));
    if high != low && stored_high != stored_low {
        let slope = (high - low) / (stored_high - stored_low);
        return [slope, low - slope * stored_low];
    }
    [1.0, 0.0]
}

/// As a new NIfTI-1 file: ANALYZE would not say where the voxels lie.
fn write(like: &Header, made: &mut Made, out: &mut dyn Write) -> Result<()> {
    let header = Header::new(like.shape, &like.affine)?;
    like::write_like(&header, made, out)
}
