//! A folder that is about to be filled: what it holds, and whether that may be completed or replaced.

use super::file_name;
use super::index::{INDEX, Index};
use crate::data::labelling::LabelValue;
use crate::data::layouts::Dataset;
use crate::fs::LOCK;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Makes sure that the folder is empty, or holds a store that may be completed, and marks it as being filled.
pub fn claim(folder: &Path, index: &Index, dataset: &Dataset, overwrite: bool) -> Result<()> {
    let expected: BTreeSet<String> = dataset.subjects.iter().map(|s| file_name(&s.id)).collect();
    ensure!(expected.len() == dataset.subjects.len(), "two subjects' ids give the same file name");
    let (mut left_behind, mut foreign, mut strangers) = (vec![], vec![], vec![]);
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') && name.ends_with(".tmp") {
            left_behind.push(name);
        } else if name.ends_with(".safetensors") && !expected.contains(&name) {
            strangers.push(name);
        } else if name != INDEX && name != LOCK && !expected.contains(&name) {
            foreign.push(name);
        }
    }
    let has_index = folder.join(INDEX).is_file();
    if let (false, Some(example)) = (has_index, foreign.iter().chain(&strangers).next()) {
        bail!("{}: expected an empty folder or a store, found e.g. `{example}`; give another --out", folder.display());
    }
    // Files half written by a process that was killed.
    for name in left_behind {
        fs::remove_file(folder.join(&name)).with_context(|| format!("{}: removing {name}", folder.display()))?;
    }
    if has_index {
        let before = Index::read(folder);
        let differences = before.as_ref().map_or_else(|e| format!("{e:#}"), |before| differences(before, index));
        if !differences.is_empty() && !overwrite {
            bail!(
                "{}: holds a store of other settings: {differences}; give another --out, or --overwrite to replace it",
                folder.display()
            );
        }
        strangers.sort();
        if let (Some(first), false) = (strangers.first(), overwrite) {
            bail!(
                "{}: holds {} subjects that the data does not, the first in {first}; give another --out, or --overwrite to \
                 remove them",
                folder.display(),
                strangers.len()
            );
        }
        for name in &strangers {
            fs::remove_file(folder.join(name)).with_context(|| format!("{}: removing {name}", folder.display()))?;
        }
    }
    // Until the end no index may claim what the files are about to become.
    index.clone().write(folder)
}

/// What differs between two stores' settings: `key: there, now asked`.
fn differences(before: &Index, now: &Index) -> String {
    fn flat(prefix: &str, value: &Value, out: &mut Vec<(String, String)>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    flat(&if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") }, value, out);
                }
            }
            other => out.push((prefix.to_string(), other.to_string())),
        }
    }
    let list = |index: &Index| {
        let values = |labels: &Vec<LabelValue>| labels.iter().map(|l| l.value).collect::<Vec<_>>();
        let mut out = vec![];
        flat("", &serde_json::json!(index.settings), &mut out);
        out.push(("channels".into(), index.channels.join(",")));
        out.push(("labels".into(), index.labels.as_ref().map_or("none".into(), |l| format!("{:?}", values(l)))));
        out.push(("ignore".into(), index.ignore.map_or("none".into(), |value| value.to_string())));
        out.push(("regions".into(), serde_json::json!(index.regions).to_string()));
        out
    };
    let (before, now) = (list(before), list(now));
    let value = |list: &[(String, String)], key: &str| {
        list.iter().find(|(k, _)| k == key).map_or("nothing".to_string(), |(_, value)| value.clone())
    };
    let keys: BTreeSet<&String> = before.iter().chain(&now).map(|(key, _)| key).collect();
    keys.into_iter()
        .map(|key| (key, value(&before, key), value(&now, key)))
        .filter(|(_, before, now)| before != now)
        .map(|(key, before, now)| format!("{key} is {before} there, {now} was asked for"))
        .collect::<Vec<_>>()
        .join("; ")
}
