//! Which pretext tasks help most, whether joint ones beat single ones, and how soon scratch is caught up with.

use super::document::{Block, Field, Table as Grid};
use super::words::{amount, compared_arm, finding, mean, number, of_labels, p_value, percent, range, section};
use crate::study::Convergence;
use crate::study::compare::{Arm, Comparison, Table};
use crate::study::labels::Labels;
use crate::study::read::Records;

/// Arms by their difference to scratch, one table for so many labels.
pub fn ranking(records: &Records, tables: &[Table]) -> Vec<Block> {
    let (ranks, mut blocks) = (records.ranks(), Vec::new());
    for table in tables.iter().filter(|table| !table.scratch.is_empty()) {
        let of = section(table, records.metric(), tables.len() > 1);
        blocks.push(Block::Heading(2, format!("Ranking: {}", of.replacen('T', "t", 1))));
        blocks.push(Block::Paragraph(
            "By the mean difference to scratch. The corrected interval is as wide as Holm's adjustment for all comparisons with scratch \
             asks: it leaves 0 out where the adjusted p-value is below 0.05."
                .into(),
        ));
        for &labels in &table.labels {
            let mut rows: Vec<&Comparison> =
                table.scratch.iter().filter(|c| c.labels == labels && c.paired.is_some()).collect();
            let difference = |c: &Comparison| c.paired.map_or(f64::NAN, |p| p.difference.mean);
            rows.sort_by(|a, b| difference(b).total_cmp(&difference(a)));
            if records.lower_is_better() {
                rows.reverse();
            }
            if rows.is_empty() {
                continue;
            }
            blocks.push(Block::Heading(3, of_labels(records, labels) + &trained_on(records, labels)));
            let row = |(i, c): (usize, &&Comparison)| -> Vec<Field> {
                let fields = [
                    (i + 1).to_string(),
                    compared_arm(c, &ranks, "scratch"),
                    c.paired.map_or("-".into(), |p| mean(&p.difference)),
                    c.corrected.map_or("-".into(), range),
                    p_value(c.holm),
                ];
                fields.map(Field::from).into()
            };
            let head = ["", "arm", "minus scratch (95 %)", "corrected 95 %", "p, Holm"].map(String::from).into();
            blocks.push(Block::Table(Grid { head, rows: rows.iter().enumerate().map(row).collect() }));
        }
        if !table.joint.is_empty() {
            let line = |(single, c): &(Arm, Comparison)| {
                let (name, labels) = (c.arm.label(&ranks), of_labels(records, c.labels));
                format!("{name} against {}, {labels}: {}", single.label(&ranks), finding(c, records.has_folds()))
            };
            blocks.push(Block::Paragraph(
                "Joint tasks against the best single one, which is taken by its mean on the test side and so looks a little better than it \
                 is:"
                .into(),
            ));
            blocks.push(Block::List(table.joint.iter().map(line).collect()));
        }
    }
    blocks
}

/// How many subjects a share of the labels is, as finished runs say.
fn trained_on(records: &Records, labels: Labels) -> String {
    let here = || records.done().filter(|(cell, _)| Labels::of(cell) == labels).map(|(_, f)| f.result.train_subjects);
    match (labels, here().min(), here().max()) {
        (Labels::Share(_), Some(least), Some(most)) if least == most => format!(": {least} subjects"),
        (Labels::Share(_), Some(least), Some(most)) => format!(": {least} to {most} subjects"),
        _ => String::new(),
    }
}

/// When arms reach scratch's final score, as shares of its epochs.
pub fn reached(records: &Records, convergence: &[Convergence]) -> Vec<Block> {
    let ranks = records.ranks();
    let mut rows = Vec::new();
    for part in convergence {
        for reach in &part.reach {
            let share = |epoch: usize| percent(epoch as f64 / reach.epochs as f64);
            for reached in &reach.first {
                let each: Vec<String> = reached.each.iter().map(|share| share.map_or("never".into(), percent)).collect();
                let fields = [
                    reached.arm.label(&ranks),
                    amount(records, part.labels),
                    part.unlabelled.map_or("-".into(), percent),
                    number(reach.goal),
                    reached.first.map_or("never".into(), share),
                    if each.is_empty() { "-".into() } else { each.join(", ") },
                ];
                rows.push(fields.map(Field::from).into());
            }
        }
    }
    if rows.is_empty() {
        return Vec::new();
    }
    let head = ["arm", "labels", "unlabelled", "scratch's final score", "reached after", "by repetition"];
    vec![
        Block::Paragraph(
            "The share of scratch's epochs after which an arm's validation score first reaches scratch's own final one: of the means over \
             repetitions, and in each repetition of its own scratch. Epochs have as many steps in every arm, unless the settings of \
             the arms say otherwise."
                .into(),
        ),
        Block::Table(Grid { head: head.map(String::from).into(), rows }),
    ]
}
