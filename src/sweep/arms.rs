//! What each arm of a sweep is fine-tuned with: `[finetune]`, over it the table of the pretext task whose weights it starts from, over
//! both the table of the arm.

use super::config::{FINETUNE_OWN, SHAPE, SweepConfig, short_names};
use crate::finetune::config::Arm;
use crate::nn::EncoderFlags;
use crate::run::record::{FROZEN, RANDOM, SCRATCH};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

/// Keys of `[finetune]` that hold tables: settings of one arm, and of the arms that start from one pretext task.
const ARM: &str = "arm";
const PRETEXT: &str = "pretext";
/// In an arm's table: the arm that it is a variant of.
const BASE: &str = "base";

/// What is the same for every arm beside [`SHAPE`], as otherwise their scores mean different things.
const SCORED: [&str; 3] = ["task", "regions", "nsd-tolerance"];

/// Where the weights of a fine-tuning come from.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    Random,
    /// A pretraining by these tasks.
    Tasks(&'a str),
    /// `[[weights]]` of this name.
    Given(&'a str),
}

/// An arm of a sweep, or a variant of one with settings of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct SweepArm {
    pub name: String,
    /// `scratch`, `warmup`, `full`, `frozen` or `random`.
    pub base: String,
}

impl SweepArm {
    /// From pretrained weights.
    pub fn has_weights(&self) -> bool {
        self.base != SCRATCH && self.base != RANDOM
    }

    /// In the sweep's records, where the pretext of a random encoder says that it is one.
    pub fn shown(&self) -> &str {
        if self.name == RANDOM { self.flag() } else { &self.name }
    }

    /// As `finetune --arm` takes it.
    pub fn flag(&self) -> &str {
        if self.base == RANDOM { FROZEN } else { &self.base }
    }
}

impl SweepConfig {
    /// The arms, in the file's order.
    pub fn sweep_arms(&self) -> Result<Vec<SweepArm>> {
        self.arms.iter().map(|name| self.sweep_arm(name)).collect()
    }

    fn sweep_arm(&self, name: &str) -> Result<SweepArm> {
        let table = self.table(ARM, name)?;
        let base = match table.get(BASE) {
            None => name,
            Some(Value::String(base)) if is_plain(name) => {
                ensure!(
                    base == name,
                    "[finetune.arm.{name}] base: {name} is an arm itself; give the variant of {base} another name"
                );
                name
            }
            Some(Value::String(base)) => base,
            Some(other) => bail!("[finetune.arm.{name}] base: expected the name of an arm, found {other}"),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        ensure!(name.chars().all(plain), "`arms`: {name:?}, expected a name of letters, digits, -, _ and .");
        ensure!(
            is_plain(base),
            "`arms`: {base:?}{}, expected scratch, warmup, full, frozen or random, or the name of a variant, whose table \
             [finetune.arm.NAME] says which of them is its `base`",
            if base == name { "" } else { " as the base of a variant" }
        );
        Ok(SweepArm { name: name.to_owned(), base: base.to_owned() })
    }

    /// Errors on tables of `[finetune]` that are for no arm and no task, or that set what all arms share.
    pub fn check_arms(&self) -> Result<()> {
        self.sweep_arms()?;
        for key in [ARM, PRETEXT] {
            let Some(tables) = self.finetune.get(key) else { continue };
            let tables = tables.as_object().with_context(|| format!("[finetune] {key}: the sweep sets it"))?;
            for (name, table) in tables {
                let at = format!("[finetune.{key}.{name}]");
                ensure!(table.is_object(), "{at}: expected a table of settings, found {table}");
                match key {
                    ARM => _ = self.sweep_arm(name).with_context(|| at.clone())?,
                    _ if self.given(name).is_some() => {}
                    _ => self.check_task(name).with_context(|| format!("{at}: not a pretext task, and no [[weights]]"))?,
                }
                for set in self.table(key, name)?.keys() {
                    ensure!(!FINETUNE_OWN.contains(&set.as_str()), "{at} {set}: the sweep sets it");
                    let all = SHAPE.iter().chain(&SCORED).any(|shared| shared == set);
                    ensure!(!all, "{at} {set}: all arms need the same; give it in [finetune]");
                }
            }
        }
        Ok(())
    }

    /// Flags and values of a fine-tuning in this arm. Given weights have an encoder of their own, whatever that of the other arms is.
    pub fn finetune_settings(&self, source: Source, arm: &str) -> Result<Map<String, Value>> {
        let mut settings = dashed(&self.finetune);
        settings.retain(|key, value| !(value.is_object() && [ARM, PRETEXT].contains(&key.as_str())));
        if let Source::Given(_) = source {
            EncoderFlags::names().iter().for_each(|flag| _ = settings.remove(flag));
        }
        for name in self.finetune.get(PRETEXT).and_then(Value::as_object).into_iter().flat_map(Map::keys) {
            let of_source = match source {
                Source::Random => false,
                Source::Tasks(tasks) => self.given(name).is_none() && short_names(name)? == short_names(tasks)?,
                Source::Given(given) => name == given,
            };
            if of_source {
                settings.extend(self.table(PRETEXT, name)?);
            }
        }
        let mut own = self.table(ARM, arm)?;
        own.remove(BASE);
        settings.extend(own);
        Ok(settings)
    }

    /// The common rate of an arm, which goes with `lr_grid` only.
    pub fn common_rate(&self, source: Source, arm: &str) -> Result<Option<f64>> {
        if self.lr_grid.is_empty() {
            return Ok(None);
        }
        let settings = self.finetune_settings(source, arm)?;
        let rate = settings.get("lr").and_then(Value::as_f64);
        Ok(Some(rate.context("`lr_grid`: give [finetune] lr as well, the common rate that own rates are compared with")?))
    }

    /// A table of `[finetune]`; empty if there is none.
    fn table(&self, key: &str, name: &str) -> Result<Map<String, Value>> {
        let table = self.finetune.get(key).and_then(|tables| tables.get(name));
        Ok(table.and_then(Value::as_object).map(dashed).unwrap_or_default())
    }
}

/// Whether it is an arm by itself, and no variant of one.
pub fn is_plain(name: &str) -> bool {
    name == RANDOM || <Arm as clap::ValueEnum>::from_str(name, false).is_ok()
}

/// With the keys as flags are written, so that `batch_size` and `batch-size` are one.
fn dashed(settings: &Map<String, Value>) -> Map<String, Value> {
    settings.iter().map(|(key, value)| (key.replace('_', "-"), value.clone())).collect()
}
