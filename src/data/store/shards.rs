//! A store that several processes fill at the same time, each a share of the people, and that one of them makes whole in the end.
//!
//! What a shard has stored is in the subjects' files; that it has stored all of its share says a file of its own, which holds the claim of
//! the index that it was stored for ([`Index::claim`]). Making the store whole is filling it once more, where everything is kept, so that it is
//! what one process would have made.

use super::build::{Filled, Made, Options, begin, fill_taken, store_all};
use super::claim::claim;
use super::index::{DONE, Index, LeftOut, Shards};
use crate::data::identity::hex;
use crate::data::layouts::{Dataset, Subject};
use crate::data::names::some;
use crate::data::preprocess::Plan;
use crate::data::split::subject;
use crate::fs::{LOCK, lock_part, share_folder, try_lock_part, write_atomic};
use crate::shard::Shard;
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io::Write;
use std::path::Path;

/// What a shard has done.
#[derive(Debug)]
pub struct Part {
    pub stored: usize,
    pub kept: usize,
    pub left_out: Vec<LeftOut>,
    /// [`Options::stop`] said so before all were done.
    pub stopped: bool,
    /// Shards that are not done.
    pub missing: Vec<Shard>,
}

/// What `count` shards of this dataset have to agree on.
fn shards(count: usize, dataset: &Dataset, options: &Options) -> Result<Shards> {
    let mut hash = Sha256::new();
    for s in &dataset.subjects {
        let known =
            (&s.id, &s.contrasts, &s.missing, s.part, s.class, &s.values, &s.split, s.channels.len(), s.label.is_some());
        hash.update(serde_json::to_vec(&known)?);
    }
    Ok(Shards {
        count,
        subjects: dataset.subjects.len(),
        dataset: hex(&hash.finalize()),
        skip_bad: options.skip_bad,
        skip_duplicates: options.skip_duplicates,
        no_labels: options.no_labels,
    })
}

/// The subjects of a shard: people in the order of their names are dealt out in turn, each with all scans.
pub fn share(dataset: &Dataset, shard: Shard) -> Vec<&Subject> {
    let people: BTreeSet<&str> = dataset.subjects.iter().map(|s| subject(&s.id)).collect();
    let own: HashSet<&str> = people.into_iter().enumerate().filter(|(n, _)| shard.holds(*n)).map(|(_, id)| id).collect();
    dataset.subjects.iter().filter(|s| own.contains(subject(&s.id))).collect()
}

/// As [`fill`](super::build::fill), of a shard alone, while others may be at work; [`join`] makes the store whole when none is missing.
///
/// Errors as there, and: shards that were told otherwise than this one; the same shard at work elsewhere.
pub fn fill_shard(shard: Shard, dataset: &Dataset, plan: &Plan, folder: &Path, options: &Options) -> Result<Part> {
    let mut index = begin(dataset, plan, folder, options)?;
    index.shards = Some(shards(shard.count, dataset, options)?);
    let Some(_shared) = share_folder(folder, options.stop)? else {
        return Ok(Part { stored: 0, kept: 0, left_out: vec![], stopped: true, missing: Shard::among(shard.count).collect() });
    };
    let _own = lock_part(folder, &shard.named(LOCK)).with_context(|| format!("shard {shard}"))?;
    let subjects = share(dataset, shard);
    let trusted = Index::finished(folder);
    claim(folder, &index, dataset, Some(&subjects), options.overwrite)?;
    let done = folder.join(shard.named(DONE));
    if done.exists() {
        fs::remove_file(&done).with_context(|| format!("removing {}", done.display()))?;
    }
    let Made { stored, left_out, stopped } = store_all(&subjects, plan, folder, trusted, options)?;
    let claimed = Index::read(folder)?;
    ensure!(
        claimed.is_same_claim(&index),
        "{}: another `preprocess` has taken the folder for a store of its own while shard {shard} was at work; begin anew with one folder for \
         each",
        folder.display()
    );
    if !stopped && (options.skip_bad || left_out.is_empty()) {
        write_atomic(&done, |file| Ok(file.write_all(index.claim()?.as_bytes())?))?;
    }
    let kept = stored.iter().filter(|stored| stored.kept).count();
    Ok(Part { stored: stored.len(), kept, left_out, stopped, missing: missing(folder, &index)? })
}

/// Completes the store if all shards are done and none is at work; otherwise nothing happens, and the last of them does it.
pub fn join(count: usize, dataset: &Dataset, plan: &Plan, folder: &Path, options: &Options) -> Result<Option<Filled>> {
    let mut index = begin(dataset, plan, folder, options)?;
    index.shards = Some(shards(count, dataset, options)?);
    let Some(_taken) = try_lock_part(folder, LOCK)? else { return Ok(None) };
    if !missing(folder, &index)?.is_empty() {
        return Ok(None);
    }
    fill_taken(index, dataset, plan, folder, options).map(Some)
}

/// The shards of a store that are not done as its index has it.
fn missing(folder: &Path, index: &Index) -> Result<Vec<Shard>> {
    let claim = index.claim()?;
    let count = index.shards.as_ref().map_or(0, |shards| shards.count);
    let done = |shard: &Shard| fs::read_to_string(folder.join(shard.named(DONE))).is_ok_and(|of| of == claim);
    Ok(Shard::among(count).filter(|shard| !done(shard)).collect())
}

/// An error with what has to be done, if a store is not complete.
pub fn check_complete(folder: &Path, index: &Index) -> Result<()> {
    if !index.complete {
        bail!("{}: the store is not complete: {}", folder.display(), what_is_left(folder, index)?);
    }
    Ok(())
}

fn what_is_left(folder: &Path, index: &Index) -> Result<String> {
    let Some(Shards { count, .. }) = index.shards else {
        return Ok("run `pretext3d preprocess` again to finish it".into());
    };
    let missing: Vec<String> = missing(folder, index)?.iter().map(Shard::to_string).collect();
    Ok(match &missing[..] {
        [] => format!(
            "all {count} shards are done and have to be joined: run one of them again, or `pretext3d preprocess` without --shard"
        ),
        [first, ..] => format!(
            "of {count} shards {} are not done: {}; run `pretext3d preprocess` again with --shard {first} and so on, or without --shard \
             to do all that is left",
            missing.len(),
            some(&missing.iter().map(String::as_str).collect::<Vec<_>>())
        ),
    })
}
