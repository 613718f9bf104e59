//! The 9P command line: `p9 ls|cat|put|stat|rm|mkdir|mount|serve`.
//!
//! What is wrong with the command line is one line on stderr and exit code 2; what a server or this machine refuses, one
//! line and exit code 1.

#![forbid(unsafe_code)]

mod client;
mod command;
mod failure;
mod mount;
mod progress;
mod serve;
mod target;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use failure::Failure;

/// Works with 9P servers, and is one.
///
/// Addresses are tcp://host:port, unix://path, fd://number and vsock://cid:port.
#[derive(Parser)]
#[command(name = "p9", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Lists a directory
    Ls(command::Ls),
    /// Writes files to stdout; streams as they come
    Cat(command::Cat),
    /// Copies a file, or stdin, to the server
    Put(command::Put),
    /// Shows what is known of a file
    Stat(command::Stat),
    /// Removes files and, with -r, directories
    Rm(command::Rm),
    /// Makes directories
    Mkdir(command::Mkdir),
    /// Mounts a server on a directory, by FUSE
    Mount(mount::Mount),
    /// Serves a directory, or memory
    Serve(serve::Serve),
}

fn run() -> Result<(), Failure> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            // Help and version; a closed stdout is the reader's wish.
            let _ = error.print();
            return Ok(());
        }
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            return Err(Failure::usage("nothing to do; `p9 --help` says what there is"));
        }
        Err(error) => return Err(Failure::of_command_line(&error)),
    };
    match cli.task {
        Task::Ls(ls) => ls.run(),
        Task::Cat(cat) => cat.run(),
        Task::Put(put) => put.run(),
        Task::Stat(stat) => stat.run(),
        Task::Rm(rm) => rm.run(),
        Task::Mkdir(mkdir) => mkdir.run(),
        Task::Mount(mount) => mount.run(),
        Task::Serve(serve) => serve.run(),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("p9: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}
