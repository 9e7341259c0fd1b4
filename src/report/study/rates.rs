//! The learning rates that a sweep chose.

use super::document::{Block, Field, Table};
use super::words::number;
use crate::study::cell::Cell;
use crate::study::compare::Arm;
use crate::study::read::Records;

/// What each arm reached at every rate of the grid, the chosen one strong.
pub fn chosen(records: &Records) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (sweep, rates) in &records.rates {
        let several = if records.rates.len() > 1 { format!(" of {sweep}") } else { String::new() };
        blocks.push(Block::Heading(2, format!("Learning rates{several}")));
        let mut grid: Vec<f64> = rates.chosen.iter().flat_map(|chosen| &chosen.grid).map(|tried| tried.lr).collect();
        grid.sort_by(f64::total_cmp);
        grid.dedup();
        let Some(runs) = rates.chosen.iter().flat_map(|chosen| &chosen.grid).map(|tried| tried.runs).max() else {
            blocks.push(Block::Paragraph("None is chosen yet: the runs that choose them are not all done.".into()));
            continue;
        };
        blocks.push(Block::Paragraph(format!(
            "Best validation score at each rate, mean over {runs} runs with seeds and label subsets of their own, from the first \
             repetition's encoder and on the sides of its first split; the best mean is emphasised and chosen, of equal ones the \
             smallest rate. The test side was not looked at."
        )));
        let mut head = vec!["arm".to_string()];
        head.extend(grid.iter().map(f64::to_string));
        head.extend(["own rate".to_string(), "common rate".to_string()]);
        let mut rows = Vec::new();
        for chosen in &rates.chosen {
            let of_arm = |cell: &&Cell| cell.pretext == chosen.pretext && cell.arm == chosen.arm;
            let Some(cell) = records.sweep.cells.iter().find(of_arm) else { continue };
            let field = |lr: &f64| match chosen.grid.iter().find(|tried| tried.lr == *lr) {
                Some(tried) => Field { text: number(tried.score), strong: *lr == chosen.lr },
                None => "-".into(),
            };
            let name: Field = Arm::of(cell).label(&[]).into();
            let rates = [chosen.lr.to_string().into(), cell.lr.map_or("-".into(), |lr| lr.to_string()).into()];
            rows.push(std::iter::once(name).chain(grid.iter().map(field)).chain(rates).collect());
        }
        blocks.push(Block::Table(Table { head, rows }));
    }
    blocks
}
