//! The bytes behind a [`Source`].

use super::Source;
use crate::data::formats::nifti::Header;
use crate::data::formats::{image, nifti};
use crate::data::volume::Volume;
use crate::fs::open_zip;
use crate::transform::spatial::Orientation;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;
use zip::read::ZipFile;

impl Source {
    /// From what [`Source::display`] writes.
    pub fn parse(text: &str) -> Source {
        match text.to_ascii_lowercase().find(".zip:").map(|at| at + ".zip".len()) {
            Some(end) => Source::Zip { archive: text[..end].into(), member: text[end + 1..].into() },
            None => Source::File(text.into()),
        }
    }

    /// Whether the file, or the archive, is there.
    pub fn exists(&self) -> bool {
        match self {
            Source::File(path) | Source::Zip { archive: path, .. } => path.is_file(),
        }
    }

    /// Whether it is a photograph, by its name.
    pub fn is_image(&self) -> bool {
        matches!(self, Source::File(path) if image::stem(path).is_some())
    }

    /// The voxels, scaled as the header says; of a photograph as [`image::read`]. Errors name the file, and the member of an
    /// archive.
    pub fn read(&self) -> Result<Volume> {
        match self {
            Source::File(path) if self.is_image() => image::read(path),
            Source::File(path) => nifti::read(path),
            Source::Zip { archive, member } => in_zip(archive, member, |file| nifti::read_from(&self.display(), file)),
        }
    }

    /// As [`Source::read`] and turned to RAS+, with the turn.
    pub fn read_ras(&self) -> Result<(Volume, Orientation)> {
        match self {
            Source::File(path) if self.is_image() => Ok((image::read(path)?, Orientation::IDENTITY)),
            Source::File(path) => nifti::read_ras(path),
            Source::Zip { archive, member } => in_zip(archive, member, |file| nifti::read_ras_from(&self.display(), file)),
        }
    }

    /// The header alone.
    pub fn read_header(&self) -> Result<Header> {
        match self {
            Source::File(path) => nifti::read_header(path),
            Source::Zip { archive, member } => in_zip(archive, member, |file| nifti::read_header_from(&self.display(), file)),
        }
    }

    /// The file's path, or `archive.zip:member`.
    pub fn display(&self) -> String {
        match self {
            Source::File(path) => path.display().to_string(),
            Source::Zip { archive, member } => format!("{}:{member}", archive.display()),
        }
    }

    /// Changes when the content does: size and modification time of a file (of both for `.hdr` with `.img`), size and CRC of
    /// a member of an archive.
    pub fn fingerprint(&self) -> Result<String> {
        match self {
            Source::File(path) => {
                let mut print = stamp(path)?;
                if let Some(voxels) = voxels_of(path) {
                    print += &format!("+{}", stamp(&voxels)?);
                }
                Ok(print)
            }
            Source::Zip { archive, member } => {
                in_zip(archive, member, |file| Ok(format!("{}-{:08x}", file.size(), file.crc32())))
            }
        }
    }
}

fn in_zip<T>(archive: &Path, member: &str, use_it: impl FnOnce(ZipFile<BufReader<File>>) -> Result<T>) -> Result<T> {
    let name = || archive.display().to_string();
    let file = File::open(archive).with_context(name)?;
    let mut zip = open_zip(BufReader::new(file)).context("not a whole zip archive").with_context(name)?;
    use_it(zip.by_name(member).with_context(|| format!("{}:{member}", name()))?)
}

/// Size in bytes and modification time in nanoseconds since 1970.
fn stamp(path: &Path) -> Result<String> {
    let data = path.metadata().with_context(|| format!("{}: cannot be opened", path.display()))?;
    let time = data.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(format!("{}-{}", data.len(), time.as_nanos()))
}

/// The `.img` beside a `.hdr`, in whatever case it is written.
fn voxels_of(path: &Path) -> Option<PathBuf> {
    let is = |path: &Path, extension: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension));
    let beside = is(path, "hdr").then(|| path.parent()?.read_dir().ok())??;
    beside.flatten().map(|e| e.path()).find(|p| is(p, "img") && p.file_stem() == path.file_stem())
}
