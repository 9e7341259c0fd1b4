//! Runs what a shard has to do, one process after another.

use super::process::{ProcessEnd, run_logged};
use super::{Runner, Work};
use crate::fs::try_lock;
use crate::print::{note, say};
use crate::run::record::CellResult;
use crate::settings::CONFIG;
use crate::study::read as study;
use crate::train::session::Ended;
use crate::train::stop::Stop;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::time::{Duration, Instant};

/// Locked in a cell's folder by the sweep that runs it and by the cell's process; that process locks [`LOCK`], too.
const CELL_LOCK: &str = ".cell-lock";

/// Seconds between looking whether another process has finished what this one waits for.
const WAIT: Duration = Duration::from_secs(2);

impl Runner {
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
