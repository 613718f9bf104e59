//! The command line: one file per command, each with its `Arguments` and its `run`.

mod auto_push;
mod branch;
mod change;
mod doctor;
mod failure;
mod local;
mod mount;
mod output;
mod prometheus;
mod read;
mod serve;
mod target;
mod transfer;
mod watch;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
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
    /// Publishes a repository, or a store in memory, over 9P and by FUSE.
    Serve(serve::Arguments),
    /// Mounts a repository, or what a server publishes, by FUSE.
    Mount(mount::Arguments),
    /// Says what this host offers, and what to do about what it does not.
    Doctor(doctor::Arguments),
    /// Lists, makes, moves and deletes branches.
    Branch(branch::Arguments),
    /// Prints a file of a branch or commit.
    Cat(read::Cat),
    /// Lists a directory of a branch or commit.
    Ls(read::Ls),
    /// Prints the commits that a branch or commit came from.
    Log(read::Log),
    /// Prints what differs between two branches or commits.
    Diff(read::Diff),
    /// Prints a line for whatever happens to a branch, or to a path in it.
    Watch(watch::Arguments),
    /// Writes a file and commits that.
    Put(change::Put),
    /// Removes files and commits that.
    Rm(change::Rm),
    /// Commits changes of many files at once.
    Commit(change::Commit),
    /// Merges a branch or commit into a branch.
    Merge(change::Merge),
    /// Fetches a branch of another repository.
    Fetch(transfer::Fetch),
    /// Pushes a branch to another repository.
    Push(transfer::Push),
}

/// The arguments of this process. DataKit had no commands: its flags alone are `serve`'s.
fn arguments() -> Vec<OsString> {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let is_flag = arguments.get(1).and_then(|first| first.to_str()).is_some_and(|first| {
        first.starts_with('-') && !matches!(first, "-h" | "--help" | "-V" | "--version")
    });
    if is_flag {
        arguments.insert(1, "serve".into());
    }
    arguments
}

/// Runs what the arguments of this process say.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse_from(arguments()) {
        Ok(cli) => cli,
        // Help, when asked for or when there is nothing else; a closed stdout is the reader's wish.
        Err(error)
            if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
        Err(error) => return Failure::of_command_line(&error).report(),
    };
    let result = match cli.command {
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Mount(arguments) => mount::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Branch(arguments) => branch::run(&arguments),
        Command::Cat(arguments) => read::cat(&arguments),
        Command::Ls(arguments) => read::ls(&arguments),
        Command::Log(arguments) => read::log(&arguments),
        Command::Diff(arguments) => read::diff(&arguments),
        Command::Watch(arguments) => watch::run(&arguments),
        Command::Put(arguments) => change::put(&arguments),
        Command::Rm(arguments) => change::rm(&arguments),
        Command::Commit(arguments) => change::commit(&arguments),
        Command::Merge(arguments) => change::merge(&arguments),
        Command::Fetch(arguments) => transfer::fetch(&arguments),
        Command::Push(arguments) => transfer::push(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
