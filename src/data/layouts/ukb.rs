//! UK Biobank: zips holding `T1/T1.nii.gz` and `T2_FLAIR/T2_FLAIR.nii.gz` (both in T1 space), together or one zip each.

use super::files::Files;
use super::{Columns, Dataset, Layout, Problem, Source, Subject};
use crate::fs::open_zip;
use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

const CHANNELS: [&str; 2] = ["T1", "T2_FLAIR"];
const MEMBERS: [&str; 2] = ["T1/T1.nii.gz", "T2_FLAIR/T2_FLAIR.nii.gz"];

/// Which of [`MEMBERS`] an archive holds.
fn members(archive: &Path) -> Result<[bool; 2]> {
    let zip = open_zip(std::io::BufReader::new(File::open(archive)?)).context("not a whole zip archive")?;
    Ok(MEMBERS.map(|member| zip.index_for_name(member).is_some()))
}

/// Whether one of the first zips holds a T1 scan.
pub fn recognise(files: &Files) -> bool {
    files.zips.iter().take(16).any(|zip| members(zip).is_ok_and(|held| held[0]))
}

/// `1234567_20252_2_0.zip` (person, field, visit, run) is `1234567/2`; any other name is the id itself.
fn id(archive: &Path) -> String {
    let stem = archive.file_stem().unwrap_or_default().to_string_lossy();
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    match stem.split('_').collect::<Vec<_>>()[..] {
        [person, field, visit, run] if [person, field, visit, run].into_iter().all(digits) => format!("{person}/{visit}"),
        _ => stem.into_owned(),
    }
}

/// T1, and T2-FLAIR as the second channel when every subject has it. If only some have it, it is left out for all, which
/// [`Dataset::ignored`] says; a manifest with the cells `archive.zip:T1/T1.nii.gz` and so on picks the others. The brain mask
/// is no label. `partial`: each subject has what it has.
pub fn open(files: Files, partial: bool) -> Result<Dataset> {
    let mut problems = files.problems.clone();
    let mut subjects: BTreeMap<String, [Option<&PathBuf>; 2]> = BTreeMap::new();
    let held: Vec<_> = files.zips.par_iter().map(|zip| members(zip)).collect();
    for (archive, held) in files.zips.iter().zip(held) {
        let held = match held {
            Ok(held) => held,
            Err(error) => {
                problems.push(Problem::new(archive, format!("{error:#}")));
                continue;
            }
        };
        if held == [false; 2] {
            problems.push(Problem::new(archive, format!("no {} in the archive", MEMBERS[0])));
            continue;
        }
        let id = id(archive);
        let entry = subjects.entry(id.clone()).or_default();
        for c in (0..2).filter(|&c| held[c]) {
            if let Some(earlier) = entry[c].replace(archive) {
                bail!("duplicate subject `{id}`: {} is in {} and {}", MEMBERS[c], earlier.display(), archive.display());
            }
        }
    }
    subjects.retain(|id, archives| match archives {
        [None, flair] if !partial => {
            problems.extend(flair.map(|zip| Problem::new(zip, format!("subject {id}: no {} in the archive", MEMBERS[0]))));
            false
        }
        _ => true,
    });

    let mut ignored = files.no_scans(false);
    ignored.extend(files.scans.iter().map(|s| Problem::new(&s.path, "not in a zip archive")));
    let without: Vec<&String> = subjects.iter().filter(|(_, a)| a[1].is_none()).map(|(id, _)| id).collect();
    if let Some(first) = without.first().filter(|_| without.len() < subjects.len() && !partial) {
        let reason = format!(
            "{} left out for all, as {} of {} subjects lack it, the first {first}; to use it, list those who have it in a manifest",
            CHANNELS[1],
            without.len(),
            subjects.len()
        );
        ignored.push(Problem::new(&files.root, reason));
    }
    let n = if without.is_empty() || partial { 2 } else { 1 };
    let subjects = subjects.into_iter().map(|(id, archives)| {
        let there = (0..n).filter_map(|c| Some((archives[c]?, c)));
        let source = |(archive, c): (&PathBuf, usize)| Source::Zip { archive: archive.clone(), member: MEMBERS[c].into() };
        let contrasts = there.clone().filter(|_| partial).map(|(_, c)| CHANNELS[c].to_owned()).collect();
        Subject { id, channels: there.map(source).collect(), contrasts, ..Subject::default() }
    });
    Ok(Dataset {
        layout: Layout::Ukb,
        channels: CHANNELS[..n].iter().map(|c| c.to_string()).collect(),
        labels: None,
        classes: None,
        columns: Columns::default(),
        subjects: subjects.collect(),
        problems,
        ignored,
    })
}
