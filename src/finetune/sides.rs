//! The sides of a split, as the scans that are trained, validated and tested on.

use super::config::{DownstreamKind, FinetuneConfig};
use crate::data::Scans;
use crate::data::split::{Split, subject};
use crate::data::store::{Store, Subset};
use crate::run::split::scans_of;
use anyhow::{Result, bail, ensure};
use std::collections::HashSet;
use std::sync::Arc;

/// The sides of the split in the store.
pub struct Sides {
    pub train: Arc<Subset>,
    pub valid: Arc<Subset>,
    pub test: Arc<Subset>,
}

/// The stored scans on each side; the training side cut to the label fraction.
pub fn sides(config: &FinetuneConfig, store: &Store, split: &Split) -> Result<Sides> {
    ensure!(!split.val.is_empty(), "the split has no validation subjects, which choose the best epoch");
    ensure!(!split.test.is_empty(), "the split has no test subjects");
    let needs = config.task.needs();
    // A split that is given may hold them.
    let contradictory = needs.contradictory(store);
    let usable = store.ids().iter().filter(|id| !contradictory.contains(id.as_str()));
    let usable: HashSet<&str> = usable.map(|id| subject(id)).collect();
    let train = split.train.iter().filter(|id| usable.contains(id.as_str())).cloned().collect();
    let split = &Split { train, ..split.clone() };
    let (fraction, n) = (config.train.fraction, split.train.len());
    ensure!(
        (fraction * n as f64).round() >= 1.,
        "--fraction {fraction} leaves no subject of {n}; the smallest that leaves one is {:.4}",
        0.5 / n as f64
    );
    let subset = |side: &str, subjects: &[String]| -> Result<Arc<Subset>> {
        let has = |id: &String| store.find(id).is_some_and(|scan| needs.met_by(store, scan));
        let left_out = |id: &String| side == "training" && contradictory.contains(id.as_str());
        let scans: Vec<String> = scans_of(store, subjects).into_iter().filter(|id| has(id) && !left_out(id)).collect();
        let found: HashSet<&str> = scans.iter().map(|id| subject(id)).collect();
        if let Some(without) = subjects.iter().find(|id| !found.contains(id.as_str())) {
            bail!("{side} subject {without}: has no {} in {}", config.task.label(), store.folder().display());
        }
        Ok(Arc::new(store.subset(&scans)?))
    };
    let seed = config.subset_seed.unwrap_or(split.seed);
    let sides = Sides {
        train: subset("training", &split.balanced_fraction(fraction, &needs.classes(store), seed)?)?,
        valid: subset("validation", &split.val)?,
        test: subset("test", &split.test)?,
    };
    if config.task == DownstreamKind::Classification {
        let classes: HashSet<Option<u8>> = (0..sides.valid.len()).map(|scan| sides.valid.class(scan)).collect();
        ensure!(classes.len() > 1, "all validation scans are of one class, which chooses no epoch; raise --val-fraction");
    }
    Ok(sides)
}
