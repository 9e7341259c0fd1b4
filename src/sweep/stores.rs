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
    /// What pretrainings are probed on.
    probes: Vec<Known>,
}

impl Stores {
    pub fn of(config: &SweepConfig, store: &Store) -> Result<Stores> {
        let known = |folder: &Path, fingerprint: &str| Known { folder: folder.to_owned(), fingerprint: fingerprint.to_owned() };
        let read = |folder: &PathBuf| anyhow::Ok(known(folder, &Index::read(folder)?.fingerprint));
        let unlabelled = config.unlabelled.as_ref().map(read).transpose()?;
        let probes = config.probes()?.iter().map(read).collect::<Result<_>>()?;
        Ok(Stores { data: known(store.folder(), &store.index().fingerprint), unlabelled, probes })
    }

    /// Errors if a store was made anew or changed since.
    pub fn check(&self) -> Result<()> {
        for Known { folder, fingerprint } in [&self.data].into_iter().chain(&self.unlabelled).chain(&self.probes) {
            ensure!(
                Index::read(folder)?.fingerprint == *fingerprint,
                "{}: the store was made anew or changed while the sweep runs, whose runs would not be comparable; what is done is kept, what \
                 is under way saves and ends: take the store as it was and run the same command to go on, or give another --out",
                folder.display()
            );
        }
        Ok(())
    }

    /// What a run trains on.
    fn trained_on(&self, pretraining: bool) -> &Known {
        self.unlabelled.as_ref().filter(|_| pretraining).unwrap_or(&self.data)
    }

    /// What a run may be probed on.
    fn probed_on(&self, pretraining: bool) -> impl Iterator<Item = &Known> {
        self.probes.iter().filter(move |_| pretraining)
    }

    /// The fingerprints of what a run may read.
    pub fn planned(&self, pretraining: bool) -> Vec<&str> {
        [self.trained_on(pretraining)]
            .into_iter()
            .chain(self.probed_on(pretraining))
            .map(|known| known.fingerprint.as_str())
            .collect()
    }

    /// Errors if a run of an earlier start, if there is one in `dir`, was begun with another store.
    pub fn check_run(&self, dir: &Path, pretraining: bool) -> Result<()> {
        if !dir.join(CONFIG).is_file() {
            return Ok(());
        }
        let description = Run::at(dir).description()?;
        let trained_on = self.trained_on(pretraining);
        let probes: Vec<&Known> = self.probed_on(pretraining).collect();
        for (what, now) in [("input", &[trained_on][..]), ("probe", &probes)] {
            let before = description.get(what).and_then(|store| store.get("fingerprint")?.as_str());
            ensure!(
                before.is_none_or(|before| now.is_empty() || now.iter().any(|known| known.fingerprint == before)),
                "{}: was begun with another store than {} is now, and is not comparable with new runs; take the store as it was, or give \
                 another --out",
                dir.display(),
                now.iter().map(|known| known.folder.display().to_string()).collect::<Vec<_>>().join(" or ")
            );
        }
        Ok(())
    }
}
