use crate::print::{note, say};
use crate::shard::Shard;
use crate::sweep::Runner;
use crate::sweep::config::SweepConfig;
use crate::train::session::Ended;
use anyhow::Result;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Run every combination of pretext task, arm, label fraction and seed once, and report
///
/// Each run is a process of its own with its folder in the sweep's; a run that is done is not repeated, an interrupted one goes
/// on from its checkpoint. Run the same command again after any interruption.
#[derive(clap::Args)]
pub struct Args {
    /// What to run, see experiments/
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Apply the file's [smoke] table: the same sweep, small
    #[arg(long)]
    smoke: bool,
    /// Store with labels, instead of the file's
    #[arg(long, value_name = "STORE")]
    data: Option<PathBuf>,
    /// Store to pretrain on, instead of the file's; without either the training side of the store with labels
    #[arg(long, value_name = "STORE")]
    unlabelled: Option<PathBuf>,
    /// The subjects of the store to pretrain on are other people, also where their ids are those of the store with labels
    #[arg(long)]
    other_people: bool,
    /// The sweep's folder [default: runs/sweep-<name>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Do the I-th of N parts of the work; the others may run elsewhere on the same folder
    #[arg(long, value_name = "I/N", default_value = "1/1")]
    shard: Shard,
    /// Runs that go on at the same time, on one GPU or on the cores, which are shared out between them
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::MIN)]
    jobs: NonZeroUsize,
    /// Check the file, print the command of each run that is left to do, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    super::refuse_ranks("sweep", args.shard)?;
    let mut config = SweepConfig::read(&args.config, args.smoke)?;
    config.data = args.data.unwrap_or(config.data);
    config.unlabelled = args.unlabelled.or(config.unlabelled);
    config.other_people |= args.other_people;
    let folder = args.out.unwrap_or_else(|| Path::new("runs").join(format!("sweep-{}", config.name)));
    let runner = Runner::plan(config, folder, args.shard, &super::check_arguments)?;
    let fits = runner.check_data(&super::check_data);
    if args.dry_run {
        // The plan may be looked at with other scans than it is for.
        if let Err(error) = fits {
            note!("warning: this sweep would be refused: {error:#}");
        }
        note!("{}", runner.amount());
        runner.commands()?.iter().for_each(|command| say!("{command}"));
        return Ok(ExitCode::SUCCESS);
    }
    fits?;
    if let Ended::Stopped = runner.run(args.jobs.get())? {
        return Ok(ExitCode::from(super::STOPPED));
    }
    if runner.complete() {
        say!("{}", runner.report()?);
    } else {
        say!("this shard is done; the last one to finish writes the report");
    }
    Ok(ExitCode::SUCCESS)
}
