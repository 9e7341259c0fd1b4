//! The bytes behind a [`Source`].

use super::Source;
use crate::data::formats::image::{self, Photograph};
use crate::data::formats::{self, Header, Opened};
use crate::data::scan::Scan;
use crate::data::volume::Volume;
use crate::fs::open_zip;
use crate::transform::spatial::Orientation;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use zip::read::ZipFile;

impl Source {
    /// From what [`Source::display`] writes; of a series, whose files that does not say, one that is not there.
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
            Source::Series(series) => series.files().all(Path::is_file),
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
            _ => self.open(|opened| opened.read()),
        }
    }

    /// A photograph's samples. Errors name the file.
    pub fn photograph(&self) -> Result<Photograph> {
        match self {
            Source::File(path) => image::open(path),
            _ => bail!("{}: expected a photograph in a file of its own", self.display()),
        }
    }

    /// As [`Source::read`] and turned to RAS+, with the turn.
    pub fn read_ras(&self) -> Result<(Volume, Orientation)> {
        let (scan, orientation) = self.scan_ras()?;
        Ok((scan.into_volume(), orientation))
    }

    /// As [`Source::read_ras`], in the stored type; of a photograph float32.
    pub fn scan_ras(&self) -> Result<(Scan, Orientation)> {
        match self {
            Source::File(path) if self.is_image() => Ok((image::read(path)?.into(), Orientation::IDENTITY)),
            _ => self.open(|opened| opened.scan_ras()),
        }
    }

    /// The header alone.
    pub fn read_header(&self) -> Result<Header> {
        self.open(|opened| Ok(opened.header().clone()))
    }

    fn open<T>(&self, use_it: impl FnOnce(Opened) -> Result<T>) -> Result<T> {
        match self {
            Source::File(path) => use_it(formats::open(path)?),
            Source::Zip { archive, member } => {
                in_zip(archive, member, |file| use_it(formats::open_from(&self.display(), file)?))
            }
            Source::Series(series) => use_it(series.open()?),
        }
    }

    /// The file's path, or `archive.zip:member`; of a series what may be said of it.
    pub fn display(&self) -> String {
        match self {
            Source::File(path) => path.display().to_string(),
            Source::Zip { archive, member } => format!("{}:{member}", archive.display()),
            Source::Series(series) => series.name.clone(),
        }
    }

    /// Changes when the content does: size and modification time of a file (of all files that a scan consists of), size and CRC of
    /// a member of an archive.
    pub fn fingerprint(&self) -> Result<String> {
        match self {
            Source::File(path) => {
                let mut print = stamp(path)?;
                for voxels in formats::beside(path) {
                    print += &format!("+{}", stamp(&voxels)?);
                }
                Ok(print)
            }
            Source::Zip { archive, member } => {
                in_zip(archive, member, |file| Ok(format!("{}-{:08x}", file.size(), file.crc32())))
            }
            Source::Series(series) => Ok(series.files().map(stamp).collect::<Result<Vec<_>>>()?.join("+")),
        }
    }
}

fn in_zip<T>(archive: &Path, member: &str, use_it: impl FnOnce(ZipFile<BufReader<File>>) -> Result<T>) -> Result<T> {
    let name = || archive.display().to_string();
    let file = File::open(archive).with_context(name)?;
    let mut zip = open_zip(BufReader::new(file)).context("not a whole zip archive").with_context(name)?;
    use_it(zip.by_name(member).with_context(|| format!("{}:{member}", name()))?)
}

/// Size in bytes and modification time in nanoseconds since 1970, less than 0 where a clock was wrong.
fn stamp(path: &Path) -> Result<String> {
    let data = path.metadata().with_context(|| format!("{}: cannot be opened", path.display()))?;
    let time = i128::from(data.mtime()) * 1_000_000_000 + i128::from(data.mtime_nsec());
    Ok(format!("{}-{time}", data.len()))
}
