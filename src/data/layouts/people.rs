//! Whose scan a scan is: ids become `person/scan`, and splits go by the part before the slash.

mod by_name;

use super::{Dataset, Layout, Source, Subject};
use crate::data::split::subject as person_of;
use anyhow::{Result, bail};
use by_name::{SEPARATORS, by_names};
use regex::Regex;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Writes the person into every id: by a pattern of the user, otherwise by the names of files and folders. Manifests, UK Biobank
/// and DICOM state it themselves, unless there is a pattern.
///
/// `root` is the dataset's folder. Errors: a pattern that does not find a person for every scan.
pub fn assign(dataset: &mut Dataset, root: &Path, pattern: Option<&Regex>) -> Result<()> {
    let stated = matches!(dataset.layout, Layout::Manifest | Layout::Ukb | Layout::Dicom);
    let people = match pattern {
        Some(pattern) => by_pattern(dataset, root, pattern)?,
        None if stated => return Ok(()),
        None => by_names(&dataset.subjects, root),
    };
    let whole = |subject: &Subject| subject.id.replace('/', "_");
    let ids = dataset.subjects.iter().zip(&people).map(|(subject, person)| match person {
        Some(person) => id_of(person, &subject.id),
        None => whole(subject),
    });
    let ids: Vec<String> = ids.collect();
    let mut counts: HashMap<&str, usize> = HashMap::new();
    ids.iter().for_each(|id| *counts.entry(id).or_default() += 1);
    for ((subject, person), id) in dataset.subjects.iter_mut().zip(&people).zip(&ids) {
        subject.id = match person {
            Some(person) if counts[id.as_str()] > 1 => format!("{person}/{}", whole(subject)),
            _ => id.clone(),
        };
    }
    Ok(())
}

/// One line that says what is taken for a person, with an example, and how to say it otherwise. `root` as in [`assign`].
pub fn describe(dataset: &Dataset, root: &Path) -> String {
    let mut people: BTreeMap<&str, Vec<&Subject>> = BTreeMap::new();
    dataset.subjects.iter().for_each(|s| people.entry(person_of(&s.id)).or_default().push(s));
    let scans = dataset.subjects.len();
    let of_several = people.iter().find(|(_, subjects)| subjects.len() > 1);
    let found = match of_several.or(people.iter().next()) {
        None => return format!("people: {scans} scans"),
        Some((person, subjects)) => {
            let files: Vec<String> = subjects.iter().take(2).map(|s| path_of(s, dataset.layout, root, false)).collect();
            format!("{}, e.g. `{person}` of {}", people.len(), files.join(" and "))
        }
    };
    let found = match of_several {
        Some(_) => format!("people: {scans} scans of {found}"),
        None => format!("people: {found}; every scan is taken for one of another person"),
    };
    const STATE: &str = "write person/scan in the column `subject` of a manifest, or give --subject-pattern REGEX";
    match (dataset.layout, alike(dataset)) {
        (Layout::Manifest, Some([a, b])) => format!("warning: {found}, though `{a}` and `{b}` look like one person; {STATE}"),
        _ => format!("{found}; if that is not so, {STATE}"),
    }
}

/// Two scans of a manifest that are stated to be of two people and look like scans of one.
fn alike(dataset: &Dataset) -> Option<[&str; 2]> {
    let mut first: HashMap<String, &str> = HashMap::new();
    let people = by_names(&dataset.subjects, Path::new(""));
    dataset.subjects.iter().zip(people).find_map(|(subject, person)| {
        let earlier = first.insert(person?, &subject.id)?;
        (person_of(earlier) != person_of(&subject.id)).then_some([earlier, &subject.id])
    })
}

/// `person/rest`, where the rest is what the id says beside the person.
fn id_of(person: &str, id: &str) -> String {
    let mut parts: Vec<&str> = id.split('/').collect();
    let joined = parts.join("_");
    let after = |name: &str| {
        let rest = name.strip_prefix(person)?;
        // `P01V2`, but not `P011`.
        let joined = person.ends_with(|c: char| c.is_ascii_digit()) && rest.starts_with(char::is_alphabetic);
        let rest = if joined { rest } else { rest.strip_prefix(SEPARATORS)?.trim_start_matches(SEPARATORS) };
        Some(rest.to_string()).filter(|rest| !rest.is_empty())
    };
    let rest = match parts.iter().position(|part| *part == person) {
        Some(at) => {
            parts.remove(at);
            parts.into_iter().map(|part| after(part).unwrap_or(part.into())).collect::<Vec<_>>().join("_")
        }
        None if joined == person => String::new(),
        None => after(&joined).unwrap_or(joined),
    };
    if rest.is_empty() { person.into() } else { format!("{person}/{rest}") }
}

/// A scan's path below the dataset's folder, with slashes, or what a manifest calls it. That of a series may name a patient: only a
/// pattern looks at it.
fn path_of(subject: &Subject, layout: Layout, root: &Path, patterned: bool) -> String {
    match &subject.channels[0] {
        _ if layout == Layout::Manifest => subject.id.clone(),
        Source::Series(_) if !patterned => subject.id.clone(),
        Source::Series(series) => below(&series.folder, root).join("/"),
        Source::File(path) | Source::Zip { archive: path, .. } => below(path, root).join("/"),
    }
}

fn below(path: &Path, root: &Path) -> Vec<String> {
    path.strip_prefix(root).unwrap_or(path).iter().map(|part| part.to_string_lossy().into_owned()).collect()
}

/// The first group of a pattern in every scan's path.
fn by_pattern(dataset: &Dataset, root: &Path, pattern: &Regex) -> Result<Vec<Option<String>>> {
    let paths: Vec<String> = dataset.subjects.iter().map(|s| path_of(s, dataset.layout, root, true)).collect();
    let person = |path: &String| Some(pattern.captures(path)?.get(1)?.as_str().replace('/', "_")).filter(|p| !p.is_empty());
    let people: Vec<Option<String>> = paths.iter().map(person).collect();
    let without = || paths.iter().zip(&people).filter(|(_, person)| person.is_none()).map(|(path, _)| path);
    if let Some(first) = without().next() {
        let (n, all) = (without().count(), paths.len());
        bail!("--subject-pattern {pattern}: its first group finds no person in {n} of {all} names, the first {first}");
    }
    Ok(people)
}

#[cfg(test)]
mod tests;
