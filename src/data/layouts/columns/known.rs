//! By which names a table may call a scan.

use crate::data::formats::{self, image};
use crate::data::layouts::{Source, Subject, dicom, sides};
use crate::data::split::subject as person_of;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// By what scans are known in tables.
pub struct Known {
    pub ids: Vec<String>,
    /// People are called after hashes of PatientIDs.
    pub patients: bool,
    /// Scans by a name, in the order in which names are tried.
    levels: Vec<HashMap<String, Vec<usize>>>,
}

impl Known {
    /// `side`: only scans of this side, where it is given.
    pub fn of(subjects: &[Subject], root: &Path, side: Option<&str>, patients: bool) -> Known {
        let ids: Vec<String> = subjects.iter().map(|subject| subject.id.clone()).collect();
        let here = |scan: usize| side.is_none() || sides::of_scan(&subjects[scan].channels[0], root) == side;
        let names: Vec<[Vec<String>; 3]> = subjects.iter().map(|subject| names(subject, root)).collect();
        let mut levels = vec![];
        for change in [str::to_owned as fn(&str) -> String, plain] {
            for level in 0..3 {
                let mut known: HashMap<String, Vec<usize>> = HashMap::new();
                for (scan, names) in names.iter().enumerate().filter(|&(scan, _)| here(scan)) {
                    for name in names[level].iter().map(|name| change(name)).collect::<BTreeSet<_>>() {
                        known.entry(name).or_default().push(scan);
                    }
                }
                // A name of scans of several people says nothing.
                known.retain(|_, scans| scans.iter().all(|&scan| person_of(&ids[scan]) == person_of(&ids[scans[0]])));
                levels.push(known);
            }
        }
        Known { ids, patients, levels }
    }

    /// The scans of a row.
    pub fn of_row(&self, id: &str, session: Option<&str>) -> Vec<usize> {
        let half = self.levels.len() / 2;
        let path = without_ending(id);
        let name = path.rsplit('/').next().filter(|_| path != id).unwrap_or(id).to_owned();
        let patient = if self.patients { dicom::person(id) } else { id.to_owned() };
        let forms = [id.to_owned(), path, name, patient];
        let plain = forms.clone().map(|form| plain(&form));
        let tried = self.levels.iter().enumerate().map(|(i, level)| (level, if i < half { &forms } else { &plain }));
        let scans = tried.flat_map(|(level, forms)| forms.iter().map(move |form| level.get(form))).find_map(|scans| scans);
        let mut scans = scans.cloned().unwrap_or_default();
        if let Some(session) = session.filter(|session| !session.is_empty()) {
            let wanted = plain_session(session);
            scans.retain(|&scan| {
                let rest = self.ids[scan].split_once('/').map_or("", |(_, rest)| rest);
                rest.is_empty() || rest.split(['/', '_']).any(|part| plain_session(part) == wanted)
            });
        }
        scans
    }
}

/// Whether scans of one file name lie on several sides.
pub fn sided(subjects: &[Subject], root: &Path) -> bool {
    let mut known: HashMap<String, BTreeSet<&str>> = HashMap::new();
    for subject in subjects {
        let [_, files, _] = names(subject, root);
        let side = sides::of_scan(&subject.channels[0], root);
        known.entry(files.last().cloned().unwrap_or_default()).or_default().extend(side);
    }
    known.values().any(|sides| sides.len() > 1)
}

/// A scan's own names, its names as a file, and those of what it is one of: visit and person.
fn names(subject: &Subject, root: &Path) -> [Vec<String>; 3] {
    let id = &subject.id;
    let prefixes = id.match_indices('/').map(|(at, _)| id[..at].to_owned()).collect();
    let file = match &subject.channels[0] {
        Source::File(path) | Source::Zip { archive: path, .. } => path,
        Source::Series(_) => return [vec![id.clone()], vec![], prefixes],
    };
    let below = file.strip_prefix(root).unwrap_or(file).to_string_lossy().replace('\\', "/");
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let files = [below, name].iter().flat_map(|name| [without_ending(name), name.clone()]).collect();
    [vec![id.clone(), id.replace('/', "_")], files, prefixes]
}

/// A path without the ending of a scan or photograph.
fn without_ending(text: &str) -> String {
    let path = Path::new(text);
    let Some(stem) = formats::stem(path).or_else(|| image::stem(path)) else { return text.into() };
    path.parent().map_or(PathBuf::new(), PathBuf::from).join(stem).to_string_lossy().into_owned()
}

/// An id as it is compared where no two are written alike: spreadsheets drop zeros before a number, and BIDS puts `sub-` before it.
fn plain(id: &str) -> String {
    let lower = id.trim().to_lowercase();
    let bare = lower.strip_prefix("sub-").unwrap_or(&lower);
    let number = bare.strip_suffix(".0").unwrap_or(bare);
    let zeros = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    if zeros { format!("{:0>1}", number.trim_start_matches('0')) } else { bare.to_owned() }
}

fn plain_session(session: &str) -> String {
    let lower = session.trim().to_lowercase();
    plain(lower.strip_prefix("ses-").unwrap_or(&lower))
}
