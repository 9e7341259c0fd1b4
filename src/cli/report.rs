use crate::report::study::write_report;
use anyhow::Result;
use std::path::PathBuf;

/// Tables, statistics and figures of a sweep, from its records alone
///
/// Writes results.csv (every finished run), report.md with its figures (PNG), and report.html, one file that needs no other.
/// An unfinished sweep gives a report on what is finished, which says so on top.
#[derive(clap::Args)]
pub struct Args {
    /// The sweep's folder
    #[arg(value_name = "SWEEP")]
    folder: PathBuf,
    /// Folder to write into [default: SWEEP/report]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<()> {
    let out = args.out.unwrap_or_else(|| args.folder.join("report"));
    print!("{}", write_report(&args.folder, &out)?);
    println!("{}", out.join("report.html").display());
    Ok(())
}
