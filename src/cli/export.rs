use super::statistics::StatisticsFlags;
use crate::device::DeviceChoice;
use crate::predict::export::{self, export_run};
use crate::print::say;
use crate::run::folder::Run;
use anyhow::{Context, Result};
use std::path::PathBuf;

/// Write a run's encoder, of a fine-tuned run the whole network, as TorchScript (.pt), state dict (.safetensors) and description (.json)
///
/// The BatchNorm statistics of a pretrained encoder are estimated on windows of its training scans.
#[derive(clap::Args)]
pub struct Args {
    /// The run's folder
    #[arg(long, value_name = "RUN")]
    run: PathBuf,
    /// Which checkpoint
    #[arg(long, value_parser = ["best", "last"], default_value = "best")]
    checkpoint: String,
    /// Path without extension, e.g. weights/rot
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    #[command(flatten)]
    statistics: StatisticsFlags,
}

pub fn run(args: Args) -> Result<()> {
    export::files(&args.out).context("--out")?;
    let run = Run::at(&args.run);
    let windows = args.statistics.windows(&args.run, Some(&run))?;
    let device = DeviceChoice::Auto.resolve()?;
    for path in export_run(&run, &args.checkpoint, &args.out, windows.as_ref().map(|windows| (windows, device)))? {
        say!("{path}");
    }
    Ok(())
}
