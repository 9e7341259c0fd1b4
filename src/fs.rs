//! Files that are either whole or not there.

use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

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
