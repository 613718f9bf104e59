//! How a command fails: one line and an exit code.

use std::process::ExitCode;

/// A line for stderr and the code to exit with.
#[derive(Debug)]
pub struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    /// What a person got wrong: exit code 2. Says what, where, and what to do.
    pub fn usage(message: impl std::fmt::Display) -> Self {
        Self { message: message.to_string(), code: 2 }
    }

    /// What clap says in several lines, in one.
    pub fn of_command_line(error: &clap::Error) -> Self {
        let text = error.to_string();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let said: Vec<_> = lines.take_while(|line| !line.starts_with("Usage:")).collect();
        let said: Vec<_> = said.into_iter().take_while(|line| !line.starts_with("For more")).collect();
        let line = said.join(" ");
        Self::usage(format!("{}; --help says more", line.strip_prefix("error: ").unwrap_or(&line)))
    }

    /// Anything else: exit code 1.
    pub fn other(message: impl std::fmt::Display) -> Self {
        Self { message: message.to_string(), code: 1 }
    }

    /// Says it.
    pub fn report(&self) -> ExitCode {
        eprintln!("datakit: {}", self.message.replace('\n', " "));
        ExitCode::from(self.code)
    }
}

/// An error and its causes, in one line; exit code 1.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::other(chain(error.as_ref()))
    }
}

/// An error and its causes, in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
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
