//! What holds for the scans of every layout.

use super::{Dataset, Labels, Layout, Missing, Problem, Reading, UNNAMED, channels, columns, people, sides};
use crate::data::formats;
use anyhow::{Result, bail, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Scans whose headers are looked at for their channels.
const LOOKED_AT: usize = 32;

/// Sorts, and checks what holds for every layout. `tables`: those that lie below a folder.
pub fn finish(mut dataset: Dataset, root: &Path, reading: Reading, tables: &[PathBuf]) -> Result<Dataset> {
    people::assign(&mut dataset, root, reading.person)?;
    if reading.separate {
        channels::separate(&mut dataset);
    } else if reading.missing != Missing::Refuse {
        channels::settle(&mut dataset, reading.missing, reading.channels)?;
    }
    if reading.labels == Labels::Unwanted {
        let (ignored, problems) = dataset.problems.into_iter().partition(|problem| problem.of_labels);
        dataset.problems = problems;
        dataset.ignored.extend::<Vec<Problem>>(ignored);
    }
    dataset.subjects.sort_by(|a, b| a.id.cmp(&b.id));
    // The Decathlon describes its channels, other tools that write such lists do not.
    let described = dataset.layout == Layout::Decathlon && dataset.channels != [UNNAMED];
    if let (Layout::Folder | Layout::Manifest | Layout::Decathlon, [name], false) =
        (dataset.layout, dataset.channels.as_slice(), described || reading.separate || !reading.volumes.are_channels())
    {
        // What cannot be read here is reported when it is read as a whole; so are the few that are not as most are.
        let headers = dataset.subjects.iter().filter_map(|s| s.channels[0].read_header().ok().map(|header| header.channels));
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        headers.take(LOOKED_AT).for_each(|n| *counts.entry(n).or_default() += 1);
        if let Some((n, _)) = counts.into_iter().rev().max_by_key(|(_, count)| *count).filter(|(n, _)| *n > 1) {
            dataset.channels = (0..n).map(|c| format!("{name}_{c}")).collect();
        }
    }
    if dataset.subjects.is_empty() {
        let left_out: Vec<String> = dataset.problems.iter().chain(&dataset.ignored).take(3).map(Problem::to_string).collect();
        let looked_for = match dataset.layout {
            Layout::Folder => &format!("files ending in {}", formats::endings()),
            Layout::Decathlon => "the images that dataset.json lists under `training` and `test`",
            Layout::Brats => "files ending in _t1, _t1ce, _t2, _flair or in -t1n, -t1c, -t2w, -t2f before a scan's ending",
            Layout::Nnunet => "imagesTr/CASE_0000 and imagesTs/CASE_0000 with dataset.json's file_ending",
            Layout::Ukb => "zip archives holding T1/T1.nii.gz",
            Layout::Images => "files ending in .png, .jpg, .jpeg, .tif or .tiff",
            Layout::Dicom => "DICOM series of slices, whatever the files' names",
            Layout::Manifest => "one row a subject",
        };
        let mut message = format!("no scans found; looked for {looked_for}");
        if !left_out.is_empty() {
            let n = dataset.problems.len() + dataset.ignored.len();
            message += &format!("; left out {n}, the first: {}", left_out.join("; "));
        }
        bail!(message);
    }
    for subject in &dataset.subjects {
        let fit = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0', '\n', '\r']);
        ensure!(
            subject.id.split('/').all(fit),
            "subject id {:?} ({}): every part between slashes must be fit to be a file name",
            subject.id,
            subject.channels[0].display()
        );
    }
    for pair in dataset.subjects.windows(2) {
        ensure!(
            pair[0].id != pair[1].id,
            "duplicate subject `{}`: {} and {}",
            pair[0].id,
            pair[0].channels[0].display(),
            pair[1].channels[0].display()
        );
    }
    // A manifest has them in its own rows, unless another table is named.
    if dataset.layout != Layout::Manifest || reading.columns.table.is_some() {
        columns::attach(&mut dataset, root, tables, reading.columns)?;
    }
    if dataset.layout == Layout::Images {
        sides::keep(&mut dataset, root);
    }
    dataset.problems.sort_by(|a, b| a.path.cmp(&b.path));
    dataset.ignored.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(dataset)
}
