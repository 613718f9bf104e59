//! How the command fails: one line and an exit code.

/// Bad input from a person.
pub const USAGE: u8 = 2;
/// The machine or the host failed, not the command in it.
pub const MACHINE: u8 = 125;

/// A line for stderr and the code to exit with.
#[derive(Debug)]
pub struct Failure {
    /// What is wrong, where, and what to do; no line break.
    pub message: String,
    /// The exit code.
    pub code: u8,
}

impl Failure {
    /// Bad input: exit code 2.
    pub fn usage(message: &str) -> Failure {
        Failure { message: message.to_owned(), code: USAGE }
    }

    /// Something failed that the user did not cause: exit code 125.
    pub fn machine(message: &str) -> Failure {
        Failure { message: message.to_owned(), code: MACHINE }
    }

    /// As [`Failure::machine`], from an error with its causes.
    pub fn of(error: &(dyn std::error::Error + 'static)) -> Failure {
        Failure::machine(&chain(error))
    }
}

/// An error and its causes, in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = inner.source();
    }
    line.replace('\n', " ")
}
