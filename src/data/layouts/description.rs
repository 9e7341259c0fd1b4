//! `dataset.json`, which the Decathlon and nnU-Net describe their datasets with.

use super::Labels;
use crate::data::formats::stem;
use crate::data::labelling::{IGNORE_NAME, LabelRegion, LabelValue, Labelling};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

pub const NAME: &str = "dataset.json";

/// Where nnU-Net lists what each region is written as.
const REGIONS_ORDER: &str = "regions_class_order";

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
        Description::of_file(root.join(NAME))
    }

    fn of_file(path: PathBuf) -> Result<Description> {
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

    /// Label values, by value; `None` if there are none, or if others are asked for.
    pub fn labels(&self, wanted: Labels) -> Result<Option<Labelling>> {
        match wanted {
            Labels::Described => self.described_labels().context(
                "preprocess does without this description with --labels and all values, background first, or with --no-labels",
            ),
            Labels::Given | Labels::Unwanted => Ok(None),
        }
    }

    /// From `{"0": "background"}`, or as nnU-Net writes them: `{"background": 0}`, with regions `{"tumour": [1, 2]}` and `{"ignore": 3}`.
    fn described_labels(&self) -> Result<Option<Labelling>> {
        let Some(entries) = self.optional::<Map<String, Value>>("labels")?.filter(|entries| !entries.is_empty()) else {
            return Ok(None);
        };
        let path = self.path.display();
        // In the order of the file, which is that of nnU-Net's regions.
        let mut named: Vec<(String, Vec<i64>)> = vec![];
        let mut ignore = None;
        for (key, value) in &entries {
            let (name, values) = match value {
                Value::String(name) => (name, key.parse().ok().map(|value| vec![value])),
                Value::Array(values) => (key, values.iter().map(Value::as_i64).collect()),
                value => (key, value.as_i64().map(|value| vec![value])),
            };
            let values = values.filter(|values: &Vec<i64>| !values.is_empty()).with_context(|| {
                format!("{path}: `labels`: expected a name with a whole number, or of a region a list of them, found {key:?}: {value}")
            })?;
            match (name.as_str(), &values[..], value) {
                (IGNORE_NAME, &[one], Value::Number(_) | Value::String(_)) if ignore.is_none() => ignore = Some(one),
                (IGNORE_NAME, ..) => bail!("{path}: `{IGNORE_NAME}`: expected one whole number, found {value}"),
                _ => named.push((name.clone(), values)),
            }
        }
        let mut labels: Vec<LabelValue> = vec![];
        let has_regions = named.iter().any(|(_, values)| values.len() > 1);
        let of_one = named.iter().filter(|(_, values)| values.len() == 1);
        for (name, value) in of_one.map(|(name, values)| (name, values[0])) {
            match labels.iter().find(|label| label.value == value) {
                Some(_) if has_regions => {}
                Some(other) => bail!("{path}: labels `{}` and `{name}` share the value {value}", other.name),
                None => labels.push(LabelValue { value, name: name.clone() }),
            }
        }
        // Values that are in regions of several only have no name of their own.
        for &value in named.iter().flat_map(|(_, values)| values) {
            if labels.iter().all(|label| label.value != value) {
                labels.push(LabelValue::unnamed(value));
            }
        }
        labels.sort_by_key(|l| l.value);
        let first = labels.first().map(|l| l.value);
        ensure!(first == Some(0), "{path}: `labels`: expected 0 (background) as the lowest value, found {first:?}");
        let regions = if has_regions { self.regions(named)? } else { vec![] };
        let labelling = Labelling { labels, regions, ignore };
        labelling.check_regions().with_context(|| path.to_string())?;
        Ok(Some(labelling))
    }

    /// The regions among named values: all but the background.
    fn regions(&self, named: Vec<(String, Vec<i64>)>) -> Result<Vec<LabelRegion>> {
        let path = self.path.display();
        let named: Vec<_> = named.into_iter().filter(|(_, values)| values[..] != [0]).collect();
        let names = named.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        let order: Vec<i64> = self.optional(REGIONS_ORDER)?.with_context(|| {
            format!(
                "{path}: no `{REGIONS_ORDER}`, which labels of several values need: for each of {names} the value that a predicted voxel is \
                 written as, a later one over an earlier one; or leave labels out with --no-labels"
            )
        })?;
        ensure!(
            order.len() == named.len(),
            "{path}: `{REGIONS_ORDER}`: {} values, expected one for each of {}: {names}",
            order.len(),
            named.len()
        );
        let region = |((name, mut values), written): ((String, Vec<i64>), i64)| {
            let mut seen = HashSet::new();
            values.retain(|value| seen.insert(*value));
            LabelRegion { name, values, written }
        };
        Ok(named.into_iter().zip(order).map(region).collect())
    }
}

/// What the labels of a description such as nnU-Net's `dataset.json` mean. Errors if it describes none.
pub fn described_labels(file: &Path) -> Result<Labelling> {
    let description = Description::of_file(file.to_owned())?;
    let labels = description.described_labels()?;
    labels.with_context(|| format!("{}: no `labels`; found {}", file.display(), description.keys()))
}
