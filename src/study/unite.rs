//! Several sweeps in one report.

use super::read::{Records, Sweep, check_places};
use super::repetitions::Repetitions;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;

impl Records {
    /// The records of one sweep, or of several together: then the names of cells and pretrainings begin with their sweep's.
    ///
    /// Errors: no folder, what [`Records::read`] refuses, different metrics, and cells of two sweeps that no table could tell
    /// apart.
    pub fn read_all(folders: &[PathBuf]) -> Result<Records> {
        let parts = folders.iter().map(|folder| Records::read(folder)).collect::<Result<Vec<_>>>()?;
        let names: Vec<String> = parts.iter().map(|part| part.sweep.name.clone()).collect();
        let titles: Vec<String> = parts.iter().map(Records::title).collect();
        let mut parts = parts.into_iter().zip(folders).enumerate();
        let (_, (mut all, first)) = parts.next().context("no sweep's folder given")?;
        if folders.len() == 1 {
            return Ok(all);
        }
        let label = |i: usize| match names.iter().filter(|name| **name == names[i]).count() {
            1 => names[i].clone(),
            _ => folders[i].display().to_string(),
        };
        all.name_after(&label(0));
        for (i, (mut part, folder)) in parts {
            let (found, expected) = (part.metric(), all.metric());
            ensure!(
                found == expected,
                "{}: its metric is {found:?}, that of {} {expected:?}; a common report needs one metric",
                folder.display(),
                first.display()
            );
            all.notes.extend(other_training(&all.sweep, &part.sweep, [first, folder]));
            part.name_after(&label(i));
            all.sweep.cells.extend(part.sweep.cells);
            all.finished.extend(part.finished);
            all.others.extend(part.others);
            all.rates.extend(part.rates.into_iter().map(|(_, rates)| (label(i), rates)));
            let (old, new) = (&all.repetitions[0], &part.repetitions[0]);
            ensure!(
                old.folds == new.folds && old.splits_vary() == new.splits_vary(),
                "{}: its repetitions have {}, those of {} {}; a common report needs the same",
                folder.display(),
                sides(new),
                first.display(),
                sides(old)
            );
            all.origins.extend(part.origins.iter().map(|_| i));
            all.repetitions.extend(part.repetitions);
            all.pretraining.extend(part.pretraining);
            for number in part.sweep.published {
                if !all.sweep.published.contains(&number) {
                    all.sweep.published.push(number);
                }
            }
        }
        all.sweep.title = Some(titles.join(" and "));
        check_places(&all.sweep.cells).context(
            "sweeps that cannot stand in one report: a cell of one stands in another; leave its arm out of one of them",
        )?;
        Ok(all)
    }

    fn name_after(&mut self, sweep: &str) {
        let others = self.others.iter_mut().flatten().map(|run| &mut run.cell.id);
        self.rates.iter_mut().for_each(|rates| rates.0 = sweep.to_owned());
        let names = self
            .sweep
            .cells
            .iter_mut()
            .map(|cell| &mut cell.id)
            .chain(others)
            .chain(self.pretraining.iter_mut().map(|p| &mut p.0));
        names.for_each(|name| *name = format!("{sweep}/{name}"));
    }
}

/// Where a repetition's test side comes from.
fn sides(repetitions: &Repetitions) -> String {
    match (repetitions.folds, repetitions.splits_vary()) {
        (Some(folds), _) => format!("{folds} folds"),
        (None, true) => "splits of their own".into(),
        (None, false) => "one split".into(),
    }
}

/// What two sweeps of the same rank fine-tune with differently.
fn other_training(a: &Sweep, b: &Sweep, folders: [&PathBuf; 2]) -> Option<String> {
    let ranks = |sweep: &Sweep| sweep.cells.iter().map(|cell| cell.rank).collect::<BTreeSet<_>>();
    let [before, now] =
        [a, b].map(|sweep| sweep.settings.get("finetune").and_then(Value::as_object).cloned().unwrap_or_default());
    let keys: BTreeSet<&String> = before.keys().chain(now.keys()).filter(|key| before.get(*key) != now.get(*key)).collect();
    let named: Vec<&str> = keys.into_iter().map(String::as_str).collect();
    (!ranks(a).is_disjoint(&ranks(b)) && !named.is_empty())
        .then(|| format!("{} and {} fine-tune with different {}", folders[0].display(), folders[1].display(), named.join(", ")))
}
