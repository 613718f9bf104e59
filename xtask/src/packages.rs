//! Debian packages that tests and benchmarks want as peers, installed when they are missing.

use std::process::Command;

use anyhow::Result;

use crate::run::{has, run};

/// A program and the package that has it.
pub type Wanted = (&'static str, &'static str);

/// Peers of the tests: a 9P server, archive and image tools, network clients, another machine.
pub const TEST: &[Wanted] = &[
    ("diod", "diod"),
    ("fsck.erofs", "erofs-utils"),
    ("cpio", "cpio"),
    ("curl", "curl"),
    ("fusermount3", "fuse3"),
    ("git", "git"),
    ("make", "make"),
    ("sshd", "openssh-server"),
    ("ssh", "openssh-client"),
    ("iasl", "acpica-tools"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("python3", "python3-minimal"),
    ("gcc", "gcc"),
    ("xz", "xz-utils"),
    ("openssl", "openssl"),
    ("tshark", "tshark"),
    ("dhclient", "isc-dhcp-client"),
    ("udhcpc", "udhcpc"),
    ("rdisc6", "ndisc6"),
    ("dig", "bind9-dnsutils"),
    ("ping", "iputils-ping"),
    ("traceroute", "traceroute"),
    ("tracepath", "iputils-tracepath"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("linux.uml", "user-mode-linux"),
    ("dnsmasq", "dnsmasq-base"),
    ("ntpdig", "ntpsec-ntpdig"),
];

/// The yardstick of the benchmarks.
pub const BENCH: &[Wanted] = &[("qemu-system-x86_64", "qemu-system-x86"), ("fsck.erofs", "erofs-utils")];

/// Installs what is missing, if we may; says what stays missing otherwise.
pub fn ensure(wanted: &[Wanted]) -> Result<()> {
    let missing: Vec<&str> =
        wanted.iter().filter(|(program, _)| !has(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !has("apt-get") || !am_root() {
        eprintln!(
            "xtask: not installed, and not ours to install: {} (tests that want them say SKIP)",
            missing.join(" ")
        );
        return Ok(());
    }
    let mut update = Command::new("apt-get");
    run(update.args(["update", "-qq"]))?;
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(&missing);
    run(install.env("DEBIAN_FRONTEND", "noninteractive").stdout(std::process::Stdio::null()))
}

fn am_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
    })
}
