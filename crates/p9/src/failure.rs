//! How the command fails: one line and an exit code.

use std::error::Error;

use p9p::client::ClientError;
use p9p::connection::CopyError;

/// A line for stderr and the code to exit with.
#[derive(Debug)]
pub struct Failure {
    /// What is wrong, where, and what to do; no line break.
    pub message: String,
    /// The exit code.
    pub code: u8,
}

impl Failure {
    /// Bad input from a person.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 2 }
    }

    /// Something else failed.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 1 }
    }

    /// An error with its causes, about `what`.
    pub fn of(what: &str, error: &(dyn Error + 'static)) -> Self {
        Self::new(format!("{what}: {}", chain(error)))
    }

    /// What clap says in several lines, in one.
    pub fn of_command_line(error: &clap::Error) -> Self {
        let text = error.to_string();
        let useful = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let useful = useful.take_while(|line| !line.starts_with("For more information"));
        let line = useful.collect::<Vec<_>>().join(" ");
        let line = line.strip_prefix("error: ").unwrap_or(&line);
        Self::usage(format!("{line}; `p9 --help` says more"))
    }

    /// A failed call about a file of the server.
    pub fn of_call(path: &str, error: &ClientError) -> Self {
        Self::of(path, error)
    }

    /// A failed transfer.
    pub fn of_copy(path: &str, error: &CopyError) -> Self {
        match error {
            CopyError::Local(local) => Self::of("the local side failed", local),
            CopyError::Server(error) => Self::of_call(path, error),
        }
    }
}

/// An error and its causes, in one line.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = inner.source();
    }
    line
}
