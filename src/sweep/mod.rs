//! Sweeps: every combination of pretext task, arm, label fraction and seed once, each in a process of its own, resumable and
//! shared between machines.

pub mod config;
mod leak;
mod process;
mod shard;

pub use shard::Shard;

use crate::data::split::{Fold, Split};
use crate::data::store::Store;
use crate::fs::{LOCK, Lock, check_folder, lock_part, try_lock, write_atomic};
use crate::print::{self, note, say};
use crate::report::study::write_report;
use crate::run::input::Input;
use crate::run::record::{self, CellResult};
use crate::run::split::{TestSide, draw_split, warn_of_thin_classes};
use crate::settings::CONFIG;
use crate::study::read::{self as study, Cell, Sweep};
use crate::study::repetitions::{Repetitions, SEED_LISTS};
use crate::train::session::Ended;
use crate::train::stop::Stop;
use anyhow::{Context, Result, bail, ensure};
use config::{Finetuning, Pretraining, SweepConfig, split_suffix};
use process::{ProcessEnd, run_logged};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// One unit of work.
#[derive(Clone, Copy)]
enum Work<'a> {
    Pretrain(&'a Pretraining),
    Finetune(&'a Finetuning),
}

/// Locked in a cell's folder by the sweep that runs it and by the cell's process; that process locks [`LOCK`], too.
const CELL_LOCK: &str = ".cell-lock";

/// Seconds between looking whether another process has finished what this one waits for.
const WAIT: Duration = Duration::from_secs(2);

/// A sweep under way.
pub struct Runner {
    config: SweepConfig,
    folder: PathBuf,
    shard: Shard,
    pretrainings: Vec<Pretraining>,
    finetunings: Vec<Finetuning>,
    /// Content of `sweep.json`.
    sweep: Sweep,
    repetitions: Repetitions,
    /// One split for all cells, or one for each fold and each seed of splits.
    splits: Vec<Split>,
}

impl Runner {
    /// Reads and checks all that can be known before anything runs; writes nothing. The lists of an earlier start in this folder
    /// may grow; what else was set must stay. `check` errors on a command line that its command would refuse before it reads data.
    pub fn plan(config: SweepConfig, folder: PathBuf, shard: Shard, check: &dyn Fn(&[String]) -> Result<()>) -> Result<Runner> {
        let store = Store::open(&config.data)?.sliced(config.slices()?)?;
        let finetunings = config.finetunings(store.rank()?.n())?;
        let pretrainings = config.pretrainings()?;
        let repetitions = config.repetitions()?;
        let sweep = Sweep {
            version: record::VERSION,
            name: config.name.clone(),
            title: config.title.clone(),
            settings: serde_json::to_value(&config)?,
            cells: finetunings.iter().map(|f| f.cell.clone()).collect(),
            published: config.published.clone(),
        };
        study::check(&sweep)?;
        let record = folder.join("sweep.json");
        if record.exists() {
            let before: Sweep = study::read_json(&record)?;
            same_settings(&before.settings, &sweep.settings)
                .with_context(|| format!("{}: holds a sweep of other settings; give another --out", folder.display()))?;
        }
        let splits = splits(&config, &repetitions, &folder, &store, record.exists())?;
        let runner = Runner { config, folder, shard, pretrainings, finetunings, sweep, repetitions, splits };
        runner.check_fractions()?;
        leak::check(&runner.config, &store, &runner.splits)?;
        runner.compare_inputs(&store)?;
        // A misspelt flag shows now, not hours later.
        for work in runner.work() {
            check(&runner.arguments(work)?).with_context(|| runner.name(work))?;
        }
        Ok(runner)
    }

    /// Errors on a command line that does not fit the stores, such as a patch larger than the scans, by `check`. What a kind of work asks of
    /// the data does not depend on its seed or share.
    pub fn check_data(&self, check: &dyn Fn(&[String]) -> Result<()>) -> Result<()> {
        let mut tried = BTreeSet::new();
        for work in self.work() {
            let first = match work {
                Work::Pretrain(p) => tried.insert(("pretrain", p.tasks.as_str())),
                Work::Finetune(f) => tried.insert((f.cell.pretext.as_str(), f.cell.arm.as_str())),
            };
            if first {
                check(&self.arguments(work)?).with_context(|| self.name(work))?;
            }
        }
        Ok(())
    }

    /// Says where the scans that are pretrained on are others in kind than those that are fine-tuned on.
    fn compare_inputs(&self, store: &Store) -> Result<()> {
        let Some(folder) = &self.config.unlabelled else { return Ok(()) };
        let unlabelled = Store::open(folder)?.sliced(self.config.slices()?)?;
        for warning in Input::of(&unlabelled).fit(&Input::of(store)).warnings {
            note!("warning: `unlabelled`: encoders will be {warning} in {}", self.config.data.display());
        }
        Ok(())
    }

    /// Makes or takes up the sweep's folder: `sweep.json`, and `split.json` or that of every fold, drawn once. The shard is this
    /// process's own as long as what is returned lives.
    fn prepare(&self) -> Result<Lock> {
        ["pretrain", "cells", "report"].iter().try_for_each(|part| check_folder(&self.folder.join(part)))?;
        fs::create_dir_all(&self.folder).with_context(|| format!("making {}", self.folder.display()))?;
        let Shard { index, count } = self.shard;
        let taken = lock_part(&self.folder, &format!("{LOCK}-{}-of-{count}", index + 1))?;
        write_atomic(&self.folder.join("sweep.json"), |file| Ok(serde_json::to_writer_pretty(file, &self.sweep)?))?;
        let several = self.repetitions.splits_vary();
        let file = |split: &Split| split_file(&self.folder, several.then_some(split.seed), split.fold.map(|f| f.number));
        self.splits.iter().try_for_each(|split| split.save(&file(split)))?;
        Ok(taken)
    }

    /// The command lines of what this shard has left to do, as a shell takes them.
    pub fn commands(&self) -> Result<Vec<String>> {
        self.left().into_iter().map(|work| Ok(print::command_line(self.arguments(work)?))).collect()
    }

    /// Numbers of pretrainings and of fine-tunings of the whole sweep.
    pub fn amount(&self) -> String {
        format!("{} pretrainings and {} fine-tunings", self.pretrainings.len(), self.finetunings.len())
    }

    /// Every label fraction leaves a subject.
    fn check_fractions(&self) -> Result<()> {
        for split in &self.splits {
            let n = split.train.len();
            if let Some(few) = self.config.fractions.iter().find(|&&f| (f * n as f64).round() < 1.) {
                bail!("`fractions`: {few} leaves no subject of the {n} on the training side");
            }
        }
        Ok(())
    }

    fn work(&self) -> impl Iterator<Item = Work<'_>> {
        let pretrain = self.pretrainings.iter().map(Work::Pretrain);
        pretrain.chain(self.finetunings.iter().map(Work::Finetune))
    }

    fn pretrain_dir(&self, p: &Pretraining) -> PathBuf {
        self.folder.join("pretrain").join(p.id())
    }

    fn dir(&self, work: Work) -> PathBuf {
        match work {
            Work::Pretrain(p) => self.pretrain_dir(p),
            Work::Finetune(f) => self.folder.join("cells").join(&f.cell.id),
        }
    }

    fn name(&self, work: Work) -> String {
        match work {
            Work::Pretrain(p) => format!("pretraining {}", p.id()),
            Work::Finetune(f) => f.cell.id.clone(),
        }
    }

    fn weights(&self, p: &Pretraining) -> PathBuf {
        self.pretrain_dir(p).join("encoder")
    }

    fn is_done(&self, work: Work) -> bool {
        self.dir(work).join("result.json").is_file()
    }

    /// Whether what it starts from is there.
    fn is_ready(&self, work: Work) -> bool {
        match work {
            Work::Pretrain(_) => true,
            Work::Finetune(f) => f.pretraining.is_none_or(|i| self.is_done(Work::Pretrain(&self.pretrainings[i]))),
        }
    }

    /// Arguments of the process that does the work, from its beginning.
    fn arguments(&self, work: Work) -> Result<Vec<String>> {
        let path = |p: &Path| p.display().to_string();
        let split = |seed, fold| path(&split_file(&self.folder, seed, fold));
        let dir = path(&self.dir(work));
        let config = &self.config;
        let mut arguments;
        match work {
            Work::Pretrain(p) => {
                let data = config.unlabelled.as_ref().unwrap_or(&config.data);
                arguments = vec!["pretrain".to_owned(), format!("--data={}", path(data)), format!("--task={}", p.tasks)];
                arguments.extend([format!("--fraction={}", p.fraction), format!("--seed={}", p.seed)]);
                if config.unlabelled.is_none() {
                    arguments.push(format!("--split={}", split(p.split, p.fold)));
                }
                arguments.push(format!("--weights={}", path(&self.weights(p))));
                arguments.extend(config.pretrain_flags(p)?);
            }
            Work::Finetune(f) => {
                let Cell { arm, fraction, seed, fold, .. } = &f.cell;
                let weights = f.pretraining.map(|i| self.weights(&self.pretrainings[i]).with_extension("pt"));
                let weights = weights.map_or("none".to_owned(), |w| path(&w));
                arguments = vec!["finetune".to_owned(), format!("--data={}", path(&config.data))];
                arguments.push(format!("--split={}", split(self.repetitions.split_of(f.draw), *fold)));
                arguments.extend([format!("--weights={weights}"), format!("--arm={arm}")]);
                arguments.extend([format!("--fraction={fraction}"), format!("--seed={seed}")]);
                arguments.push(format!("--subset-seed={}", f.draw.subset));
                if config.other_people && f.pretraining.is_some() {
                    arguments.push("--other-people".into());
                }
                arguments.extend(config.finetune_flags()?);
            }
        }
        arguments.push(format!("--out={dir}"));
        Ok(arguments)
    }

    /// This shard's work.
    fn own(&self) -> impl Iterator<Item = Work<'_>> {
        self.work().filter(|&work| self.index_of(work) % self.shard.count == self.shard.index)
    }

    fn left(&self) -> Vec<Work<'_>> {
        self.own().filter(|&work| !self.is_done(work)).collect()
    }

    /// Runs what is left of this shard's work. Errors at the end if any of it failed; the rest is done nevertheless.
    pub fn run(&self) -> Result<Ended> {
        let stop = Stop::on_signals()?;
        let _taken = self.prepare()?;
        let mut left = self.left();
        let total = self.own().count();
        note!("{}: {}, {} of {total} in this shard to do", self.folder.display(), self.amount(), left.len());
        let (started, earlier, mut done, mut failed) = (Instant::now(), total - left.len(), 0, Vec::new());
        while let Some(work) = self.next(&mut left) {
            match self.run_one(work, &stop)? {
                ProcessEnd::Done => done += 1,
                ProcessEnd::Stopped => {
                    note!("stopped; run the same command to go on");
                    return Ok(Ended::Stopped);
                }
                ProcessEnd::Failed(why) => {
                    note!("{}: {why}", self.name(work));
                    let before = left.len();
                    if let Work::Pretrain(p) = work {
                        left.retain(|w| self.pretraining(*w) != Some(p));
                    }
                    let lost = before - left.len();
                    failed.push(self.name(work) + &if lost > 0 { format!(" and with it {lost} cells") } else { String::new() });
                }
            }
            let each = started.elapsed().as_secs_f64() / done.max(1) as f64;
            let minutes = (each * left.len() as f64 / 60.).ceil();
            let time = if left.is_empty() { String::new() } else { format!(", about {minutes} min") };
            note!("{} done, {} left{time}", earlier + done, left.len());
        }
        if !failed.is_empty() {
            bail!("{} failed: {}; run the same command to try again", failed.len(), failed.join(", "));
        }
        Ok(Ended::Finished)
    }

    /// Takes the next work that can be done. Where all that is left lacks another shard's pretraining, that one: the other shard
    /// may have failed, or may never come; if it is at it, its lock is waited for.
    fn next<'a>(&'a self, left: &mut Vec<Work<'a>>) -> Option<Work<'a>> {
        match left.iter().position(|&w| self.is_ready(w)) {
            Some(ready) => Some(left.remove(ready)),
            None => left.first().and_then(|&w| self.pretraining(w)).map(Work::Pretrain),
        }
    }

    /// Whether every cell of every shard is done.
    pub fn complete(&self) -> bool {
        self.work().all(|w| self.is_done(w))
    }

    /// Writes the report on what is done.
    pub fn report(&self) -> Result<String> {
        write_report(std::slice::from_ref(&self.folder), &self.folder.join("report"))
    }

    fn index_of(&self, work: Work) -> usize {
        match work {
            Work::Pretrain(p) => self.pretrainings.iter().position(|q| q == p).expect("one of them"),
            Work::Finetune(f) => self.finetunings.iter().position(|g| g.cell.id == f.cell.id).expect("one of them"),
        }
    }

    /// What a fine-tuning starts from.
    fn pretraining<'a>(&'a self, work: Work<'a>) -> Option<&'a Pretraining> {
        match work {
            Work::Pretrain(_) => None,
            Work::Finetune(f) => f.pretraining.map(|i| &self.pretrainings[i]),
        }
    }

    /// Starts or resumes one process.
    fn run_one(&self, work: Work, stop: &Stop) -> Result<ProcessEnd> {
        let dir = self.dir(work);
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        // A sweep that was killed leaves a process that is saving, and another number of shards shares the work out differently.
        let mut told = false;
        let lock = loop {
            if let Some(lock) = try_lock(&dir.join(CELL_LOCK))? {
                break lock;
            }
            if !told {
                note!("{}: waiting for another process that is at it", self.name(work));
                told = true;
            }
            std::thread::sleep(WAIT);
            if stop.asked() {
                return Ok(ProcessEnd::Stopped);
            }
        };
        if self.is_done(work) {
            return Ok(ProcessEnd::Done);
        }
        let arguments = match dir.join(CONFIG).is_file() {
            true => {
                let command = if matches!(work, Work::Pretrain(_)) { "pretrain" } else { "finetune" };
                vec![command.to_owned(), format!("--resume={}", dir.display())]
            }
            false => self.arguments(work)?,
        };
        let started = Instant::now();
        let outcome = run_logged(&arguments, &dir.join("log.txt"), &lock, stop)?;
        if matches!(outcome, ProcessEnd::Done) {
            ensure!(self.is_done(work), "{}: ended without a result.json", dir.display());
            let score = match work {
                Work::Finetune(_) => {
                    let result: CellResult = study::read_json(&dir.join("result.json"))?;
                    result.score.map_or("undefined".into(), |s| format!("{} {s:.4}", result.metric))
                }
                Work::Pretrain(_) => "pretrained".to_owned(),
            };
            say!("{}: {score}, {:.0} s", self.name(work), started.elapsed().as_secs_f64());
        }
        Ok(outcome)
    }
}

/// Where the split of all cells, or of a seed or fold, is kept.
fn split_file(folder: &Path, seed: Option<u64>, fold: Option<u64>) -> PathBuf {
    folder.join(format!("split{}.json", split_suffix(seed, fold)))
}

/// The split of all cells, or one for each fold, also for folds that are not run. Splits of an earlier start are read again.
fn splits(config: &SweepConfig, repetitions: &Repetitions, folder: &Path, store: &Store, again: bool) -> Result<Vec<Split>> {
    let needs = config.downstream()?.needs();
    let sides = match (config.folds, config.test_fraction) {
        (Some(of), _) => (0..of).map(|number| TestSide::Fold(Fold { number, of })).collect::<Vec<_>>(),
        (None, share) => vec![TestSide::Share(share.unwrap_or_default())],
    };
    let labelled = store.index().subjects.iter().any(|s| needs.met_by(s));
    ensure!(labelled, "{}: no subject has a label for this task", config.data.display());
    if let Some(folds) = config.folds {
        warn_of_thin_classes(store, needs, folds);
    }
    let seeds: BTreeSet<u64> = repetitions.draws.values().map(|draw| draw.split).collect();
    let several = repetitions.splits_vary();
    let split = |(seed, side): (u64, TestSide)| {
        let file = split_file(folder, several.then_some(seed), side.fold());
        // Without `sweep.json` a split is left over from other settings.
        match again && file.exists() {
            true => Split::load(&file),
            false => draw_split(store, needs, config.val_fraction, side, seed),
        }
    };
    seeds.into_iter().flat_map(|seed| sides.iter().map(move |&side| (seed, side))).map(split).collect()
}

/// Errors with the first setting that differs; some lists may grow, but not shrink, which would drop finished cells. A seed stays what
/// it was.
fn same_settings(before: &Value, now: &Value) -> Result<()> {
    let (was, is) = (Repetitions::of(before)?, Repetitions::of(now)?);
    for (seed, was) in &was.draws {
        if let Some(is) = is.draws.get(seed).filter(|is| *is != was) {
            bail!(
                "seed {seed} was of pretraining {}, label subset {} and split {}, and is now of {}, {} and {}: see `pretrain_seeds`, \
                 `subset_seeds` and `split_seeds`",
                was.pretraining,
                was.subset,
                was.split,
                is.pretraining,
                is.subset,
                is.split
            );
        }
    }
    const MAY_GROW: [&str; 6] = ["tasks", "arms", "fractions", "seeds", "unlabelled_fractions", "run_folds"];
    let (Some(before), Some(now)) = (before.as_object(), now.as_object()) else { bail!("settings are not a table") };
    let free = |key: &str| ["published", "other_people", "split_seed"].contains(&key) || SEED_LISTS.contains(&key);
    for key in before.keys().chain(now.keys()).filter(|key| !free(key)) {
        let (was, is) = (before.get(key).unwrap_or(&json!(null)).clone(), now.get(key).unwrap_or(&json!(null)).clone());
        let grown = match (&was, &is) {
            (Value::Array(was), Value::Array(is)) if MAY_GROW.contains(&key.as_str()) => {
                was.iter().all(|item| is.contains(item))
            }
            _ => was == is,
        };
        ensure!(grown, "`{key}` was {was} and is now {is}");
    }
    Ok(())
}
