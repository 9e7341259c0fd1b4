use crate::fs::check_folder;
use crate::print::say;
use crate::report::study::write_report;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;

/// Tables, statistics and figures of a sweep, or of several together, from their records alone
///
/// Writes results.csv (every finished run), report.md with its figures (PNG), and report.html, one file that needs no other.
/// An unfinished sweep gives a report on what is finished, which says so on top. Sweeps of one study in 2D and in 3D stand side by
/// side, with the differences between them.
#[derive(clap::Args)]
pub struct Args {
    /// The sweep's folder; of several sweeps that share a metric, one common report
    #[arg(value_name = "SWEEP", required = true)]
    folders: Vec<PathBuf>,
    /// Folder to write into; needed for several sweeps [default: SWEEP/report]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<()> {
    let out = match (args.out, &args.folders[..]) {
        (Some(out), _) => out,
        (None, [folder]) => folder.join("report"),
        (None, folders) => bail!("--out DIR is needed: a report of {} sweeps has no folder of its own", folders.len()),
    };
    check_folder(&out).context("--out")?;
    say!("{}", write_report(&args.folders, &out)?);
    Ok(())
}
