//! The guest's serial console: its last lines are kept, to be shown when the machine fails.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use super::stats::Stats;

/// How much is kept.
const KEPT_BYTES: usize = 16 << 10;
/// How many lines are shown.
const LINES_SHOWN: usize = 15;

/// What the kernel says when it gives up.
pub const PANIC: &str = "Kernel panic";

/// Where the console's bytes go besides being kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Show {
    Nowhere,
    Stdout,
    Stderr,
}

/// The console of one machine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Console {
    kept: Arc<Mutex<VecDeque<u8>>>,
    show: Show,
    stats: Option<Arc<Stats>>,
}

/// Takes the bytes of a serial port.
pub type Sink = Box<dyn FnMut(&[u8]) + Send>;

impl Console {
    /// A console that is also shown on stderr, if `loud`, or on stdout, if it is all that the user will see.
    pub fn new(loud: bool, is_output: bool) -> Console {
        let show = match (is_output, loud) {
            (true, _) => Show::Stdout,
            (false, true) => Show::Stderr,
            (false, false) => Show::Nowhere,
        };
        Console { kept: Arc::default(), show, stats: None }
    }

    /// Tells `stats` as well what the guest says.
    pub fn with_stats(mut self, stats: Option<Arc<Stats>>) -> Console {
        self.stats = stats;
        self
    }

    /// Who else hears what the guest says.
    pub fn stats(&self) -> Option<&Stats> {
        self.stats.as_deref()
    }

    /// Takes what the serial port sends.
    pub fn sink(&self) -> Sink {
        let console = self.clone();
        Box::new(move |bytes| console.take(bytes))
    }

    fn take(&self, bytes: &[u8]) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let excess = kept.len().saturating_sub(KEPT_BYTES);
        kept.drain(..excess);
        drop(kept);
        if let Some(stats) = &self.stats {
            stats.take(bytes);
        }
        // A console that cannot be shown is no reason to stop the guest.
        let _ = match self.show {
            Show::Nowhere => Ok(()),
            Show::Stdout => std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush()),
            Show::Stderr => std::io::stderr().write_all(bytes),
        };
    }

    fn text(&self) -> String {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (a, b) = kept.as_slices();
        String::from_utf8_lossy(&[a, b].concat()).into_owned()
    }

    /// Whether the kept text has `needle` in it.
    pub fn contains(&self, needle: &str) -> bool {
        self.text().contains(needle)
    }

    /// The last lines, each behind a mark, without control characters; empty if they were shown already. A panic is
    /// shown from its first line, which says more than its last.
    pub fn last_lines(&self) -> String {
        if self.show != Show::Nowhere {
            return String::new();
        }
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.len().saturating_sub(LINES_SHOWN);
        let first = lines.iter().position(|line| line.contains(PANIC)).map_or(last, |panic| panic.min(last));
        let shown = &lines[first..lines.len().min(first + LINES_SHOWN)];
        shown.iter().map(|line| format!("| {}\n", line.replace(char::is_control, ""))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_cleaned() {
        let console = Console::new(false, false);
        let mut sink = console.sink();
        for n in 0..10_000 {
            sink(format!("line {n}\x1b[31m\r\n").as_bytes());
        }
        let shown = console.last_lines();
        assert_eq!(shown.lines().count(), LINES_SHOWN);
        assert!(shown.ends_with("| line 9999[31m\n"), "{shown}");
        assert!(console.text().len() <= KEPT_BYTES);
        assert!(console.contains("line 9999"));
    }

    #[test]
    fn a_panic_is_shown_from_its_first_line() {
        let console = Console::new(false, false);
        let mut sink = console.sink();
        sink(b"before\nKernel panic - not syncing: why\n");
        for n in 0..40 {
            sink(format!("trace {n}\n").as_bytes());
        }
        let shown = console.last_lines();
        assert!(shown.starts_with("| Kernel panic - not syncing: why\n"), "{shown}");
        assert_eq!(shown.lines().count(), LINES_SHOWN);
    }
}
