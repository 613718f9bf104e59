//! What commands print on stdout.

use std::io::{self, Write};

use super::Failure;

/// Prints bytes as they are.
pub fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|error| Failure::other(format!("stdout: {error}")))
}

/// Prints a line, at once: a script may wait for it.
pub fn line(text: impl std::fmt::Display) -> Result<(), Failure> {
    bytes(format!("{text}\n").as_bytes())
}
