use crate::predict::export::{self, export_run};
use crate::print::say;
use crate::run::folder::Run;
use anyhow::{Context, Result};
use std::path::PathBuf;

/// Write a run's encoder, of a fine-tuned run the whole network, as TorchScript (.pt), state dict (.safetensors) and description (.json)
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
}

pub fn run(args: Args) -> Result<()> {
    export::files(&args.out).context("--out")?;
    for path in export_run(&Run::at(&args.run), &args.checkpoint, &args.out)? {
        say!("{path}");
    }
    Ok(())
}
