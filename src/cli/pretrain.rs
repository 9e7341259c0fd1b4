use crate::train::config::PretrainConfig;
use crate::train::pretrain::{Ended, pretrain};
use anyhow::Result;
use std::path::PathBuf;
use std::process::ExitCode;

/// Pretrain an encoder on a store with one or several pretext tasks
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: PretrainConfig,
    /// Read settings from a TOML or JSON file, or a run's config.json; flags win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Continue this run from its last checkpoint, with its settings
    #[arg(long, value_name = "RUN", conflicts_with = "config")]
    resume: Option<PathBuf>,
}

/// Exit code of a run that a signal stopped, as shells report it.
const STOPPED: u8 = 130;

pub fn run(args: Args) -> Result<ExitCode> {
    Ok(match pretrain(&args.settings, args.resume.as_deref())? {
        Ended::Finished => ExitCode::SUCCESS,
        Ended::Stopped => ExitCode::from(STOPPED),
    })
}
