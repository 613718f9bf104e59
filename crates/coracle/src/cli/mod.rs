//! The command line: what it accepts, and the plain values that it becomes.

mod doctor;
mod image;
pub mod run;
pub mod value;

use std::fmt::Display;
use std::io::{self, Write};

use clap::{Parser, Subcommand};

use crate::failure::Failure;

/// Boots a small Linux anywhere, without root or hardware virtualisation, and runs a command in it.
#[derive(Debug, Parser)]
#[command(name = "coracle", version, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command in a machine made for it.
    Run(Box<run::Arguments>),
    /// Say what this host offers, and what to do about what it lacks.
    Doctor(doctor::Arguments),
    /// Build, list and remove guest images.
    Image(image::Arguments),
}

impl Cli {
    /// Parses the process's arguments. Help and version go to stdout and end the process with 0.
    ///
    /// # Errors
    /// [`Failure`] with one line, exit code 2.
    pub fn from_arguments() -> Result<Cli, Failure> {
        Cli::try_parse().map_err(|error| {
            use clap::error::ErrorKind::{
                DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion,
            };
            if matches!(error.kind(), DisplayHelp | DisplayVersion) {
                error.exit();
            }
            if error.kind() == DisplayHelpOnMissingArgumentOrSubcommand {
                return Failure::usage(
                    "nothing to do: say `coracle run -- COMMAND`, or see `coracle --help`",
                );
            }
            Failure::usage(&first_line(&error.to_string()))
        })
    }

    /// Does what the command line asks; returns the exit code.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be done.
    pub fn perform(self) -> Result<u8, Failure> {
        match self.command {
            Command::Run(arguments) => crate::run::perform(&arguments),
            Command::Doctor(arguments) => doctor::perform(&arguments),
            Command::Image(arguments) => image::perform(&arguments),
        }
    }
}

/// Writes a line to stdout. A reader that has gone away has read enough: that is no failure.
fn print_line(line: impl Display) -> Result<(), Failure> {
    match writeln!(io::stdout().lock(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::machine(&format!("stdout cannot be written: {error}")))
        }
        _ => Ok(()),
    }
}

/// What clap says in several lines, in one.
fn first_line(message: &str) -> String {
    let text = message.trim_start_matches("error: ");
    let end = text.find("\n\n").unwrap_or(text.len());
    let line = text[..end].split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{line} (see `coracle --help`)")
}
