//! The bytes behind a [`Source`].

use super::Source;
use crate::data::volume::Volume;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

impl Source {
    /// The voxels, scaled as the header says. Errors name the file, and the member of an archive.
    pub fn read(&self) -> Result<Volume> {
        todo!()
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
                let mut zip = open_zip(archive)?;
                let member = zip.by_name(member).with_context(|| self.display())?;
                Ok(format!("{}-{:08x}", member.size(), member.crc32()))
            }
        }
    }
}

fn open_zip(archive: &Path) -> Result<zip::ZipArchive<BufReader<File>>> {
    let file = File::open(archive).with_context(|| format!("{}: cannot be opened", archive.display()))?;
    zip::ZipArchive::new(BufReader::new(file)).with_context(|| format!("{}: not a whole zip archive", archive.display()))
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
