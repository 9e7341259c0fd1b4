//! Medical Segmentation Decathlon: `dataset.json` lists `imagesTr`, `labelsTr` and `imagesTs`; all channels in one 4D file.

use super::description::Description;
use super::files::Files;
use super::{Dataset, Layout, Problem, Source, Subject};
use crate::data::names::stem;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::HashSet;
use std::path::Path;

/// One entry of `training` (image and label) or of `test` (image).
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a file name, or an object with `image` and `label`")]
enum Entry {
    Image(String),
    Pair { image: String, label: Option<String> },
}

/// Scans of `test` (`imagesTs`) come without label and with the split `test`.
pub fn open(files: Files) -> Result<Dataset> {
    let description = Description::read(&files.root)?;
    let channels = description.channels("modality")?;
    let labels = description.labels()?;
    let training = description.get::<Vec<Entry>>("training")?.into_iter().map(|e| (e, None));
    let test = description.optional::<Vec<Entry>>("test")?.unwrap_or_default().into_iter().map(|e| (e, Some("test".into())));

    let mut problems = files.problems.clone();
    let mut listed = HashSet::new();
    let mut subjects = vec![];
    for (entry, split) in training.chain(test) {
        let (image, label) = match entry {
            Entry::Image(image) => (image, None),
            Entry::Pair { image, label } => (image, label),
        };
        let mut find = |name: &str| {
            let path = files.root.join(name.strip_prefix("./").unwrap_or(name));
            let there = path.is_file();
            if !there {
                problems.push(Problem::new(&path, "listed in dataset.json, but not there"));
            }
            listed.insert(path.clone());
            there.then_some(path)
        };
        let label = label.and_then(|name| find(&name)).map(Source::File);
        let Some(image) = find(&image) else { continue };
        let id = stem(Path::new(&image))
            .with_context(|| format!("{}: {} is not a .nii or .nii.gz file", description.path.display(), image.display()))?;
        subjects.push(Subject { id, channels: vec![Source::File(image)], label, class: None, split });
    }
    let mut ignored = files.no_scans(true);
    for scan in files.scans.iter().filter(|s| !listed.contains(&s.path)) {
        let own = matches!(scan.folders.first().map(String::as_str), Some("imagesTr" | "imagesTs" | "labelsTr"));
        let list = if own { &mut problems } else { &mut ignored };
        list.push(Problem::new(&scan.path, "not listed in dataset.json"));
    }
    Ok(Dataset { layout: Layout::Decathlon, channels, labels, classes: None, subjects, problems, ignored })
}
