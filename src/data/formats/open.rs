//! The door through which every scan's file is read.

use super::compression::decompressed;
use super::content::{Content, START};
use super::voxels::{Voxels, decode, read_raw};
use super::{FORMATS, Header, foreign, foreign_content, named, nifti};
use crate::data::scan::Scan;
use crate::data::volume::{Volume, rotation, to_ras};
use crate::transform::spatial::Orientation;
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

/// A file whose header is read and checked.
pub struct Opened<'a> {
    /// For messages.
    name: String,
    header: Header,
    /// Of all voxels.
    bytes: usize,
    /// The header's.
    file: Option<File>,
    voxels: Voxels<'a>,
}

/// Opens a scan's file, of whatever format, and reads its header. The content tells the format and the compression; only where it says
/// nothing, the name chooses whose error is given. Of a `.hdr` with `.img` either may be named.
///
/// Errors name the file, what was expected and what was found. Memory follows the bytes that are there, not what a header claims.
pub fn open(path: &Path) -> Result<Opened<'static>> {
    let open = || -> Result<_> {
        let path = nifti::header_file(path)?;
        let file = File::open(&path)?;
        let stream = decompressed(file.try_clone()?)?;
        Ok((open_content(Content { stream, path: Some(path) })?, file))
    };
    let name = path.display().to_string();
    let ((header, voxels), file) = open().with_context(|| name.clone())?;
    Ok(Opened { file: Some(file), ..Opened::new(name, header, voxels)? })
}

/// As [`open`], of a stream, e.g. a member of an archive, whose voxels must be in it. `name` is for messages.
pub fn open_from<'a>(name: &str, reader: impl Read + 'a) -> Result<Opened<'a>> {
    let open = decompressed(reader).and_then(|stream| open_content(Content { stream, path: None }));
    let (header, voxels) = open.with_context(|| name.to_string())?;
    Opened::new(name.into(), header, voxels)
}

fn open_content(content: Content) -> Result<(Header, Voxels)> {
    let Content { mut stream, path } = content;
    let mut start = Vec::with_capacity(START);
    (&mut stream).take(START as u64).read_to_end(&mut start).context("reading the header")?;
    ensure!(!start.is_empty(), "empty file, expected a scan");
    if let Some(foreign) = foreign_content(&start) {
        bail!(foreign);
    }
    let by_content = FORMATS.into_iter().find(|format| (format.is)(&start));
    let by_name = || path.as_deref().and_then(named).map(|(format, _)| format);
    if let (None, Some(foreign)) = (by_content, path.as_deref().and_then(foreign::by_name)) {
        bail!(foreign);
    }
    let Some(format) = by_content.or_else(by_name) else {
        let names: Vec<&str> = FORMATS.iter().map(|format| format.name).collect();
        let begins = start[..start.len().min(16)].escape_ascii();
        bail!("not a scan: it begins with \"{begins}\", expected {}", names.join(", "))
    };
    let stream = Box::new(Cursor::new(start).chain(stream));
    (format.open)(Content { stream, path })
}

impl<'a> Opened<'a> {
    /// Checks what holds for every format. Errors: no volume, a singular affine.
    pub(super) fn new(name: String, header: Header, voxels: Voxels<'a>) -> Result<Opened<'a>> {
        let check = || {
            let bytes = header.bytes()?;
            rotation(&header.affine).context("directions and spacings of the header")?;
            anyhow::Ok(bytes)
        };
        let bytes = check().with_context(|| name.clone())?;
        Ok(Opened { name, header, bytes, file: None, voxels })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The files beside the header's that hold the voxels, as far as they are there.
    pub fn beside(&self) -> &[PathBuf] {
        &self.voxels.beside
    }

    /// The scan as it is stored. Values have slope and intercept applied; NaN and infinite ones are kept ([`Volume::non_finite`] counts them).
    pub fn read(self) -> Result<Volume> {
        Ok(self.turned(Orientation::IDENTITY)?.into_volume())
    }

    /// As [`Opened::read`] and then [`Volume::to_ras`], in one pass.
    pub fn read_ras(self) -> Result<(Volume, Orientation)> {
        let (scan, orientation) = self.scan_ras()?;
        Ok((scan.into_volume(), orientation))
    }

    /// As [`Opened::read_ras`], in the stored type.
    pub fn scan_ras(self) -> Result<(Scan, Orientation)> {
        let orientation = to_ras(&self.header.affine).with_context(|| self.name.clone())?;
        Ok((self.turned(orientation)?, orientation))
    }

    fn turned(self, orientation: Orientation) -> Result<Scan> {
        let Opened { name, header, bytes, file, voxels } = self;
        let own = file.as_ref().and_then(|file| Some(file.metadata().ok()?.len()));
        let beside: u64 = voxels.beside.iter().filter_map(|file| Some(file.metadata().ok()?.len())).sum();
        let there = own.unwrap_or(0) + beside + voxels.there;
        let (mut raw, start) = read_raw(voxels, &header, bytes, file.as_ref(), there).with_context(|| name)?;
        Ok(decode(&mut raw[start..][..bytes], &header, orientation))
    }
}
