//! Runs what a shard has to do, several processes side by side.

use super::plan::Weights;
use super::process::{Process, ProcessEnd};
use super::{Runner, Work};
use crate::fs::try_lock;
use crate::machine::{COMPUTE_THREADS, cores};
use crate::print::{note, say};
use crate::run::record::{CellResult, RESULT, read_json};
use crate::settings::CONFIG;
use crate::study::rates::validation_score;
use crate::train::session::Ended;
use crate::train::stop::Stop;
use anyhow::{Context, Result, bail};
use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

/// Locked in a cell's folder by the sweep that runs it and by the cell's process; that process locks [`crate::fs::LOCK`], too.
const CELL_LOCK: &str = ".cell-lock";

/// Time between looking at the processes.
const POLL: Duration = Duration::from_millis(50);

/// Time between looking whether another sweep's process has finished what this one waits for.
const WAIT: Duration = Duration::from_secs(2);

struct Running {
    work: Work,
    process: Process,
    started: Instant,
}

/// What came of an attempt to start.
enum Start {
    Running(Running),
    /// Another process is at it.
    Held,
    /// Another process has finished it.
    Done,
    /// It cannot start, and why.
    Failed(String),
}

/// A shard's work under way.
struct Queue<'a> {
    runner: &'a Runner,
    /// How many run at the same time, at most.
    jobs: usize,
    left: Vec<Work>,
    running: Vec<Running>,
    done: usize,
    /// What needed no run, as an arm's own rate is the common one.
    spared: usize,
    failed: Vec<String>,
    /// Work of which was said that another process is at it.
    told: HashSet<Work>,
}

impl Runner {
    /// Runs what is left of this shard's work, `jobs` processes side by side. Errors at the end if any of it failed; the rest is done
    /// nevertheless.
    pub fn run(&self, jobs: usize) -> Result<Ended> {
        let stop = Stop::on_signals()?;
        let _taken = self.prepare()?;
        self.choose_rates()?;
        let left = self.left();
        let total = self.own().count();
        note!("{}: {}, {} of {total} in this shard to do", self.folder.display(), self.amount(), left.len());
        let (started, earlier) = (Instant::now(), total - left.len());
        let (running, failed, told) = (Vec::new(), Vec::new(), HashSet::new());
        let mut queue = Queue { runner: self, jobs, left, running, done: 0, spared: 0, failed, told };
        let (mut looked, mut stopped): (Option<Instant>, bool) = (None, false);
        while !(queue.left.is_empty() && queue.running.is_empty()) {
            let ended = queue.collect(stopped || stop.asked())?;
            stopped |= stop.asked() || ended.iter().any(|(_, end)| matches!(end, ProcessEnd::Stopped));
            for (work, end) in &ended {
                queue.note(*work, end);
            }
            let settled = ended.iter().any(|(_, end)| !matches!(end, ProcessEnd::Stopped));
            if settled {
                let left = queue.left.len() + queue.running.len();
                let each = started.elapsed().as_secs_f64() / queue.done.max(1) as f64;
                let minutes = (each * left as f64 / 60.).ceil();
                let time = if left == 0 { String::new() } else { format!(", about {minutes} min") };
                note!("{} done, {left} left{time}", earlier + queue.spared + queue.done);
            }
            if stopped {
                if queue.running.is_empty() {
                    note!("stopped; run the same command to go on");
                    return Ok(Ended::Stopped);
                }
            } else if queue.running.len() < jobs && (settled || looked.is_none_or(|looked| looked.elapsed() >= WAIT)) {
                queue.fill()?;
                looked = Some(Instant::now());
            }
            std::thread::sleep(POLL);
        }
        let failed = queue.failed;
        if !failed.is_empty() {
            bail!("{} failed: {}; run the same command to try again", failed.len(), failed.join(", "));
        }
        Ok(Ended::Finished)
    }

    /// Starts or resumes one process, beside `jobs - 1` others.
    fn start(&self, work: Work, jobs: usize) -> Result<Start> {
        let dir = self.dir(work);
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        // A sweep that was killed leaves a process that is saving, and another number of shards shares the work out differently.
        let Some(lock) = try_lock(&dir.join(CELL_LOCK))? else { return Ok(Start::Held) };
        if self.is_done(work) {
            return Ok(Start::Done);
        }
        self.stores.check()?;
        let mut arguments = match dir.join(CONFIG).is_file() {
            true => {
                let command = if matches!(work, Work::Pretrain(_)) { "pretrain" } else { "finetune" };
                vec![command.to_owned(), format!("--resume={}", dir.display())]
            }
            false => {
                if let Weights::Given(i) = self.weights_of(work)
                    && let Err(error) = self.opened[i].check(&self.config.weights[i])
                {
                    return Ok(Start::Failed(format!("{error:#}")));
                }
                self.arguments(work)?
            }
        };
        // Runs that each took the whole machine would hinder one another.
        let share = (cores() / jobs).max(1);
        if jobs > 1 && !self.sets_threads(work)? {
            arguments.push(format!("--threads={share}"));
        }
        let compute = (jobs > 1 && std::env::var_os(COMPUTE_THREADS).is_none()).then_some(share);
        let stores = self.stores.planned(matches!(work, Work::Pretrain(_)));
        let process = Process::start(&arguments, &stores, compute, dir.join("log.txt"), lock)?;
        Ok(Start::Running(Running { work, process, started: Instant::now() }))
    }

    /// Whether work cannot be done without other work.
    fn depends(&self, work: Work, on: Work) -> bool {
        self.needs(work).into_iter().any(|need| need == on || self.depends(need, on))
    }

    /// Says what a finished run reached, or why it cannot have finished.
    fn finish(&self, run: &Running) -> Result<(), String> {
        let path = self.dir(run.work).join(RESULT);
        let score = match run.work {
            _ if !path.is_file() => return Err("ended without a result.json".into()),
            Work::Pretrain(_) => "pretrained".to_owned(),
            Work::Tune(_) => {
                let score = validation_score(&self.dir(run.work)).map_err(|error| format!("{error:#}"))?;
                format!("validation {score:.4}")
            }
            Work::Finetune(_) | Work::Own(_) => {
                let result: CellResult = read_json(&path).map_err(|error| format!("{error:#}"))?;
                result.score.map_or("undefined".into(), |s| format!("{} {s:.4}", result.metric))
            }
        };
        say!("{}: {score}, {:.0} s", self.name(run.work), run.started.elapsed().as_secs_f64());
        Ok(())
    }
}

impl Queue<'_> {
    /// Takes out what has ended; `stop` asks the others to save and end.
    fn collect(&mut self, stop: bool) -> Result<Vec<(Work, ProcessEnd)>> {
        let (mut ended, mut running) = (Vec::new(), Vec::new());
        for mut run in std::mem::take(&mut self.running) {
            match run.process.poll(stop)? {
                None => running.push(run),
                Some(ProcessEnd::Done) => {
                    let end = self.runner.finish(&run).map_or_else(ProcessEnd::Failed, |()| ProcessEnd::Done);
                    ended.push((run.work, end));
                }
                Some(end) => ended.push((run.work, end)),
            }
        }
        self.running = running;
        Ok(ended)
    }

    /// Keeps count of what has ended, and gives up what a failure leaves without a start.
    fn note(&mut self, work: Work, end: &ProcessEnd) {
        match end {
            ProcessEnd::Done => self.done += 1,
            ProcessEnd::Stopped => {}
            ProcessEnd::Failed(why) => {
                let runner = self.runner;
                note!("{}: {why}", runner.name(work));
                let before = self.left.len();
                self.left.retain(|&w| !runner.depends(w, work));
                let lost = before - self.left.len();
                self.failed
                    .push(runner.name(work) + &if lost > 0 { format!(" and with it {lost} cells") } else { String::new() });
            }
        }
    }

    /// Starts what can be started until `jobs` processes run.
    fn fill(&mut self) -> Result<()> {
        let (runner, before) = (self.runner, self.left.len());
        runner.choose_rates()?;
        self.left.retain(|&work| !(matches!(work, Work::Own(_)) && runner.is_done(work)));
        self.spared += before - self.left.len();
        for work in self.candidates() {
            if self.running.len() >= self.jobs {
                break;
            }
            match self.runner.start(work, self.jobs)? {
                Start::Running(run) => self.running.push(run),
                Start::Done => self.done += 1,
                Start::Failed(why) => self.note(work, &ProcessEnd::Failed(why)),
                Start::Held => {
                    if self.told.insert(work) {
                        note!("{}: waiting for another process that is at it", self.runner.name(work));
                    }
                    continue;
                }
            }
            self.left.retain(|&w| w != work);
        }
        Ok(())
    }

    /// What can be done now, this shard's own first. Then what it waits for of other shards, which may have failed, or may never
    /// come; if one is at it, its lock is waited for.
    fn candidates(&self) -> Vec<Work> {
        let runner = self.runner;
        let (mut ready, waiting): (Vec<Work>, Vec<Work>) = self.left.iter().partition(|&&work| runner.is_ready(work));
        for need in waiting.into_iter().flat_map(|work| runner.needs(work)) {
            let taken = ready.contains(&need) || self.left.contains(&need) || self.running.iter().any(|run| run.work == need);
            if !taken && !runner.is_done(need) && runner.is_ready(need) {
                ready.push(need);
            }
        }
        ready
    }
}
