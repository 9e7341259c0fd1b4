//! One cell as a process of its own, so that a crash or too little memory ends that cell alone.

use crate::ffi;
use crate::train::stop::Stop;
use anyhow::{Context, Result};
use std::fs::{File, OpenOptions};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// How a process ended.
pub enum ProcessEnd {
    Done,
    /// By the user, saved.
    Stopped,
    Failed(String),
}

/// This very program, also when its file has been replaced by a newer build meanwhile.
const PROGRAM: &str = "/proc/self/exe";
/// Time between looking at a process.
const POLL: Duration = Duration::from_millis(50);
/// Exit code of a run that a signal stopped after saving.
const SAVED: i32 = 130;
const LAST_LINES: usize = 3;

/// Runs this program with `arguments`, its output appended to a log, `lock` held as long as it lives. A signal to this process is passed on and the process
/// waited for.
pub fn run_logged(arguments: &[String], log: &Path, lock: &File, stop: &Stop) -> Result<ProcessEnd> {
    let open = || OpenOptions::new().create(true).append(true).open(log).with_context(|| log.display().to_string());
    let mut command = Command::new(PROGRAM);
    command.arg0("pretext3d").args(arguments).stdin(Stdio::null()).stdout(open()?).stderr(open()?);
    let mut child = ffi::spawn_bound(&mut command, lock).with_context(|| format!("starting {}", PROGRAM))?;
    let mut told = false;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if stop.asked() && !told {
            ffi::terminate(&child);
            told = true;
        }
        std::thread::sleep(POLL);
    };
    Ok(match (status.code(), status.signal()) {
        (Some(0), _) => ProcessEnd::Done,
        (Some(SAVED), _) => ProcessEnd::Stopped,
        _ if stop.asked() => ProcessEnd::Stopped,
        (Some(code), _) => ProcessEnd::Failed(format!("exit code {code}: {} ({})", last_lines(log), log.display())),
        (None, signal) => {
            let signal = signal.unwrap_or_default();
            let hint = if signal == libc::SIGKILL { " (perhaps for want of memory)" } else { "" };
            ProcessEnd::Failed(format!("killed by signal {signal}{hint}; its log: {}", log.display()))
        }
    })
}

/// The end of a log, on one line.
fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join(" / ")
}
