//! Training and test sides that folders and tables are named after.

use super::{Dataset, Source};
use std::path::Path;

/// Words for a side, and what they stand for.
const WORDS: [(&str, &str); 12] = [
    ("train", "train"),
    ("training", "train"),
    ("tr", "train"),
    ("val", "val"),
    ("valid", "val"),
    ("validation", "val"),
    ("dev", "val"),
    ("test", "test"),
    ("testing", "test"),
    ("ts", "test"),
    ("heldout", "test"),
    ("holdout", "test"),
];

/// The side that a path below a dataset's folder names, the innermost part first: `b. Testing Set/x.jpg`, `trainLabels.csv`. Of a scan give
/// its folder.
pub fn of(path: &Path) -> Option<&'static str> {
    path.iter().rev().find_map(|part| {
        let part = part.to_string_lossy();
        let known = |word: String| WORDS.iter().find(|(known, _)| *known == word).map(|(_, side)| *side);
        words(&part).into_iter().find_map(known)
    })
}

/// Lower-case words of a name: what no letter separates, or a capital begins.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = ' ';
    for c in name.chars() {
        if !c.is_alphabetic() || c.is_uppercase() && before.is_lowercase() {
            words.push(String::new());
        }
        if c.is_alphabetic() {
            words.last_mut().expect("at least one").extend(c.to_lowercase());
        }
        before = c;
    }
    words
}

/// The side that a scan's folder names, below `root`.
pub fn of_scan(source: &Source, root: &Path) -> Option<&'static str> {
    match source {
        Source::File(path) => of(path.strip_prefix(root).unwrap_or(path).parent()?),
        Source::Zip { .. } | Source::Series(_) => None,
    }
}

/// Keeps the test and validation sides of photographs where folders name them, and graded ones are there and elsewhere.
pub fn keep(dataset: &mut Dataset, root: &Path) {
    let held_out = |source: &Source| of_scan(source, root).filter(|side| *side != "train");
    let graded = dataset.subjects.iter().filter(|subject| subject.class.is_some() || !subject.values.is_empty());
    let (out, others): (Vec<bool>, Vec<bool>) =
        graded.map(|subject| held_out(&subject.channels[0]).is_some()).partition(|&out| out);
    if !out.is_empty() && !others.is_empty() {
        for subject in &mut dataset.subjects {
            subject.split = held_out(&subject.channels[0]).map(str::to_owned);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_tables_name_sides() {
        let cases = [
            ("1. Original Images/b. Testing Set", Some("test")),
            ("2. Groundtruths/a. IDRiD_Disease Grading_Training Labels.csv", Some("train")),
            ("trainLabels.csv", Some("train")),
            ("imagesTs", Some("test")),
            ("train/validation", Some("val")),
            ("contest/latest/strain", None),
            ("images", None),
            ("", None),
        ];
        for (path, side) in cases {
            assert_eq!(of(Path::new(path)), side, "{path}");
        }
    }
}
