//! Any folder of scans, searched recursively: one scan a file, or several contrasts a subject told apart by suffix.
//!
//! - *Labels* end in `_seg`, `_label` or another of [`LABELS`] (also `-seg`, or the bare word), begin with one of [`LABEL_BEGINNINGS`], or
//!   lie in one of [`LABEL_FOLDERS`].
//! - *Contrasts* are the suffixes of [`CONTRASTS`] (or bare file names, or the folder the file is in), recognised when several
//!   files of one subject differ only by them, or when every file has the same one; and `_0000`, `_0001`.. when at least two
//!   subjects count from `_0000` without a gap. Otherwise every file is a scan of its own.
//! - The channels are the contrasts that at least half of the subjects have; where every channel is a scan of its own, all of them.
//! - *Ids* are the file names without contrast; with the folders before them where names alone are not unique. The person in them
//!   is found by [`super::people`].

use super::files::{Files, Scan};
use super::{Columns, Dataset, Layout, Missing, Problem, Reading, Subject, UNNAMED};
use anyhow::{Result, bail};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Known contrasts, in the order of the channels.
const CONTRASTS: [&str; 26] = [
    "t1", "t1w", "t1n", "t1ce", "t1c", "t1gd", "t2", "t2w", "t2f", "t2_flair", "t2-flair", "flair", "pd", "pdw", "dwi", "adc",
    "swi", "asl", "cbf", "cbv", "ct", "pet", "image", "img", "volume", "scan",
];
/// Of two labels of a scan the one whose word is first counts.
const LABELS: [&str; 19] = [
    "seg",
    "label",
    "labels",
    "mask",
    "segmentation",
    "dseg",
    "gt",
    "ground_truth",
    "groundtruth",
    "manual",
    "annotation",
    "lesion",
    "lesions",
    "roi",
    "rois",
    "masks",
    "msk",
    "labelmap",
    "aseg",
];
/// `segmentation-7` is the label of `volume-7`, `label0007` that of `img0007`.
const LABEL_BEGINNINGS: [&str; 6] = ["segmentation", "seg", "labels", "label", "mask", "gt"];
const IMAGE_BEGINNINGS: [&str; 6] = ["volume", "vol", "image", "img", "scan", "ct"];
const LABEL_FOLDERS: [&str; 19] = [
    "labels",
    "labelstr",
    "labelsts",
    "masks",
    "segmentations",
    "label",
    "mask",
    "segmentation",
    "seg",
    "segs",
    "gt",
    "ground_truth",
    "groundtruth",
    "manual",
    "annotation",
    "annotations",
    "roi",
    "rois",
    "labelsval",
];
const IMAGE_FOLDERS: [&str; 6] = ["images", "imagestr", "imagests", "imagesval", "volumes", "scans"];
/// Channels beyond which `_0000`.. is taken for a numbering of scans.
const MOST_NUMBERED: usize = 16;

/// Whether a channel's name only says that it is one: a number, or a word for any scan.
pub fn is_unnamed_channel(name: &str) -> bool {
    let name = name.trim_end_matches(|c: char| c.is_ascii_digit());
    ["", "image", "img", "volume", "scan"].iter().any(|word| name.trim_end_matches('_').eq_ignore_ascii_case(word))
}

/// A name without the label words at its end, e.g. `_lesion_mask`; empty for bare words.
pub fn without_label_word(stem: &str) -> &str {
    label_word(stem).map_or(stem, |(rest, _)| rest)
}

/// What follows the word for a label, or for an image, that a name begins with: `7` of `segmentation-7` and of `volume-7`.
pub fn without_beginning(stem: &str) -> &str {
    after_word(stem, &LABEL_BEGINNINGS).or_else(|| after_word(stem, &IMAGE_BEGINNINGS)).unwrap_or(stem)
}

/// Splits off the label words at a name's end; the rest and the last word's position in [`LABELS`].
fn label_word(stem: &str) -> Option<(&str, usize)> {
    let (mut rest, word) = split_word(stem, &LABELS)?;
    while let Some((shorter, _)) = split_word(rest, &LABELS).filter(|(shorter, _)| !shorter.is_empty()) {
        rest = shorter;
    }
    Some((rest, word))
}

/// What follows one of `words` at a name's beginning: a separator and something, or a number.
fn after_word<'a>(stem: &'a str, words: &[&str]) -> Option<&'a str> {
    words.iter().find_map(|word| {
        let (start, rest) = stem.split_at_checked(word.len())?;
        let number = rest.starts_with(|c: char| c.is_ascii_digit()).then_some(rest);
        let rest = number.or_else(|| rest.strip_prefix(['_', '-', '.']))?;
        (start.eq_ignore_ascii_case(word) && !rest.is_empty()).then_some(rest)
    })
}

/// Whether a file is a label by its name or a folder.
pub fn is_label(scan: &Scan) -> bool {
    parse(scan).label.is_some()
}

/// What a file's name and folders say about it.
#[derive(Clone)]
struct Name<'a> {
    scan: &'a Scan,
    /// Folders that tell subjects apart.
    place: Vec<&'a str>,
    /// The name without label word and contrast; may be empty.
    base: &'a str,
    /// The name without label word.
    whole: &'a str,
    contrast: Option<String>,
    /// Position of the label word in [`LABELS`], one past the end for a label by folder; `None` for a scan.
    label: Option<usize>,
}

/// Place (empty where bases alone tell subjects apart) and base.
type Key<'a> = (Vec<&'a str>, &'a str);

/// Scans that make one subject together.
struct Groups<'a> {
    /// Whether folders are needed to tell subjects apart.
    by_place: bool,
    /// Each subject's scans by contrast.
    subjects: BTreeMap<Key<'a>, BTreeMap<String, &'a Scan>>,
    /// The subjects that have a scan in a folder.
    in_place: HashMap<Vec<&'a str>, BTreeSet<Key<'a>>>,
}

/// Splits off the longest of `words` that ends the name after `_`, `-` or `.`, or is all of it; the rest and which word.
fn split_word<'a>(stem: &'a str, words: &[&str]) -> Option<(&'a str, usize)> {
    let rest = |word: &str| {
        let at = stem.len().checked_sub(word.len()).filter(|at| stem.is_char_boundary(*at))?;
        let fits = stem[at..].eq_ignore_ascii_case(word);
        let rest = if at == 0 { Some("") } else { stem[..at].strip_suffix(['_', '-', '.']) };
        rest.filter(|_| fits)
    };
    let fitting = (0..words.len()).filter_map(|w| Some((rest(words[w])?, w)));
    fitting.max_by_key(|(_, w)| words[*w].len())
}

fn position(words: &[&str], name: &str) -> Option<usize> {
    words.iter().position(|word| word.eq_ignore_ascii_case(name))
}

fn place(scan: &Scan) -> Vec<&str> {
    let tells = |folder: &&str| position(&LABEL_FOLDERS, folder).or(position(&IMAGE_FOLDERS, folder)).is_none();
    scan.folders.iter().map(String::as_str).filter(tells).collect()
}

fn parse(scan: &Scan) -> Name<'_> {
    let labelled = scan.folders.iter().any(|f| position(&LABEL_FOLDERS, f).is_some());
    let mut place = place(scan);
    let (whole, label) = match label_word(&scan.stem) {
        Some((rest, word)) => (rest, Some(word)),
        None => {
            let begins = after_word(&scan.stem, &LABEL_BEGINNINGS).is_some();
            (scan.stem.as_str(), (labelled || begins).then_some(LABELS.len()))
        }
    };
    let by_name = split_word(whole, &CONTRASTS);
    let by_folder = place.last().and_then(|folder| position(&CONTRASTS, folder));
    let (base, contrast) = match by_name {
        Some((base, word)) => (base, Some(word)),
        None => (whole, by_folder),
    };
    // T1/x.nii.gz and T1/T1.nii.gz: the folder says no more than the contrast.
    if by_folder.is_some() && (by_name.is_none() || base.is_empty()) {
        place.pop();
    }
    Name { scan, place, base, whole, contrast: contrast.map(|c| CONTRASTS[c].into()), label }
}

/// Contrasts `0000`, `0001`.. of every scan, if that is what the numbers are.
fn numbered<'a>(scans: &[Name<'a>]) -> Option<Vec<Name<'a>>> {
    let mut counts: BTreeMap<(Vec<&str>, &str), BTreeSet<usize>> = BTreeMap::new();
    let mut renamed = vec![];
    for name in scans {
        let (base, number) = name.whole.rsplit_once('_')?;
        let digits = number.len() == 4 && number.bytes().all(|b| b.is_ascii_digit());
        let number: usize = number.parse().ok().filter(|_| digits && !base.is_empty())?;
        counts.entry((name.place.clone(), base)).or_default().insert(number);
        let contrast = Some(format!("{number:04}"));
        renamed.push(Name { base, contrast, place: name.place.clone(), ..*name });
    }
    let counted = |n: &BTreeSet<usize>| n.len() <= MOST_NUMBERED && n.iter().copied().eq(0..n.len());
    (counts.len() >= 2 && counts.values().all(counted)).then_some(renamed)
}

/// Groups scans into subjects.
fn group<'a>(scans: &[Name<'a>]) -> Result<Groups<'a>> {
    let mut seen = HashSet::new();
    let by_place = !scans.iter().filter(|n| !n.base.is_empty()).all(|n| seen.insert((n.base, &n.contrast)));
    let mut groups = Groups { by_place, subjects: BTreeMap::new(), in_place: HashMap::new() };
    for name in scans {
        let place = if by_place || name.base.is_empty() { name.place.clone() } else { vec![] };
        let key = (place, name.base);
        groups.in_place.entry(name.place.clone()).or_default().insert(key.clone());
        let contrast = name.contrast.clone().unwrap_or_else(|| UNNAMED.into());
        if let Some(earlier) = groups.subjects.entry(key).or_default().insert(contrast, name.scan) {
            bail!(
                "duplicate subject: {} and {} are the same scan by their names",
                earlier.path.display(),
                name.scan.path.display()
            );
        }
    }
    Ok(groups)
}

/// Groups by contrast if names carry them, else every scan on its own. Scans without a contrast among others are problems, or with
/// `separate` of a contrast that has no name.
fn subjects<'a>(scans: &[Name<'a>], separate: bool, problems: &mut Vec<Problem>) -> Result<Groups<'a>> {
    if let Some(scans) = numbered(scans) {
        return group(&scans);
    }
    let named: Vec<Name> = scans.iter().filter(|n| n.contrast.is_some()).cloned().collect();
    if named.len() * 2 >= scans.len() {
        let groups = group(&named)?;
        let same = named.len() == scans.len() && named.iter().all(|n| n.contrast == named[0].contrast);
        if same || groups.subjects.values().any(|s| s.len() > 1) {
            if separate {
                return group(scans);
            }
            for name in scans.iter().filter(|n| n.contrast.is_none()) {
                problems.push(Problem::new(&name.scan.path, "no contrast in its name, though the other scans' names have one"));
            }
            return Ok(groups);
        }
    }
    let alone = |name: &Name<'a>| Name { place: place(name.scan), base: name.whole, contrast: None, ..*name };
    group(&scans.iter().map(alone).collect::<Vec<_>>())
}

/// Folders and name, outermost first, joined by slashes.
fn id((place, base): &Key, groups: &Groups, files: &Files) -> String {
    let mut parts = if groups.by_place || base.is_empty() { place.clone() } else { vec![] };
    parts.extend((!base.is_empty()).then_some(*base));
    let root = || files.root.file_name().map_or("scan".into(), |n| n.to_string_lossy().into_owned());
    if parts.is_empty() { root() } else { parts.join("/") }
}

/// The subject a label belongs to: the one of the same name (with or without contrast, or but for the word it begins with), in the
/// same folder if several have it; a label that is named by nothing else belongs to the only subject of its folder.
fn owner<'a>(label: &Name<'a>, groups: &Groups<'a>, by_base: &HashMap<&str, Vec<&Key<'a>>>) -> Option<Key<'a>> {
    for base in [label.whole, label.base, without_beginning(label.whole)].into_iter().filter(|b| !b.is_empty()) {
        let keys = by_base.get(base).map(Vec::as_slice).unwrap_or_default();
        match keys.iter().find(|(place, _)| *place == label.place) {
            Some(key) => return Some((*key).clone()),
            None if keys.len() == 1 => return Some(keys[0].clone()),
            None => {}
        }
    }
    let there = groups.in_place.get(&label.place).filter(|there| label.base.is_empty() && there.len() == 1)?;
    there.first().cloned()
}

/// Where channels are scans of their own, subjects need not have the same contrasts, and rare ones are used too; they need not either where
/// missing ones are allowed for.
pub fn open(files: Files, reading: Reading) -> Result<Dataset> {
    let separate = reading.separate;
    let partial = separate || reading.missing != Missing::Refuse;
    let asked = |contrast: &str| partial && reading.channels.iter().any(|name| name == contrast);
    let mut problems = files.problems.clone();
    let mut ignored = files.no_scans(true);
    let (mut labels, scans): (Vec<Name>, Vec<Name>) = files.scans.iter().map(parse).partition(|n| n.label.is_some());
    let groups = subjects(&scans, separate, &mut problems)?;

    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    groups.subjects.values().flat_map(BTreeMap::keys).for_each(|c| *counts.entry(c).or_default() += 1);
    let mut channels: Vec<&str> =
        counts.keys().copied().filter(|c| separate || asked(c) || counts[c] * 2 >= groups.subjects.len()).collect();
    channels.sort_by_key(|c| (position(&CONTRASTS, c), *c));
    if channels.is_empty() && !scans.is_empty() {
        let found: Vec<&str> = counts.keys().copied().collect();
        bail!(
            "no contrast that at least half of the subjects have; found {}; a CSV manifest says what to use",
            found.join(", ")
        );
    }

    let mut by_base: HashMap<&str, Vec<&Key>> = HashMap::new();
    for key in groups.subjects.keys() {
        let names: BTreeSet<&str> = [key.1, without_beginning(key.1)].into();
        names.into_iter().for_each(|name| by_base.entry(name).or_default().push(key));
    }
    let mut labelled: HashMap<Key, &Scan> = HashMap::new();
    labels.sort_by_key(|l| l.label);
    for label in &labels {
        match owner(label, &groups, &by_base) {
            None => problems.push(Problem::of_labels(&label.scan.path, "label without a scan of that name")),
            Some(key) => match labelled.get(&key) {
                Some(first) => {
                    let reason = format!("a second label of {}; {} is used", id(&key, &groups, &files), first.path.display());
                    problems.push(Problem::of_labels(&label.scan.path, reason));
                }
                None => drop(labelled.insert(key, label.scan)),
            },
        }
    }

    let mut complete = vec![];
    for (key, found) in &groups.subjects {
        let id = id(key, &groups, &files);
        for (contrast, scan) in found.iter().filter(|(c, _)| !channels.contains(&c.as_str())) {
            let reason =
                format!("contrast {contrast}, which {} of {} subjects have", counts[contrast.as_str()], groups.subjects.len());
            ignored.push(Problem::new(&scan.path, reason));
        }
        let (there, missing): (Vec<&str>, Vec<&str>) = channels.iter().copied().partition(|c| found.contains_key(*c));
        if missing.is_empty() || partial && !there.is_empty() {
            let contrasts = there.iter().filter(|_| partial).map(|c| c.to_string()).collect();
            let channels = there.iter().map(|c| found[*c].source()).collect();
            complete.push(Subject {
                id,
                channels,
                contrasts,
                label: labelled.get(key).map(|s| s.source()),
                ..Subject::default()
            });
        } else if let Some(scan) = found.values().next() {
            problems.push(Problem::lacking(&scan.path, &id, missing.iter().map(|c| c.to_string()).collect()));
        }
    }
    Ok(Dataset {
        layout: Layout::Folder,
        channels: channels.iter().map(|c| c.to_string()).collect(),
        labels: None,
        classes: None,
        columns: Columns::default(),
        subjects: complete,
        problems,
        ignored,
    })
}
