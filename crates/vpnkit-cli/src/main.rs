//! The `vpnkit` command: gives a network namespace, or machines behind sockets, a network made of this process's
//! ordinary sockets. Needs no privilege, and changes nothing of the host's network.

#![forbid(unsafe_code)]

mod attach;
mod classic;
mod cli;
mod control;
mod detours;
mod failure;
mod flows;
mod forwarder;
mod introspection;
mod ports;
mod serve;
mod status;
#[cfg(debug_assertions)]
mod trying;
mod watched;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::failure::Failure;

fn main() -> ExitCode {
    let done = match Cli::try_parse() {
        Ok(cli) => perform(&cli),
        // Help and the version go to stdout, with code 0.
        Err(error) if !error.use_stderr() => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => Err(Failure::of_command_line(&error)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("vpnkit: {}", failure.message);
            }
            ExitCode::from(failure.code)
        }
    }
}

fn perform(cli: &Cli) -> Result<(), Failure> {
    match &cli.command {
        Some(Command::Flows(arguments)) => flows::show(arguments),
        Some(Command::Status(arguments)) => status::show(arguments),
        None if cli.make_tap => attach::make_tap(cli),
        None => serve::serve(cli),
    }
}

#[cfg(test)]
mod tests;
