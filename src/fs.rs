//! Files that are either whole or not there, and zip archives.

use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, Write};
use std::path::Path;
use zip::ZipArchive;
use zip::read::{ArchiveOffset, Config};
use zip::result::ZipResult;

/// Writes a file through a temporary one beside it: synced, then renamed, so that a crash or a full disk leaves the earlier
/// file as it was. Parent folders are made.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    write_atomic_path(path, |temporary| {
        let mut file = BufWriter::new(File::create(temporary)?);
        write(&mut file)?;
        file.flush()?;
        Ok(())
    })
}

/// As [`write_atomic`], for writers that want a path.
pub fn write_atomic_path(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().with_context(|| format!("{}: not a file name", path.display()))?;
    let temporary = folder.join(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
    let done = fs::create_dir_all(folder)
        .map_err(Into::into)
        .and_then(|()| write(&temporary))
        .and_then(|()| Ok(File::open(&temporary)?.sync_all()?))
        .and_then(|()| Ok(fs::rename(&temporary, path)?))
        // The rename itself lasts only once the folder is synced.
        .and_then(|()| Ok(File::open(folder)?.sync_all()?));
    if done.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    done.with_context(|| format!("writing {}", path.display()))
}

/// Opens a zip archive that begins with the file. The crate's search for a later beginning fails on about one
/// in a hundred of TorchScript's archives (zip 9.8.1).
pub fn open_zip<R: Read + Seek>(file: R) -> ZipResult<ZipArchive<R>> {
    ZipArchive::with_config(Config { archive_offset: ArchiveOffset::Known(0) }, file)
}
