//! Benchmarks: ours and a peer in turn, in one run, medians, as ratios.

mod guest;
mod measure;

use std::process::Command;

use anyhow::{Context, Result};

use self::measure::{Median, median};
use crate::packages;
use crate::run::{cargo, output, root, run as run_program};

/// Runs of each side when the command line does not say.
const RUNS: usize = 5;

/// What both sides boot.
struct Image {
    kernel: String,
}

/// Builds the product and the guest image, installs the peer.
fn prepare() -> Result<Image> {
    packages::ensure(packages::BENCH)?;
    run_program(&mut cargo(&["build", "--release", "--quiet", "--package", "coracle"]))?;
    let image = output(Command::new(coracle()).args(["image", "build", "--json"]))?;
    let image: serde_json::Value =
        serde_json::from_str(&image).context("`coracle image build --json` is not JSON")?;
    let kernel = image["kernel"].as_str().context("the image has no kernel")?.to_owned();
    Ok(Image { kernel })
}

/// The product's binary.
fn coracle() -> std::path::PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    target.join("release/coracle")
}

fn runs(arguments: &[&str]) -> Result<usize> {
    match arguments {
        [] => Ok(RUNS),
        ["--runs", n] => n.parse().with_context(|| format!("`{n}` is not a number of runs")),
        other => anyhow::bail!("`{}` is not understood; --runs N is", other.join(" ")),
    }
}

/// Process start to power-off of an init with two system calls, ours and QEMU's TCG in turn.
pub fn boot(arguments: &[&str]) -> Result<()> {
    let runs = runs(arguments)?;
    let image = prepare()?;
    let folder = guest::Folder::new()?;
    let initrd = folder.write("poweroff.cpio", &guest::initramfs(&guest::poweroff_program()))?;
    let mut rows = Vec::new();
    for (name, extra) in [("cryptomgr.notests", " cryptomgr.notests"), ("stock", "")] {
        let append = format!("console=ttyS0 quiet panic=-1 tsc_early_khz={}{extra}", measure::tsc_khz());
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            ours.push(measure::seconds(&mut our_boot(&image.kernel, &initrd, &append))?);
            theirs.push(measure::seconds(&mut qemu_boot(&image.kernel, &initrd, &append))?);
        }
        rows.push((name, median(&ours), median(&theirs)));
    }
    println!("boot to a two-syscall init and power-off, {runs} runs each in turn, medians (min-max)");
    println!("{:<20} {:>22} {:>22} {:>8}", "command line", "ours (soft)", "QEMU 7.2 TCG", "ratio");
    for (name, ours, theirs) in rows {
        println!("{name:<20} {ours:>22} {theirs:>22} {:>8.2}", ours.middle / theirs.middle);
    }
    Ok(())
}

fn our_boot(kernel: &str, initrd: &str, append: &str) -> Command {
    let mut command = Command::new(coracle());
    command.args(["run", "--engine", "soft", "--memory", "512M", "--timeout", "120s"]);
    command.args(["--kernel", kernel, "--initrd", initrd, "--append", append]);
    command
}

fn qemu_boot(kernel: &str, initrd: &str, append: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args([
        "120",
        "qemu-system-x86_64",
        "-M",
        "microvm",
        "-accel",
        "tcg",
        "-cpu",
        "max",
        "-m",
        "512",
        "-smp",
        "1",
    ]);
    command.args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio"]);
    command.args(["-kernel", kernel, "-initrd", initrd, "-append", append]);
    command
}

/// `coracle run -- true` with everything cached: wall time, and memory beyond the guest's.
pub fn run(arguments: &[&str]) -> Result<()> {
    let runs = runs(arguments)?;
    prepare()?;
    let mut command = Command::new(coracle());
    command.args(["run", "--", "true"]);
    let (mut seconds, mut resident) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let usage = measure::usage(&mut command)?;
        seconds.push(usage.seconds);
        resident.push(usage.resident_mib_beyond_guest);
    }
    println!("coracle run -- true, warm, {runs} runs, medians (min-max)");
    println!("wall time        {} s", median(&seconds));
    println!("memory beyond the guest's RAM at the end {} MiB", median(&resident));
    Ok(())
}

/// Speed on three loops in a guest: ours beside QEMU's TCG, and native.
pub fn cpu(arguments: &[&str]) -> Result<()> {
    let runs = runs(arguments)?;
    let image = prepare()?;
    let folder = guest::Folder::new()?;
    let program = guest::loops_program()?;
    let initrd = folder.write("loops.cpio", &guest::initramfs(&std::fs::read(&program)?))?;
    let append =
        format!("console=ttyS0 quiet panic=-1 cryptomgr.notests tsc_early_khz={}", measure::tsc_khz());
    let (mut ours, mut theirs, mut native) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        ours.push(guest::loop_times(&output(&mut our_boot(&image.kernel, &initrd, &append))?)?);
        theirs.push(guest::loop_times(&output(&mut qemu_boot(&image.kernel, &initrd, &append))?)?);
        native.push(guest::loop_times(&output(&mut Command::new(&program))?)?);
    }
    println!(
        "three loops in a guest, {runs} runs each in turn, medians: seconds (million instructions a second)"
    );
    println!(
        "{:<10} {:>18} {:>18} {:>18} {:>14}",
        "loop", "ours (soft)", "QEMU 7.2 TCG", "native", "ours / TCG"
    );
    for (n, (name, instructions)) in guest::LOOPS.iter().enumerate() {
        let of = |side: &[Vec<f64>]| median(&side.iter().map(|times| times[n]).collect::<Vec<_>>());
        let cell = |m: &Median| format!("{:.3} ({:.0})", m.middle, *instructions as f64 / m.middle / 1e6);
        let (a, b, c) = (of(&ours), of(&theirs), of(&native));
        println!(
            "{name:<10} {:>18} {:>18} {:>18} {:>14.2}",
            cell(&a),
            cell(&b),
            cell(&c),
            a.middle / b.middle
        );
    }
    Ok(())
}
