//! Benchmarks: ours and a peer in turn, in one run, medians, as ratios.

mod between;
mod datakit;
mod files;
mod guest;
mod loops;
mod machines;
mod measure;
mod net;
mod ninep;
mod options;
mod programs;
mod report;
mod servers;
mod workloads;

use std::process::Command;

use anyhow::{Context, Result};

use self::machines::Guest;
use self::measure::median;
use self::options::Options;
use self::report::{Row, Sides};
use crate::packages;
use crate::run::{cargo, output, root, run as run_program};

pub use self::datakit::datakit;
pub use self::files::files;
pub use self::loops::cpu;
pub use self::ninep::ninep;
pub use self::programs::guest;

/// What ours ÷ QEMU's time of a boot may be.
const BOOT_LIMIT: f64 = 0.6;

/// What both sides boot.
#[derive(Debug)]
struct Image {
    kernel: String,
    initramfs: String,
    rootfs: Option<String>,
}

/// Builds the product and a guest image with these packages (none: the base image), installs the peer.
fn prepare(packages_wanted: &str) -> Result<Image> {
    packages::ensure(packages::BENCH)?;
    run_program(&mut cargo(&["build", "--release", "--quiet", "--package", "coracle"]))?;
    let mut build = Command::new(coracle());
    build.args(["image", "build", "--json"]);
    if !packages_wanted.is_empty() {
        build.args(["--package", packages_wanted]);
    }
    let image = output(&mut build)?;
    let image: serde_json::Value =
        serde_json::from_str(&image).context("`coracle image build --json` is not JSON")?;
    let text = |key: &str| image[key].as_str().map(str::to_owned);
    Ok(Image {
        kernel: text("kernel").context("the image has no kernel")?,
        initramfs: text("initramfs").context("the image has no initramfs")?,
        rootfs: text("rootfs"),
    })
}

/// The product's binary.
fn coracle() -> std::path::PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    target.join("release/coracle")
}

/// Process start to power-off of an init with two system calls, ours and QEMU's TCG in turn.
pub fn boot(arguments: &[&str]) -> Result<()> {
    let options = Options::parse(arguments)?;
    options.check_rows(&["notests", "stock"])?;
    let image = prepare("")?;
    let folder = guest::Folder::new()?;
    let initrd = folder.write("poweroff.cpio", &guest::initramfs(&guest::poweroff_program()))?;
    let mut rows = Vec::new();
    for (name, extra) in [("notests", " cryptomgr.notests"), ("stock", "")] {
        if !options.wants(name) {
            continue;
        }
        let append = format!("console=ttyS0 quiet panic=-1 tsc_early_khz={}{extra}", measure::tsc_khz());
        let machine = Guest {
            kernel: image.kernel.clone(),
            initrd: initrd.clone(),
            append,
            disks: Vec::new(),
            memory_mib: 512,
            cpus: 1,
        };
        let mut row = Row::new(name, Some(BOOT_LIMIT));
        for number in 1..=options.runs {
            eprintln!("xtask: {name}, run {number} of {}", options.runs);
            let ours = machine.ours(&options, folder.path())?;
            row.ours.push(ours.seconds);
            row.retired.extend(ours.retired());
            if !options.alone {
                row.peer.push(machine.peer(&options)?.seconds);
            }
        }
        rows.push(row);
    }
    let title =
        format!("boot to a two-syscall init and power-off, {} runs of each side in turn", options.runs);
    report::print(&title, Sides::machines(&format!("TCG ({})", options.peer_cpu)), &rows, options.json);
    Ok(())
}

/// `coracle run -- true` with everything cached: wall time, and memory beyond the guest's.
pub fn run(arguments: &[&str]) -> Result<()> {
    let options = Options::parse(arguments)?;
    prepare("")?;
    let mut command = Command::new(coracle());
    command.args(["run", "--", "true"]);
    let (mut seconds, mut resident) = (Vec::new(), Vec::new());
    for _ in 0..options.runs {
        let usage = measure::usage(&mut command)?;
        seconds.push(usage.seconds);
        resident.push(usage.resident_mib_beyond_guest);
    }
    println!("coracle run -- true, warm, {} runs, medians (min-max)", options.runs);
    println!("wall time        {} s", median(&seconds));
    println!("memory beyond the guest's RAM at the end {} MiB", median(&resident));
    Ok(())
}

/// Throughput and requests of our network, beside others and beside their floor.
pub fn net(arguments: &[&str]) -> Result<()> {
    net::net(&Options::parse(arguments)?)
}
