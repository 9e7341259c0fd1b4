//! Whom a network has seen, hashed: enough to know a subject or a scan again, not to name one.

use crate::data::Scans;
use crate::data::identity::{hex, is_known};
use crate::data::names::some;
use crate::data::split::{Split, subject};
use crate::data::store::{Store, Subset};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// Hex digits that are kept of a hash: 64 bits tell millions of subjects apart.
const DIGITS: usize = 16;

/// Whom a training has seen, and the trainings that it started from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// Those that were learnt from.
    pub train: Members,
    /// Those that chose the best epoch.
    pub val: Members,
    /// Those that it was probed on during training, with their labels.
    #[serde(default, skip_serializing_if = "Members::is_empty")]
    pub probe: Members,
    /// Whether that is all: false if it started from weights that do not say whom they have seen.
    pub complete: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Members {
    /// Hashes of the subjects' ids.
    pub subjects: BTreeSet<String>,
    /// Beginnings of [`Entry::marks`](crate::data::store::Entry::marks), by which a scan is known again under any id.
    pub scans: BTreeSet<String>,
}

impl Members {
    fn of(scans: &Subset) -> Members {
        let mut group = Members::default();
        for entry in (0..scans.len()).map(|i| &scans.store().index().subjects[scans.scan(i)]) {
            group.subjects.insert(hashed(subject(&entry.id)));
            group.scans.extend(entry.marks().map(beginning));
        }
        group
    }

    fn is_empty(&self) -> bool {
        self.subjects.is_empty() && self.scans.is_empty()
    }

    fn extend(&mut self, other: Members) {
        self.subjects.extend(other.subjects);
        self.scans.extend(other.scans);
    }
}

fn hashed(subject: &str) -> String {
    beginning(&hex(&Sha256::digest(format!("subject {subject}"))))
}

fn beginning(hash: &str) -> String {
    hash.chars().take(DIGITS).collect()
}

impl Seen {
    /// A training on these scans.
    pub fn of(train: &Subset, val: &Subset) -> Seen {
        Seen { train: Members::of(train), val: Members::of(val), probe: Members::default(), complete: true }
    }

    /// The subjects of a run from before its scans were kept.
    pub fn of_ids(train: &[String], val: &[String]) -> Seen {
        let group = |ids: &[String]| Members { subjects: ids.iter().map(|id| hashed(id)).collect(), ..Members::default() };
        Seen { train: group(train), val: group(val), probe: Members::default(), complete: true }
    }

    /// With scans whose labels it was probed on.
    pub fn probed(mut self, scans: &Subset) -> Seen {
        self.probe.extend(Members::of(scans));
        self
    }

    /// With whom the weights that it started from have seen; `None`: they do not say.
    pub fn after(mut self, earlier: Option<Seen>) -> Seen {
        match earlier {
            Some(earlier) => {
                self.complete &= earlier.complete;
                self.train.extend(earlier.train);
                self.val.extend(earlier.val);
                self.probe.extend(earlier.probe);
            }
            None => self.complete = false,
        }
        self
    }
}

/// What a person must know who tests on this split after a pretraining that has seen `seen`; `None`: it does not say. The validation side of
/// a pretraining counts like its training side where it meets a test side. `other_people`: equal ids mean nothing.
pub fn warnings(seen: Option<&Seen>, store: &Store, split: &Split, other_people: bool) -> Vec<String> {
    let unknown = "it does not say whom it was pretrained on, so it is not known whether test subjects are among them";
    let Some(seen) = seen else { return vec![unknown.to_owned()] };
    let mut warnings = held_out(seen, store, split, other_people);
    let index = &store.index().subjects;
    let unmarked = index.iter().filter(|scan| !scan.is_known_elsewhere()).count();
    if unmarked > 0 {
        warnings.push(format!(
            "whether {unmarked} of the scans of {} were pretrained on under other ids or settings is not known, as an earlier version \
             made the store: run the same `pretext3d preprocess` again",
            store.folder().display()
        ));
    }
    let groups = [&seen.train, &seen.val, &seen.probe];
    if groups.iter().any(|group| !group.scans.iter().any(|mark| is_known(mark)) && !group.subjects.is_empty()) {
        warnings.push("an earlier version pretrained it: scans under other ids or settings are not known".to_owned());
    }
    if !seen.complete {
        warnings.push("it started from weights that do not say whom they were pretrained on: there may be more".to_owned());
    }
    warnings
}

/// Whom of this split's validation and test side a pretraining has seen, in sentences.
pub fn held_out(seen: &Seen, store: &Store, split: &Split, other_people: bool) -> Vec<String> {
    let remedy = "for a clean result pretrain with --split set to this fine-tuning's split.json";
    let mut warnings = Vec::new();
    let (pretrained, probed) = ("pretrained on", "probed on during pretraining, with their labels");
    let sides = [
        ("test", &split.test, vec![&seen.train, &seen.val], pretrained),
        ("validation", &split.val, vec![&seen.train], pretrained),
        ("test", &split.test, vec![&seen.probe], probed),
        ("validation", &split.val, vec![&seen.probe], probed),
    ];
    for (side, subjects, groups, how) in sides {
        let (scans, ids) = known(store, subjects, &groups);
        if !scans.is_empty() {
            let n = (scans.len(), subjects.len());
            warnings.push(format!("scans of {} of the {} {side} subjects were {how} ({}); {remedy}", n.0, n.1, some(&scans)));
        }
        if !ids.is_empty() && !other_people {
            let n = (ids.len(), subjects.len());
            warnings.push(format!(
                "{} of the {} {side} subjects have the ids of subjects that were {how}, though not the same scans ({}): if \
                 they are other people, say so with --other-people; if not, {remedy}",
                n.0,
                n.1,
                some(&ids)
            ));
        }
    }
    warnings
}

/// Those of the subjects of which a scan was seen, and those of which the id alone was.
fn known<'a>(store: &Store, subjects: &'a [String], groups: &[&Members]) -> (Vec<&'a str>, Vec<&'a str>) {
    let mut marks: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    store.index().subjects.iter().for_each(|entry| marks.entry(subject(&entry.id)).or_default().extend(entry.marks()));
    let scan = |id: &str| {
        let mut marks = marks.get(id).into_iter().flatten();
        marks.any(|mark| groups.iter().any(|group| group.scans.contains(&beginning(mark))))
    };
    let id = |id: &str| groups.iter().any(|group| group.subjects.contains(&hashed(id)));
    let subjects = subjects.iter().map(String::as_str);
    let (scans, rest): (Vec<&str>, Vec<&str>) = subjects.partition(|subject| scan(subject));
    (scans, rest.into_iter().filter(|subject| id(subject)).collect())
}
