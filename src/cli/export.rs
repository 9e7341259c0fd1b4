use crate::device::DeviceChoice;
use crate::nn::NormKind;
use crate::predict::export::{self, export_run};
use crate::print::say;
use crate::run::folder::Run;
use crate::train::pretrain;
use anyhow::{Context, Result, ensure};
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
    /// Store that a pretraining run was trained on, where it has moved
    #[arg(long, value_name = "STORE")]
    data: Option<PathBuf>,
    /// Keep the BatchNorm statistics of the pretraining, which need no scans; those of small patches do not fit whole scans
    #[arg(long, conflicts_with = "data")]
    keep_statistics: bool,
}

pub fn run(args: Args) -> Result<()> {
    export::files(&args.out).context("--out")?;
    let run = Run::at(&args.run);
    let pretrained = run.description()?.get("downstream").is_none();
    ensure!(
        pretrained || (args.data.is_none() && !args.keep_statistics),
        "--data and --keep-statistics are for pretrained encoders; {} is a fine-tuned network",
        args.run.display()
    );
    let windows = match pretrained && !args.keep_statistics && run.network()?.norm() == NormKind::Batch {
        true => Some(pretrain::windows(&run, args.data.as_deref()).context(
            "the BatchNorm statistics of an export are estimated on the training scans: name their store with --data, or keep those \
             of the pretraining with --keep-statistics",
        )?),
        false => None,
    };
    let device = DeviceChoice::Auto.resolve()?;
    for path in export_run(&run, &args.checkpoint, &args.out, windows.as_ref().map(|windows| (windows, device)))? {
        say!("{path}");
    }
    Ok(())
}
