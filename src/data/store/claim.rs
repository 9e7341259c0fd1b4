//! A folder that is about to be filled: what it holds, and whether that may be completed or replaced.

use super::index::{DONE, INDEX, Index};
use super::{FILE, file_name};
use crate::data::labelling::LabelValue;
use crate::data::layouts::{Dataset, Subject};
use crate::fs::LOCK;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Makes sure that the folder is empty, or holds a store that may be completed, and marks it as being filled. `own`: the subjects that this
/// process stores, where others store the rest at the same time; they must agree on what `index` says.
pub fn claim(folder: &Path, index: &Index, dataset: &Dataset, own: Option<&[&Subject]>, overwrite: bool) -> Result<()> {
    let expected: BTreeSet<String> = dataset.subjects.iter().map(|s| file_name(&s.id)).collect();
    let own: Option<BTreeSet<String>> = own.map(|own| own.iter().map(|s| file_name(&s.id)).collect());
    ensure!(expected.len() == dataset.subjects.len(), "two subjects' ids give the same file name");
    let (mut left_behind, mut foreign, mut strangers) = (vec![], vec![], vec![]);
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') && name.ends_with(".tmp") {
            let of_own = |own: &BTreeSet<String>| name[1..].split_inclusive(FILE).next().is_some_and(|file| own.contains(file));
            left_behind.extend(own.as_ref().is_none_or(of_own).then_some(name));
        } else if name.starts_with(DONE) {
            // Whoever fills a store alone speaks for all of it.
            left_behind.extend(index.shards.is_none().then_some(name));
        } else if name.ends_with(FILE) && !expected.contains(&name) {
            strangers.push(name);
        } else if name != INDEX && !name.starts_with(LOCK) && !expected.contains(&name) {
            foreign.push(name);
        }
    }
    let has_index = folder.join(INDEX).is_file();
    if let (false, Some(example)) = (has_index, foreign.iter().chain(&strangers).next()) {
        bail!("{}: expected an empty folder or a store, found e.g. `{example}`; give another --out", folder.display());
    }
    // Files half written by a process that was killed.
    left_behind.iter().try_for_each(|name| remove(folder, name))?;
    if has_index {
        let before = Index::read(folder);
        if before.as_ref().is_ok_and(|before| before.is_same_claim(index)) {
            return Ok(());
        }
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
        strangers.iter().try_for_each(|name| remove(folder, name))?;
    }
    // Until the end no index may claim what the files are about to become.
    index.clone().write(folder)
}

/// Removes a file, unless another shard has done so.
fn remove(folder: &Path, name: &str) -> Result<()> {
    match fs::remove_file(folder.join(name)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{}: removing {name}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// What differs between two stores' settings: `key: there, now asked`.
fn differences(before: &Index, now: &Index) -> String {
    // One that is complete may get other subjects.
    let both_shards = !before.complete && before.shards.is_some() && now.shards.is_some();
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
        if let (Some(shards), true) = (&index.shards, both_shards) {
            out.extend(shards.list());
            out.push(("classes".into(), serde_json::json!(index.classes).to_string()));
            out.push(("columns".into(), serde_json::json!(index.columns).to_string()));
        }
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
