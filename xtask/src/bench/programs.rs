//! `cargo xtask bench guest`: programs of Debian in a guest, ours beside QEMU's, and beside the host itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::guest::Folder;
use super::machines::{Guest, Said, listen};
use super::options::Options;
use super::report::{self, Row, Sides};
use super::workloads::{self, Workload};
use super::{Image, measure};
use crate::run::run;

/// Where the inputs begin on their disk, behind the script.
const INPUTS_AT: usize = 1 << 20;
/// Guest's and host's clock may differ by this part of a row, and by a tick on both ends.
const CLOCK_TOLERANCE: f64 = 0.05;
const CLOCK_TICKS_S: f64 = 0.05;

/// Runs the workloads.
pub fn guest(arguments: &[&str]) -> Result<()> {
    let options = Options::parse(arguments)?;
    options.check_rows(&workloads::names())?;
    let chosen: Vec<&Workload> = workloads::ALL.iter().filter(|row| options.wants(row.name)).collect();
    let image = super::prepare(workloads::PACKAGES)?;
    let folder = Folder::new()?;
    let script = workloads::script(&chosen);
    let guest = guest_of(&image, &folder, &script)?;
    let native = if options.alone { None } else { Native::prepare(&image, &folder, &script)? };
    let mut rows: Vec<Row> = chosen.iter().map(|row| Row::new(row.name, Some(row.limit))).collect();
    for number in 1..=options.runs {
        eprintln!("xtask: run {number} of {}: ours", options.runs);
        let ours = guest.ours(&options, folder.path())?;
        take(&mut rows, &ours, |row| &mut row.ours)?;
        for row in &mut rows {
            row.retired.extend(retired(&ours, row.name));
        }
        if options.alone {
            continue;
        }
        eprintln!("xtask: run {number} of {}: QEMU's", options.runs);
        let peer = guest.peer(&options)?;
        take(&mut rows, &peer, |row| &mut row.peer)?;
        same_results(&rows, &ours, &peer)?;
        if let Some(native) = &native {
            take(&mut rows, &native.run()?, |row| &mut row.native)?;
        }
    }
    let title = format!("programs in a guest of 1 vCPU, {} runs of each side in turn", options.runs);
    report::print(&title, Sides::machines(&format!("TCG ({})", options.peer_cpu)), &rows, options.json);
    Ok(())
}

fn guest_of(image: &Image, folder: &Folder, script: &str) -> Result<Guest> {
    let work = folder.path().join("work.img");
    write_disk(&work, folder, script)?;
    let rootfs = image.rootfs.clone().context("the image has no root file system")?;
    Ok(Guest {
        kernel: image.kernel.clone(),
        initrd: image.initramfs.clone(),
        append: format!(
            "console=ttyS0 quiet panic=-1 cryptomgr.notests coracle.init=console coracle.script=/dev/vdb tsc_early_khz={}",
            measure::tsc_khz()
        ),
        disks: vec![PathBuf::from(rootfs), work],
        memory_mib: 1024,
        cpus: 1,
    })
}

/// The script, room up to [`INPUTS_AT`], and an archive of the inputs.
fn write_disk(path: &Path, folder: &Folder, script: &str) -> Result<()> {
    let inputs = folder.path().join("inputs");
    fs::create_dir_all(&inputs)?;
    for (name, bytes) in workloads::files() {
        fs::write(inputs.join(name), bytes).with_context(|| format!("{name} cannot be written"))?;
    }
    let archive = folder.path().join("inputs.tar");
    run(Command::new("tar")
        .args(["--owner=0", "--group=0", "-cf"])
        .arg(&archive)
        .arg("-C")
        .arg(&inputs)
        .arg("."))?;
    let mut disk = script.as_bytes().to_vec();
    disk.resize(INPUTS_AT, b'\n');
    disk.extend(fs::read(&archive)?);
    disk.resize(disk.len().next_multiple_of(1 << 20), 0);
    fs::write(path, disk).with_context(|| format!("{} cannot be written", path.display()))
}

/// Adds the seconds of each row.
fn take(rows: &mut [Row], said: &Said, side: impl Fn(&mut Row) -> &mut Vec<f64>) -> Result<()> {
    for row in rows {
        let (begin, end) = (format!("@begin {} ", row.name), format!("@end {} ", row.name));
        let seconds = said.time_of(&end)? - said.time_of(&begin)?;
        let of_guest = clock(said, &end)? - clock(said, &begin)?;
        if (seconds - of_guest).abs() > CLOCK_TOLERANCE * seconds + CLOCK_TICKS_S {
            eprintln!(
                "xtask: {}: the guest's clock says {of_guest:.2} s, the host's {seconds:.2} s",
                row.name
            );
        }
        eprintln!("xtask:   {:<10} {seconds:8.3} s", row.name);
        side(row).push(seconds);
    }
    Ok(())
}

/// What the guest's clock said at a mark.
fn clock(said: &Said, mark: &str) -> Result<f64> {
    let line = said.lines.iter().find_map(|(_, line)| line.strip_prefix(mark));
    line.and_then(|rest| rest.trim().parse().ok())
        .with_context(|| format!("no time behind `{mark}`: {}", said.tail()))
}

fn retired(said: &Said, row: &str) -> Option<f64> {
    Some(said.retired_at(&format!("@end {row} "))? - said.retired_at(&format!("@begin {row} "))?)
}

/// Both sides must have come to the same end.
fn same_results(rows: &[Row], ours: &Said, peer: &Said) -> Result<()> {
    for row in rows {
        let mark = format!("@result {} ", row.name);
        let of =
            |said: &Said| said.lines.iter().find_map(|(_, line)| line.strip_prefix(&mark).map(str::to_owned));
        if of(ours) != of(peer) {
            bail!("{}: ours gave {:?}, QEMU's {:?}", row.name, of(ours), of(peer));
        }
    }
    Ok(())
}

/// The guest's files on the host, to run the same programs without a machine.
struct Native {
    root: PathBuf,
}

impl Native {
    /// Unpacks the root file system. `None`, said why, when that or a change of root is not possible.
    fn prepare(image: &Image, folder: &Folder, script: &str) -> Result<Option<Native>> {
        let rootfs = image.rootfs.as_deref().context("the image has no root file system")?;
        let root = folder.path().join("root");
        let unpacked = Command::new("fsck.erofs")
            .arg(format!("--extract={}", root.display()))
            .arg(rootfs)
            .stdout(std::process::Stdio::null())
            .status();
        if !unpacked.is_ok_and(|status| status.success()) {
            eprintln!("xtask: no native figures: fsck.erofs cannot unpack {rootfs}");
            return Ok(None);
        }
        let scratch = root.join("tmp");
        fs::create_dir_all(&scratch)?;
        run(Command::new("tar").arg("-xf").arg(folder.path().join("inputs.tar")).arg("-C").arg(&scratch))?;
        fs::write(scratch.join("script"), script)?;
        let native = Native { root };
        if native.command("exit 0").status().is_ok_and(|status| status.success()) {
            return Ok(Some(native));
        }
        eprintln!("xtask: no native figures: only root may change the root folder");
        Ok(None)
    }

    fn run(&self) -> Result<Said> {
        eprintln!("xtask: native");
        listen(&mut self.command("exec /bin/sh /tmp/script"))
    }

    /// `what` in a shell whose root is the guest's.
    fn command(&self, what: &str) -> Command {
        let root = self.root.display();
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c"]);
        command.arg(format!(
            "mount -t proc proc '{root}/proc' && mount --bind /dev '{root}/dev' && exec chroot '{root}' /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root /bin/sh -c '{what}'"
        ));
        command
    }
}
