//! What the records of one or several sweeps say: statistics and curves, from their folders alone. Knows no report.

pub mod cell;
pub mod compare;
pub mod converge;
mod fair;
pub mod labels;
pub mod rates;
pub mod read;
pub mod repetitions;
pub mod results;
pub mod stats;
mod unite;

use compare::{Arm, Table};
use converge::{Curve, Reach, curves, reach};
use labels::Labels;
use read::Records;

/// Convergence with so many labels, of one share of unlabelled scans (none if there is only one).
pub struct Convergence {
    pub unlabelled: Option<f64>,
    pub labels: Labels,
    pub curves: Vec<Curve>,
    pub reach: Vec<Reach>,
}

/// Curves of every number of labels and share of unlabelled scans; those without one are left out.
pub fn convergence(records: &Records) -> Vec<Convergence> {
    let shares = records.unlabelled();
    let several = shares.len() > 1;
    let mut parts = Vec::new();
    for labels in records.labels() {
        for &share in &shares {
            let curves = curves(records, labels, share);
            let reach = reach(&curves, labels, records.lower_is_better());
            parts.push(Convergence { unlabelled: several.then_some(share), labels, curves, reach });
        }
    }
    parts.retain(|p| !p.curves.is_empty());
    parts
}

/// Arms that any table compares with scratch.
pub fn compared(tables: &[Table]) -> Vec<Arm> {
    let mut arms: Vec<Arm> = Vec::new();
    for comparison in tables.iter().flat_map(|t| &t.scratch) {
        if !arms.contains(&comparison.arm) {
            arms.push(comparison.arm.clone());
        }
    }
    arms
}
