//! How many labels a cell is trained on.

use super::cell::Cell;
use super::read::Records;
use std::cmp::Ordering;

/// What tells the columns of a study's tables apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Labels {
    /// This many labelled training subjects, whatever the size of the training side.
    Subjects(u64),
    /// Of the labelled training subjects, above 0, at most 1.
    Share(f64),
}

impl Labels {
    pub fn of(cell: &Cell) -> Labels {
        cell.labelled.map_or(Labels::Share(cell.fraction), Labels::Subjects)
    }

    /// As `finetune --fraction` takes it, of a training side of this many subjects.
    pub fn fraction(self, subjects: usize) -> f64 {
        match self {
            Labels::Subjects(n) => n as f64 / subjects as f64,
            Labels::Share(share) => share,
        }
    }

    /// In the names of cells.
    pub fn suffix(self) -> String {
        match self {
            Labels::Subjects(n) => format!("n{n}"),
            Labels::Share(share) => format!("f{share}"),
        }
    }

    /// Numbers of subjects first, as the only share beside them is all.
    pub fn order(&self, other: &Labels) -> Ordering {
        match (self, other) {
            (Labels::Subjects(a), Labels::Subjects(b)) => a.cmp(b),
            (Labels::Share(a), Labels::Share(b)) => a.total_cmp(b),
            (Labels::Subjects(_), _) => Ordering::Less,
            (Labels::Share(_), _) => Ordering::Greater,
        }
    }
}

impl Records {
    /// Every number or share of labels, in rising order.
    pub fn labels(&self) -> Vec<Labels> {
        let mut labels: Vec<Labels> = self.sweep.cells.iter().map(Labels::of).collect();
        labels.sort_by(Labels::order);
        labels.dedup();
        labels
    }
}
