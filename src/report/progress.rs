//! Progress for people: a bar on a terminal, plain lines elsewhere.

use crate::print::{note, say};
use crate::run::history::Row;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Numbers of one training step, for the bar.
pub struct StepInfo<'a> {
    /// From 1.
    pub epoch: usize,
    /// Within the epoch, from 1.
    pub step: usize,
    pub loss: f64,
    /// Task metrics, as `rot.accuracy`.
    pub metrics: &'a [(String, f64)],
    pub samples_per_s: f64,
    /// Share of the time, 0 to 1, that steps waited for data.
    pub wait_share: f64,
}

/// Progress of a training. The bar goes to standard error, an epoch's line to standard output.
pub struct EpochBar {
    epochs: usize,
    steps: usize,
    bar: Option<ProgressBar>,
    start: Instant,
    /// Steps of this process and of the whole training, to tell the time left.
    done: usize,
    position: usize,
    finished_epochs: usize,
}

impl EpochBar {
    /// `tty`: draw a bar ([`crate::print::attended`] tells whether anybody would see it).
    pub fn new(epochs: usize, steps_per_epoch: usize, tty: bool) -> Self {
        let bar = tty.then(|| bar(steps_per_epoch, "{prefix} {bar:12} {pos}/{len}  {wide_msg}"));
        EpochBar { epochs, steps: steps_per_epoch, bar, start: Instant::now(), done: 0, position: 0, finished_epochs: 0 }
    }

    pub fn step(&mut self, info: &StepInfo) {
        self.done += 1;
        self.position = (info.epoch - 1) * self.steps + info.step;
        let Some(bar) = &self.bar else { return };
        let left = (self.epochs * self.steps).saturating_sub(self.position) as f64;
        let left = self.start.elapsed().as_secs_f64() / self.done as f64 * left;
        bar.set_prefix(format!("epoch {}/{}", info.epoch, self.epochs));
        bar.set_length(self.steps as u64);
        bar.set_message(step_message(info, left));
        bar.set_position(info.step as u64);
    }

    /// A step of the validation after an epoch; `step` from 1.
    pub fn valid(&mut self, step: usize, steps: usize) {
        if let Some(bar) = &self.bar {
            bar.set_prefix("validation");
            bar.set_length(steps as u64);
            bar.set_message("");
            bar.set_position(step as u64);
        }
    }

    /// Writes the epoch's line.
    pub fn epoch(&mut self, row: &Row) {
        self.finished_epochs += 1;
        let each = self.start.elapsed().as_secs_f64() / self.finished_epochs as f64;
        let line = epoch_line(row, self.epochs, each * self.epochs.saturating_sub(row.epoch) as f64);
        self.note(&line);
    }

    /// Writes a line without tearing the bar.
    pub fn note(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say!("{line}")),
            None => say!("{line}"),
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Counted progress of work on scans, from any thread: a bar on a terminal, else a line at most every ten seconds; both go
/// to standard error.
pub struct Counter {
    what: String,
    total: usize,
    /// On a terminal; the parts of what is at work stand below.
    bars: Option<(MultiProgress, ProgressBar)>,
    /// Done, and when the last line was written.
    state: Mutex<(usize, Instant)>,
}

impl Counter {
    /// `what`: the work, e.g. `preprocessing`.
    pub fn new(what: &str, total: usize, tty: bool) -> Self {
        let bars = tty.then(|| {
            let all = MultiProgress::new();
            let bar = all.add(bar(total, COUNTED));
            bar.set_prefix(what.to_string());
            (all, bar)
        });
        Counter { what: what.to_string(), total, bars, state: Mutex::new((0, Instant::now())) }
    }

    /// One more is done; `name` says which.
    pub fn inc(&self, name: &str) {
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        state.0 += 1;
        if let Some((_, bar)) = &self.bars {
            bar.set_message(name.to_string());
            bar.inc(1);
        } else if state.0 == self.total || state.1.elapsed() > Duration::from_secs(10) {
            state.1 = Instant::now();
            note!("{} {}/{}", self.what, state.0, self.total);
        }
    }

    /// A bar for the parts of one of them, below; nothing where there is no terminal.
    pub fn parts(&self, what: &str, total: usize) -> Parts {
        let bar = self.bars.as_ref().map(|(all, _)| {
            let bar = all.add(bar(total, COUNTED));
            bar.set_prefix(what.to_string());
            bar
        });
        Parts { bar }
    }

    /// Writes a line, e.g. about a broken scan, without tearing the bars.
    pub fn note(&self, line: &str) {
        match &self.bars {
            Some((all, _)) => all.suspend(|| note!("{line}")),
            None => note!("{line}"),
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        if let Some((_, bar)) = &self.bars {
            bar.finish_and_clear();
        }
    }
}

/// Counted progress of one of a [`Counter`]'s scans.
pub struct Parts {
    bar: Option<ProgressBar>,
}

impl Parts {
    /// So many more are done.
    pub fn inc(&self, n: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(n);
        }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What is done of so many, how fast, and what was done last.
const COUNTED: &str = "{prefix} {bar:24} {pos}/{len}  {per_sec}, {eta} left  {wide_msg}";

fn bar(length: usize, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("a fixed template").progress_chars("━╸─");
    ProgressBar::new(length as u64).with_style(style)
}

fn step_message(info: &StepInfo, seconds_left: f64) -> String {
    let mut text = format!("loss {}", number(info.loss));
    for (name, value) in info.metrics {
        text += &format!("  {name} {}", number(*value));
    }
    let wait = 100.0 * info.wait_share;
    // A narrow terminal cuts the end.
    text + &format!("  {} left  {} samples/s  wait {wait:.1} %", duration(seconds_left), number(info.samples_per_s))
}

/// All of a row on one line; what training and validation both have stands together.
fn epoch_line(row: &Row, epochs: usize, seconds_left: f64) -> String {
    let digits = epochs.to_string().len();
    let mut text = format!("epoch {:>digits$}/{epochs}", row.epoch);
    for (column, value) in row.values() {
        let value = *value;
        text += &match (column.as_str(), column.split_once('/')) {
            ("wait_share", _) => format!("  wait {:.1} %", 100.0 * value),
            ("samples_per_s", _) => format!("  {} samples/s", number(value)),
            ("seconds", _) => format!("  {}", duration(value)),
            (_, Some(("train", name))) => match row.get(&format!("val/{name}")) {
                Some(val) => format!("  {name} {} (val {})", number(value), number(val)),
                None => format!("  {name} {}", number(value)),
            },
            (_, Some(("val", name))) if row.get(&format!("train/{name}")).is_some() => String::new(),
            (name, _) => format!("  {name} {}", number(value)),
        };
    }
    if row.epoch < epochs { text + &format!("  {} left", duration(seconds_left)) } else { text }
}

/// Four significant digits.
fn number(value: f64) -> String {
    let size = value.abs();
    if value == value.trunc() && size < 1e9 {
        format!("{value}")
    } else if !value.is_finite() || (1e-3..1e5).contains(&size) {
        let decimals = if size >= 1.0 { 3 - (size.log10().floor() as i32).min(3) } else { 4 };
        format!("{value:.*}", decimals as usize)
    } else {
        format!("{value:.3e}")
    }
}

/// `12 s`, `3 min 05 s`, `2 h 07 min`.
pub(super) fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epochs_line_holds_every_number_once() {
        let mut row = Row::new(3);
        let values =
            [("step", 120.0), ("lr", 1e-4), ("train/loss", 0.43211), ("train/rot.accuracy", 0.875), ("val/loss", 12.3456)];
        values.iter().for_each(|&(c, v)| row.set(c, v));
        row.set("val/rot.accuracy", 0.9);
        row.set("val/extra", f64::NAN);
        row.set("samples_per_s", 85.24);
        row.set("wait_share", 0.0123);
        row.set("seconds", 185.0);
        let expected = "epoch  3/50  step 120  lr 1.000e-4  loss 0.4321 (val 12.35)  rot.accuracy 0.8750 (val 0.9000)  val/extra NaN  \
                        85.24 samples/s  wait 1.2 %  3 min 05 s  2 h 07 min left";
        assert_eq!(epoch_line(&row, 50, 7620.0), expected);
        assert!(!epoch_line(&row, 3, 0.0).contains("left"));
    }

    #[test]
    fn numbers_keep_four_digits() {
        let cases =
            [(0.0, "0"), (99999.5, "100000"), (1234.56, "1235"), (-0.5, "-0.5000"), (1e-7, "1.000e-7"), (f64::INFINITY, "inf")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }
}
