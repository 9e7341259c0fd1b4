//! Scans that preprocessing has made larger than they were.

use super::build::Filled;
use crate::data::preprocess::Grid;
use crate::dim::{Rank, Shape, millimetres, voxels};

/// New voxels per old one along an axis from which it is said.
const LEAST: f64 = 1.5;

/// What a person should know of scans that were enlarged: how many, and the one that was most. `None`: none was.
pub fn describe(filled: &Filled) -> Option<String> {
    let index = &filled.index;
    let (mut enlarged, mut most): (usize, Option<(f64, Shape, usize)>) = (0, None);
    for (at, entry) in index.subjects.iter().enumerate() {
        let mut from = filled.origins[&entry.id].crop.size;
        if Rank::of(entry.shape) == Rank::Two {
            // A photograph lies in the middle of a square.
            from = [1, from[1].max(from[2]), from[1].max(from[2])];
        }
        if (0..3).any(|a| entry.shape[a] as f64 >= LEAST * from[a] as f64) {
            enlarged += 1;
            let times = voxels(entry.shape) as f64 / voxels(from) as f64;
            if most.is_none_or(|(before, ..)| times > before) {
                most = Some((times, from, at));
            }
        }
    }
    let (times, from, at) = most?;
    let entry = &index.subjects[at];
    let rank = Rank::of(entry.shape);
    let hint = match index.settings.grid {
        Grid::Cube { .. } => {
            format!("--size {} keeps as many, --protocol modern the scans' own shapes", from.iter().max().unwrap_or(&1))
        }
        Grid::Spacing { .. } => {
            let own = [0, 1, 2].map(|a| entry.spacing[a] * entry.shape[a] as f64 / from[a] as f64);
            format!("its voxels are of {} mm: a coarser --spacing keeps as many", millimetres(&own))
        }
    };
    let unit = if rank == Rank::Two { "pixels" } else { "voxels" };
    Some(format!(
        "{enlarged} of {} scans are enlarged, most of all {}: {} {unit} became {}, {times:.1} times as many, which show nothing more and take as \
         much longer; {hint}",
        index.subjects.len(),
        entry.id,
        rank.words(from),
        rank.words(entry.shape)
    ))
}
