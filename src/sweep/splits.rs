//! The splits that all runs of a sweep share.

use super::config::SweepConfig;
use super::plan::split_suffix;
use crate::data::Scans;
use crate::data::split::{Fold, Split};
use crate::data::store::Store;
use crate::run::split::{TestSide, draw_split, warn_of_thin_classes};
use crate::study::labels::Labels;
use crate::study::repetitions::Repetitions;
use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Where the split of all cells, or of a seed or fold, is kept.
pub fn split_file(folder: &Path, seed: Option<u64>, fold: Option<u64>) -> PathBuf {
    folder.join(format!("split{}.json", split_suffix(seed, fold)))
}

/// The split of all cells, or one for each fold, also for folds that are not run. Splits of an earlier start are read again.
pub fn splits(
    config: &SweepConfig,
    repetitions: &Repetitions,
    folder: &Path,
    store: &Store,
    again: bool,
) -> Result<Vec<Split>> {
    let needs = config.downstream()?.needs();
    let sides = match (config.folds, config.test_fraction) {
        (Some(of), _) => (0..of).map(|number| TestSide::Fold(Fold { number, of })).collect::<Vec<_>>(),
        (None, share) => vec![TestSide::Share(share.unwrap_or_default())],
    };
    let labelled = (0..store.len()).any(|scan| needs.met_by(store, scan));
    ensure!(labelled, "{}: no subject has a label for this task", config.data.display());
    if let Some(folds) = config.folds {
        warn_of_thin_classes(store, needs, folds);
    }
    let seeds: BTreeSet<u64> = repetitions.draws.values().map(|draw| draw.split).collect();
    let several = repetitions.splits_vary();
    let split = |(seed, side): (u64, TestSide)| {
        let file = split_file(folder, several.then_some(seed), side.fold());
        // Without `sweep.json` a split is left over from other settings.
        match again && file.exists() {
            true => Split::load(&file),
            false => draw_split(store, needs, config.val_fraction, side, seed),
        }
    };
    seeds.into_iter().flat_map(|seed| sides.iter().map(move |&side| (seed, side))).map(split).collect()
}

/// How many subjects are on the training side of a fold, of the split drawn by this seed.
pub fn train_subjects(splits: &[Split], seed: u64, fold: Option<u64>) -> usize {
    // A split that the dataset gives, or that is read again, may say another seed: it is the only one.
    let of_fold = |split: &&Split| split.fold.map(|f| f.number) == fold;
    let own = splits.iter().filter(of_fold).find(|split| split.seed == seed);
    own.or(splits.iter().find(of_fold)).map_or(0, |split| split.train.len())
}

/// Every number and share of labels leaves a subject, and no more than there are.
pub fn check_labels(labels: &[Labels], splits: &[Split]) -> Result<()> {
    let all = labels.contains(&Labels::Share(1.));
    for (n, &labels) in splits.iter().flat_map(|split| labels.iter().map(|labels| (split.train.len(), labels))) {
        match labels {
            Labels::Share(few) => {
                let left = (few * n as f64).round() >= 1.;
                ensure!(left, "`fractions`: {few} leaves no subject of the {n} on the training side");
            }
            Labels::Subjects(k) => {
                ensure!(k as usize <= n, "`labelled`: {k} subjects, but the training side has {n}");
                ensure!(
                    !all || (k as usize) < n,
                    "`labelled`: {k} subjects are all of the training side: leave them out, or \"all\""
                );
            }
        }
    }
    Ok(())
}
