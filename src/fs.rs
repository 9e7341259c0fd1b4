//! Files that are either whole or not there, folders that belong to one process at a time, and zip archives.

use crate::machine::host_name;
use crate::print::note;
use anyhow::{Context, Result, ensure};
use std::collections::hash_map::RandomState;
use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::hash::BuildHasher;
use std::io::{BufWriter, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;
use zip::ZipArchive;
use zip::read::{ArchiveOffset, Config};
use zip::result::ZipResult;

/// Tells this process's temporary files from those of others: of processes on other machines, and in containers, the numbers may be equal.
static PROCESS: LazyLock<String> =
    LazyLock::new(|| format!("{}-{:08x}", std::process::id(), RandomState::new().hash_one(0) as u32));

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

/// A file to write and read again, without a name, which goes with the process. `folder` is made if it is not there.
pub fn scratch(folder: &Path) -> Result<File> {
    let path = folder.join(format!(".{}.scratch.tmp", *PROCESS));
    let make = || {
        fs::create_dir_all(folder)?;
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        fs::remove_file(&path)?;
        Ok::<_, std::io::Error>(file)
    };
    make().with_context(|| format!("{}: cannot be written", path.display()))
}

/// As [`write_atomic`], for writers that want a path.
pub fn write_atomic_path(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().with_context(|| format!("{}: not a file name", path.display()))?;
    let temporary = folder.join(format!(".{}.{}.tmp", name.to_string_lossy(), *PROCESS));
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

/// Whether a name is that of a temporary file of [`write_atomic`], which a writer that was killed leaves: `.NAME.PROCESS.tmp`, where the
/// process is its number, with or without more hexadecimal digits.
pub fn is_temporary(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let process =
        name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp")?.rsplit_once('.')).map(|(_, process)| process);
    process.is_some_and(|p| p.starts_with(|c: char| c.is_ascii_digit()) && p.chars().all(|c| c.is_ascii_hexdigit() || c == '-'))
}

/// Deletes what writers that were killed have left in a folder, which the caller has locked.
pub fn remove_temporaries(folder: &Path) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| folder.display().to_string())?,
    };
    for entry in entries {
        let entry = entry.with_context(|| folder.display().to_string())?;
        if is_temporary(&entry.file_name()) {
            fs::remove_file(entry.path()).with_context(|| format!("removing {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Errors if one of these files could not be written: for before the work whose results they hold. Folders that are not there yet are
/// not made. That the disk will be large enough is not checked.
pub fn check_writable<P: AsRef<Path>>(files: impl IntoIterator<Item = P>) -> Result<()> {
    let mut checked = None;
    for file in files {
        let file = file.as_ref();
        ensure!(file.file_name().is_some() && !file.is_dir(), "{}: cannot be written: expected a file's name", file.display());
        let folder = file.parent().unwrap_or(file).to_owned();
        if checked.as_ref() != Some(&folder) {
            check_folder(&folder)?;
            checked = Some(folder);
        }
    }
    Ok(())
}

/// As [`check_writable`], for files of any name in `folder`.
pub fn check_folder(folder: &Path) -> Result<()> {
    // A link that leads nowhere is there, too: no folder can be made in its place.
    let there = folder.ancestors().find(|p| p.symlink_metadata().is_ok()).filter(|p| !p.as_os_str().is_empty());
    let there = there.unwrap_or(Path::new("."));
    ensure!(there.is_dir(), "{}: cannot be written: {} is not a folder", folder.display(), there.display());
    let probe = there.join(format!(".{}.tmp", *PROCESS));
    File::create(&probe)
        .and_then(|_| fs::remove_file(&probe))
        .with_context(|| format!("{}: cannot be written", folder.display()))
}

/// The file of a folder that is locked while a process works there.
pub const LOCK: &str = ".lock";

/// A folder, or a part of the work in it, taken by this process until this is dropped or the process ends, however it does: the system
/// keeps the lock, not the file.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Takes a folder, which must exist. Errors if another process has it.
pub fn lock_folder(folder: &Path) -> Result<Lock> {
    lock_part(folder, LOCK)
}

/// Takes the part of the work in a folder that a lock file of this name stands for. Errors if another process has it.
pub fn lock_part(folder: &Path, name: &str) -> Result<Lock> {
    try_lock_part(folder, name)?.with_context(|| {
        let holder = holder(&folder.join(name));
        format!(
            "{}: another process is at work here ({holder}); wait for it, stop it, or name another folder",
            folder.display()
        )
    })
}

/// As [`lock_part`]; `None` if another process has it.
pub fn try_lock_part(folder: &Path, name: &str) -> Result<Option<Lock>> {
    let path = folder.join(name);
    let Some(file) = try_lock(&path)? else { return Ok(None) };
    Lock::held(file, &path, "").map(Some)
}

impl Lock {
    /// Writes into the file who has it, for the message of whoever comes second.
    fn held(mut file: File, path: &Path, others: &str) -> Result<Lock> {
        file.set_len(0)
            .and_then(|()| write!(file, "{others}process {} on {}", std::process::id(), host_name()))
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(Lock { _file: file })
    }
}

/// Who has a lock, for a message.
fn holder(path: &Path) -> String {
    fs::read_to_string(path).ok().filter(|holder| !holder.is_empty()).unwrap_or("it has just begun".into())
}

/// Takes a folder, which must exist, together with other processes that do so. As long as one has it for itself, this waits and says so;
/// `None`: until `stop`.
pub fn share_folder(folder: &Path, stop: &dyn Fn() -> bool) -> Result<Option<Lock>> {
    /// Between looking again.
    const PAUSE: Duration = Duration::from_millis(200);
    let path = folder.join(LOCK);
    let mut said = false;
    while !stop() {
        if let Some(file) = locked(&path, File::try_lock_shared)? {
            return Lock::held(file, &path, "one or several, the last to begin is ").map(Some);
        }
        if !std::mem::replace(&mut said, true) {
            note!("{}: waiting for another process that is at work here ({})", folder.display(), holder(&path));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(None)
}

/// Locks a file, which is made if it is not there; `None` if another process has it locked.
///
/// Some network file systems keep the locks of each machine apart, or keep none; the latter is said, and counts as locked.
pub fn try_lock(path: &Path) -> Result<Option<File>> {
    locked(path, File::try_lock)
}

fn locked(path: &Path, lock: fn(&File) -> Result<(), TryLockError>) -> Result<Option<File>> {
    // NFS shares locks only of files that may be read.
    let open = File::options().create(true).read(true).write(true).truncate(false).open(path);
    let file = open.with_context(|| format!("locking {}", path.display()))?;
    match lock(&file) {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => {
            note!("warning: {} cannot be locked ({error}); see to it that no other process works there", path.display());
        }
    }
    Ok(Some(file))
}

/// Makes the first folder `<parent>/<name>-<number>` that is not there, counting from 1; of processes that do so at the same time each
/// gets its own.
pub fn make_numbered(parent: &Path, name: &str) -> Result<PathBuf> {
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    for number in 1u64.. {
        let folder = parent.join(format!("{name}-{number}"));
        match fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("making {}", folder.display())),
        }
    }
    unreachable!("a folder for every number")
}

/// Opens a zip archive that begins with the file. The crate's search for a later beginning fails on about one
/// in a hundred of TorchScript's archives (zip 9.8.1).
pub fn open_zip<R: Read + Seek>(file: R) -> ZipResult<ZipArchive<R>> {
    ZipArchive::with_config(Config { archive_offset: ArchiveOffset::Known(0) }, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_written_is_known_without_writing() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "in the way").unwrap();
        std::os::unix::fs::symlink(at("nowhere"), at("link")).unwrap();
        check_writable([at("a/b/c.json"), at("a/b/d.csv"), at("file")]).unwrap();
        check_folder(&at("a/b")).unwrap();
        check_writable(["relative.json"]).unwrap();
        for (path, says) in
            [("file/a/b.json", "file is not a folder"), ("link/b.json", "link is not a folder"), ("", "a file's name")]
        {
            let error = format!("{:#}", check_writable([at(path)]).unwrap_err());
            assert!(error.contains(says), "{error}");
        }
        assert!(check_writable([at("..")]).is_err() && check_folder(&at("file")).is_err());
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }

    #[test]
    fn what_killed_writers_left_goes_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let others = [".lock", ".notes.tmp", ".1.tmp", "a.12.tmp", ".last.safetensors.12.tmp.bak"];
        let left = [".last.safetensors.12.tmp", ".a.json.1-00ff00aa.tmp"];
        others.iter().chain(&left).for_each(|name| fs::write(folder.path().join(name), "").unwrap());
        remove_temporaries(folder.path()).unwrap();
        let mut found: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        found.sort();
        let mut expected = others.to_vec();
        expected.sort();
        assert_eq!(found, expected);
        remove_temporaries(&folder.path().join("none")).unwrap();
    }

    #[test]
    fn a_folder_is_taken_once_and_free_again() {
        let folder = tempfile::tempdir().unwrap();
        // A file that a killed process has left locks nothing.
        fs::write(folder.path().join(LOCK), "process 1 on a machine long gone").unwrap();
        let held = lock_folder(folder.path()).unwrap();
        let error = lock_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("process {} on", std::process::id())), "{error}");
        drop(held);
        lock_folder(folder.path()).unwrap();
    }

    #[test]
    fn a_folder_is_shared_or_taken() {
        let folder = tempfile::tempdir().unwrap();
        let share = |stop: &dyn Fn() -> bool| share_folder(folder.path(), stop).unwrap();
        let [first, second] = [share(&|| false), share(&|| false)];
        let error = lock_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains("one or several"), "{error}");
        drop(first);
        assert!(try_lock_part(folder.path(), LOCK).unwrap().is_none());
        drop(second);
        let taken = lock_folder(folder.path()).unwrap();
        // Waits until it may, or until it is told to stop.
        let looks = std::cell::Cell::new(0);
        assert!(share(&|| looks.replace(looks.get() + 1) == 2).is_none() && looks.get() == 3);
        let taken = std::cell::Cell::new(Some(taken));
        assert!(share(&|| taken.take().is_none()).is_some());
    }

    #[test]
    fn numbers_are_given_once() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("rot-2")).unwrap();
        let make = || make_numbered(folder.path(), "rot").unwrap();
        let mut made: Vec<PathBuf> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| (0..4).map(|_| make()).collect::<Vec<_>>())).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        made.sort();
        let mut expected: Vec<PathBuf> = (1..=33).filter(|n| *n != 2).map(|n| folder.path().join(format!("rot-{n}"))).collect();
        expected.sort();
        assert_eq!(made, expected);
    }
}
