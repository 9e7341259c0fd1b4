//! Scans that look like labels of others: parcellations and masks whose names say nothing of it would pass for people of their own.

use super::file::Mapped;
use super::index::{Entry, Index, LeftOut};
use crate::data::volume::Affine;
use crate::dim::Shape;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::path::Path;

/// What stands between the words of an id.
const SEPARATORS: [char; 5] = ['/', '_', '-', '.', ' '];

/// Takes scans out of the index that hold values as labels do (see [`Entry::few_values`]) and lie on the grid of another scan whose name
/// begins alike and that holds none. Their files stay.
pub fn take_out_labels(index: &mut Index, folder: &Path) -> Vec<LeftOut> {
    let (doubted, images): (Vec<&Entry>, Vec<&Entry>) = index.subjects.iter().partition(|entry| !entry.few_values.is_empty());
    if doubted.is_empty() || images.is_empty() {
        return vec![];
    }
    let words = |entry: &Entry| entry.id.split(SEPARATORS).map(str::to_lowercase).collect::<Vec<String>>();
    let beginning = |words: &[String], n: usize| words[..n].join("/");
    let mut by_beginning: HashMap<String, Vec<&Entry>> = HashMap::new();
    for image in &images {
        let words = words(image);
        (1..=words.len()).for_each(|n| by_beginning.entry(beginning(&words, n)).or_default().push(image));
    }
    let mut left_out = Vec::new();
    for entry in doubted {
        let words = words(entry);
        // What all begin with, such as the study's name, tells none apart.
        let alike = |n: usize| {
            let alike = by_beginning.get(&beginning(&words, n))?;
            (alike.len() < images.len() || images.len() == 1).then_some(alike)
        };
        let own = grid(entry, folder);
        let same_grid = |image: &&&Entry| own.is_some() && grid(image, folder) == own;
        if let Some(image) = (1..=words.len()).rev().filter_map(alike).next().and_then(|alike| alike.iter().find(same_grid)) {
            let reason = format!(
                "whole numbers as a label's, on the grid of {}: taken for a label of it, and for no scan; name it ID_seg after the scan's \
                 ID_.., list it in a manifest's column `label`, or move it away",
                image.id
            );
            left_out.push(LeftOut { id: entry.id.clone(), reason });
        }
    }
    index.subjects.retain(|entry| left_out.iter().all(|left| left.id != entry.id));
    left_out
}

/// Extent and place of the file that a scan is from.
fn grid(entry: &Entry, folder: &Path) -> Option<(Shape, Affine)> {
    let file = Mapped::open(&folder.join(&entry.file)).ok()?;
    let text = &file.header().text;
    fn read<T: DeserializeOwned>(text: &str) -> Option<T> {
        serde_json::from_str(text).ok()
    }
    Some((read(text.get("original_shape")?)?, read(text.get("original_affine")?)?))
}
