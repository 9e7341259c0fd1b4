use super::statistics::StatisticsFlags;
use crate::device::DeviceChoice;
use crate::predict::export::{self, export_run};
use crate::predict::targets::{Target, deliver};
use crate::print::say;
use crate::run::folder::Run;
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;

/// Write a run's encoder, of a fine-tuned run the whole network, as TorchScript (.pt), state dict (.safetensors) and description (.json)
///
/// With --to the encoder of a pretraining run, as a folder for another program: for nnU-Net checkpoint_final.pth, of which
/// nnUNetv2_train takes what --plans makes; for MONAI a bundle; for Hugging Face model.safetensors. Each has a README.md, in which the
/// licence is left to you.
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
    /// Path without extension, e.g. weights/rot; with --to a new folder
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// The program that is to read it, instead of the three files
    #[arg(long, value_enum)]
    to: Option<Target>,
    /// With --to nnunet: the plans of the dataset that nnU-Net will train on, nnUNetPlans.json or another one, for a whole network
    #[arg(long, value_name = "FILE")]
    plans: Option<PathBuf>,
    #[command(flatten)]
    statistics: StatisticsFlags,
}

pub fn run(args: Args) -> Result<()> {
    let run = Run::at(&args.run);
    if args.to.is_none() {
        ensure!(args.plans.is_none(), "--plans goes with --to nnunet");
        export::files(&args.out).context("--out")?;
    }
    let windows = args.statistics.windows(&args.run, Some(&run))?;
    let device = DeviceChoice::Auto.resolve()?;
    let windows = windows.as_ref().map(|windows| (windows, device));
    let written = match args.to {
        None => export_run(&run, &args.checkpoint, &args.out, windows)?,
        Some(target) => deliver(&run, &args.checkpoint, target, &args.out, args.plans.as_deref(), windows)?,
    };
    written.iter().for_each(|path| say!("{path}"));
    Ok(())
}
