//! The command line: one file a subcommand, each with its flags and a `run`.

pub mod doctor;
pub mod export;
pub mod inspect;
pub mod phantom;
pub mod preprocess;
pub mod pretrain;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Self-supervised pretraining of 3D and 2D encoders on medical volumes.
#[derive(Parser)]
#[command(version, about, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Phantom(phantom::Args),
    Preprocess(preprocess::Args),
    Pretrain(pretrain::Args),
    Export(export::Args),
    Inspect(inspect::Args),
    Doctor(doctor::Args),
}

/// Runs the command of the process's arguments. Exit code 0: done; 1: failed, with the reason on standard error; 2: usage.
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Phantom(args) => phantom::run(args),
        Command::Preprocess(args) => preprocess::run(args),
        Command::Pretrain(args) => pretrain::run(args),
        Command::Export(args) => export::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Doctor(args) => doctor::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
