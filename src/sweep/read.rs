//! Reads a sweep's file and checks it.

use super::arms::SweepArm;
use super::config::{SHAPE, SweepConfig};
use crate::tasks::TaskKind;
use crate::train::config::share;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};
use std::path::Path;

impl SweepConfig {
    /// Reads and checks a file; `smoke` applies its `[smoke]` table, which holds any of the other keys; the keys of a table change
    /// one by one. Errors name the file and the key.
    pub fn read(path: &Path, smoke: bool) -> Result<SweepConfig> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let parse = || -> Result<SweepConfig> {
            let mut value: Value = toml::from_str(&text)?;
            let changes = value.as_object_mut().and_then(|map| map.remove("smoke"));
            if smoke {
                let changes = changes.and_then(|c| c.as_object().cloned());
                merge(&mut value, changes.context("no [smoke] table, which --smoke needs")?);
            }
            let mut config: SweepConfig = serde_json::from_value(value)?;
            // Otherwise an interval says nothing of other encoders and of other labelled subjects.
            for list in [&mut config.pretrain_seeds, &mut config.subset_seeds] {
                list.get_or_insert_with(|| config.seeds.clone());
            }
            config.check()?;
            Ok(config)
        };
        parse().with_context(|| format!("{}: not a sweep's configuration", path.display()))
    }

    fn check(&self) -> Result<()> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        ensure!(!self.name.is_empty() && self.name.chars().all(plain), "`name` is made of letters, digits, -, _ and .");
        let lists =
            [("arms", self.arms.len()), ("seeds", self.seeds.len()), ("unlabelled_fractions", self.unlabelled_fractions.len())];
        for (key, n) in lists {
            ensure!(n > 0, "`{key}` is empty");
        }
        ensure!(self.split_seeds.is_none() || self.split_seed == 0, "give `split_seed` or `split_seeds`, not both");
        self.repetitions()?;
        self.labels()?;
        for (key, values) in [("fractions", &self.fractions), ("unlabelled_fractions", &self.unlabelled_fractions)] {
            values.iter().try_for_each(|&v| share(key, v, true))?;
        }
        share("val_fraction", self.val_fraction, false)?;
        match (self.test_fraction, self.folds) {
            (Some(test), None) => share("test_fraction", test, false)?,
            (None, Some(folds)) => ensure!(folds >= 2, "`folds` is at least 2, found {folds}"),
            _ => bail!("give `test_fraction`, or for a cross-validation `folds`, and not both"),
        }
        if let Some(run) = &self.run_folds {
            let folds = self.folds.context("`run_folds` goes with `folds`")?;
            ensure!(!run.is_empty() && run.iter().all(|&k| k < folds), "`run_folds`: expected some of 0 to {}", folds - 1);
        }
        self.downstream()?;
        for task in self.tasks.iter().flat_map(|t| t.split(',')) {
            task.parse::<TaskKind>()?;
        }
        self.check_arms()?;
        self.check_weights()?;
        self.check_grid()?;
        let needs_weights = self.sweep_arms()?.iter().any(SweepArm::has_weights);
        ensure!(
            !needs_weights || !self.tasks.is_empty() || !self.weights.is_empty(),
            "`tasks` is empty, and arms other than scratch and random need weights: of tasks, or given ones in [[weights]]"
        );
        // Every arm has the same network, also where pretraining does not hand it down.
        for (pretraining, key) in self.pretrainings()?.iter().flat_map(|p| SHAPE.map(|key| (p, key))) {
            let (pre, fine) = (self.pretrain_settings(pretraining)?.get(key).cloned(), self.finetune.get(key).cloned());
            let text = |v: &Option<Value>| v.as_ref().map_or("not set".to_owned(), Value::to_string);
            ensure!(
                pre == fine,
                "`{key}` is {} in [pretrain] (for {}) and {} in [finetune]; all arms need the same network",
                text(&pre),
                pretraining.tasks,
                text(&fine)
            );
        }
        Ok(())
    }
}

/// Puts `changes` over `value`, tables key by key.
fn merge(value: &mut Value, changes: Map<String, Value>) {
    let Some(map) = value.as_object_mut() else { return };
    for (key, change) in changes {
        match (map.get_mut(&key), change) {
            (Some(old @ Value::Object(_)), Value::Object(inner)) => merge(old, inner),
            (_, change) => {
                map.insert(key, change);
            }
        }
    }
}
