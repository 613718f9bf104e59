//! The user's terminal, raw while a command in the guest has it.

use std::os::fd::AsFd;

use guest_protocol::WindowSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::failure::Failure;

/// The terminal on stdin. Restored when dropped.
#[derive(Debug)]
pub struct Terminal {
    before: Option<Termios>,
}

impl Terminal {
    /// Takes note of the terminal on stdin; changes nothing yet.
    ///
    /// # Errors
    /// [`Failure`] with exit code 2 when stdin is not a terminal.
    pub fn of_stdin() -> Result<Terminal, Failure> {
        if !rustix::termios::isatty(std::io::stdin()) {
            return Err(Failure::usage(
                "-t: stdin is not a terminal; leave -t out, or run it from a terminal",
            ));
        }
        Ok(Terminal { before: None })
    }

    /// Passes every key to the guest, Ctrl-C included.
    pub fn make_raw(&mut self) {
        let stdin = std::io::stdin();
        let Ok(now) = tcgetattr(stdin.as_fd()) else { return };
        let mut raw = now.clone();
        raw.make_raw();
        if tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw).is_ok() {
            self.before = Some(now);
        }
    }

    /// Lines and columns; 24 by 80 where the terminal does not know.
    pub fn size() -> WindowSize {
        match tcgetwinsize(std::io::stdin().as_fd()) {
            Ok(size) if size.ws_row > 0 && size.ws_col > 0 => {
                WindowSize { rows: size.ws_row, columns: size.ws_col }
            }
            _ => WindowSize { rows: 24, columns: 80 },
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(std::io::stdin().as_fd(), OptionalActions::Drain, before);
        }
    }
}
