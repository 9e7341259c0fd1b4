//! Sweeps: every combination of pretext task, arm, label fraction and seed once, each in a process of its own, resumable and
//! shared between machines.

mod arms;
pub mod config;
mod given;
mod grow;
mod leak;
mod plan;
mod process;
mod rates;
mod read;
mod run;
mod splits;
mod stores;

use crate::data::split::Split;
use crate::data::store::Store;
use crate::fs::{LOCK, Lock, check_folder, lock_part, write_atomic};
use crate::nn::EncoderConfig;
use crate::print::{self, note};
use crate::report::study::write_report;
use crate::run::input::Input;
use crate::run::record::{self, RESULT};
use crate::shard::Shard;
use crate::study::cell::Cell;
use crate::study::rates::{Rates, TUNING};
use crate::study::read::{self as study, Sweep};
use crate::study::repetitions::Repetitions;
use anyhow::{Context, Result, ensure};
use arms::Source;
use config::SweepConfig;
use given::{Opened, with_digests};
use grow::same_settings;
use plan::{Finetuning, Pretraining, Weights};
use serde_json::{Map, Value};
use splits::{check_labels, split_file, splits, train_subjects};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use stores::Stores;

/// One unit of work, by its place among those of its kind.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Work {
    Pretrain(usize),
    /// A fine-tuning that helps to choose a rate.
    Tune(usize),
    Finetune(usize),
    /// The same at its arm's own rate, once that is chosen; no work at all where it is the common one.
    Own(usize),
}

/// The network of a run with these arguments, as far as it is known; an error where they do not fit the store, or the weights, if the second
/// argument says that these are there.
type DataCheck<'a> = &'a dyn Fn(&[String], bool) -> Result<Option<EncoderConfig>>;

/// A sweep under way.
pub struct Runner {
    config: SweepConfig,
    folder: PathBuf,
    shard: Shard,
    pretrainings: Vec<Pretraining>,
    finetunings: Vec<Finetuning>,
    tunings: Vec<Finetuning>,
    /// Those that are chosen.
    rates: RefCell<Rates>,
    /// Given weights.
    opened: Vec<Opened>,
    stores: Stores,
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
        let store = config.open_store()?;
        let (pretrainings, repetitions) = (config.pretrainings()?, config.repetitions()?);
        let record = folder.join("sweep.json");
        let rates = Rates::read(&folder)?;
        let splits = splits(&config, &repetitions, &folder, &store, record.exists())?;
        let opened = config.weights.iter().map(|weights| Opened::open(weights, &config, &store, &splits));
        let opened = opened.collect::<Result<Vec<_>>>()?;
        let settings = with_digests(serde_json::to_value(&config)?, &opened);
        if record.exists() {
            let before: Sweep = record::read_json(&record)?;
            same_settings(&before.settings, &settings, !rates.chosen.is_empty())
                .with_context(|| format!("{}: holds a sweep of other settings; give another --out", folder.display()))?;
        }
        check_labels(&config.labels()?, &splits)?;
        let (rank, subjects) = (store.rank()?.n(), |seed, fold| train_subjects(&splits, seed, fold));
        let (finetunings, tunings) = (config.finetunings(rank, &subjects)?, config.tunings(rank, &subjects)?);
        let sweep = Sweep {
            version: record::VERSION,
            name: config.name.clone(),
            title: config.title.clone(),
            settings,
            cells: finetunings.iter().map(|f| f.cell.clone()).collect(),
            published: config.published.clone(),
        };
        study::check(&sweep)?;
        let (rates, stores) = (RefCell::new(rates), Stores::of(&config, &store)?);
        let runner = Runner {
            config,
            folder,
            shard,
            pretrainings,
            finetunings,
            tunings,
            rates,
            opened,
            stores,
            sweep,
            repetitions,
            splits,
        };
        for work in runner.work() {
            runner.stores.check_run(&runner.dir(work), matches!(work, Work::Pretrain(_)))?;
        }
        leak::check(&runner.config, &store, &runner.splits)?;
        runner.compare_inputs(&store)?;
        // A misspelt flag shows now, not hours later.
        for work in runner.known() {
            check(&runner.arguments(work)?).with_context(|| runner.name(work))?;
        }
        Ok(runner)
    }

    /// Errors on a command line that does not fit the stores, such as a patch larger than the scans, by `check`, and where scans lead to
    /// different networks. What a kind of work asks of the data does not depend on its seed or share. Given weights are loaded, and may have
    /// another encoder, which is said.
    pub fn check_data(&self, check: DataCheck) -> Result<()> {
        let mut tried = BTreeSet::new();
        let mut known: Option<(String, EncoderConfig)> = None;
        for work in self.known() {
            let first = match work {
                Work::Pretrain(i) => tried.insert(("pretrain", self.pretrainings[i].tasks.as_str())),
                Work::Finetune(i) => {
                    let Cell { pretext, arm, .. } = &self.finetunings[i].cell;
                    tried.insert((pretext.as_str(), arm.as_str()))
                }
                // Only the rate is another.
                Work::Tune(_) | Work::Own(_) => false,
            };
            if first {
                let (name, given) = (self.name(work), matches!(self.weights_of(work), Weights::Given(_)));
                let Some(network) = check(&self.arguments(work)?, given).with_context(|| name.clone())? else { continue };
                if given {
                    continue;
                }
                let (other, wanted) = known.get_or_insert_with(|| (name.clone(), network.clone()));
                ensure!(
                    network.same_shape(wanted),
                    "{name} has {} levels, {other} {}; all arms need the same network: set `levels` in [pretrain] and [finetune]",
                    network.levels().len(),
                    wanted.levels().len()
                );
            }
        }
        for (weights, opened) in self.config.weights.iter().zip(&self.opened) {
            if let Some((other, network)) = known.as_ref().filter(|(_, network)| !network.same_shape(&opened.encoder)) {
                let (name, own) = (&weights.name, &opened.encoder);
                note!("[[weights]] {name:?}: another encoder ({own}) than that of {other} ({network}); the report says so");
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
        ["pretrain", TUNING, "cells", "report"].iter().try_for_each(|part| check_folder(&self.folder.join(part)))?;
        fs::create_dir_all(&self.folder).with_context(|| format!("making {}", self.folder.display()))?;
        let taken = lock_part(&self.folder, &self.shard.named(LOCK))?;
        write_atomic(&self.folder.join("sweep.json"), |file| Ok(serde_json::to_writer_pretty(file, &self.sweep)?))?;
        let several = self.repetitions.splits_vary();
        let file = |split: &Split| split_file(&self.folder, several.then_some(split.seed), split.fold.map(|f| f.number));
        self.splits.iter().try_for_each(|split| split.save(&file(split)))?;
        Ok(taken)
    }

    /// The command lines of what this shard has left to do, as a shell takes them.
    pub fn commands(&self) -> Result<Vec<String>> {
        let known = |work: &Work| !matches!(work, Work::Own(i) if self.own_cell(*i).is_none());
        self.left().into_iter().filter(known).map(|work| Ok(print::command_line(self.arguments(work)?))).collect()
    }

    /// Numbers of pretrainings and of fine-tunings of the whole sweep.
    pub fn amount(&self) -> String {
        let (cells, grid) = (self.finetunings.len(), self.tunings.len());
        let pretrainings = self.pretrainings.len();
        let own = (0..cells).map(|i| self.own_cell(i).map(|own| own.lr != self.finetunings[i].cell.lr));
        let (own, open) = own.fold((0, false), |(n, open), own| (n + usize::from(own != Some(false)), open | own.is_none()));
        match grid {
            0 => format!("{pretrainings} pretrainings and {cells} fine-tunings"),
            _ => {
                let most = if open { "up to " } else { "" };
                let all = grid + cells + own;
                format!(
                    "{pretrainings} pretrainings and {most}{all} fine-tunings, of which {grid} choose rates and {most}{own} run at them"
                )
            }
        }
    }

    fn work(&self) -> impl Iterator<Item = Work> + use<> {
        let pretrain = (0..self.pretrainings.len()).map(Work::Pretrain);
        let (n, tune) = (self.finetunings.len(), (0..self.tunings.len()).map(Work::Tune));
        let own = if self.tunings.is_empty() { 0 } else { n };
        pretrain.chain(tune).chain((0..n).map(Work::Finetune)).chain((0..own).map(Work::Own))
    }

    /// What is known before any rate is chosen.
    fn known(&self) -> impl Iterator<Item = Work> + use<> {
        self.work().filter(|work| !matches!(work, Work::Own(_)))
    }

    /// What a fine-tuning does; at an own rate that is not yet chosen the same at the common one.
    fn cell(&self, work: Work) -> Option<Cell> {
        match work {
            Work::Pretrain(_) => None,
            Work::Tune(i) => Some(self.tunings[i].cell.clone()),
            Work::Finetune(i) => Some(self.finetunings[i].cell.clone()),
            Work::Own(i) => Some(self.own_cell(i).unwrap_or_else(|| self.finetunings[i].cell.clone())),
        }
    }

    fn pretrain_dir(&self, p: &Pretraining) -> PathBuf {
        self.folder.join("pretrain").join(p.id())
    }

    fn dir(&self, work: Work) -> PathBuf {
        match work {
            Work::Pretrain(i) => self.pretrain_dir(&self.pretrainings[i]),
            Work::Tune(i) => self.folder.join(TUNING).join(&self.tunings[i].cell.id),
            Work::Finetune(_) | Work::Own(_) => self.folder.join("cells").join(self.name(work)),
        }
    }

    fn name(&self, work: Work) -> String {
        match work {
            Work::Pretrain(i) => format!("pretraining {}", self.pretrainings[i].id()),
            _ => self.cell(work).map_or_else(String::new, |cell| cell.id),
        }
    }

    fn weights(&self, p: &Pretraining) -> PathBuf {
        self.pretrain_dir(p).join("encoder")
    }

    fn is_done(&self, work: Work) -> bool {
        match work {
            Work::Own(i) => match self.own_cell(i) {
                None => false,
                Some(own) => own.lr == self.finetunings[i].cell.lr || self.dir(work).join(RESULT).is_file(),
            },
            _ => self.dir(work).join(RESULT).is_file(),
        }
    }

    /// What a fine-tuning starts from; a pretraining starts from nothing.
    fn weights_of(&self, work: Work) -> Weights {
        match work {
            Work::Pretrain(_) => Weights::Random,
            Work::Tune(i) => self.tunings[i].weights,
            Work::Finetune(i) | Work::Own(i) => self.finetunings[i].weights,
        }
    }

    /// What must be done before.
    fn needs(&self, work: Work) -> Vec<Work> {
        let start = |f: &Finetuning| f.weights.pretraining().map(Work::Pretrain);
        match work {
            Work::Pretrain(_) => vec![],
            Work::Tune(i) => start(&self.tunings[i]).into_iter().collect(),
            Work::Finetune(i) => start(&self.finetunings[i]).into_iter().collect(),
            Work::Own(i) => {
                let f = &self.finetunings[i];
                let tunings: Vec<usize> = self.tunings_of(&f.cell).collect();
                let starts = tunings.iter().filter_map(|&i| start(&self.tunings[i]));
                start(f).into_iter().chain(starts).chain(tunings.iter().map(|&i| Work::Tune(i))).collect()
            }
        }
    }

    fn is_ready(&self, work: Work) -> bool {
        self.needs(work).into_iter().all(|need| self.is_done(need))
            && !matches!(work, Work::Own(i) if self.own_cell(i).is_none())
    }

    /// Settings of the sweep's file for this work.
    fn settings(&self, work: Work) -> Result<Map<String, Value>> {
        let Finetuning { arm, weights, .. } = match work {
            Work::Pretrain(i) => return self.config.pretrain_settings(&self.pretrainings[i]),
            Work::Tune(i) => &self.tunings[i],
            Work::Finetune(i) | Work::Own(i) => &self.finetunings[i],
        };
        let source = match *weights {
            Weights::Random => Source::Random,
            Weights::Pretraining(i) => Source::Tasks(&self.pretrainings[i].tasks),
            Weights::Given(i) => Source::Given(&self.config.weights[i].name),
        };
        let mut settings = self.config.finetune_settings(source, arm)?;
        if let Some(lr) = self.cell(work).and_then(|cell| cell.lr) {
            settings.insert("lr".into(), lr.into());
        }
        Ok(settings)
    }

    /// Whether the file says how many threads prepare batches.
    fn sets_threads(&self, work: Work) -> Result<bool> {
        Ok(self.settings(work)?.contains_key("threads"))
    }

    /// Arguments of the process that does the work, from its beginning.
    fn arguments(&self, work: Work) -> Result<Vec<String>> {
        let path = |p: &Path| p.display().to_string();
        let split = |seed, fold| path(&split_file(&self.folder, seed, fold));
        let dir = path(&self.dir(work));
        let config = &self.config;
        let mut arguments;
        match work {
            Work::Pretrain(i) => {
                let p = &self.pretrainings[i];
                let data = config.unlabelled.as_ref().unwrap_or(&config.data);
                arguments = vec!["pretrain".to_owned(), format!("--data={}", path(data)), format!("--task={}", p.tasks)];
                arguments.extend([format!("--fraction={}", p.fraction), format!("--seed={}", p.seed)]);
                if config.unlabelled.is_none() {
                    arguments.push(format!("--split={}", split(p.split, p.fold)));
                }
                arguments.push(format!("--weights={}", path(&self.weights(p))));
                arguments.extend(config.pretrain_flags(p)?);
            }
            Work::Tune(i) | Work::Finetune(i) | Work::Own(i) => {
                let f = if matches!(work, Work::Tune(_)) { &self.tunings[i] } else { &self.finetunings[i] };
                let Cell { fraction, seed, fold, .. } = &f.cell;
                let weights = match f.weights {
                    Weights::Random => "none".to_owned(),
                    Weights::Pretraining(i) => path(&self.weights(&self.pretrainings[i]).with_extension("pt")),
                    Weights::Given(i) => path(&config.weights[i].file),
                };
                arguments = vec!["finetune".to_owned(), format!("--data={}", path(&config.data))];
                arguments.push(format!("--split={}", split(self.repetitions.split_of(f.draw), *fold)));
                arguments.extend([format!("--weights={weights}"), format!("--arm={}", f.cell.base())]);
                arguments.extend([format!("--fraction={fraction}"), format!("--seed={seed}")]);
                arguments.push(format!("--subset-seed={}", f.draw.subset));
                if let Weights::Given(i) = f.weights {
                    arguments.push(format!("--weights-name={}", config.weights[i].name));
                }
                if config.other_people && f.weights != Weights::Random {
                    arguments.push("--other-people".into());
                }
                arguments.extend(config.finetune_flags(&self.settings(work)?)?);
            }
        }
        arguments.push(format!("--out={dir}"));
        Ok(arguments)
    }

    /// This shard's work.
    fn own(&self) -> impl Iterator<Item = Work> {
        let shard = self.shard;
        self.work().filter(move |&(Work::Pretrain(i) | Work::Tune(i) | Work::Finetune(i) | Work::Own(i))| shard.holds(i))
    }

    fn left(&self) -> Vec<Work> {
        self.own().filter(|&work| !self.is_done(work)).collect()
    }

    /// Whether every cell of every shard is done.
    pub fn complete(&self) -> bool {
        self.work().all(|w| self.is_done(w))
    }

    /// Writes the report on what is done.
    pub fn report(&self) -> Result<String> {
        write_report(std::slice::from_ref(&self.folder), &self.folder.join("report"))
    }
}
