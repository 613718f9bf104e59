//! The `vpnkit` command: gives a network namespace, or machines behind sockets, a network made of this process's
//! ordinary sockets. Needs no privilege, and changes nothing of the host's network.

#![forbid(unsafe_code)]

mod attach;
mod cli;
mod control;
mod failure;
mod flows;
mod ports;

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use ethlink::Namespace;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use vpnkit::{Engine, Stopper};
use vpnkit_control::Network;

use crate::cli::{Cli, Command};
use crate::failure::Failure;

fn main() -> ExitCode {
    let done = match Cli::try_parse() {
        Ok(cli) => perform(&cli),
        Err(error) => {
            // Usage goes to stderr with code 2, help to stdout with code 0.
            let code = error.exit_code();
            let _ = error.print();
            return ExitCode::from(u8::try_from(code).unwrap_or(failure::USAGE));
        }
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
    if let Some(Command::Flows(arguments)) = &cli.command {
        return flows::show(arguments);
    }
    if cli.make_tap {
        return attach::make_tap(cli);
    }
    raise_open_files();
    let config = cli.config()?;
    let link = attach::attach(cli, &config.network)?;
    let (link, recorder) = control::capture(cli, link);
    let engine = Arc::new(Engine::start(config, link).map_err(|error| Failure::of(&error))?);
    let _server = control::serve(cli, Arc::clone(&engine) as Arc<dyn Network>, recorder)?;
    if let Some(netns) = &cli.netns {
        let Ok(namespace) = netns.parse::<Namespace>();
        stop_after("namespace", engine.stopper(), move || {
            // What cannot be watched ends with a signal only.
            if namespace.wait_until_gone().is_err() {
                loop {
                    std::thread::park();
                }
            }
        })?;
    }
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])
        .map_err(|error| Failure::of(&error))?;
    stop_after("signals", engine.stopper(), move || {
        signals.forever().next();
    })?;
    engine.wait();
    Ok(())
}

/// Stops the engine when `event` returns, on a thread of its own.
fn stop_after(name: &str, stopper: Stopper, event: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            event();
            stopper.stop();
        })
        .map(|_| ())
        .map_err(|error| Failure::of(&error))
}

/// Lets the process have as many descriptors as it may: each connection of a guest is one.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // If it fails, there are fewer connections, each refused with an error of its own.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

#[cfg(test)]
mod tests;
