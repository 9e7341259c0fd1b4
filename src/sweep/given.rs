//! Weights that a sweep is given, as rivals of its own pretraining: those of others, or of an earlier run.

use super::arms::{SweepArm, is_plain};
use super::config::{GivenWeights, SweepConfig};
use crate::data::split::Split;
use crate::data::store::Store;
use crate::nn::EncoderConfig;
use crate::print::note;
use crate::run::input::Input;
use crate::run::seen;
use crate::run::weights::{Pretrained, digest};
use crate::tasks::TaskKind;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::PathBuf;

/// Key of what a file held, beside its name in `sweep.json`.
const SHA256: &str = "sha256";

impl SweepConfig {
    /// Errors on names that could not be told from others, or that make no folder.
    pub fn check_weights(&self) -> Result<()> {
        let mut names = HashSet::new();
        let arms = self.sweep_arms()?;
        ensure!(
            self.weights.is_empty() || arms.iter().any(SweepArm::has_weights),
            "[[weights]]: none of `arms` starts from weights; add full, warmup or frozen"
        );
        for GivenWeights { name, file } in &self.weights {
            let at = format!("[[weights]] {name:?}");
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            ensure!(
                name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain),
                "{at}: expected a name of letters, digits, -, _ and ., which begins with a letter or digit"
            );
            ensure!(names.insert(name), "{at}: the name is given twice");
            ensure!(!file.as_os_str().is_empty(), "{at}: `file` is empty");
            let arm = arms.iter().any(|arm| arm.name == *name) || is_plain(name);
            ensure!(!arm, "{at}: an arm has this name; give the weights another one");
            let tasks = name.parse::<TaskKind>().is_ok() || name.split('-').all(|part| part.parse::<TaskKind>().is_ok());
            ensure!(!tasks, "{at}: pretext tasks have this name; give the weights another one");
        }
        Ok(())
    }

    pub fn given(&self, name: &str) -> Option<&GivenWeights> {
        self.weights.iter().find(|weights| weights.name == name)
    }
}

/// What must be known of the file before a sweep begins.
pub struct Opened {
    pub encoder: EncoderConfig,
    /// The files that it consists of.
    read: Vec<PathBuf>,
    /// SHA-256 of what they hold.
    digest: String,
}

impl Opened {
    /// Errors if it cannot be read, or if it has seen someone whom one of the splits that are run holds out. Says where it was trained on
    /// other scans than these.
    pub fn open(weights: &GivenWeights, config: &SweepConfig, store: &Store, splits: &[Split]) -> Result<Opened> {
        let at = || format!("[[weights]] {:?}", weights.name);
        let pretrained = Pretrained::open(&weights.file).with_context(at)?;
        let run = config.folds();
        if let Some(seen) = &pretrained.seen {
            for split in splits.iter().filter(|split| run.contains(&split.fold.map(|fold| fold.number))) {
                if let Some(found) = seen::held_out(seen, store, split, config.other_people).first() {
                    bail!("{}: {}: {found}", at(), weights.file.display());
                }
            }
        }
        for warning in pretrained.fit(&Input::of(store)).warnings {
            note!("warning: {}: {warning}", at());
        }
        let digest = digest(&pretrained.read).with_context(at)?;
        Ok(Opened { encoder: pretrained.config, read: pretrained.read, digest })
    }

    /// Errors if the files do not hold what they held then: a cell that started from them now would have the name of other weights.
    pub fn check(&self, weights: &GivenWeights) -> Result<()> {
        let GivenWeights { name, file } = weights;
        let now = digest(&self.read).with_context(|| format!("[[weights]] {name:?}"))?;
        ensure!(
            now == self.digest,
            "[[weights]] {name:?}: {} was changed while the sweep runs; put it back, or give the new weights another name",
            file.display()
        );
        Ok(())
    }
}

/// The sweep's settings as they are kept, with what each file holds.
pub fn with_digests(mut settings: Value, opened: &[Opened]) -> Value {
    let tables = settings.get_mut("weights").and_then(Value::as_array_mut).into_iter().flatten();
    tables.zip(opened).for_each(|(table, opened)| table[SHA256] = json!(opened.digest));
    settings
}

/// Errors unless each table of an earlier start is still there, with the same content, wherever it lies now.
pub fn same_weights(before: &Value, now: &Value) -> Result<()> {
    let tables = |settings: &Value| settings.get("weights").and_then(Value::as_array).cloned().unwrap_or_default();
    let now = tables(now);
    for was in tables(before) {
        let (name, file) = (&was["name"], &was["file"]);
        let is = now.iter().find(|is| is["name"] == *name);
        let is = is.with_context(|| format!("[[weights]] {name}, {file}, is not there any more"))?;
        ensure!(
            is[SHA256] == was[SHA256],
            "[[weights]] {name}: {} holds other weights than those that cells were started from, {file} (SHA-256 {}, was {}); \
             give them another name",
            is["file"],
            is[SHA256],
            was[SHA256]
        );
    }
    Ok(())
}
