//! nnU-Net raw: `imagesTr/CASE_0000.nii.gz`, one file a channel, `labelsTr/CASE.nii.gz`, and `dataset.json`. Version 2 describes
//! `channel_names` and `file_ending`; version 1 describes `modality` and lists `imagesTr/CASE.nii.gz` as the Decathlon does.

use super::description::{Description, Entry};
use super::files::{Files, Found, Scan};
use super::{Columns, Dataset, Labels, Layout, Problem, Subject};
use crate::data::formats;
use crate::data::names::strip_ending;
use anyhow::{Result, ensure};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// Whether `training` lists files that are there for each channel only.
pub fn is_version_1(description: &Description, files: &Files) -> bool {
    let Ok(Some(listed)) = description.optional::<Vec<Entry>>("training") else { return false };
    let there: HashSet<(&[String], &str)> = files.scans.iter().map(|scan| (&scan.folders[..], scan.stem.as_str())).collect();
    let has = |case: &str| there.contains(&(&["imagesTr".to_string()][..], case));
    let cases: Vec<String> = listed.iter().filter_map(Entry::case).collect();
    cases.iter().any(|case| has(&format!("{case}_0000"))) && !cases.iter().any(|case| has(case))
}

/// Scans of `imagesTs` have the split `test`, and their labels from `labelsTs` where it exists. `partial`: they need not have every channel.
pub fn open(files: Files, wanted: Labels, partial: bool) -> Result<Dataset> {
    let description = Description::read(&files.root)?;
    let path = description.path.display();
    let channels = description.channels(&["channel_names", "modality"])?;
    let labels = description.labels(wanted)?;
    let ending = description.optional::<String>("file_ending")?;
    let ending = ending.or_else(|| files.scans.first().map(Scan::ending)).unwrap_or(".nii.gz".into());
    // Such as `x.nii.gz`.
    let known = formats::stem(Path::new(&format!("x{ending}"))).is_some_and(|stem| stem == "x");
    ensure!(known, "{path}: `file_ending`: expected one of {}, found {ending:?}", formats::endings());
    ensure!(!description.has("dataset"), "{path}: a list of files under `dataset` is not supported; use a CSV manifest");

    let mut problems = files.problems.clone();
    let mut ignored = files.no_scans(true);
    // By (test?, case).
    let mut cases: BTreeMap<(bool, &str), Found> = BTreeMap::new();
    for scan in &files.scans {
        let [folder] = scan.folders.as_slice() else {
            ignored.push(Problem::new(&scan.path, "not in a folder that nnU-Net uses"));
            continue;
        };
        let name = scan.path.file_name().unwrap_or_default().to_string_lossy();
        if strip_ending(&name, &ending).is_none_or(|rest| rest != scan.stem) {
            let problem = if folder.starts_with("labels") { Problem::of_labels } else { Problem::new };
            problems.push(problem(&scan.path, format!("expected the file_ending {ending} of dataset.json")));
            continue;
        }
        let empty = || Found::none(channels.len());
        match folder.as_str() {
            "imagesTr" | "imagesTs" => {
                let number = scan.stem.rsplit_once('_').filter(|(case, n)| !case.is_empty() && n.len() == 4);
                let channel = number.and_then(|(case, n)| Some((case, n.parse::<usize>().ok()?)));
                match channel.filter(|(_, n)| *n < channels.len()) {
                    Some((case, n)) => {
                        cases.entry((folder == "imagesTs", case)).or_insert_with(empty).channels[n] = Some(scan);
                    }
                    None => {
                        let last = channels.len() - 1;
                        problems.push(Problem::new(&scan.path, format!("expected a name in _0000 to _{last:04}")));
                    }
                }
            }
            "labelsTr" | "labelsTs" => {
                cases.entry((folder == "labelsTs", &scan.stem)).or_insert_with(empty).label = Some(scan);
            }
            _ => ignored.push(Problem::new(&scan.path, "not in a folder that nnU-Net uses")),
        }
    }

    if !description.has("channel_names") {
        for case in description.optional::<Vec<Entry>>("training")?.iter().flatten().filter_map(Entry::case) {
            if !cases.contains_key(&(false, case.as_str())) {
                problems.push(Problem::new(files.root.join("imagesTr").join(&case), "listed in dataset.json, but not there"));
            }
        }
    }
    let labelled = cases.iter().any(|((test, _), case)| !test && case.label.is_some());
    let mut subjects = vec![];
    for ((test, case), found) in cases {
        let name = |n: usize| format!("{} (_{n:04})", channels[n]);
        let subject = match partial {
            true => found.partial(case, &channels, &mut problems),
            false => found.subject(case, name, &mut problems),
        };
        let Some(subject) = subject else { continue };
        if labelled && !test && subject.label.is_none() {
            let reason = format!("subject {case}: no label in labelsTr; kept as an unlabelled scan");
            problems.extend(found.channels.iter().flatten().next().map(|scan| Problem::of_labels(&scan.path, reason)));
        }
        subjects.push(Subject { split: test.then(|| "test".into()), ..subject });
    }
    Ok(Dataset {
        layout: Layout::Nnunet,
        channels,
        labels,
        classes: None,
        columns: Columns::default(),
        subjects,
        problems,
        ignored,
    })
}
