//! Which BatchNorm statistics the encoder of a pretraining run gets where it leaves the run.

use crate::nn::NormKind;
use crate::run::folder::Run;
use crate::sample::windows::Windows;
use crate::train::pretrain;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

// No doc comment: clap would take it for the command's.
#[derive(clap::Args)]
pub struct StatisticsFlags {
    /// Store that a pretraining run was trained on, where it has moved
    #[arg(long, value_name = "STORE")]
    data: Option<PathBuf>,
    /// Keep the BatchNorm statistics of the pretraining, which need no scans; those of small patches do not fit whole scans
    #[arg(long, conflicts_with = "data")]
    keep_statistics: bool,
}

impl StatisticsFlags {
    /// Windows to estimate the statistics on; `None` where they stay, or the encoder has none. `weights`: what the user named; `run`: the
    /// run that it is of. Errors if flags are given that such weights have no use for.
    pub fn windows(&self, weights: &Path, run: Option<&Run>) -> Result<Option<Windows>> {
        let what = match run {
            None => Some("weights without a run"),
            Some(run) => run.description()?.contains_key("downstream").then_some("a fine-tuned network"),
        };
        if let Some(what) = what {
            ensure!(
                self.data.is_none() && !self.keep_statistics,
                "--data and --keep-statistics are for runs of `pretext3d pretrain`; {} is {what}",
                weights.display()
            );
            return Ok(None);
        }
        let Some(run) = run.filter(|_| !self.keep_statistics) else { return Ok(None) };
        if run.network()?.norm() != NormKind::Batch {
            return Ok(None);
        }
        let windows = pretrain::windows(run, self.data.as_deref()).context(
            "the BatchNorm statistics of a pretrained encoder are estimated on its training scans: name their store with --data, or keep \
             those of the pretraining with --keep-statistics",
        )?;
        Ok(Some(windows))
    }
}
