//! The `coracle` command: boots a small Linux anywhere and runs a command in it.
//!
//! The only place where the kits meet: [`machine`] composes a machine from hyperkit, vpnkit and p9p through
//! [`glue`]; [`session`] talks to PID 1 of the guest; [`cli`] is the command line, [`run`] what `coracle run` does.

#![forbid(unsafe_code)]

mod cli;
mod failure;
mod glue;
mod machine;
mod progress;
mod run;
mod session;
mod sys;
mod terminal;

use std::process::ExitCode;

fn main() -> ExitCode {
    sys::raise_open_files();
    let done = cli::Cli::from_arguments().and_then(cli::Cli::perform);
    match done {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("coracle: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}
