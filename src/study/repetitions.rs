//! What one repetition of a sweep does otherwise than another, and what all of them share.

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What a seed of a sweep stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Draw {
    /// Seed of the pretraining whose encoder is fine-tuned.
    pub pretraining: u64,
    /// Seed of the label subset.
    pub subset: u64,
    /// Seed of the split or of the folds.
    pub split: u64,
}

/// The repetitions of one sweep, by its settings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Repetitions {
    pub draws: BTreeMap<u64, Draw>,
    /// Of a cross-validation, all of them, also where fewer are run.
    pub folds: Option<u64>,
    /// Every fold, or split, has pretrainings of its own on its training side.
    pub pretrained_by_split: bool,
    /// Some cells are trained on a part of the labelled subjects.
    pub subsets: bool,
}

/// Settings of a sweep that hold a seed for every repetition, or one for all.
pub const SEED_LISTS: [&str; 3] = ["pretrain_seeds", "subset_seeds", "split_seeds"];

impl Repetitions {
    /// By the settings in `sweep.json`. Sweeps of earlier versions name none of [`SEED_LISTS`]: they pretrained one encoder for all
    /// repetitions, and drew the label subset by the seed of their one split.
    pub fn of(settings: &Value) -> Result<Repetitions> {
        let number = |value: Option<&Value>| value.and_then(Value::as_u64);
        let seeds: Vec<u64> = list(settings, "seeds")?.unwrap_or_default();
        let folds = number(settings.get("folds"));
        ensure!(folds.is_none_or(|folds| folds >= 2), "`folds` must be at least 2, found {}", folds.unwrap_or_default());
        let split = number(settings.get("split_seed")).unwrap_or_default();
        let pretraining = number(settings.pointer("/pretrain/seed")).unwrap_or_default();
        let mut columns = Vec::new();
        for (key, before) in SEED_LISTS.into_iter().zip([pretraining, split, split]) {
            let own: Vec<u64> = list(settings, key)?.unwrap_or_else(|| vec![before]);
            ensure!(
                own.len() == 1 || own.len() == seeds.len(),
                "`{key}` has {} seeds, expected one for all repetitions, or one for each of the {} `seeds`",
                own.len(),
                seeds.len()
            );
            columns.push(own);
        }
        let at = |column: usize, i: usize| columns[column][i.min(columns[column].len() - 1)];
        let draw = |i: usize| Draw { pretraining: at(0, i), subset: at(1, i), split: at(2, i) };
        let fractions: Vec<f64> = list(settings, "fractions")?.unwrap_or_default();
        let labelled: Vec<Value> = list(settings, "labelled")?.unwrap_or_default();
        Ok(Repetitions {
            draws: seeds.iter().enumerate().map(|(i, &seed)| (seed, draw(i))).collect(),
            folds,
            pretrained_by_split: settings.get("unlabelled").is_none(),
            subsets: fractions.iter().any(|&f| f < 1.) || labelled.iter().any(Value::is_number),
        })
    }

    /// How many different values a repetition's draws have.
    pub fn distinct(&self, of: impl Fn(&Draw) -> u64) -> usize {
        self.draws.values().map(of).collect::<BTreeSet<_>>().len()
    }

    pub fn splits_vary(&self) -> bool {
        self.distinct(|draw| draw.split) > 1
    }

    /// The seed of a repetition's split, where there are several.
    pub fn split_of(&self, draw: Draw) -> Option<u64> {
        self.splits_vary().then_some(draw.split)
    }

    /// Runs of one group are averaged: those that train and test on the same sides of one of several splits or folds.
    pub fn group(&self, seed: u64, fold: Option<u64>) -> (u64, Option<u64>) {
        match fold.is_some() || self.splits_vary() {
            true => (self.draws.get(&seed).copied().unwrap_or_default().split, fold),
            false => (seed, None),
        }
    }
}

fn list<T: DeserializeOwned>(settings: &Value, key: &str) -> Result<Option<Vec<T>>> {
    settings.get(key).map(|list| serde_json::from_value(list.clone())).transpose().with_context(|| format!("`{key}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn runs_on_the_same_sides_are_one_repetition() {
        let groups = |settings: Value, fold| {
            let repetitions = Repetitions::of(&settings).unwrap();
            (0..4).map(|seed| repetitions.group(seed, fold)).collect::<Vec<_>>()
        };
        let seeds = || json!({ "seeds": [0, 1, 2, 3] });
        assert_eq!(groups(seeds(), None), [(0, None), (1, None), (2, None), (3, None)]);
        assert_eq!(groups(seeds(), Some(2)), [(0, Some(2)); 4]);
        let mut shared = seeds();
        shared["split_seeds"] = json!([5, 5, 6, 6]);
        assert_eq!(groups(shared.clone(), None), [(5, None), (5, None), (6, None), (6, None)]);
        assert_eq!(groups(shared, Some(1))[1..3], [(5, Some(1)), (6, Some(1))]);
    }
}
