//! Segmentation files that are to be compared, and which two belong to one case.

use super::files::Files;
use super::{Layout, Problem, Source, folder, open, recognise};
use crate::data::formats;
use crate::data::labelling::Labelling;
use anyhow::{Result, bail, ensure};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// One file.
#[derive(Clone, Debug)]
pub struct Segmentation {
    /// Of a dataset, the subject's id. Otherwise the folders below the root and the file's name without extension and label
    /// word, joined by slashes, a folder of the same name left out: `X.nii.gz`, `X/X_seg.nii.gz` and `X/seg.nii.gz` are all `X`.
    pub id: String,
    /// The file's name without extension and label word.
    name: String,
    /// Whether folders are part of the id.
    nested: bool,
    pub source: Source,
}

/// The true segmentations.
pub struct Truths {
    pub files: Vec<Segmentation>,
    /// What their values mean, where the dataset describes it.
    pub labels: Option<Labelling>,
    /// What was left out though it looks like data.
    pub problems: Vec<Problem>,
}

/// Positions in the two lists.
#[derive(Debug, PartialEq)]
pub struct Pairs {
    /// (truth, prediction), in the order of the truths.
    pub pairs: Vec<(usize, usize)>,
    pub without_prediction: Vec<usize>,
    pub without_truth: Vec<usize>,
}

/// Every scan below a folder. Errors: a folder that is not there or cannot be listed, no such file, an id that occurs
/// twice.
pub fn below(root: &Path) -> Result<Vec<Segmentation>> {
    ensure!(root.is_dir(), "{}: expected a folder", root.display());
    plain(&Files::below(root)?)
}

fn plain(files: &Files) -> Result<Vec<Segmentation>> {
    let root = files.root.display();
    if let Some(problem) = files.problems.first() {
        bail!("{problem}");
    }
    if let Some(scan) = files.broken.first() {
        bail!("{}: {}", scan.path.display(), scan.broken());
    }
    ensure!(!files.scans.is_empty(), "{root}: no segmentations found; looked for {}", formats::endings());
    let mut seen = BTreeMap::new();
    for scan in &files.scans {
        let name = folder::without_label_word(&scan.stem).to_string();
        let mut parts = scan.folders.clone();
        if !name.is_empty() && parts.last() != Some(&name) {
            parts.push(name.clone());
        }
        ensure!(!parts.is_empty(), "{}: its name says no case", scan.path.display());
        let nested = parts.len() > 1;
        let found = Segmentation { id: parts.join("/"), name, nested, source: scan.source() };
        if let Some(earlier) = seen.insert(found.id.clone(), found) {
            bail!("duplicate case `{}`: {} and {}", earlier.id, earlier.source.display(), scan.path.display());
        }
    }
    Ok(seen.into_values().collect())
}

/// The labels of a dataset in any layout, by its subjects' ids; or every file below a folder, if all of them or none are marked as
/// labels. Errors: as [`open`], a dataset without labels, an id that occurs twice.
pub fn truths(path: &Path) -> Result<Truths> {
    if path.is_dir() {
        let files = Files::below(path)?;
        let marked = files.scans.iter().filter(|s| folder::is_label(s)).count();
        if recognise(&files)? == Layout::Folder && (marked == 0 || marked == files.scans.len()) {
            return Ok(Truths { files: plain(&files)?, labels: None, problems: vec![] });
        }
    }
    let dataset = open(path, None)?;
    let mut files = vec![];
    for subject in dataset.subjects {
        let Some(source) = subject.label else { continue };
        let file = match &source {
            Source::File(path) => formats::stem(path).unwrap_or_default(),
            Source::Zip { .. } | Source::Series(_) => String::new(),
        };
        let name = folder::without_label_word(&file).to_string();
        files.push(Segmentation { nested: subject.id.contains('/'), id: subject.id, name, source });
    }
    ensure!(!files.is_empty(), "{}, read in the layout {}: no subject has a label", path.display(), dataset.layout);
    Ok(Truths { files, labels: dataset.labels, problems: dataset.problems })
}

/// The only one of each key, by its position.
fn only<'a>(files: impl Iterator<Item = (usize, &'a Segmentation)>) -> HashMap<String, usize> {
    let mut found: HashMap<String, Option<usize>> = HashMap::new();
    // `segmentation-7` is the truth of `volume-7`.
    let key = |id: &str| {
        let (folders, name) = id.split_at(id.rfind('/').map_or(0, |at| at + 1));
        format!("{folders}{}", folder::without_beginning(name)).replace(['/', '-', '.', ' '], "_")
    };
    for (n, file) in files {
        found.entry(key(&file.id)).and_modify(|n| *n = None).or_insert(Some(n));
    }
    found.into_iter().filter_map(|(key, n)| Some((key, n?))).collect()
}

/// Brings together what has the same id; then, of the rest, ids that differ in how their parts are joined, as `P01/V1` and
/// `P01_V1`; then what has the same file name, if only one of both has folders in its id. Errors if several files have that name.
pub fn pair(truths: &[Segmentation], predictions: &[Segmentation]) -> Result<Pairs> {
    let by_id: HashMap<&str, usize> = predictions.iter().enumerate().map(|(i, p)| (p.id.as_str(), i)).collect();
    let mut of: Vec<Option<usize>> = truths.iter().map(|t| by_id.get(t.id.as_str()).copied()).collect();
    let mut taken = vec![false; predictions.len()];
    of.iter().flatten().for_each(|&p| taken[p] = true);
    let left = only(predictions.iter().enumerate().filter(|(p, _)| !taken[*p]));
    for (key, t) in only(truths.iter().enumerate().filter(|(t, _)| of[*t].is_none())) {
        of[t] = left.get(&key).copied();
    }
    of.iter().flatten().for_each(|&p| taken[p] = true);

    let rest = (0..truths.len()).filter(|&t| of[t].is_none()).collect::<Vec<_>>();
    for p in (0..predictions.len()).filter(|&p| !taken[p]).collect::<Vec<_>>() {
        let prediction = &predictions[p];
        let alike = |t: &Segmentation| !t.name.is_empty() && t.name == prediction.name && !(t.nested && prediction.nested);
        let same: Vec<usize> = rest.iter().copied().filter(|&t| alike(&truths[t])).collect();
        match same[..] {
            [] => {}
            [t] if of[t].is_none() => {
                of[t] = Some(p);
                taken[p] = true;
            }
            [t] => bail!(
                "case `{}`: both {} and {} may be its prediction",
                truths[t].id,
                of[t].map_or(String::new(), |first| predictions[first].source.display()),
                prediction.source.display()
            ),
            [a, b, ..] => bail!(
                "{}: both {} and {} may be its label; name it after the case's id",
                prediction.source.display(),
                truths[a].source.display(),
                truths[b].source.display()
            ),
        }
    }
    Ok(Pairs {
        pairs: of.iter().enumerate().filter_map(|(t, p)| Some((t, (*p)?))).collect(),
        without_prediction: (0..truths.len()).filter(|&t| of[t].is_none()).collect(),
        without_truth: (0..predictions.len()).filter(|&p| !taken[p]).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        folder
    }

    fn paired(truth: &[&str], predicted: &[&str]) -> Result<(Vec<String>, usize, usize)> {
        let (a, b) = (tree(truth), tree(predicted));
        let (truths, predictions) = (truths(a.path())?.files, below(b.path())?);
        let found = pair(&truths, &predictions)?;
        let pairs = found.pairs.iter().map(|&(t, p)| format!("{}={}", truths[t].id, predictions[p].id)).collect();
        Ok((pairs, found.without_prediction.len(), found.without_truth.len()))
    }

    #[test]
    fn files_meet_by_id_and_by_name() {
        let cases: [(&[&str], &[&str], &[&str]); 9] = [
            (
                &["segmentation-7.nii", "segmentation-8.nii"],
                &["volume-7.nii.gz", "volume-8.nii.gz"],
                &["segmentation-7=volume-7", "segmentation-8=volume-8"],
            ),
            // Predictions of people's visits, and flat labels.
            (&["P01_V1_seg.nii", "P01_V2_seg.nii"], &["P01/V1.nii.gz", "P01/V2.nii.gz"], &["P01_V1=P01/V1", "P01_V2=P01/V2"]),
            (&["X_seg.nii.gz", "Y-seg.nii"], &["X.nii.gz", "Y.nii.gz", "log.txt"], &["X=X", "Y=Y"]),
            (&["X/X_seg.nii.gz", "Y/seg.nii.gz"], &["X.nii.gz", "Y/Y_seg.nii.gz"], &["X=X", "Y=Y"]),
            (&["a/X_seg.nii.gz", "a/Y_seg.nii.gz"], &["X.nii.gz", "b/Y.nii.gz"], &["a/X=X"]),
            (&["s/1.nii.gz", "t/1.nii.gz"], &["s/1.nii.gz", "t/1.nii.gz"], &["s/1=s/1", "t/1=t/1"]),
            // A visit number alone makes no match between different people.
            (&["s/1.nii.gz"], &["t/1.nii.gz"], &[]),
            (
                &[
                    "BraTS-GLI-00012-001/BraTS-GLI-00012-001-seg.nii.gz",
                    "BraTS-GLI-00012-001/BraTS-GLI-00012-001-t1n.nii.gz",
                    "BraTS-GLI-00012-001/BraTS-GLI-00012-001-t1c.nii.gz",
                    "BraTS-GLI-00012-001/BraTS-GLI-00012-001-t2w.nii.gz",
                    "BraTS-GLI-00012-001/BraTS-GLI-00012-001-t2f.nii.gz",
                ],
                &["BraTS-GLI-00012/001.nii.gz"],
                &["BraTS-GLI-00012/001=BraTS-GLI-00012/001"],
            ),
            (&["images/a.nii", "labels/a.nii"], &["a.nii.gz"], &["a=a"]),
        ];
        for (truth, predicted, expected) in cases {
            let (pairs, left, right) = paired(truth, predicted).unwrap();
            assert_eq!(pairs, expected, "{truth:?} {predicted:?}");
            let unmatched = |all: &[&str], ends: &str| all.iter().filter(|n| n.contains(ends)).count() - pairs.len();
            if !truth[0].contains("BraTS") && !truth[0].contains("images") {
                assert_eq!((left, right), (unmatched(truth, ".nii"), unmatched(predicted, ".nii")), "{truth:?} {predicted:?}");
            }
        }
        let refused = |truth: &[&str], predicted: &[&str]| format!("{:#}", paired(truth, predicted).unwrap_err());
        assert!(refused(&["X.nii", "X.nii.gz"], &["X.nii"]).contains("duplicate case `X`"));
        assert!(refused(&["X.nii"], &["X.nii", "X_seg.nii"]).contains("duplicate case `X`"));
        assert!(refused(&["a/X.nii", "b/X.nii"], &["X.nii"]).contains("may be its label"));
        assert!(refused(&["X.nii"], &["a/X.nii", "b/X.nii"]).contains("may be its prediction"));
        assert!(refused(&["X.nii"], &["a.txt"]).contains("no segmentations found"));
    }
}
