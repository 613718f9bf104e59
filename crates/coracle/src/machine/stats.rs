//! `--stats`: when the guest said what on its console, and how many instructions it had retired by then.
//!
//! One JSON object a line: `seconds` since the machine was built, `retired` (null where the engine does not count),
//! and the `line` of the console; the last object has `end` in place of a line.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use hyperkit::Counter;

use crate::failure::Failure;

/// Longer lines are cut.
const LINE_BYTES_MAX: usize = 1 << 10;

/// The statistics of one machine.
#[derive(Debug)]
pub struct Stats {
    begun: Instant,
    counter: OnceLock<Counter>,
    output: Mutex<Output>,
}

#[derive(Debug)]
struct Output {
    file: File,
    line: Vec<u8>,
}

impl Stats {
    /// Writes to a new file.
    ///
    /// # Errors
    /// [`Failure`], with exit code 2, when the file cannot be made.
    pub fn create(path: &Path) -> Result<Stats, Failure> {
        let file = File::create(path)
            .map_err(|error| Failure::usage(&format!("--stats {}: {error}", path.display())))?;
        let output = Mutex::new(Output { file, line: Vec::new() });
        Ok(Stats { begun: Instant::now(), counter: OnceLock::new(), output })
    }

    /// Says who counts the instructions, once that is known.
    pub fn count_with(&self, counter: Counter) {
        // A machine is built once.
        let _ = self.counter.set(counter);
    }

    /// Takes what the console sends.
    pub fn take(&self, bytes: &[u8]) {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        for &byte in bytes {
            if byte == b'\n' {
                let line = std::mem::take(&mut output.line);
                let line = String::from_utf8_lossy(&line);
                self.write(&mut output.file, "line", line.trim_end().into());
            } else if output.line.len() < LINE_BYTES_MAX {
                output.line.push(byte);
            }
        }
    }

    /// The machine has ended.
    pub fn end(&self) {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(&mut output.file, "end", true.into());
    }

    fn write(&self, file: &mut File, key: &str, value: serde_json::Value) {
        let retired = self.counter.get().and_then(Counter::retired);
        let mut record =
            serde_json::json!({ "seconds": self.begun.elapsed().as_secs_f64(), "retired": retired });
        record[key] = value;
        // A full disk is no reason to stop the guest; a reader misses the end then.
        let _ = writeln!(file, "{record}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_the_console_has_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stats");
        let stats = Stats::create(&path).unwrap();
        for bytes in [&b"fir"[..], b"st\r\nsecond\nrest"] {
            stats.take(bytes);
        }
        stats.end();
        let text = std::fs::read_to_string(&path).unwrap();
        let records: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(records.len(), 3);
        assert_eq!((&records[0]["line"], &records[1]["line"]), (&"first".into(), &"second".into()));
        assert_eq!(records[2]["end"], true);
        assert!(records.is_sorted_by_key(|record| record["seconds"].as_f64().unwrap()));
    }
}
