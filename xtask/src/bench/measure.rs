//! Times, memory and medians.

use std::fmt;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The middle of several measurements, and their range.
#[derive(Debug, Clone, Copy)]
pub struct Median {
    /// The median.
    pub middle: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

impl fmt::Display for Median {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:.2} ({:.2}-{:.2})", self.middle, self.least, self.most))
    }
}

/// The median of at least one measurement.
pub fn median(values: &[f64]) -> Median {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let middle = if n % 2 == 1 { sorted[n / 2] } else { f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]) };
    Median { middle, least: sorted[0], most: sorted[n - 1] }
}

/// What a run took.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Wall time.
    pub seconds: f64,
    /// Largest resident memory that is not the guest's RAM, in MiB.
    pub resident_mib_beyond_guest: f64,
}

/// Runs a machine and watches its memory. The guest's RAM is the one largest mapping of the process.
pub fn usage(command: &mut Command) -> Result<Usage> {
    let began = Instant::now();
    let mut child =
        command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().context("it cannot be started")?;
    let mut most = 0f64;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if let Some(now) = resident_beyond_guest(child.id()) {
            most = most.max(now);
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    if !status.success() {
        let mut said = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            stderr.read_to_string(&mut said)?;
        }
        bail!("it failed: {status}: {said}");
    }
    Ok(Usage { seconds: began.elapsed().as_secs_f64(), resident_mib_beyond_guest: most })
}

/// Resident MiB of a process without its largest mapping.
fn resident_beyond_guest(pid: u32) -> Option<f64> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let field =
        |line: &str, name: &str| line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok();
    let (mut total, mut size, mut largest) = (0, 0, (0, 0));
    for line in maps.lines() {
        if let Some(kib) = field(line, "Size:") {
            size = kib;
        } else if let Some(kib) = field(line, "Rss:") {
            total += kib;
            largest = largest.max((size, kib));
        }
    }
    Some((total - largest.1) as f64 / 1024.0)
}

/// The host's time-stamp counter in kHz, which QEMU's microvm machine must be told: its kernel cannot measure it
/// reliably there.
pub fn tsc_khz() -> u64 {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = cpuinfo.lines().find_map(|line| line.strip_prefix("cpu MHz")?.split(':').nth(1));
    let mhz: f64 = field.and_then(|mhz| mhz.trim().parse().ok()).unwrap_or(2500.0);
    ((mhz * 1000.0) as u64).max(1_000_000)
}
