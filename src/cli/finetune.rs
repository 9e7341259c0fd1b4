use crate::finetune::config::FinetuneConfig;
use crate::finetune::finetune;
use crate::train::session::Ended;
use anyhow::Result;
use std::path::PathBuf;
use std::process::ExitCode;

/// Train a downstream task on labelled scans, from a pretrained encoder or from scratch, and test it
///
/// Validation subjects choose the best epoch, test subjects score it: RUN/test/scores.csv, a row a case and class, and
/// RUN/result.json. The same --seed gives every arm the same split, samples and first weights of the decoder.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub settings: FinetuneConfig,
    /// Read settings from a TOML or JSON file, or a run's config.json; flags win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Continue this run from its last checkpoint, with its settings
    #[arg(long, value_name = "RUN", conflicts_with = "config")]
    resume: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<ExitCode> {
    Ok(match finetune(&args.settings, args.resume.as_deref())? {
        Ended::Finished => ExitCode::SUCCESS,
        Ended::Stopped => ExitCode::from(super::STOPPED),
    })
}
