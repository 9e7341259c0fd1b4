//! All runs of a sweep read the same stores, also those of an earlier start and those that begin hours after the first.

use super::config::SweepConfig;
use crate::data::store::{Index, Store};
use crate::run::folder::Run;
use crate::settings::CONFIG;
use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};

/// A store's folder and the fingerprint of what it held when the sweep was planned.
struct Known {
    folder: PathBuf,
    fingerprint: String,
}

/// The stores of a sweep.
pub struct Stores {
    data: Known,
    /// What is pretrained on, if that is another one.
    unlabelled: Option<Known>,
}

impl Stores {
    pub fn of(config: &SweepConfig, store: &Store) -> Result<Stores> {
        let known = |folder: &Path, fingerprint: &str| Known { folder: folder.to_owned(), fingerprint: fingerprint.to_owned() };
        let read = |folder: &PathBuf| anyhow::Ok(known(folder, &Index::read(folder)?.fingerprint));
        let unlabelled = config.unlabelled.as_ref().map(read).transpose()?;
        Ok(Stores { data: known(store.folder(), &store.index().fingerprint), unlabelled })
    }

    /// Errors if a store was made anew or changed since.
    pub fn check(&self) -> Result<()> {
        for Known { folder, fingerprint } in [&self.data].into_iter().chain(&self.unlabelled) {
            ensure!(
                Index::read(folder)?.fingerprint == *fingerprint,
                "{}: the store was made anew or changed while the sweep runs, whose runs would not be comparable; what is done is kept, what \
                 is under way saves and ends: take the store as it was and run the same command to go on, or give another --out",
                folder.display()
            );
        }
        Ok(())
    }

    /// What a run reads.
    fn read_by(&self, pretraining: bool) -> &Known {
        self.unlabelled.as_ref().filter(|_| pretraining).unwrap_or(&self.data)
    }

    /// The fingerprint of what a run must read.
    pub fn planned(&self, pretraining: bool) -> &str {
        &self.read_by(pretraining).fingerprint
    }

    /// Errors if a run of an earlier start, if there is one in `dir`, was begun with another store.
    pub fn check_run(&self, dir: &Path, pretraining: bool) -> Result<()> {
        if !dir.join(CONFIG).is_file() {
            return Ok(());
        }
        let Known { folder, fingerprint } = self.read_by(pretraining);
        let description = Run::at(dir).description()?;
        let before = description.get("input").and_then(|input| input.get("fingerprint")?.as_str());
        ensure!(
            before.is_none_or(|before| before == fingerprint),
            "{}: was begun with another store than {} is now, and is not comparable with new runs; take the store as it was, or give another \
             --out",
            dir.display(),
            folder.display()
        );
        Ok(())
    }
}
