//! Nothing that a sweep tests on, or chooses epochs by, is pretrained on.

use super::config::SweepConfig;
use crate::data::split::{Split, subject};
use crate::data::store::{Entry, Store};
use crate::print::note;
use anyhow::{Result, bail};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Errors if the store `unlabelled`, or one that its pretrainings are probed on, holds a scan or a person that any split that is run holds
/// out. Scans are known by their images, whatever was done to them since; people, independently, by their ids, unless the user says that
/// those are of others. A pretraining on a training side is given its split, and takes no probe of what that holds out.
pub fn check(config: &SweepConfig, store: &Store, splits: &[Split]) -> Result<()> {
    let Some(folder) = &config.unlabelled else { return Ok(()) };
    check_folder("unlabelled", folder, config, store, splits)?;
    config.probes()?.iter().try_for_each(|folder| check_folder("probe", folder, config, store, splits))
}

fn check_folder(key: &str, folder: &Path, config: &SweepConfig, store: &Store, splits: &[Split]) -> Result<()> {
    let unlabelled = Store::open(folder)?;
    let (seen, scans) = (&unlabelled.index().subjects, &store.index().subjects);
    let run = config.folds();
    let mut held_out: HashMap<&str, &str> = HashMap::new();
    for split in splits.iter().filter(|split| run.contains(&split.fold.map(|fold| fold.number))) {
        split.val.iter().for_each(|id| _ = held_out.entry(id).or_insert("chooses the best epoch"));
        split.test.iter().for_each(|id| _ = held_out.insert(id, "is tested on"));
    }
    let role = |scan: &Entry| held_out.get(subject(&scan.id)).copied();
    let held_out_scans = || scans.iter().filter_map(|scan| Some((scan, role(scan)?)));

    let marks: HashMap<&str, &Entry> = seen.iter().flat_map(|scan| scan.marks().map(move |mark| (mark, scan))).collect();
    let copies: Vec<_> =
        held_out_scans().filter_map(|(scan, role)| Some((scan, role, scan.marks().find_map(|m| marks.get(m))?))).collect();
    if let Some((scan, role, copy)) = copies.first() {
        bail!(
            "`{key}`: {} holds {} scans that are held out, the first as `{}`: it is `{}` of {}, which {role}; leave them out, or \
             without `unlabelled` the training side of {} alone is pretrained on",
            folder.display(),
            copies.len(),
            copy.id,
            scan.id,
            config.data.display(),
            config.data.display()
        );
    }

    let people: HashSet<&str> = seen.iter().map(|scan| subject(&scan.id)).collect();
    if let Some((scan, role)) = held_out_scans().find(|(scan, _)| people.contains(subject(&scan.id)) && !config.other_people) {
        let n = held_out.keys().filter(|id| people.contains(*id)).count();
        bail!(
            "`{key}`: {} holds {n} subjects with the ids of held-out ones, e.g. `{}`, which {role} in {}: leave them out, or if \
             they are other people, say so with --other-people (`other_people = true`)",
            folder.display(),
            subject(&scan.id),
            config.data.display()
        );
    }
    for (folder, scans) in [(folder, seen), (config.data.as_path(), scans)] {
        let unknown = scans.iter().filter(|scan| !scan.is_known_elsewhere()).count();
        if unknown > 0 {
            note!(
                "warning: {}: whether {unknown} of its scans are held out and pretrained on is not known, as an earlier version made \
                 the store: run the same `pretext3d preprocess` again",
                folder.display()
            );
        }
    }
    Ok(())
}
