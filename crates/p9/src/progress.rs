//! How far a long transfer is: on stderr, when that is a terminal, and not before a second has passed.

use std::io::{self, IsTerminal, Read, Write};
use std::time::{Duration, Instant};

/// When the first line appears, and how often it changes.
const FIRST: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(200);

/// Counts what passes.
pub struct Progress<T> {
    inner: T,
    done: u64,
    total: Option<u64>,
    started: Instant,
    next: Option<Instant>,
    is_shown: bool,
}

impl<T> Progress<T> {
    /// Counts what passes through `inner`, of `total` bytes if that is known.
    pub fn new(inner: T, total: Option<u64>) -> Self {
        let started = Instant::now();
        let next = io::stderr().is_terminal().then_some(started + FIRST);
        Self { inner, done: 0, total, started, next, is_shown: false }
    }

    fn count(&mut self, bytes: usize) {
        self.done += bytes as u64;
        let now = Instant::now();
        if self.next.is_some_and(|next| now >= next) {
            self.next = Some(now + AGAIN);
            self.is_shown = true;
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let rate = mib(self.done) / (now - self.started).as_secs_f64();
            let of = self.total.map_or(String::new(), |total| format!(" of {:.0}", mib(total)));
            eprint!("\r{:.0}{of} MiB, {rate:.0} MiB/s\x1b[K", mib(self.done));
        }
    }
}

impl<T> Drop for Progress<T> {
    fn drop(&mut self) {
        if self.is_shown {
            eprint!("\r\x1b[K");
        }
    }
}

impl<T: Write> Write for Progress<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.count(count);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Progress<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count(count);
        Ok(count)
    }
}
