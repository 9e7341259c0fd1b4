//! `dataset.json`, which the Decathlon and nnU-Net describe their datasets with.

use super::{LabelValue, Labels};
use crate::data::formats::stem;
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

pub const NAME: &str = "dataset.json";

/// One entry of a list of scans.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a file name, or an object with `image` and `label`")]
pub enum Entry {
    Image(String),
    Pair { image: Images, label: Option<Value> },
}

/// One file of all channels, or one a channel.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum Images {
    One(String),
    Each(Vec<String>),
}

impl Entry {
    pub fn images(&self) -> &[String] {
        match self {
            Entry::Image(image) | Entry::Pair { image: Images::One(image), .. } => std::slice::from_ref(image),
            Entry::Pair { image: Images::Each(images), .. } => images,
        }
    }

    /// The file of the label; other tools also list classes there.
    pub fn label(&self) -> Option<&str> {
        match self {
            Entry::Pair { label: Some(Value::String(label)), .. } => Some(label),
            _ => None,
        }
    }

    /// Name of the first image without its extension.
    pub fn case(&self) -> Option<String> {
        stem(Path::new(self.images().first()?))
    }
}

pub struct Description {
    pub path: PathBuf,
    entries: Map<String, Value>,
}

impl Description {
    /// Reads the `dataset.json` of a folder.
    pub fn read(root: &Path) -> Result<Description> {
        let path = root.join(NAME);
        let text = std::fs::read(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
        // Editors put a byte order mark first.
        let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&text);
        let entries = serde_json::from_slice(text).with_context(|| format!("{}: expected a JSON object", path.display()))?;
        Ok(Description { path, entries })
    }

    pub fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// The keys, for messages.
    pub fn keys(&self) -> String {
        let keys: Vec<&str> = self.entries.keys().map(String::as_str).collect();
        if keys.is_empty() { "no keys".into() } else { keys.join(", ") }
    }

    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        self.optional(key)?.with_context(|| format!("{}: no `{key}`; found {}", self.path.display(), self.keys()))
    }

    pub fn optional<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let parse = |value: &Value| T::deserialize(value).with_context(|| format!("{}: `{key}`", self.path.display()));
        self.entries.get(key).filter(|value| !value.is_null()).map(parse).transpose()
    }

    /// Channel names from `{"0": "T1", "1": "T2"}`, in the numbers' order, under the first of `keys` that is there.
    pub fn channels(&self, keys: &[&str]) -> Result<Vec<String>> {
        let key = keys.iter().find(|key| self.has(key)).unwrap_or(&keys[0]);
        let numbered: Map<String, Value> = self.get(key)?;
        let mut names = vec![None; numbered.len()];
        for (number, name) in &numbered {
            let slot = number.parse().ok().and_then(|n: usize| names.get_mut(n));
            match (slot, name) {
                (Some(slot @ None), Value::String(name)) => *slot = Some(name.clone()),
                _ => bail!(
                    "{}: `{key}`: expected the numbers 0 to {} with a name each, found {number:?}: {name}",
                    self.path.display(),
                    numbered.len() - 1
                ),
            }
        }
        let names: Vec<String> = names.into_iter().flatten().collect();
        ensure!(!names.is_empty(), "{}: `{key}` names no channel", self.path.display());
        Ok(names)
    }

    /// Label values from `{"0": "background"}` or `{"background": 0}`, by value; `None` if there are none, or if others are asked for.
    pub fn labels(&self, wanted: Labels) -> Result<Option<Vec<LabelValue>>> {
        match wanted {
            Labels::Described => self.described_labels().context(
                "preprocess does without this description with --labels and all values, background first, or with --no-labels",
            ),
            Labels::Given | Labels::Unwanted => Ok(None),
        }
    }

    fn described_labels(&self) -> Result<Option<Vec<LabelValue>>> {
        let Some(entries) = self.optional::<Map<String, Value>>("labels")?.filter(|entries| !entries.is_empty()) else {
            return Ok(None);
        };
        let path = self.path.display();
        let mut labels = vec![];
        for (key, value) in &entries {
            let label = match value {
                Value::String(name) => key.parse().ok().map(|value| LabelValue { value, name: name.clone() }),
                Value::Number(value) => value.as_i64().map(|value| LabelValue { value, name: key.clone() }),
                Value::Array(_) => bail!(
                    "{path}: label `{key}` is the region {value}; regions of several values are not supported, every label \
                     needs one value of its own"
                ),
                _ => None,
            };
            let label = label.with_context(|| {
                format!("{path}: `labels`: expected a whole number and a name for each, found {key:?}: {value}")
            })?;
            ensure!(label.name != "ignore", "{path}: an `ignore` label ({}) is not supported", label.value);
            labels.push(label);
        }
        labels.sort_by_key(|l| l.value);
        for pair in labels.windows(2) {
            let [a, b] = pair else { unreachable!("windows of 2") };
            ensure!(a.value != b.value, "{path}: labels `{}` and `{}` share the value {}", a.name, b.name, a.value);
        }
        let first = labels.first().map(|l| l.value);
        ensure!(first == Some(0), "{path}: `labels`: expected 0 (background) as the lowest value, found {first:?}");
        ensure!(labels.len() <= 256, "{path}: `labels`: at most 256 classes, found {}", labels.len());
        Ok(Some(labels))
    }
}
