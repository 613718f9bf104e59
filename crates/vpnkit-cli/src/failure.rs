//! How the command fails: one line and an exit code.

/// Bad input from a person.
pub const USAGE: u8 = 2;
/// The host refused something.
pub const HOST: u8 = 1;

/// A line for stderr and the code to exit with.
#[derive(Debug)]
pub struct Failure {
    /// What is wrong, where, and what to do; empty when it was said already.
    pub message: String,
    /// The exit code.
    pub code: u8,
}

impl Failure {
    /// Bad input.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: USAGE }
    }

    /// What clap says in several lines, in one.
    pub fn of_command_line(error: &clap::Error) -> Self {
        let text = error.to_string();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let said: Vec<_> =
            lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more")).collect();
        let line = said.join(" ");
        Self::usage(format!("{}; --help says more", line.strip_prefix("error: ").unwrap_or(&line)))
    }

    /// Bad input that the system refused, with the causes.
    pub fn bad(error: &(dyn std::error::Error + 'static)) -> Self {
        Self { code: USAGE, ..Self::of(error) }
    }

    /// An error of the host, with its causes.
    pub fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            message = format!("{message}: {inner}");
            cause = inner.source();
        }
        Self { message: message.replace('\n', " "), code: HOST }
    }
}
