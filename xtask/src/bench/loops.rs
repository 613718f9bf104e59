//! `cargo xtask bench cpu`: loops in a guest, ours beside QEMU's, and native.

use std::process::Command;

use anyhow::{Context, Result};

use super::guest::{self, Folder};
use super::machines::{Guest, Said, listen};
use super::options::Options;
use super::report::{self, Row, Sides};
use super::{measure, prepare};

/// The loops of `guest/loops`, and what ours ÷ QEMU's time may be.
const LOOPS: &[(&str, f64)] =
    &[("integer", 0.5), ("calls", 0.5), ("chase", 1.0), ("nbody", 0.3), ("mandelbrot", 0.3), ("matrix", 0.3)];

/// The row of two busy threads: ours with two vCPUs to ours with one.
const THREADS: &str = "threads";
const THREADS_LIMIT: f64 = 0.6;

/// Runs the loops.
pub fn cpu(arguments: &[&str]) -> Result<()> {
    let options = Options::parse(arguments)?;
    let names: Vec<&str> = LOOPS.iter().map(|(name, _)| *name).chain([THREADS]).collect();
    options.check_rows(&names)?;
    let chosen: Vec<_> = LOOPS.iter().filter(|(name, _)| options.wants(name)).collect();
    let image = prepare("")?;
    let folder = Folder::new()?;
    let program = guest::loops_program()?;
    let initrd = folder.write("loops.cpio", &guest::initramfs(&std::fs::read(&program)?))?;
    let machine = |loops: &str, cpus| Guest {
        kernel: image.kernel.clone(),
        initrd: initrd.clone(),
        // What the kernel does not know it gives to init as a variable.
        append: format!(
            "console=ttyS0 quiet panic=-1 cryptomgr.notests loops={loops} tsc_early_khz={}",
            measure::tsc_khz()
        ),
        disks: Vec::new(),
        memory_mib: 512,
        cpus,
    };
    let loops = chosen.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(",");
    let single = machine(&loops, 1);
    let mut rows: Vec<Row> = chosen.iter().map(|(name, limit)| Row::new(name, Some(*limit))).collect();
    let mut threads = Row::new(THREADS, Some(THREADS_LIMIT));
    for number in 1..=options.runs {
        eprintln!("xtask: run {number} of {}", options.runs);
        if !rows.is_empty() {
            let ours = single.ours(&options, folder.path())?;
            take(&mut rows, &ours, |row| &mut row.ours)?;
            for row in &mut rows {
                row.retired.extend(retired(&ours, row.name));
            }
        }
        if !rows.is_empty() && !options.alone {
            take(&mut rows, &single.peer(&options)?, |row| &mut row.peer)?;
            take(&mut rows, &listen(Command::new(&program).env("loops", &loops))?, |row| &mut row.native)?;
        }
        if options.wants(THREADS) {
            let two = machine(THREADS, 2).ours(&options, folder.path())?;
            threads.ours.push(seconds(&two, THREADS)?);
            threads.retired.extend(retired(&two, THREADS));
            threads.peer.push(seconds(&machine(THREADS, 1).ours(&options, folder.path())?, THREADS)?);
        }
    }
    let title = format!("loops in a guest of 1 vCPU, {} runs of each side in turn", options.runs);
    report::print(&title, Sides::machines(&format!("TCG ({})", options.peer_cpu)), &rows, options.json);
    if options.wants(THREADS) {
        report::print(
            "two busy threads, with 2 vCPUs and with 1",
            Sides::machines("ours with 1 vCPU"),
            &[threads],
            options.json,
        );
    }
    Ok(())
}

fn take(rows: &mut [Row], said: &Said, side: impl Fn(&mut Row) -> &mut Vec<f64>) -> Result<()> {
    for row in rows {
        let taken = seconds(said, row.name)?;
        side(row).push(taken);
    }
    Ok(())
}

/// What the program printed for a loop.
fn seconds(said: &Said, name: &str) -> Result<f64> {
    let mark = format!("loop {name} ");
    let line = said.lines.iter().find_map(|(_, line)| line.strip_prefix(&mark));
    let ns: f64 =
        line.with_context(|| format!("no time of the loop `{name}`: {}", said.tail()))?.trim().parse()?;
    Ok(ns / 1e9)
}

fn retired(said: &Said, name: &str) -> Option<f64> {
    Some(said.retired_at(&format!("loop {name} "))? - said.retired_at(&format!("begin {name}"))?)
}
