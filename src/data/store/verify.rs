//! Whether a store still holds what was written.

use super::file::Mapped;
use super::index::{Entry, INDEX, Index};
use super::shards;
use anyhow::{Result, ensure};
use rayon::prelude::*;
use std::path::Path;

/// Reads every file of a store and compares it with its checksum, on all threads of rayon's pool; `progress` is called after each, from any
/// thread. Gives what is wrong, a line a file.
///
/// Errors: a store that is not complete.
pub fn verify(folder: &Path, index: &Index, progress: &(dyn Fn(&str) + Sync)) -> Result<Vec<String>> {
    shards::check_complete(folder, index)?;
    let one = |entry: &Entry| {
        let wrong = verify_one(&folder.join(&entry.file), entry).err().map(|error| format!("{error:#}"));
        progress(&entry.id);
        wrong
    };
    let mut wrong: Vec<String> = index.subjects.par_iter().with_max_len(1).filter_map(one).collect();
    if !index.is_whole()? {
        wrong.push(format!("{}: not as `preprocess` wrote it", folder.join(INDEX).display()));
    }
    Ok(wrong)
}

fn verify_one(path: &Path, entry: &Entry) -> Result<()> {
    let file = Mapped::open(path)?;
    file.check_content()?;
    ensure!(
        file.fingerprint() == Some(&entry.fingerprint) && file.bytes() == entry.bytes,
        "{}: another file than the index has; preprocess again",
        path.display()
    );
    Ok(())
}
