//! Two network namespaces: one for the engine and its servers, with only a loopback device, and one for the guest.
//!
//! A test runs itself again as root of new user and network namespaces, so that it needs no privilege and touches
//! nothing of the machine. Where that is not possible it says SKIP and why.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;

use ethlink::{Tap, TapError};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use vpnkit::{Config, Engine, Link, MemoryLink, Network, Resolvers, TapLink};

use crate::wire::{Faults, Frames, Tally, Wire};

const INSIDE: &str = "VPNKIT_TEST_INSIDE";
/// An address of the engine's namespace that is neither loopback nor the guest's network.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The same for IPv6.
pub const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// Whether a program is there.
pub fn has(program: &str) -> bool {
    let probe = format!("command -v {program}");
    Command::new("sh").args(["-c", &probe]).output().is_ok_and(|output| output.status.success())
}

/// Runs `body` in namespaces of its own; `test` is the full name of the test that calls it.
pub fn run(test: &str, mtu: u16, body: impl FnOnce(&World)) {
    run_inside(test, || {
        body(&World::new(mtu, true, |guest| {
            let tap = open_tap(guest, Tap::open);
            (Arc::new(TapLink::new(tap)), None)
        }));
    });
}

/// Runs `body` as [`run`] does, over a wire with faults.
pub fn run_over(test: &str, mtu: u16, (frames, faults): (Frames, Faults), body: impl FnOnce(&World)) {
    run_inside(test, || {
        let plain = frames == Frames::Plain;
        body(&World::new(mtu, !plain, |guest| {
            let tap = open_tap(guest, if plain { Tap::open_plain } else { Tap::open });
            let link = Arc::new(MemoryLink::new());
            let wire = Wire::join(link.clone(), tap, frames, faults);
            (link, Some(wire))
        }));
    });
}

fn run_inside(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    if let Some(reason) = obstacle() {
        return skip(test, &reason);
    }
    let this = std::env::current_exe().unwrap();
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--"])
        .arg(this)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed inside of its namespaces");
}

#[expect(clippy::print_stdout, reason = "a test says why it did not run")]
fn skip(test: &str, reason: &str) {
    println!("SKIP {test}: {reason}");
}

/// Why the tests cannot run here, if they cannot.
fn obstacle() -> Option<String> {
    let probe = "ip link set lo up && ip tuntap add probe mode tap && python3 -c pass";
    let output =
        Command::new("unshare").args(["--user", "--map-root-user", "--net", "sh", "-c", probe]).output();
    match output {
        Err(error) => Some(format!("unshare: {error}")),
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

/// The namespaces, with the engine running in the outer one.
pub struct World {
    pub engine: Engine,
    guest: Station,
    wire: Option<Wire>,
}

impl World {
    /// Panics if data was sent again, which nothing lost asks for. Only the tail is probed when no acknowledgement comes, as
    /// from a guest that has no processor for a tenth of a second.
    pub fn check_nothing_lost(&self) {
        let counters = self.engine.counters();
        assert!(counters.retransmitted <= counters.tail_probes, "the link loses nothing: {counters:?}");
    }

    /// `connect` makes the link to the guest whose process it gets.
    fn new(mtu: u16, offload: bool, connect: impl FnOnce(u32) -> (Arc<dyn Link>, Option<Wire>)) -> Self {
        command("ip", &["link", "set", "lo", "up"]);
        command("ip", &["address", "add", &format!("{OUTSIDE}/32"), "dev", "lo"]);
        command("ip", &["-6", "address", "add", &format!("{OUTSIDE6}/128"), "dev", "lo"]);
        command("ip", &["-6", "route", "add", "default", "dev", "lo"]);
        command("ip", &["-6", "route", "add", "unreachable", "2001:db8:dead::/48"]);
        // Ping without privilege, as most systems allow it.
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
        let guest = Station::new();
        let (link, wire) = connect(guest.pid());
        let network = Network {
            mtu,
            offload,
            domain: "fleet.example".into(),
            search: vec!["harbour.example".into()],
            ..Network::default()
        };
        let dns = Resolvers::Fixed(Vec::new());
        let config = Config { network, dns, hosts: None, ..Config::default() };
        let world = Self { engine: Engine::start(config, link).unwrap(), guest, wire };
        world.shell(&format!(
            "ip link set lo up; ip link set tap0 mtu {mtu} up && ip address add 192.168.65.3/24 dev tap0 \
             && ip route add default via 192.168.65.1"
        ));
        world
    }

    /// A command line to be run by the guest.
    pub fn guest(&self, line: &str) -> Command {
        self.guest.command(line)
    }

    /// Runs a command line in the guest and returns what it prints; fails if it does.
    pub fn shell(&self, line: &str) -> String {
        self.guest.shell(line)
    }

    /// What the wire did with what goes to the engine, and with what goes to the guest.
    pub fn tallies(&self) -> (Tally, Tally) {
        self.wire.as_ref().unwrap().tallies()
    }

    /// One more network namespace, with no device but its loopback.
    pub fn station(&self) -> Station {
        Station::new()
    }

    /// Runs a command line where the engine is; errs with what it prints if it fails.
    pub fn host_shell(&self, line: &str) -> Result<String, String> {
        let output = Command::new("sh").args(["-c", line]).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Runs a Python program in the guest and returns what it prints.
    pub fn python(&self, program: &str) -> String {
        assert!(!program.contains('\''), "the program is quoted with apostrophes");
        self.shell(&format!("python3 -c '{program}'"))
    }
}

/// A network namespace, which ends with its only process.
pub struct Station(Child);

impl Station {
    fn new() -> Self {
        let mut process = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        Self(process)
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// A command line to be run there.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &self.0.id().to_string(), "sh", "-c", line]);
        command
    }

    /// Runs a command line there and returns what it prints; fails if it does.
    pub fn shell(&self, line: &str) -> String {
        let output = self.command(line).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        let told = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(output.status.success(), "{line}\n{told}\n{error}");
        told
    }

    /// Starts a Python program there and waits until it says that it is ready.
    pub fn python_server(&self, program: &str) -> Child {
        assert!(!program.contains('\''), "the program is quoted with apostrophes");
        let mut child =
            self.command(&format!("exec python3 -c '{program}'")).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        child
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Opens `tap0` in the network namespace of the process.
fn open_tap(process: u32, open: fn(&str) -> Result<Tap, TapError>) -> Tap {
    thread::spawn(move || {
        let namespace = std::fs::File::open(format!("/proc/{process}/ns/net")).unwrap();
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        open("tap0").unwrap()
    })
    .join()
    .unwrap()
}

fn command(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}
