//! The product as a user has it: the real binary, Debian's kernel, real programs in the guest.
//!
//! One machine at a time unless a test is about several: a machine is a busy processor.

mod bad_input;
#[cfg(test)] // as of `terminal`
mod clock;
mod failures;
mod network;
mod processor;
mod shares;
mod streams;

// This says to clippy that the functions of these belong to tests, where `unwrap` is allowed.
#[cfg(test)]
mod datakit;
#[cfg(test)]
mod ninep;
#[cfg(test)]
mod terminal;

use std::io::Write;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A run of `coracle`. Holds the turn until dropped.
pub struct Run {
    command: Command,
    _turn: MutexGuard<'static, ()>,
}

/// What came of it.
pub struct Done {
    /// Exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it complained of.
    pub stderr: String,
}

static TURN: Mutex<()> = Mutex::new(());

/// `coracle` with arguments, stdin closed.
pub fn coracle(arguments: &[&str]) -> Run {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut command = bare();
    command.args(arguments).stdin(Stdio::null());
    Run { command, _turn: turn }
}

/// `coracle run -- sh -c SCRIPT` with flags.
pub fn sh(flags: &[&str], script: &str) -> Run {
    let mut run = coracle(&["run", "--timeout", "180s"]);
    run.command.args(flags).args(["--", "sh", "-c", script]);
    run
}

/// The binary, without taking a turn.
pub fn bare() -> Command {
    Command::new(env!("CARGO_BIN_EXE_coracle"))
}

impl Run {
    /// Lets a test add to the command.
    pub fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    /// Runs to the end.
    pub fn done(mut self) -> Done {
        done(self.command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().expect("coracle starts"))
    }

    /// Runs to the end with `input` on stdin.
    pub fn done_with(mut self, input: Vec<u8>) -> Done {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().expect("coracle starts");
        let mut stdin = child.stdin.take().expect("it is piped");
        let writer = std::thread::spawn(move || {
            let _ = stdin.write_all(&input);
        });
        let output = child.wait_with_output().expect("coracle ends");
        writer.join().expect("the writer does not panic");
        done(output)
    }

    /// Starts it; the child is killed when dropped.
    pub fn start(mut self) -> Started {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.command.spawn().expect("coracle starts");
        Started { child, _turn: self._turn }
    }
}

/// A run in progress.
pub struct Started {
    /// The process.
    pub child: Child,
    _turn: MutexGuard<'static, ()>,
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn done(output: Output) -> Done {
    Done {
        code: output.status.code(),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Done {
    /// stdout as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Asserts exit code 0 and gives stdout.
    pub fn good(&self) -> String {
        assert_eq!(self.code, Some(0), "stdout: {}\nstderr: {}", self.text(), self.stderr);
        self.text()
    }
}
