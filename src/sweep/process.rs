//! One cell as a process of its own, so that a crash or too little memory ends that cell alone.

use crate::ffi;
use crate::group;
use crate::machine::COMPUTE_THREADS;
use crate::run::input::PLANNED_STORES;
use anyhow::{Context, Result};
use std::fs::{File, OpenOptions};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// How a process ended.
pub enum ProcessEnd {
    Done,
    /// By the user, saved.
    Stopped,
    Failed(String),
}

/// This very program, also when its file has been replaced by a newer build meanwhile.
const PROGRAM: &str = "/proc/self/exe";
/// Exit code of a run that a signal stopped after saving.
const SAVED: i32 = 130;
const LAST_LINES: usize = 3;

/// A process under way.
pub struct Process {
    child: Child,
    log: PathBuf,
    /// Held by the child as well, for as long as it lives.
    _lock: File,
    told: bool,
}

impl Process {
    /// Starts this program with `arguments`, its output appended to a log, `lock` held as long as it lives. It refuses other stores than
    /// those of the fingerprints `stores`, and computes with `threads`, where they are given.
    pub fn start(arguments: &[String], stores: &[&str], threads: Option<usize>, log: PathBuf, lock: File) -> Result<Process> {
        let open = || OpenOptions::new().create(true).append(true).open(&log).with_context(|| log.display().to_string());
        let mut command = Command::new(PROGRAM);
        command.arg0("pretext3d").args(arguments).stdin(Stdio::null()).stdout(open()?).stderr(open()?);
        // A run of a sweep is no rank, whatever the sweep was started by.
        for name in group::VARIABLES {
            command.env_remove(name);
        }
        command.env(PLANNED_STORES, stores.join(","));
        if let Some(threads) = threads {
            command.env(COMPUTE_THREADS, threads.to_string());
        }
        let child = ffi::spawn_bound(&mut command, &lock).with_context(|| format!("starting {}", PROGRAM))?;
        Ok(Process { child, log, _lock: lock, told: false })
    }

    /// How it ended, or nothing while it runs. `stop` asks it to save and end.
    pub fn poll(&mut self, stop: bool) -> Result<Option<ProcessEnd>> {
        let Some(status) = self.child.try_wait()? else {
            if stop && !self.told {
                ffi::terminate(&self.child);
                self.told = true;
            }
            return Ok(None);
        };
        let log = self.log.display();
        Ok(Some(match (status.code(), status.signal()) {
            (Some(0), _) => ProcessEnd::Done,
            (Some(SAVED), _) => ProcessEnd::Stopped,
            _ if stop => ProcessEnd::Stopped,
            (Some(code), _) => ProcessEnd::Failed(format!("exit code {code}: {} ({log})", last_lines(&self.log))),
            (None, signal) => {
                let signal = signal.unwrap_or_default();
                let hint = if signal == libc::SIGKILL { " (perhaps for want of memory)" } else { "" };
                ProcessEnd::Failed(format!("killed by signal {signal}{hint}; its log: {log}"))
            }
        }))
    }
}

/// The end of a log, on one line.
fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join(" / ")
}
