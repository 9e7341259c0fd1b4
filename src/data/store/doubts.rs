//! Scans that look like labels of others: parcellations and masks whose names say nothing of it would pass for people of their own.

use super::index::{Entry, Index, LeftOut, Origin};
use std::collections::{HashMap, HashSet};

/// What stands between the words of an id.
const SEPARATORS: [char; 5] = ['/', '_', '-', '.', ' '];

/// Takes scans out of the index that hold values as labels do (see [`Entry::few_values`]) and lie on the grid of another scan whose name
/// begins alike and that holds none. Their files stay.
pub fn take_out_labels(index: &mut Index, origins: &HashMap<String, Origin>) -> Vec<LeftOut> {
    let (doubted, images): (Vec<&Entry>, Vec<&Entry>) = index.subjects.iter().partition(|entry| !entry.few_values.is_empty());
    if doubted.is_empty() || images.is_empty() {
        return vec![];
    }
    let words = |entry: &Entry| entry.id.split(SEPARATORS).map(str::to_lowercase).collect::<Vec<String>>();
    let beginning = |words: &[String], n: usize| words[..n].join("/");
    let grid = |entry: &Entry| origins.get(&entry.id).map(grid);
    let mut by_beginning: HashMap<String, Alike> = HashMap::new();
    for image in &images {
        let (words, grid) = (words(image), grid(image));
        for n in 1..=words.len() {
            let alike = by_beginning.entry(beginning(&words, n)).or_default();
            alike.count += 1;
            grid.iter().for_each(|grid| _ = alike.by_grid.entry(grid.clone()).or_insert(image));
        }
    }
    let mut left_out = Vec::new();
    for entry in doubted {
        let words = words(entry);
        // What all begin with, such as the study's name, tells none apart.
        let alike = |n: usize| {
            let alike = by_beginning.get(&beginning(&words, n))?;
            (alike.count < images.len() || images.len() == 1).then_some(alike)
        };
        let closest = (1..=words.len()).rev().filter_map(alike).next();
        if let Some(image) = closest.zip(grid(entry)).and_then(|(alike, grid)| alike.by_grid.get(&grid)) {
            let reason = format!(
                "whole numbers as a label's, on the grid of {}: taken for a label of it, and for no scan; name it ID_seg after the scan's \
                 ID_.., list it in a manifest's column `label`, or move it away",
                image.id
            );
            left_out.push(LeftOut { id: entry.id.clone(), reason });
        }
    }
    let out: HashSet<&str> = left_out.iter().map(|left| left.id.as_str()).collect();
    index.subjects.retain(|entry| !out.contains(entry.id.as_str()));
    left_out
}

/// Images whose names begin alike.
#[derive(Default)]
struct Alike<'a> {
    count: usize,
    /// The first one on each grid.
    by_grid: HashMap<Vec<u64>, &'a Entry>,
}

/// Extent and place of the file that a scan is from, comparable bit by bit.
fn grid(origin: &Origin) -> Vec<u64> {
    let affine = origin.affine.iter().flatten().map(|value| (value + 0.).to_bits());
    origin.shape.iter().map(|&n| n as u64).chain(affine).collect()
}
