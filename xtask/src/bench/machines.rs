//! The two sides: our machine and QEMU's, with the same kernel, initramfs, disks and command line.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::options::Options;

/// Seconds that one machine may run.
const SECONDS_MAX: u32 = 600;

/// What both sides boot.
#[derive(Debug, Clone)]
pub struct Guest {
    /// ELF kernel.
    pub kernel: String,
    /// Initramfs.
    pub initrd: String,
    /// Kernel command line.
    pub append: String,
    /// Disks, never written to.
    pub disks: Vec<PathBuf>,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u32,
}

/// What a guest said on its console, and when.
#[derive(Debug)]
pub struct Said {
    /// Lines with the seconds since the machine's start, by the host's clock.
    pub lines: Vec<(f64, String)>,
    /// Seconds to the machine's end.
    pub seconds: f64,
    /// Our statistics file, if it was ours.
    stats: Option<String>,
}

impl Said {
    /// When the line that begins with `mark` came.
    ///
    /// # Errors
    /// There is none; the message has what there is.
    pub fn time_of(&self, mark: &str) -> Result<f64> {
        let found = self.lines.iter().find(|(_, line)| line.starts_with(mark)).map(|(time, _)| *time);
        found.with_context(|| format!("the guest did not say `{mark}` but: {}", self.tail()))
    }

    /// Its last lines.
    pub fn tail(&self) -> String {
        let last = self.lines.len().saturating_sub(12);
        self.lines[last..].iter().map(|(_, line)| line.as_str()).collect::<Vec<_>>().join(" | ")
    }

    /// Instructions that ours retired until it said a line that begins with `mark`.
    pub fn retired_at(&self, mark: &str) -> Option<f64> {
        self.records().find(|record| record["line"].as_str().is_some_and(|line| line.starts_with(mark)))?["retired"]
            .as_f64()
    }

    /// Instructions that ours retired in all.
    pub fn retired(&self) -> Option<f64> {
        self.records().find(|record| record["end"] == true)?["retired"].as_f64()
    }

    fn records(&self) -> impl Iterator<Item = serde_json::Value> {
        self.stats.iter().flat_map(|text| text.lines()).filter_map(|line| serde_json::from_str(line).ok())
    }
}

impl Guest {
    /// Runs it on our machine.
    ///
    /// # Errors
    /// It cannot be started, fails, or takes too long.
    pub fn ours(&self, options: &Options, folder: &Path) -> Result<Said> {
        let stats = folder.join("stats");
        let mut command = Command::new(super::coracle());
        command.args(["run", "--engine", &options.engine, "--timeout", &format!("{SECONDS_MAX}s")]);
        command.args(["--memory", &format!("{}M", self.memory_mib), "--cpus", &self.cpus.to_string()]);
        command.args(["--kernel", &self.kernel, "--initrd", &self.initrd, "--append", &self.append]);
        command.arg("--stats").arg(&stats);
        for disk in &self.disks {
            command.arg("--disk").arg(format!("{}:ro", disk.display()));
        }
        let mut said = listen(&mut command)?;
        said.stats = Some(std::fs::read_to_string(&stats).context("the statistics cannot be read")?);
        Ok(said)
    }

    /// Runs it on QEMU's, with its translator.
    ///
    /// # Errors
    /// As [`Guest::ours`].
    pub fn peer(&self, options: &Options) -> Result<Said> {
        let mut command = Command::new("timeout");
        command.args([&SECONDS_MAX.to_string(), "qemu-system-x86_64", "-M", "microvm"]);
        command.args(["-accel", "tcg,thread=multi", "-cpu", &options.peer_cpu]);
        command.args(["-m", &self.memory_mib.to_string(), "-smp", &self.cpus.to_string()]);
        command.args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio"]);
        command.args(["-kernel", &self.kernel, "-initrd", &self.initrd, "-append", &self.append]);
        // Without a `bus`: a disk in the first of this machine's slots never gets its interrupt.
        for (n, disk) in self.disks.iter().enumerate() {
            let drive = format!("file={},if=none,id=d{n},format=raw,readonly=on", disk.display());
            let device = format!("virtio-blk-device,drive=d{n}");
            command.args(["-drive", &drive, "-device", &device]);
        }
        listen(&mut command)
    }
}

/// Runs a command that must succeed, and notes when each line of its output comes.
///
/// # Errors
/// It cannot be started or fails; the message has its last words.
pub fn listen(command: &mut Command) -> Result<Said> {
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .with_context(|| format!("{} cannot be started", command.get_program().display()))?;
    let mut lines = Vec::new();
    let mut output = BufReader::new(child.stdout.take().context("stdout is piped")?);
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line)? > 0 {
        let now = begun.elapsed().as_secs_f64();
        lines.push((now, String::from_utf8_lossy(&line).trim().to_owned()));
        line.clear();
    }
    let status = child.wait()?;
    let said = Said { lines, seconds: begun.elapsed().as_secs_f64(), stats: None };
    if !status.success() {
        bail!("{} failed: {status}: {}", command.get_program().display(), said.tail());
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_have_times_and_counts() {
        let mut said =
            listen(Command::new("sh").args(["-c", "echo '@begin a'; sleep 0.1; echo '@end a 0'"])).unwrap();
        assert!(said.time_of("@end a ").unwrap() - said.time_of("@begin a").unwrap() > 0.09);
        assert!(said.time_of("@end b").is_err());
        said.stats = Some("{\"retired\":7,\"line\":\"@begin a\"}\n{\"retired\":9,\"end\":true}\n".to_owned());
        assert_eq!((said.retired_at("@begin a"), said.retired()), (Some(7.0), Some(9.0)));
        assert!(
            listen(Command::new("sh").args(["-c", "echo why; exit 3"]))
                .unwrap_err()
                .to_string()
                .contains("why")
        );
    }
}
