//! BraTS: a folder a subject, one file a contrast. 2018 to 2021: `X_t1 _t1ce _t2 _flair _seg`, labels 0, 1, 2, 4; from 2023 on:
//! `X-t1n -t1c -t2w -t2f -seg`, labels 0, 1, 2, 3.

use super::files::{Files, Found, Scan};
use super::{Columns, Dataset, Layout, Problem, Subject};
use crate::data::labelling::LabelValue;
use crate::data::names::strip_ending;
use anyhow::{Result, bail};
use std::collections::BTreeMap;

struct Names {
    /// In the order of [`CHANNELS`].
    channels: [&'static str; 4],
    label: &'static str,
    enhancing: i64,
}

const CHANNELS: [&str; 4] = ["t1", "t1ce", "t2", "flair"];
const NAMES: [Names; 2] = [
    Names { channels: ["_t1", "_t1ce", "_t2", "_flair"], label: "_seg", enhancing: 4 },
    Names { channels: ["-t1n", "-t1c", "-t2w", "-t2f"], label: "-seg", enhancing: 3 },
];

/// Which names, the subject, and the channel (`None`: the label).
fn parse(stem: &str) -> Option<(usize, &str, Option<usize>)> {
    NAMES.iter().enumerate().find_map(|(year, names)| {
        let channel = |c: usize| Some((year, strip_ending(stem, names.channels[c])?, Some(c)));
        (0..4).find_map(channel).or_else(|| Some((year, strip_ending(stem, names.label)?, None)))
    })
}

/// Whether some folder holds its own name with the contrast-enhanced T1 of 2018 or the plain T1 of 2023 appended.
pub fn recognise(files: &Files) -> bool {
    files.scans.iter().any(|scan| match parse(&scan.stem) {
        Some((0, subject, Some(1)) | (1, subject, Some(0))) => subject == scan.parent(),
        _ => false,
    })
}

/// Subjects without `seg` are unlabelled (the challenge's validation set). `partial`: they need not have every contrast.
pub fn open(files: Files, partial: bool) -> Result<Dataset> {
    let mut problems = files.problems.clone();
    let mut subjects: BTreeMap<(&[String], &str), Found> = BTreeMap::new();
    let mut years: [Option<&Scan>; 2] = [None; 2];
    for scan in &files.scans {
        let Some((year, subject, channel)) = parse(&scan.stem) else {
            problems.push(Problem::new(&scan.path, "not named as a BraTS contrast or label"));
            continue;
        };
        years[year].get_or_insert(scan);
        let entry = subjects.entry((&scan.folders, subject)).or_insert_with(|| Found::none(4));
        let slot = match channel {
            Some(c) => &mut entry.channels[c],
            None => &mut entry.label,
        };
        if let Some(earlier) = slot.replace(scan) {
            bail!("duplicate subject `{subject}`: {} and {}", earlier.path.display(), scan.path.display());
        }
    }
    let year = match years {
        [Some(a), Some(b)] => bail!(
            "names of 2018 ({}) and of 2023 ({}), whose label values differ; read them one by one",
            a.path.display(),
            b.path.display()
        ),
        [_, of_2023] => usize::from(of_2023.is_some()),
    };

    let name = |c: usize| NAMES[year].channels[c].to_string();
    let channels = CHANNELS.map(String::from).to_vec();
    let subject = |((_, subject), found): (&(&[String], &str), &Found)| match partial {
        true => found.partial(subject, &channels, &mut problems),
        false => found.subject(subject, name, &mut problems),
    };
    let complete: Vec<Subject> = subjects.iter().filter_map(subject).collect();
    let labels = [(0, "background"), (1, "necrosis"), (2, "oedema"), (NAMES[year].enhancing, "enhancing")];
    let labels = labels.map(|(value, name)| LabelValue { value, name: name.into() }).to_vec();
    Ok(Dataset {
        layout: Layout::Brats,
        channels,
        labels: complete.iter().any(|s| s.label.is_some()).then(|| labels.into()),
        classes: None,
        columns: Columns::default(),
        subjects: complete,
        problems,
        ignored: files.no_scans(true),
    })
}
