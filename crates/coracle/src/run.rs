//! `coracle run`: a machine for one command.

use crate::cli::run::Arguments;
use crate::cli::value;
use crate::failure::Failure;
use crate::{machine, session};

/// Smallest memory that Debian's kernel with our initramfs starts in.
const MEMORY_BYTES_MIN: u64 = 96 << 20;

/// Runs the command; its exit code is ours.
///
/// # Errors
/// [`Failure`], with exit code 2 for what the user can put right, before anything is made.
pub fn perform(arguments: &Arguments) -> Result<u8, Failure> {
    check(arguments)?;
    let terminal = arguments.tty.then(crate::terminal::Terminal::of_stdin).transpose()?;
    let setup = machine::Setup::prepare(arguments)?;
    session::run(setup, arguments, terminal)
}

/// What can be refused before anything is made.
fn check(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.command.is_empty() && arguments.initrd.is_none() {
        return Err(Failure::usage("no command: say `coracle run -- COMMAND ARGUMENTS…`"));
    }
    if arguments.cpus == 0 {
        return Err(Failure::usage("--cpus 0: a machine needs at least one processor"));
    }
    check_memory(arguments.memory)?;
    for share in &arguments.shares {
        crate::glue::p9::source(&share.host).map_err(|why| Failure::usage(&why))?;
    }
    for variable in &arguments.env {
        value::variable(variable).map_err(|why| Failure::usage(&why))?;
    }
    for (flag, file) in [("--kernel", &arguments.kernel), ("--initrd", &arguments.initrd)] {
        let Some(file) = file else { continue };
        std::fs::File::open(file)
            .map_err(|error| Failure::usage(&format!("{flag} {}: {error}", file.display())))?;
    }
    Ok(())
}

fn check_memory(bytes: u64) -> Result<(), Failure> {
    let host = crate::sys::memory_bytes();
    if bytes < MEMORY_BYTES_MIN {
        return Err(Failure::usage(&format!(
            "--memory: {bytes} bytes are too few, the guest needs at least 96M"
        )));
    }
    if bytes > host {
        let mib = host >> 20;
        return Err(Failure::usage(&format!(
            "--memory: {} MiB asked for, this host has {mib} MiB",
            bytes >> 20
        )));
    }
    Ok(())
}
