//! Weights that sweeps were given.

use super::document::{Block, Table};
use crate::study::compare::{Arm, given_names};
use crate::study::read::{Finished, Records};
use std::collections::BTreeSet;

/// Where they lie, what encoder they have, and what fine-tuning warned of.
pub fn weights(records: &Records) -> Vec<Block> {
    let runs = |name: &str| -> Vec<&Finished> {
        records.runs().filter(|(cell, _)| cell.given && cell.pretext == name).map(|(_, f)| f).collect()
    };
    let arms: Vec<Arm> = records.runs().map(|(cell, _)| Arm::of(cell)).collect();
    let (mut rows, mut warnings) = (Vec::new(), Vec::new());
    for name in given_names(&arms) {
        let runs = runs(name);
        let all = |of: &dyn Fn(&Finished) -> Option<String>| {
            runs.iter().filter_map(|run| of(run)).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join("; ")
        };
        let (files, encoders) = (all(&|run| run.result.weights.clone()), all(&|run| run.result.encoder.clone()));
        rows.push(vec![name.as_str().into(), files.into(), encoders.into()]);
        let said: BTreeSet<&String> = runs.iter().flat_map(|run| &run.result.warnings).collect();
        warnings.extend(said.into_iter().map(|warning| format!("{name}: {warning}")));
    }
    if rows.is_empty() {
        return Vec::new();
    }
    let baseline = arms.iter().filter(|arm| arm.is_scratch()).find_map(|arm| Some(("scratch", records.encoder(arm)?)));
    rows.extend(baseline.map(|(name, encoder)| vec![name.into(), "-".into(), encoder.into()]));
    let head = ["weights", "file", "encoder"].map(String::from).into();
    let mut blocks = vec![Block::Heading(2, "Given weights".into()), Block::Table(Table { head, rows })];
    if !warnings.is_empty() {
        blocks.push(Block::Paragraph("What fine-tuning warned of:".into()));
        blocks.push(Block::List(warnings));
    }
    blocks
}

/// Where runs of one arm began from different weights: the file was changed while a sweep ran, or sweeps had one name for two files.
pub fn changed(records: &Records) -> Vec<String> {
    let arms: Vec<Arm> = records.runs().map(|(cell, _)| Arm::of(cell)).collect();
    let mut said = Vec::new();
    for name in given_names(&arms) {
        let of_arm = |arm: &&Arm| arm.given && arm.pretext == *name;
        let several = |arm: &Arm| {
            let runs = records.runs().filter(|(cell, _)| Arm::of(cell) == *arm);
            runs.filter_map(|(_, f)| f.result.weights_fingerprint.as_ref()).collect::<BTreeSet<_>>().len() > 1
        };
        if arms.iter().filter(of_arm).any(several) {
            said.push(format!("cells from the weights {name} began from different ones: the file was changed meanwhile"));
        }
    }
    said
}
