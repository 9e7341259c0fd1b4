//! A learning rate for every arm, chosen on the validation side from `lr_grid`: runs of their own, at each rate, before the sweep's.

use super::config::SweepConfig;
use super::plan::Finetuning;
use super::{Runner, Work};
use crate::fs::write_atomic;
use crate::print::note;
use crate::study::cell::Cell;
use crate::study::labels::Labels;
use crate::study::rates::{self, Chosen, Rates, at_rate, validation_score};
use anyhow::{Context, Result, ensure};

/// Repetitions that choose rates, unless the file names others: far from the seeds that a sweep is likely to have.
const SEEDS: [u64; 2] = [10_000, 10_001];

impl SweepConfig {
    pub fn check_grid(&self) -> Result<()> {
        let grid = &self.lr_grid;
        if grid.is_empty() {
            let needless = self.lr_grid_seeds.is_some() || !self.lr_grid_labels.is_empty();
            ensure!(!needless, "`lr_grid_seeds` and `lr_grid_labels` go with `lr_grid`");
            return Ok(());
        }
        let mut sorted = grid.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.dedup();
        ensure!(
            sorted.len() == grid.len() && grid.len() > 1 && grid.iter().all(|&rate| rate > 0. && rate.is_finite()),
            "`lr_grid`: expected two or more different rates above 0, found {grid:?}"
        );
        for seed in self.grid_seeds() {
            ensure!(
                !self.seeds.contains(&seed),
                "`lr_grid_seeds`: {seed} is one of `seeds`; rates are chosen by repetitions of their own"
            );
        }
        ensure!(!self.grid_seeds().is_empty(), "`lr_grid_seeds` is empty");
        self.grid_labels().map(|_| ())
    }

    fn grid_seeds(&self) -> Vec<u64> {
        self.lr_grid_seeds.clone().unwrap_or(SEEDS.to_vec())
    }

    /// How many labels rates are chosen with: the fewest, unless the file says otherwise.
    fn grid_labels(&self) -> Result<Vec<Labels>> {
        let all = self.labels()?;
        if self.lr_grid_labels.is_empty() {
            return Ok(all.into_iter().min_by(Labels::order).into_iter().collect());
        }
        let parse = |value| self.labels_of(value).with_context(|| format!("`lr_grid_labels`: {value}"));
        let some = self.lr_grid_labels.iter().map(parse).collect::<Result<Vec<_>>>()?;
        for (labels, value) in some.iter().zip(&self.lr_grid_labels) {
            ensure!(all.contains(labels), "`lr_grid_labels`: {value} is none of those that the sweep trains with");
        }
        Ok(some)
    }

    /// The runs that choose rates: every arm at each rate, from the first repetition's encoder of the largest share of unlabelled scans, on
    /// the sides of its first split or fold, with label subsets of their own.
    pub fn tunings(&self, rank: usize, subjects: &dyn Fn(u64, Option<u64>) -> usize) -> Result<Vec<Finetuning>> {
        let mut out = Vec::new();
        if self.lr_grid.is_empty() {
            return Ok(out);
        }
        let first = self.repetitions()?.draws[&self.seeds[0]];
        let most = self.unlabelled_fractions.iter().copied().fold(0., f64::max);
        for seed in self.grid_seeds() {
            let draw = crate::study::repetitions::Draw { subset: seed, ..first };
            for labels in self.grid_labels()? {
                let cells = self.cells(rank, seed, self.folds()[0], draw, labels, subjects)?;
                for f in cells.into_iter().filter(|f| !f.cell.is_pretrained_here() || f.cell.unlabelled == most) {
                    out.extend(self.lr_grid.iter().map(|&lr| Finetuning { cell: at_rate(&f.cell, lr), ..f.clone() }));
                }
            }
        }
        Ok(out)
    }
}

impl Runner {
    /// The runs that choose an arm's rate.
    pub fn tunings_of<'a>(&'a self, cell: &'a Cell) -> impl Iterator<Item = usize> + 'a {
        let same = |other: &Cell| other.pretext == cell.pretext && other.arm == cell.arm;
        (0..self.tunings.len()).filter(move |&i| same(&self.tunings[i].cell))
    }

    /// A cell at its arm's own rate, once that is chosen.
    pub fn own_cell(&self, i: usize) -> Option<Cell> {
        let cell = &self.finetunings[i].cell;
        let lr = self.rates.borrow().of(&cell.pretext, &cell.arm)?.lr;
        Some(if cell.lr == Some(lr) { cell.clone() } else { at_rate(cell, lr) })
    }

    /// Chooses the rates of the arms whose runs are all done, and keeps them: they stay what they are when the sweep goes on.
    pub fn choose_rates(&self) -> Result<()> {
        if self.config.lr_grid.is_empty() {
            return Ok(());
        }
        // Another shard may have been first.
        let mut known = Rates::read(&self.folder)?;
        let (before, lower_is_better) = (known.chosen.len(), self.config.downstream()?.lower_is_better());
        for cell in self.finetunings.iter().map(|f| &f.cell) {
            let works: Vec<usize> = self.tunings_of(cell).collect();
            let open = known.of(&cell.pretext, &cell.arm).is_none();
            if !open || !works.iter().all(|&i| self.is_done(Work::Tune(i))) {
                continue;
            }
            let run = |&i: &usize| {
                let lr = self.tunings[i].cell.lr.context("a run of the grid has a rate")?;
                Ok((lr, validation_score(&self.dir(Work::Tune(i)))?))
            };
            let runs = works.iter().map(run).collect::<Result<Vec<_>>>()?;
            if let Some(chosen) = Chosen::best(&cell.pretext, &cell.arm, &runs, lower_is_better) {
                note!("{} {}: lr {} of {:?}", chosen.pretext, chosen.arm, chosen.lr, self.config.lr_grid);
                known.chosen.push(chosen);
            }
        }
        if known.chosen.len() > before {
            write_atomic(&self.folder.join(rates::FILE), |file| Ok(serde_json::to_writer_pretty(file, &known)?))?;
        }
        *self.rates.borrow_mut() = known;
        Ok(())
    }
}
