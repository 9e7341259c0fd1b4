//! The command line: one file a subcommand, each with its flags and a `run`.

pub mod bench;
pub mod doctor;
pub mod embed;
pub mod evaluate;
pub mod export;
pub mod finetune;
pub mod inspect;
mod labels;
pub mod phantom;
pub mod predict;
pub mod preprocess;
pub mod pretrain;
pub mod report;
mod scans;
mod statistics;
pub mod sweep;

use crate::ffi;
use crate::group;
use crate::machine;
use crate::nn::EncoderConfig;
use crate::print::{self, note};
use crate::settings;
use crate::shard::Shard;
use anyhow::{Result, anyhow, bail};
use clap::{CommandFactory, Parser, Subcommand};
use std::ffi::OsString;
use std::process::ExitCode;

/// Self-supervised pretraining of 3D and 2D encoders on medical volumes.
#[derive(Parser)]
#[command(version, about, max_term_width = 120, args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Phantom(phantom::Args),
    Preprocess(preprocess::Args),
    Pretrain(Box<pretrain::Args>),
    Finetune(Box<finetune::Args>),
    Sweep(sweep::Args),
    Export(export::Args),
    Predict(Box<predict::Args>),
    Evaluate(evaluate::Args),
    Inspect(Box<inspect::Args>),
    Embed(Box<embed::Args>),
    Report(report::Args),
    Doctor(doctor::Args),
    #[command(hide = true)]
    BenchStep(bench::StepArgs),
    #[command(hide = true)]
    BenchSampling(bench::SamplingArgs),
}

impl Command {
    /// Whether networks run, or it is told how they would.
    fn computes(&self) -> bool {
        use Command::{BenchStep, Doctor, Embed, Finetune, Predict, Pretrain, Sweep};
        matches!(self, Pretrain(_) | Finetune(_) | Sweep(_) | Predict(_) | Embed(_) | BenchStep(_) | Doctor(_))
    }
}

/// Exit code of a run that a signal stopped, as shells report it.
const STOPPED: u8 = 130;

/// Runs the command of the process's arguments. Exit code 0: done; 1: failed, with the reason on standard error; 2: usage;
/// 130: stopped by a signal, to be continued. A closed pipe at standard output changes nothing; where it cannot be written
/// otherwise (a full disk), a command that is done exits with 1.
pub fn main() -> ExitCode {
    ffi::skip_destructors();
    ffi::name_lost_pages();
    if is_rank_command(std::env::args_os().nth(1)) && group::launched().is_ok_and(|rank| rank.is_some_and(|rank| rank.rank > 0))
    {
        print::speak(false);
    }
    let done = arguments().and_then(|arguments| match Cli::try_parse_from(arguments) {
        Ok(cli) => run(cli.command),
        Err(message) => {
            print::usage(&message);
            Ok(ExitCode::from(message.exit_code() as u8))
        }
    });
    // What a command could not print is an error where it says of itself that all went well.
    let done = done.and_then(|code| if code == ExitCode::SUCCESS { print::finish().map(|()| code) } else { Ok(code) });
    done.unwrap_or_else(|error| {
        note!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> Result<ExitCode> {
    if command.computes() {
        machine::settle_threads();
    }
    match command {
        Command::Phantom(args) => phantom::run(args).map(|()| ExitCode::SUCCESS),
        Command::Preprocess(args) => preprocess::run(args).map(|()| ExitCode::SUCCESS),
        Command::Pretrain(args) => pretrain::run(*args),
        Command::Finetune(args) => finetune::run(*args),
        Command::Sweep(args) => sweep::run(args),
        Command::Export(args) => export::run(args).map(|()| ExitCode::SUCCESS),
        Command::Predict(args) => predict::run(*args),
        Command::Evaluate(args) => evaluate::run(args).map(|()| ExitCode::SUCCESS),
        Command::Inspect(args) => inspect::run(*args).map(|()| ExitCode::SUCCESS),
        Command::Embed(args) => embed::run(*args),
        Command::Report(args) => report::run(args).map(|()| ExitCode::SUCCESS),
        Command::Doctor(args) => doctor::run(args).map(|()| ExitCode::SUCCESS),
        Command::BenchStep(args) => bench::step(args).map(|()| ExitCode::SUCCESS),
        Command::BenchSampling(args) => bench::sampling(args).map(|()| ExitCode::SUCCESS),
    }
}

/// Whether several processes that a launcher starts with this subcommand work together on one run.
fn is_rank_command(name: Option<OsString>) -> bool {
    name.is_some_and(|name| name == "pretrain" || name == "finetune")
}

/// Errors where a launcher has started several processes that would all do the same work, none of them a shard of it.
fn refuse_ranks(command: &str, shard: Shard) -> Result<()> {
    let Some(rank) = group::launched()?.filter(|_| shard.is_whole()) else { return Ok(()) };
    print::speak(rank.rank == 0);
    bail!(
        "{command}: {} processes were started for the same work; start one, or give each its part with --shard I/N (only pretrain and \
         finetune are run by several processes together)",
        rank.world
    )
}

/// Errors if `arguments`, from the subcommand on, would be refused before any data is read.
fn check_arguments(arguments: &[String]) -> Result<()> {
    match parse(arguments)? {
        Command::Pretrain(args) => args.settings.check(),
        Command::Finetune(args) => args.settings.check(),
        _ => Ok(()),
    }
}

/// The network of a run with these arguments, as far as they say. Errors if they would be refused by what their store holds, or by their
/// weights, where `weights` says that these are there.
fn check_data(arguments: &[String], weights: bool) -> Result<Option<EncoderConfig>> {
    match parse(arguments)? {
        Command::Pretrain(args) => crate::train::pretrain::check(&args.settings).map(Some),
        Command::Finetune(args) => crate::finetune::check(&args.settings, weights),
        _ => Ok(None),
    }
}

fn parse(arguments: &[String]) -> Result<Command> {
    let arguments = std::iter::once("pretext3d").chain(arguments.iter().map(String::as_str));
    let first_line =
        |e: clap::Error| anyhow!("{}", e.to_string().lines().next().unwrap_or_default().trim_start_matches("error: "));
    Ok(Cli::try_parse_from(arguments).map_err(first_line)?.command)
}

/// The process's arguments, with settings files turned into flags.
fn arguments() -> Result<Vec<OsString>> {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let command = Cli::command();
    let Some(sub) = arguments.get(1).and_then(|name| command.find_subcommand(name)) else { return Ok(arguments) };
    let known: Vec<String> = sub.get_arguments().filter_map(|a| a.get_long()).map(str::to_owned).collect();
    // A sweep's --config is a file of its own kind.
    if known.iter().any(|flag| flag == "resume") {
        if let Some(odd) = arguments.iter().find(|argument| argument.to_str().is_none()) {
            bail!("{}: expected UTF-8, as a run keeps its settings as text; give the file another name", odd.display());
        }
        let expanded = settings::expand(sub.get_name(), &arguments[2..], &known)?;
        arguments.truncate(2);
        arguments.extend(expanded);
    }
    Ok(arguments)
}
