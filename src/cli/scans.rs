//! Work on the scans of an `--input`, one after another: what cannot be used is named, and the others go on.

use crate::data::layouts::columns::WantedColumns;
use crate::data::layouts::{Layout, Missing, Reading, Wanted};
use crate::device::{DeviceChoice, Precision};
use crate::predict::inputs::Inputs;
use crate::print::{self, note, say};
use crate::report::progress::Counter;
use anyhow::{Result, ensure};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tch::Device;

// No doc comment: clap would take it for the command's.
#[derive(clap::Args)]
pub struct ScanFlags {
    /// A scan's file or a photograph; several, separated by commas, one a channel in the network's order; a folder or CSV manifest; or a store
    #[arg(long, value_name = "PATH")]
    pub input: String,
    /// How the input is arranged [default: recognised by itself]
    #[arg(long, value_enum)]
    layout: Option<Layout>,
    #[command(flatten)]
    dicom: DicomFlags,
    /// What becomes of scans without one of the network's channels
    #[arg(long, value_enum, default_value = "refuse")]
    missing: Missing,
    /// Replace results that are there
    #[arg(long)]
    pub overwrite: bool,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    #[arg(long, value_enum, default_value = "auto")]
    pub precision: Precision,
    /// Threads of an operation on the CPU, 1 to 1024 [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

// No doc comment: clap would take it for the command's.
#[derive(clap::Args)]
pub struct DicomFlags {
    /// Which DICOM series to take, by their descriptions: a name with * and ? for any letters, whose case does not matter, e.g. 'T1*post*';
    /// given several times, each is a channel [default: the only one of each study]
    #[arg(long, value_name = "PATTERN")]
    series: Vec<String>,
    /// Take the PatientID of DICOM files for the subjects' ids, and name files in messages [default: a hash of it, and no names]
    #[arg(long)]
    patient_ids: bool,
}

impl DicomFlags {
    pub fn wanted(&self) -> Wanted<'_> {
        Wanted { series: &self.series, patient_ids: self.patient_ids }
    }
}

// No doc comment: clap would take it for the command's.
#[derive(clap::Args)]
pub struct TableFlags {
    /// Table that has --column, CSV or TSV [default: participants.tsv and other tables beside the scans; of a manifest its own]
    #[arg(long, value_name = "FILE", requires = "column")]
    table: Option<PathBuf>,
    /// Column of that table with the scans' ids, file names or people [default: the one that names most scans]
    #[arg(long, value_name = "NAME", requires = "column")]
    id_column: Option<String>,
}

impl TableFlags {
    pub fn is_given(&self) -> bool {
        self.table.is_some() || self.id_column.is_some()
    }

    /// Columns of these names.
    pub fn wanted<'a>(&'a self, names: &'a [String]) -> WantedColumns<'a> {
        WantedColumns { names, table: self.table.as_deref(), ids: self.id_column.as_deref(), optional: false }
    }
}

impl ScanFlags {
    /// How to read the input.
    pub fn reading(&self) -> Reading<'_> {
        Reading { layout: self.layout, dicom: self.dicom.wanted(), missing: self.missing, ..Reading::default() }
    }

    /// Before anything is computed.
    pub fn set_threads(&self) {
        if let Some(threads) = self.threads {
            tch::set_num_threads(threads.into());
        }
    }
}

/// How one scan ended.
pub enum Done {
    Finished,
    Bad(String),
    Stopped,
}

/// What became of the scans of an input.
pub struct Tally {
    scans: usize,
    done: usize,
    bad: usize,
    /// A signal came before the last one.
    pub stopped: bool,
    took: Duration,
}

impl Tally {
    /// Says so, with where the results are; `what`: what each scan gives, in the plural.
    pub fn finish(self, what: &str, output: &str) -> Result<ExitCode> {
        let Tally { scans, done, bad, stopped, took } = self;
        if stopped {
            note!("interrupted: {done} of {scans} {what} are in {output}");
            return Ok(ExitCode::from(super::STOPPED));
        }
        ensure!(bad == 0, "{bad} scans cannot be used; {done} {what} are in {output}");
        say!("{output}: {done} {what} in {:.1} s", took.as_secs_f64());
        Ok(ExitCode::SUCCESS)
    }
}

/// Runs `each` for every scan of the `input` and its id until a signal. Its error is one of writing, which ends the `command`.
pub fn each_scan(
    command: &str,
    input: &str,
    inputs: &Inputs,
    device: Device,
    mut each: impl FnMut(usize, &str, &Counter) -> Result<Done>,
) -> Result<Tally> {
    let started = Instant::now();
    let ids = inputs.ids();
    note!("{input}: {} scans, on {device:?}", ids.len());
    for problem in inputs.problems() {
        note!("bad: {problem}");
    }
    let counter = Counter::new(command, ids.len(), print::attended());
    let bad = inputs.problems().len();
    let mut tally = Tally { scans: ids.len(), done: 0, bad, stopped: false, took: Duration::ZERO };
    for (scan, id) in ids.iter().enumerate() {
        match each(scan, id, &counter)? {
            Done::Finished => tally.done += 1,
            Done::Bad(reason) => {
                tally.bad += 1;
                counter.note(&format!("bad: {id}: {reason}"));
            }
            Done::Stopped => {
                tally.stopped = true;
                break;
            }
        }
        counter.inc(id);
    }
    tally.took = started.elapsed();
    Ok(tally)
}
