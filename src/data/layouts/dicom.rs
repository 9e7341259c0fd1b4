//! DICOM series anywhere below a folder: files of any name, grouped by what they say, several patients and series mixed.
//!
//! - A *series* is what has one SeriesInstanceUID; what is no slice of a volume is left out by kind and counted.
//! - A *scan* is a study of a patient with one series; with several, patterns of their descriptions say which are its channels.
//! - *Ids* are `patient/study`, each the beginning of a hash unless the patients' own ids are asked for.

use super::files::Files;
use super::{Columns, Dataset, Layout, Missing, Problem, Reading, Source, Subject, UNNAMED};
use crate::data::formats::dicom::{self, Found, Image, Labels, Place, Series, arrange};
use crate::data::identity::hex;
use crate::data::names::some;
use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use regex::{Regex, RegexBuilder};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Fewer slices are a scout or a picture.
const FEWEST: usize = 3;
/// Hexadecimal digits that tell patients apart, and studies and series of one.
const PATIENT_DIGITS: usize = 16;
const DIGITS: usize = 8;
/// Bytes of a file that show what it is.
const START: u64 = 132;

/// Which series are wanted, and what may be said of patients.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// Patterns of descriptions with `*` and `?`, one a channel.
    pub series: &'a [String],
    /// Ids are the patients' own, and messages name files.
    pub patient_ids: bool,
}

impl Wanted<'_> {
    pub fn is_given(&self) -> bool {
        !self.series.is_empty() || self.patient_ids
    }
}

/// Whether there are no scans by name, and DICOM by content.
pub fn recognise(files: &Files) -> bool {
    files.scans.is_empty() && candidates(files).any(|path| is_dicom(path))
}

fn is_dicom(path: &Path) -> bool {
    let mut start = vec![];
    let mut read = || File::open(path).and_then(|file| file.take(START).read_to_end(&mut start));
    // A pipe would be waited for.
    path.is_file() && read().is_ok() && dicom::is(&start)
}

/// Files of any name, and halves of what would be pairs of another format.
fn candidates(files: &Files) -> impl Iterator<Item = &PathBuf> {
    let halves = files.problems.iter().map(|problem| &problem.path).filter(|path| path.is_file());
    files.others.iter().chain(files.scans.iter().map(|scan| &scan.path)).chain(halves)
}

/// The beginning of the SHA-256 of an identifier: the same in every store.
fn hashed(id: &str, digits: usize) -> String {
    hex(&Sha256::digest(id))[..digits].to_string()
}

/// One series as its files turn up.
struct Parts {
    description: String,
    uid: String,
    images: Vec<Image>,
}

impl Parts {
    fn slices(&self) -> usize {
        self.images.iter().map(|image| image.slices.as_ref().map_or(1, Vec::len)).sum()
    }

    fn name(&self, wanted: Wanted) -> String {
        let uid = if wanted.patient_ids { self.uid.clone() } else { hashed(&self.uid, DIGITS) };
        format!("series \"{}\" ({uid})", self.description)
    }

    /// The slices in order. Errors say what is wrong with them.
    fn arranged(self, wanted: Wanted) -> Result<Source> {
        let paths = self.images.iter().filter_map(|image| match &image.place {
            Place::File(path) => path.parent(),
            Place::Memory(_) => None,
        });
        let folder = paths.map(PathBuf::from).reduce(common).unwrap_or_default();
        let name = self.name(wanted);
        let name = if wanted.patient_ids { format!("{}: {name}", folder.display()) } else { name };
        let series = Series { name, folder, revealed: wanted.patient_ids, slices: arrange(self.images)? };
        Ok(Source::Series(Arc::new(series)))
    }
}

/// The folder that holds both.
fn common(a: PathBuf, b: PathBuf) -> PathBuf {
    a.components().zip(b.components()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
}

/// What the files of a folder are.
#[derive(Default)]
struct Sorted {
    /// By patient and study, series by series.
    studies: BTreeMap<(String, String), BTreeMap<String, Parts>>,
    problems: Vec<Problem>,
    ignored: Vec<Problem>,
}

fn sort(root: &Path, paths: &[&PathBuf], wanted: Wanted) -> Sorted {
    let found: Vec<_> = paths.par_iter().map(|&path| is_dicom(path).then(|| dicom::read(Place::File(path.clone())))).collect();
    let mut sorted = Sorted::default();
    let mut others: BTreeMap<String, usize> = BTreeMap::new();
    for (path, found) in paths.iter().zip(found) {
        match found {
            None => *others.entry("files that are not DICOM".into()).or_default() += 1,
            Some(Ok(Found::Other(what))) => *others.entry(what).or_default() += 1,
            Some(Ok(Found::Image(labels, image))) => sorted.add(labels, *image, &mut others),
            Some(Err(error)) => {
                let (shown, which) = match wanted.patient_ids {
                    true => (path.as_path(), String::new()),
                    false => (root, "a DICOM file, which --patient-ids names: ".into()),
                };
                sorted.problems.push(Problem::new(shown, format!("{which}{error:#}")));
            }
        }
    }
    sorted.ignored.extend(others.into_iter().map(|(what, n)| Problem::new(root, format!("{n} {what}"))));
    sorted.leave_out(root, wanted);
    sorted
}

impl Sorted {
    fn add(&mut self, labels: Labels, image: Image, others: &mut BTreeMap<String, usize>) {
        let Labels { patient, study, series, description } = labels;
        if series.is_empty() {
            *others.entry("images without SeriesInstanceUID".into()).or_default() += 1;
            return;
        }
        let study = if study.is_empty() { series.clone() } else { study };
        let patient = if patient.is_empty() { study.clone() } else { patient };
        let parts = self.studies.entry((patient, study)).or_default();
        let parts = parts.entry(series.clone()).or_insert_with(|| Parts { description, uid: series, images: vec![] });
        // Exports hold copies.
        if !image.uid.is_empty() && parts.images.iter().any(|other| other.uid == image.uid) {
            *others.entry("copies of slices that are there (the same SOPInstanceUID)".into()).or_default() += 1;
        } else {
            parts.images.push(image);
        }
    }

    /// Takes out series that are no volumes.
    fn leave_out(&mut self, root: &Path, wanted: Wanted) {
        for series in self.studies.values_mut() {
            series.retain(|_, parts| {
                let slices = parts.slices();
                let reason = match parts.images.iter().all(|image| image.slices.is_none()) {
                    true => format!(
                        "{slices} images that do not say where they lie (ImagePositionPatient, ImageOrientationPatient, PixelSpacing)"
                    ),
                    false if slices < FEWEST => format!("{slices} slices, expected at least {FEWEST} of a volume"),
                    false => return true,
                };
                self.ignored.push(Problem::new(root, format!("{}: {reason}", parts.name(wanted))));
                false
            });
        }
        self.studies.retain(|_, series| !series.is_empty());
    }
}

/// A pattern with `*` and `?` as a regular expression of whole descriptions, whose case does not matter.
fn pattern(text: &str) -> Result<Regex> {
    let any = regex::escape(text.trim()).replace("\\*", ".*").replace("\\?", ".");
    Ok(RegexBuilder::new(&format!("^(?s:{any})$")).case_insensitive(true).build()?)
}

/// A channel's name of a pattern or a description: its letters and digits.
fn channel_name(text: &str) -> String {
    let letter = |c: char| if c.is_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    let words: String = text.chars().map(letter).collect();
    let words: Vec<&str> = words.split('_').filter(|word| !word.is_empty()).collect();
    if words.is_empty() { UNNAMED.into() } else { words.join("_") }
}

/// Descriptions with the number of series that have each.
fn descriptions<'a>(series: impl Iterator<Item = &'a Parts>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    series.for_each(|parts| *counts.entry(&parts.description).or_default() += 1);
    counts.iter().map(|(text, n)| format!("{n} x \"{text}\"")).collect::<Vec<_>>().join(", ")
}

/// What a person is called: a hash of the PatientID.
pub fn person(patient: &str) -> String {
    hashed(patient, PATIENT_DIGITS)
}

pub fn open(files: Files, reading: Reading) -> Result<Dataset> {
    let (wanted, root) = (reading.dicom, files.root.clone());
    let mut paths: Vec<&PathBuf> = candidates(&files).collect();
    paths.sort();
    let Sorted { studies, mut problems, mut ignored } = sort(&root, &paths, wanted);
    let taken: BTreeSet<&PathBuf> = paths.into_iter().collect();
    problems.extend(files.problems.iter().filter(|problem| !taken.contains(&problem.path)).cloned());
    ignored.extend(files.zips.iter().map(|_| Problem::new(&root, "a zip archive, which is not looked into")));

    let rules = wanted.series.iter().map(|text| pattern(text).with_context(|| format!("--series {text}")));
    let rules: Vec<Regex> = rules.collect::<Result<_>>()?;
    let mut channels: Vec<String> = wanted.series.iter().map(|text| channel_name(text)).collect();
    let repeated: Vec<&str> =
        channels.iter().filter(|name| channels.iter().filter(|n| n == name).count() > 1).map(|n| n.as_str()).collect();
    ensure!(
        repeated.is_empty() || reading.separate,
        "--series: two patterns with the letters {}; they name channels",
        some(&repeated)
    );
    if rules.is_empty() {
        channels = vec![UNNAMED.into()];
        let several = studies.values().filter(|series| series.len() > 1).count();
        if several > 0 && !reading.separate {
            bail!(
                "{several} of {} studies have several series, together {}: say which with --series, e.g. --series 'T1*post*' (* and ? \
                 stand for any letters; given several times, each is a channel), or take each series for a scan with \
                 --channels-as-scans",
                studies.len(),
                descriptions(studies.values().flat_map(BTreeMap::values))
            );
        }
    }
    let mut subjects = vec![];
    for ((patient, study), series) in studies {
        let person = match wanted.patient_ids {
            true => patient.replace(['/', '\\', '\0', '\n', '\r'], "_"),
            false => self::person(&patient),
        };
        let id = format!("{person}/{}", hashed(&study, DIGITS));
        let series: Vec<Parts> = series.into_values().collect();
        let mut there = vec![];
        let chosen = match reading.separate {
            true => Ok(each(series, &rules)),
            false if rules.is_empty() => Ok(series),
            false => one_each(series, &rules, wanted, reading.missing).map(|(found, series)| {
                there = found;
                series
            }),
        };
        let mut fail = |what: String, reason: String| problems.push(Problem::new(format!("{id}{what}"), reason));
        let chosen = match chosen {
            Ok(chosen) => chosen,
            Err(error) => {
                fail(String::new(), format!("{error:#}"));
                continue;
            }
        };
        let n = chosen.len();
        // Where series may be missing, those that are there name their channels.
        let contrasts = there.iter().map(|&n: &usize| channels[n].clone()).filter(|_| reading.missing != Missing::Refuse);
        let mut subject = Subject { id: id.clone(), contrasts: contrasts.collect(), ..Subject::default() };
        for parts in chosen {
            let (name, description) = (parts.name(wanted), channel_name(&parts.description));
            match parts.arranged(wanted) {
                Ok(source) => {
                    subject.channels.push(source);
                    subject.contrasts.extend(Some(description).filter(|_| reading.separate));
                }
                Err(error) => fail(format!(": {name}"), format!("{error:#}")),
            }
        }
        if subject.channels.len() == n && n > 0 || reading.separate && !subject.channels.is_empty() {
            subjects.push(subject);
        }
    }
    Ok(Dataset {
        layout: Layout::Dicom,
        channels,
        labels: None,
        classes: None,
        columns: Columns::default(),
        subjects,
        problems,
        ignored,
    })
}

/// The series that any rule takes; all where there is none.
fn each(series: Vec<Parts>, rules: &[Regex]) -> Vec<Parts> {
    let wanted = |parts: &Parts| rules.is_empty() || rules.iter().any(|rule| rule.is_match(&parts.description));
    series.into_iter().filter(wanted).collect()
}

/// One series for each rule, in their order, and which rules found one.
fn one_each(series: Vec<Parts>, rules: &[Regex], wanted: Wanted, missing: Missing) -> Result<(Vec<usize>, Vec<Parts>)> {
    let mut left: Vec<Option<Parts>> = series.into_iter().map(Some).collect();
    let (mut found, mut chosen) = (vec![], vec![]);
    for (n, (rule, text)) in rules.iter().zip(wanted.series).enumerate() {
        let fits = |parts: &&Parts| rule.is_match(&parts.description);
        let fitting: Vec<usize> = (0..left.len()).filter(|&n| left[n].as_ref().is_some_and(|parts| fits(&parts))).collect();
        let there = || descriptions(left.iter().flatten());
        match fitting[..] {
            [place] => {
                found.push(n);
                chosen.extend(left[place].take());
            }
            [] if missing != Missing::Refuse => {}
            [] => bail!("no series `{text}` among {}", there()),
            _ => bail!("{} series `{text}` among {}: give a pattern that one alone has", fitting.len(), there()),
        }
    }
    ensure!(!chosen.is_empty(), "no series `{}` among {}", wanted.series.join("`, `"), descriptions(left.iter().flatten()));
    Ok((found, chosen))
}

/// The only series of a folder, as a cell of a manifest names it.
pub fn only_series(folder: &Path) -> Result<Source> {
    let files = Files::below(folder)?;
    let paths: Vec<&PathBuf> = candidates(&files).collect();
    // Whoever lists folders names them.
    let wanted = Wanted { patient_ids: true, ..Wanted::default() };
    let sorted = sort(folder, &paths, wanted);
    if let Some(problem) = sorted.problems.first() {
        bail!("{problem}");
    }
    let mut series: Vec<Parts> = sorted.studies.into_values().flat_map(BTreeMap::into_values).collect();
    ensure!(
        series.len() < 2,
        "{}: {} DICOM series, expected one: {}",
        folder.display(),
        series.len(),
        descriptions(series.iter())
    );
    let parts = series.pop().with_context(|| format!("{}: a folder, expected a file or one DICOM series", folder.display()))?;
    parts.arranged(wanted).with_context(|| folder.display().to_string())
}
