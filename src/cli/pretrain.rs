use crate::train::pretrain::{PretrainConfig, pretrain};
use crate::train::session::Ended;
use anyhow::Result;
use std::path::PathBuf;
use std::process::ExitCode;

/// Pretrain an encoder on a store with one or several pretext tasks
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub settings: PretrainConfig,
    /// Read settings from a TOML or JSON file, or a run's config.json; flags win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Continue this run from its last checkpoint, with its settings
    #[arg(long, value_name = "RUN", conflicts_with = "config")]
    resume: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<ExitCode> {
    Ok(match pretrain(&args.settings, args.resume.as_deref())? {
        Ended::Finished => ExitCode::SUCCESS,
        Ended::Stopped => ExitCode::from(super::STOPPED),
    })
}
