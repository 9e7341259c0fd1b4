//! What may change when a sweep is started again in its folder.

use super::given::same_weights;
use crate::study::repetitions::{Repetitions, SEED_LISTS};
use anyhow::{Result, bail, ensure};
use serde_json::{Map, Value, json};

/// Errors with the first setting that differs; some lists may grow (a grid of rates as long as none is chosen), but not shrink, which would drop finished cells. A seed stays what
/// it was.
pub fn same_settings(before: &Value, now: &Value, rates_chosen: bool) -> Result<()> {
    let (was, is) = (Repetitions::of(before)?, Repetitions::of(now)?);
    same_weights(before, now)?;
    for (seed, was) in &was.draws {
        if let Some(is) = is.draws.get(seed).filter(|is| *is != was) {
            bail!(
                "seed {seed} was of pretraining {}, label subset {} and split {}, and is now of {}, {} and {}: see `pretrain_seeds`, \
                 `subset_seeds` and `split_seeds`",
                was.pretraining,
                was.subset,
                was.split,
                is.pretraining,
                is.subset,
                is.split
            );
        }
    }
    const MAY_GROW: [&str; 7] = ["tasks", "arms", "fractions", "labelled", "seeds", "unlabelled_fractions", "run_folds"];
    let (Some(before), Some(now)) = (before.as_object(), now.as_object()) else { bail!("settings are not a table") };
    let of_grid = |key: &str| ["lr_grid", "lr_grid_seeds", "lr_grid_labels"].contains(&key);
    let given = |settings: &Map<String, Value>, name: &str| {
        settings.get("weights").and_then(Value::as_array).is_some_and(|all| all.iter().any(|weights| weights["name"] == name))
    };
    let new_arm =
        |name: &str| !before.get("arms").and_then(Value::as_array).is_some_and(|arms| arms.iter().any(|arm| arm == name));
    let new_task =
        |name: &str| !before.get("tasks").and_then(Value::as_array).is_some_and(|tasks| tasks.iter().any(|task| task == name));
    let new_pretext = |name: &str| new_task(name) && !given(before, name);
    let known = |finetune: &Value| without(&without(finetune, "arm", &new_arm), "pretext", &new_pretext);
    // Tables of tasks stand among the flags.
    let of_known_tasks = |pretrain: &Map<String, Value>| {
        let mut kept = pretrain.clone();
        kept.retain(|name, value| !(value.is_object() && new_task(name)));
        kept
    };
    let free = |key: &str| ["published", "other_people", "split_seed", "weights"].contains(&key) || SEED_LISTS.contains(&key);
    for key in before.keys().chain(now.keys()).filter(|key| !free(key)) {
        let (was, is) = (before.get(key).unwrap_or(&json!(null)).clone(), now.get(key).unwrap_or(&json!(null)).clone());
        let grown = match (&was, &is) {
            (Value::Object(_), Value::Object(_)) if key == "finetune" => known(&was) == known(&is),
            (Value::Object(was), Value::Object(is)) if key == "pretrain" => of_known_tasks(was) == of_known_tasks(is),
            (Value::Null, _) if of_grid(key) && !rates_chosen => true,
            (Value::Array(was), Value::Array(is)) if MAY_GROW.contains(&key.as_str()) || of_grid(key) && !rates_chosen => {
                was.iter().all(|item| is.contains(item))
            }
            _ => was == is,
        };
        ensure!(grown, "`{key}` was {was} and is now {is}");
    }
    Ok(())
}

/// Settings of fine-tuning without the tables below `key` whose names are new.
fn without(finetune: &Value, key: &str, new: &dyn Fn(&str) -> bool) -> Value {
    let mut kept = finetune.clone();
    if let Some(tables) = kept.get_mut(key).and_then(Value::as_object_mut) {
        tables.retain(|name, _| !new(name));
        if tables.is_empty() {
            kept.as_object_mut().map(|kept| kept.remove(key));
        }
    }
    kept
}
