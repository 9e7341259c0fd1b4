//! All that the program prints, in one place: results and the lines of epochs go to standard output ([`say!`]), progress and warnings
//! to standard error ([`note!`]). Neither ever ends the work, as `println!` does when nobody reads or the disk is full.

// The rest of the crate must not print by itself: see the lints in `lib.rs` and `clippy.toml`.
#![allow(clippy::disallowed_methods)]

use anyhow::{Context, Result};
use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Set in ranks other than the first, which speaks for all.
static SILENT: AtomicBool = AtomicBool::new(false);

/// Whether this process prints: of several ranks of one run one does.
pub fn speak(speaks: bool) {
    SILENT.store(!speaks, Ordering::Relaxed);
}

fn silent() -> bool {
    SILENT.load(Ordering::Relaxed)
}

/// Whether anybody would see a bar on standard error.
pub fn attended() -> bool {
    !silent() && console::user_attended_stderr()
}

/// Why text for standard output was lost, the first time.
static LOST: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints a line on standard output. A reader that went away (`| head`) wants no more of it; other failures are kept for
/// [`finish`].
macro_rules! say {
    ($($text:tt)*) => { $crate::print::line(format_args!($($text)*)) };
}

/// Prints a line on standard error. If that fails, there is nobody to tell.
macro_rules! note {
    ($($text:tt)*) => { $crate::print::note_line(format_args!($($text)*)) };
}

pub(crate) use {note, say};

/// As [`say!`].
pub fn line(text: Arguments) {
    if silent() {
        return;
    }
    let mut out = io::stdout().lock();
    keep(writeln!(out, "{text}").and_then(|()| out.flush()));
}

/// As [`note!`].
pub fn note_line(text: Arguments) {
    if silent() {
        return;
    }
    // In one piece, so that lines of several threads and processes do not mix.
    let _ = io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// Prints what the command line's parser has to say: help and version on standard output, usage errors on standard error.
pub fn usage(message: &clap::Error) {
    if silent() {
        return;
    }
    let printed = message.print().and_then(|()| io::stdout().flush());
    if !message.use_stderr() {
        keep(printed);
    }
}

fn keep(printed: io::Result<()>) {
    if let Err(error) = printed
        && error.kind() != ErrorKind::BrokenPipe
    {
        LOST.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

/// A command line of this program for a shell to copy: under the name by which it was called, and arguments with other than plain
/// characters in single quotes.
pub fn command_line(arguments: impl IntoIterator<Item = impl Into<String>>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./,:+".contains(c);
    let quoted = |a: String| match !a.is_empty() && a.chars().all(plain) {
        true => a,
        false => format!("'{}'", a.replace('\'', r"'\''")),
    };
    let program = std::env::args_os().next().map_or("pretext3d".into(), |name| name.to_string_lossy().into_owned());
    std::iter::once(program).chain(arguments.into_iter().map(Into::into)).map(quoted).collect::<Vec<_>>().join(" ")
}

/// To be called last: errors if something for standard output was lost.
pub fn finish() -> Result<()> {
    match LOST.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) => Err(error).context("standard output could not be written, and lines of it are lost; files are complete"),
        None => Ok(()),
    }
}
