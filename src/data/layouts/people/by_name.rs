//! People by the names of files and folders.
//!
//! The first that a name has: a code that public data give to people (`sub-01`, `002_S_0295`); a word for a person with a number
//! (`patient00`); what stands beside the mark of a visit, a date or a side of the body (`anna/visit1`, `P01_V1`, `10_left`). Where no name
//! has any of it: a folder with several scans, or the number before the last one (`training01_02`), or what stands before a word that
//! others share (`kim_avant`), if there are many like it.

use super::below;
use crate::data::layouts::{Source, Subject};
use regex::Regex;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::LazyLock;

/// What stands between the parts of a name.
pub const SEPARATORS: [char; 4] = ['_', '-', '.', ' '];
/// A folder with more scans than this, of which there are few, is a site or a cohort and no person.
const MOST_OF_A_PERSON: usize = 12;

fn pattern(text: &str) -> Regex {
    Regex::new(&format!("(?i){text}")).expect("a constant pattern")
}

/// `words` as one part of a name; the first group is the part.
fn part(words: &str) -> Regex {
    pattern(&format!(r"(?:^|[_\-. ])({words})(?:$|[_\-. ])"))
}

/// BIDS, ADNI, OASIS, TCGA, IXI, MIRIAD, and `COLLECTION-NAME-0001` as LIDC, BraTS and UPENN have it.
static CODE: LazyLock<Regex> = LazyLock::new(|| {
    part(concat!(
        r"sub-[a-z0-9]+|\d{3}_S_\d{4,5}|OAS[12]_\d{4}|OAS[34]\d{4}|TCGA-[a-z0-9]{2}-[a-z0-9]{4}|IXI\d{3}|miriad_\d{3}",
        r"|[a-z]{2,}(?:-[a-z]+)+-\d{2,}",
    ))
});
/// A word for a person, with a number.
static WORD: LazyLock<Regex> = LazyLock::new(|| {
    part(r"(?:patient|pat|pt|subject|subj|sub|participant|person|volunteer|proband|donor|case|control)[_\- ]?\d+[a-z]?")
});
/// Such a word's first letter, where a name begins.
static LETTER: LazyLock<Regex> = LazyLock::new(|| pattern(r"^([ps][_\- ]?\d+)(?:$|[_\-. ])"));
/// A visit, a treatment or a date, whatever stands beside it.
static VISIT: LazyLock<Regex> = LazyLock::new(|| {
    part(concat!(
        r"(?:ses|sess|session|visit|vis|tp|time[_\- ]?point)[_\- ]?(?:\d+[a-z]?|[a-z])|baseline|follow[_\- ]?up[_\- ]?\d*",
        r"|(?:pre|post|intra)[_\- ]?(?:op(?:erative)?|treatment|therapy|surgery|rt|contrast)?|screening|re(?:test|scan)",
        r"|(?:19|20)\d\d[\-._]?(?:0[1-9]|1[0-2])[\-._]?(?:0[1-9]|[12]\d|3[01])(?:[t_\-]?\d{4,})?|\d\d[\-.]\d\d[\-.](?:19|20)\d\d",
    ))
});
/// A visit that is all of a name, or follows a number at once: `P01V2`, `Subj1Sess2`.
static JOINED: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"^(?:(?:.*\d)?((?:v|visit|ses|tp|fu)\d{1,3})|.*\d((?:sess|session|scan|day|week|month|time|exam)\d{1,3}))$")
});
/// A visit, a time or a state, where a number stands before it: `brain_v1` is a version, `P01_v1` a visit.
static STATE: LazyLock<Regex> = LazyLock::new(|| {
    part(concat!(
        r"(?:v|d|day|w|wk|week|m|mo|month|y|yr|year|time|frame|scan|series|run|rep|acq|exam|phase|echo|wave|mr|fu)[_\- ]?\d{1,4}[a-z]?",
        r"|[1-9](?:\.\d)?t|bl|fu|ed|es|insp|exp|inspiration|expiration|systole|diastole|prone|supine|rest|stress|before|after|initial|final",
    ))
});
/// A side of the body at a name's end, perhaps with the view of a mammography.
static SIDE: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?:^|[_\-. ])((?:left|right|l|r|od|os|lt|rt)(?:[_\-](?:cc|mlo))?)$"));
/// A folder in which people are numbered on their own.
static SITE: LazyLock<Regex> = LazyLock::new(|| pattern(r"^(?:site|cent(?:er|re)|hospital|cohort)"));
/// A folder that says how data are kept and never whose they are.
static KEPT: LazyLock<Regex> = LazyLock::new(|| {
    pattern(concat!(
        r"^(?:[a-z\d]{1,2}[.)] ?)?(?:anat|func|dwi|fmap|perf|original images|groundtruths?|(?:images?|labels?|masks?)(?:tr|ts)?|nifti|nii|data|scans|patients|subjects|derivatives",
        r"|(?:train(?:ing)?|val(?:idation)?|test(?:ing)?|raw(?:data)?|dataset|batch|part|fold|set)(?:[^a-z].*)?)$",
    ))
});
/// A number, and that of a scan, or its year, perhaps with words for how it was made.
static NUMBERED: LazyLock<Regex> = LazyLock::new(|| pattern(r"^(.*\d)(?:[_\-]\d{1,7}|[_\-]?[a-e])(?:[_\-][a-z][a-z_\-]*)?$"));
/// A name and a word at its end.
static WORDED: LazyLock<Regex> = LazyLock::new(|| pattern(r"^(.+)[_\-. ]([a-z]+)$"));

/// The person of every scan; `None` where names say none.
pub fn by_names(subjects: &[Subject], root: &Path) -> Vec<Option<String>> {
    let names: Vec<Names> = subjects.iter().map(|subject| Names::of(subject, root)).collect();
    let mut people: Vec<Option<String>> = names.iter().map(Names::stated).collect();
    let stated = people.iter().flatten().count() > 0;
    for (person, names) in people.iter_mut().zip(&names).filter(|(person, _)| person.is_none()) {
        *person = names.beside_a_mark();
    }
    if people.iter().all(Option::is_none) {
        people = by_folder(&names).or_else(|| by_number(&names)).or_else(|| by_word(&names)).unwrap_or(people);
    }
    begins_like_another(&mut people, &names);
    // One beginning of all names, `study2_scan01`, names the dataset.
    let one = people.iter().all(|person| person.is_some() && *person == people[0]);
    if !stated && one { vec![None; subjects.len()] } else { people }
}

/// What a scan is called, outermost first.
struct Names {
    /// Folders that may name a person.
    folders: Vec<String>,
    /// The parts of the id: the name, and the folders it needs to be unique.
    id: Vec<String>,
}

impl Names {
    fn of(subject: &Subject, root: &Path) -> Names {
        let path = match &subject.channels[0] {
            Source::File(path) | Source::Zip { archive: path, .. } => path,
            Source::Series(series) => &series.folder,
        };
        let mut folders = below(path, root);
        folders.pop();
        folders.retain(|folder| !KEPT.is_match(folder));
        Names { folders, id: subject.id.split('/').map(String::from).collect() }
    }

    /// Folders and name.
    fn all(&self) -> impl Iterator<Item = &str> {
        self.folders.iter().chain(&self.id).map(String::as_str)
    }

    /// The person by a code or a word.
    fn stated(&self) -> Option<String> {
        let code = |name| Some(CODE.captures(name)?[1].to_string());
        // What stands before a word, e.g. a study, belongs to it.
        let up_to = |pattern: &Regex, name: &str| Some(name[..pattern.captures(name)?.get(1)?.end()].to_string());
        let site = self.folders.iter().find(|folder| SITE.is_match(folder));
        let with_site = |person: String| match site {
            Some(site) if !person.starts_with(site.as_str()) => format!("{site}_{person}"),
            _ => person,
        };
        let found = self.all().find_map(code);
        let word =
            || self.all().find_map(|name| up_to(&WORD, name)).or_else(|| self.all().find_map(|name| up_to(&LETTER, name)));
        found.or_else(|| word().map(with_site))
    }

    /// The person by what stands beside the mark of a visit, a state or a side: first in the id, then with all folders.
    fn beside_a_mark(&self) -> Option<String> {
        let id: Vec<&str> = self.id.iter().map(String::as_str).collect();
        beside_a_mark(&id).or_else(|| beside_a_mark(&self.all().collect::<Vec<_>>()))
    }
}

fn beside_a_mark(names: &[&str]) -> Option<String> {
    let (at, (before, after)) = names.iter().enumerate().find_map(|(n, name)| Some((n, mark(name)?)))?;
    let mut before: Vec<&str> = names[..at].iter().copied().filter(|name| !KEPT.is_match(name)).chain([before]).collect();
    before.retain(|name| !name.is_empty());
    before.dedup();
    if !before.is_empty() {
        return Some(before.join("_"));
    }
    // `visit1/anna`, `baseline_P01`; but `20190304_2` is the second scan of a day.
    let next = if after.is_empty() { names.get(at + 1).copied().unwrap_or_default() } else { after };
    let next = mark(next).map_or(next, |(before, _)| before);
    let of_a_day = !after.is_empty() && next.len() < 3 && next.bytes().all(|b| b.is_ascii_digit());
    (!next.is_empty() && !of_a_day).then(|| next.to_string())
}

/// What stands before and after the first mark of a name.
fn mark(name: &str) -> Option<(&str, &str)> {
    let numbered = |before: &str| before.contains(|c: char| c.is_ascii_digit());
    let find = |pattern: &Regex, fits: &dyn Fn(&str) -> bool| {
        let mut from = 0;
        while let Some(found) = pattern.captures_at(name, from).and_then(|found| found.iter().skip(1).flatten().next()) {
            let before = name[..found.start()].trim_end_matches(SEPARATORS);
            if fits(before) {
                return Some((before, name[found.end()..].trim_start_matches(SEPARATORS)));
            }
            from = found.end();
        }
        None
    };
    // `l` and `r` alone say little.
    let side = |before: &str| numbered(before) || !before.is_empty() && name.len() - before.len() > 3;
    let marks = [find(&VISIT, &|_| true), find(&STATE, &numbered), find(&JOINED, &|_| true), find(&SIDE, &side)];
    marks.into_iter().flatten().min_by_key(|(before, _)| before.len())
}

/// The folder that a scan is in, where that tells people from each other better than sites: several scans in some, and many folders.
fn by_folder(names: &[Names]) -> Option<Vec<Option<String>>> {
    let folder = |names: &Names| Some(names.folders.join("_")).filter(|folder| !folder.is_empty());
    let folders: Vec<Option<String>> = names.iter().map(folder).collect();
    let mut counts: HashMap<&String, usize> = HashMap::new();
    folders.iter().flatten().for_each(|folder| *counts.entry(folder).or_default() += 1);
    let most = counts.values().copied().max().unwrap_or(0);
    // Names that repeat from folder to folder are scans of it; names that do not may be people.
    let repeat = names.iter().any(|names| names.id.len() > 1);
    let people = match repeat {
        true => counts.len() > most || most <= MOST_OF_A_PERSON,
        false => counts.len() > most && counts.len() > 2,
    };
    (most > 1 && counts.len() > 1 && people).then_some(folders)
}

/// The first of two numbers at a name's end.
fn by_number(names: &[Names]) -> Option<Vec<Option<String>>> {
    shared(names.iter().map(|names| Some(NUMBERED.captures(&names.id.join("_"))?[1].to_string())).collect())
}

/// What stands before a word at a name's end, where names are a table of people and words: each word stands beside several.
fn by_word(names: &[Names]) -> Option<Vec<Option<String>>> {
    let split = |names: &Names| {
        let name = names.id.join("_");
        let found = WORDED.captures(&name)?;
        Some((found[1].to_string(), found[2].to_string()))
    };
    let parts: Vec<(String, String)> = names.iter().map(split).collect::<Option<_>>()?;
    let mut beside: HashMap<&str, usize> = HashMap::new();
    parts.iter().for_each(|(_, word)| *beside.entry(word).or_default() += 1);
    let table = beside.values().all(|people| *people > 1);
    shared(parts.iter().map(|(person, _)| Some(person.clone())).collect()).filter(|_| table)
}

/// These beginnings of all names, if they are people by their numbers: at least three, of whom one has several scans, and not as few
/// and large as sites.
fn shared(people: Vec<Option<String>>) -> Option<Vec<Option<String>>> {
    let mut counts: HashMap<&String, usize> = HashMap::new();
    people.iter().flatten().for_each(|person| *counts.entry(person).or_default() += 1);
    let most = counts.values().copied().max().unwrap_or(0);
    let fit = counts.len() > 2 && most > 1 && (most <= MOST_OF_A_PERSON || counts.len() > most);
    (fit && people.iter().all(Option::is_some)).then_some(people)
}

/// A scan whose name says no person may begin like one with a number that others say: `x7_other` beside `x7_pre`.
fn begins_like_another(people: &mut [Option<String>], names: &[Names]) {
    let numbered = |person: &&String| person.contains(|c: char| c.is_ascii_digit());
    let known: HashSet<String> = people.iter().flatten().filter(numbered).cloned().collect();
    for (person, names) in people.iter_mut().zip(names).filter(|(person, _)| person.is_none()) {
        let name = names.id.join("_");
        let mut beginnings = name.match_indices(SEPARATORS).map(|(at, _)| &name[..at]);
        *person = beginnings.rfind(|beginning| known.contains(*beginning)).map(String::from);
    }
}
