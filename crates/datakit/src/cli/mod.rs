//! The command line: one file per command, each with its `Arguments` and its `run`.

mod doctor;
mod failure;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use failure::Failure;

/// Git as a live file system: branches, transactions, merges and watches as files.
#[derive(Parser)]
#[command(name = "datakit", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Says what this host offers, and what to do about what it does not.
    Doctor(doctor::Arguments),
}

/// Runs what the arguments of this process say.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let result = match cli.command {
        Command::Doctor(arguments) => doctor::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
