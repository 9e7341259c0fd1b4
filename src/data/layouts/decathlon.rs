//! Medical Segmentation Decathlon: `dataset.json` lists `imagesTr`, `labelsTr` and `imagesTs`; all channels in one 4D file. Other tools
//! write the same lists with one file a channel, without `modality`, or with scans for validation.

use super::description::{Description, Entry};
use super::files::Files;
use super::{Columns, Dataset, Labels, Layout, Problem, Source, Subject, UNNAMED};
use crate::data::formats;
use anyhow::{Context, Result};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Lists of scans, and the side that each is for.
const LISTS: [(&str, Option<&str>); 4] =
    [("training", None), ("validation", Some("val")), ("test", Some("test")), ("testing", Some("test"))];

/// Scans of `test` (`imagesTs`) have the split `test`, those of `validation` the split `val`. What is in several lists counts for the first.
pub fn open(files: Files, wanted: Labels) -> Result<Dataset> {
    let description = Description::read(&files.root)?;
    let mut channels = match description.has("modality") {
        true => description.channels(&["modality"])?,
        false => vec![UNNAMED.into()],
    };
    let labels = description.labels(wanted)?;

    let mut problems = files.problems.clone();
    let mut ignored = files.no_scans(true);
    let mut listed = HashSet::new();
    let mut lists: HashMap<PathBuf, &str> = HashMap::new();
    let mut subjects = vec![];
    for (list, split) in LISTS {
        let entries = match list {
            "training" => description.get::<Vec<Entry>>(list)?,
            _ => description.optional(list)?.unwrap_or_default(),
        };
        for entry in entries {
            let label = entry.label().and_then(|name| {
                let found = find(&files.root, name);
                if found.is_none() {
                    problems.push(Problem::of_labels(files.root.join(name), MISSING));
                }
                found
            });
            let mut images = vec![];
            for name in entry.images() {
                match find(&files.root, name) {
                    Some(path) => images.push(path),
                    None => problems.push(Problem::new(files.root.join(name), MISSING)),
                }
            }
            listed.extend(images.iter().chain(&label).cloned());
            if images.is_empty() || images.len() < entry.images().len() {
                continue;
            }
            let earlier = *lists.entry(images[0].clone()).or_insert(list);
            if earlier != list {
                ignored.push(Problem::new(&images[0], format!("listed under `{list}` too; that under `{earlier}` counts")));
                continue;
            }
            let id = entry.case().with_context(|| {
                format!("{}: {} is not a scan ({})", description.path.display(), images[0].display(), formats::endings())
            })?;
            let channels = images.into_iter().map(Source::File).collect();
            let (label, split) = (label.map(Source::File), split.map(String::from));
            subjects.push(Subject { id, channels, label, split, ..Subject::default() });
        }
    }
    let files_each = subjects.iter().map(|subject: &Subject| subject.channels.len()).max().unwrap_or(1);
    if channels == [UNNAMED] && files_each > 1 {
        channels = (0..files_each).map(|c| format!("{UNNAMED}_{c}")).collect();
    }
    let strangers = files.scans.iter().filter(|scan| !listed.contains(&scan.path));
    ignored.extend(strangers.map(|scan| Problem::new(&scan.path, "not listed in dataset.json")));
    Ok(Dataset {
        layout: Layout::Decathlon,
        channels,
        labels,
        classes: None,
        columns: Columns::default(),
        subjects,
        problems,
        ignored,
    })
}

const MISSING: &str = "listed in dataset.json, but not there";

/// A listed file, wherever the list was written: with its path there, packed or not.
fn find(root: &Path, name: &str) -> Option<PathBuf> {
    let name = name.replace('\\', "/");
    let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let packed = format!("{name}.gz");
    let other = name.strip_suffix(".gz").unwrap_or(&packed);
    let other = other.rsplit('/').next()?;
    (0..parts.len()).find_map(|from| {
        let path: PathBuf = root.join(parts[from..].iter().collect::<PathBuf>());
        [path.clone(), path.with_file_name(other)].into_iter().find(|path| path.is_file())
    })
}
