//! A study's figures.

use super::words::{amount, of_labels, percent};
use crate::report::chart::{Across, ChartPanel, Figure, GREY, INK, Point, Series, Style};
use crate::report::surface::Color;
use crate::run::record::{FROZEN, RANDOM, SCRATCH};
use crate::study::compare::{Arm, Comparison, Table};
use crate::study::converge::Curve;
use crate::study::read::Records;
use crate::study::stats::Estimate;
use crate::study::{Convergence, compared};

/// The Okabe-Ito palette without its yellow, which is too pale for lines, and more of Paul Tol's; told apart by colour-blind readers
/// too.
const COLORS: [Color; 11] = [
    [0, 114, 178],
    [213, 94, 0],
    [0, 158, 115],
    [204, 121, 167],
    [230, 159, 0],
    [86, 180, 233],
    [122, 80, 40],
    [136, 34, 85],
    [153, 153, 51],
    [51, 34, 136],
    [170, 68, 153],
];
/// Corners of markers. One fewer than colours, so that tasks that share a colour differ in it.
const MARKERS: [usize; 10] = [1, 4, 3, 6, 5, 8, 7, 10, 9, 12];
/// Of lines, by the arm that an arm is a variant of, and of variants, in turn.
const FULL: &[f32] = &[14.0, 6.0];
const FIXED: &[f32] = &[1.0, 6.0];
const VARIANTS: [&[f32]; 4] = [&[14.0, 4.0, 1.0, 4.0], &[5.0, 4.0], &[20.0, 4.0, 5.0, 4.0], &[10.0, 3.0, 1.0, 3.0, 1.0, 3.0]];
/// How far the outermost of several arms are drawn beside their place, and neighbours from one another at most, pixels: error bars
/// of the same place are told apart, and the place is plain.
const SPREAD: f32 = 6.0;
const STEP: f32 = 2.0;

/// The styles of a study's arms: a colour and a marker a pretext task, dashes for how it was fine-tuned.
pub struct Styles {
    tasks: Vec<String>,
    variants: Vec<String>,
}

impl Styles {
    pub fn of(records: &Records) -> Styles {
        let mut styles = Styles { tasks: Vec::new(), variants: Vec::new() };
        for cell in &records.sweep.cells {
            let of_task = (!cell.is_baseline()).then_some((&mut styles.tasks, &cell.pretext));
            let of_variant = cell.base.as_ref().map(|_| (&mut styles.variants, &cell.arm));
            for (names, name) in of_task.into_iter().chain(of_variant) {
                if !names.contains(name) {
                    names.push(name.clone());
                }
            }
        }
        styles
    }

    fn get(&self, arm: &Arm) -> Style {
        if arm.is_scratch() {
            return Style { color: INK, dashes: &[8.0, 6.0], marker: 1 };
        }
        let variant = self.variants.iter().position(|name| *name == arm.arm);
        let dashes: &[f32] = match (variant, arm.arm.as_str()) {
            (Some(i), _) => VARIANTS[i % VARIANTS.len()],
            (_, "full") => FULL,
            (_, FROZEN) => FIXED,
            _ => &[],
        };
        let task = self.tasks.iter().position(|t| *t == arm.pretext).unwrap_or(0);
        let (color, marker) = match arm.pretext.as_str() {
            SCRATCH => (INK, 1),
            RANDOM => (GREY, 1),
            _ => (COLORS[task % COLORS.len()], MARKERS[task % MARKERS.len()]),
        };
        Style { color, dashes, marker }
    }
}

fn figure(title: String, panels: Vec<ChartPanel>) -> Figure {
    let (columns, size) = match panels.len() {
        0..=1 => (1, [1100.0, 620.0]),
        2 | 4 => (2, [640.0, 500.0]),
        _ => (3, [520.0, 420.0]),
    };
    Figure { title, panels, columns, size, same_up: true }
}

/// Ranks of a study, with what to add to a panel's title for each.
fn panels_by_rank(records: &Records) -> Vec<(usize, String)> {
    let ranks = records.ranks();
    let name = |rank: usize| if ranks.len() > 1 { format!("{rank}D") } else { String::new() };
    ranks.iter().map(|&rank| (rank, name(rank))).collect()
}

/// Joins the parts that are not empty.
fn joined(parts: &[&str]) -> String {
    parts.iter().filter(|p| !p.is_empty()).copied().collect::<Vec<_>>().join(", ")
}

/// Series over named places; `estimates` are given by series, each with the places it has.
fn spread(styles: &Styles, estimates: Vec<(Arm, Vec<Option<Estimate>>)>) -> Vec<Series> {
    let count = estimates.len();
    let step = STEP.min(2.0 * SPREAD / (count.max(2) - 1) as f32);
    let series = estimates.into_iter().enumerate().map(|(i, (arm, places))| {
        let shift = (i as f32 - (count - 1) as f32 / 2.0) * step;
        let point = |(at, e): (usize, Option<Estimate>)| {
            let e = e?;
            Some(Point { x: at as f64, y: e.mean, range: e.interval })
        };
        let points = places.into_iter().enumerate().filter_map(point).collect();
        Series { name: arm.label(&[]), style: styles.get(&arm), shift, points }
    });
    series.collect()
}

/// Score against the share of labels, one panel a share of unlabelled scans and rank.
pub fn efficiency(records: &Records, styles: &Styles, tables: &[Table]) -> Figure {
    let mut panels = Vec::new();
    for table in tables {
        for (rank, name) in panels_by_rank(records) {
            let rows = table.arms.iter().zip(&table.means).filter(|(arm, _)| arm.rank == rank);
            let share =
                if tables.len() > 1 { format!("{} of the unlabelled scans", percent(table.unlabelled)) } else { String::new() };
            panels.push(ChartPanel {
                title: Some(joined(&[&share, &name])),
                across: Across::Names(table.labels.iter().map(|&labels| amount(records, labels)).collect()),
                across_label: "labelled training subjects".into(),
                up_label: format!("test {}", records.metric()),
                from_zero: false,
                level: None,
                series: spread(styles, rows.map(|(arm, means)| (arm.clone(), means.clone())).collect()),
            });
        }
    }
    figure(format!("Test {} against the share of labels", records.metric()), panels)
}

/// Validation score against the epoch, one panel a share of labels, share of unlabelled scans and rank.
pub fn convergence(records: &Records, styles: &Styles, parts: &[Convergence]) -> Figure {
    let metric = records.done().next().map_or("", |(_, f)| &f.result.validation_metric);
    let mut panels = Vec::new();
    for Convergence { unlabelled, labels, curves, reach } in parts {
        for (rank, name) in panels_by_rank(records) {
            let curves: Vec<&Curve> = curves.iter().filter(|c| c.arm.rank == rank).collect();
            let last = curves.iter().filter_map(|c| Some(c.points.last()?.0)).max().unwrap_or(1);
            let series = curves.iter().map(|c| Series {
                name: c.arm.label(&[]),
                style: Style { marker: 0, ..styles.get(&c.arm) },
                shift: 0.0,
                points: c.points.iter().map(|&(e, y)| Point { x: e as f64, y, range: None }).collect(),
            });
            let share = unlabelled.map_or(String::new(), |u| format!("{} unlabelled", percent(u)));
            let goal = reach.iter().find(|r| r.scratch.rank == rank).map(|r| ("scratch at the end".to_string(), r.goal));
            panels.push(ChartPanel {
                title: Some(joined(&[&of_labels(records, *labels), &share, &name])),
                across: Across::Whole(1.0, last as f64),
                across_label: "epoch".into(),
                up_label: format!("validation {metric}"),
                from_zero: false,
                level: goal,
                series: series.collect(),
            });
        }
    }
    figure(format!("Validation {metric} against the epoch"), panels)
}

/// Difference to scratch against the share of unlabelled scans, one panel a share of labels and rank.
pub fn scaling(records: &Records, styles: &Styles, tables: &[Table]) -> Figure {
    let mut panels = Vec::new();
    for labels in records.labels() {
        for (rank, name) in panels_by_rank(records) {
            let arms = compared(tables).into_iter().filter(|arm| arm.rank == rank);
            let here = |c: &&Comparison, arm: &Arm| c.arm == *arm && c.labels == labels;
            let estimate = |table: &Table, arm: &Arm| Some(table.scratch.iter().find(|c| here(c, arm))?.paired?.difference);
            let series = arms.map(|arm| (tables.iter().map(|t| estimate(t, &arm)).collect(), arm)).map(|(e, arm)| (arm, e));
            panels.push(ChartPanel {
                title: Some(joined(&[&of_labels(records, labels), &name])),
                across: Across::Names(tables.iter().map(|t| percent(t.unlabelled)).collect()),
                across_label: "unlabelled scans in pretraining".into(),
                up_label: format!("{} minus scratch", records.metric()),
                from_zero: true,
                level: Some(("scratch".into(), 0.0)),
                series: spread(styles, series.collect()),
            });
        }
    }
    figure(format!("Difference of {} to scratch against the share of unlabelled scans", records.metric()), panels)
}
