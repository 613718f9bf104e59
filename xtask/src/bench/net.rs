//! `cargo xtask bench net`: our network beside pasta and slirp4netns.
//!
//! Each measurement has two network namespaces of its own: the stack and a server are in one, the client in the other.
//! Nothing of the machine's network is touched. Needs root, for `ip netns`.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::measure::{Median, median};
use crate::packages::{self, Wanted};
use crate::run::{cargo, output, root, run};

/// Packages of the peers and of what measures.
const WANTED: &[Wanted] =
    &[("pasta", "passt"), ("slirp4netns", "slirp4netns"), ("iperf3", "iperf3"), ("ip", "iproute2")];
/// Packet sizes: Ethernet's, and the largest that all peers take.
const MTUS: [u16; 2] = [1500, 65520];
/// What is measured: its name and what iperf3 is told.
const TESTS: [(&str, &[&str]); 3] = [
    ("guest to host, 1 stream", &[]),
    ("guest to host, 8 streams", &["-P", "8"]),
    ("host to guest, 1 stream", &["-R"]),
];
/// How long a stack may take to start.
const PATIENCE: Duration = Duration::from_secs(10);

/// A stack: its name, its command, and the address by which a guest reaches the host.
struct Stack {
    name: &'static str,
    command: fn(&str, u16) -> Vec<String>,
    host: &'static str,
}

const STACKS: [Stack; 3] = [
    Stack { name: "vpnkit", command: vpnkit, host: "192.168.65.2" },
    Stack { name: "pasta", command: pasta, host: "10.0.2.2" },
    Stack { name: "slirp4netns", command: slirp4netns, host: "10.0.2.2" },
];

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn vpnkit(netns: &str, mtu: u16) -> Vec<String> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    let mut command = vec![target.join("release/vpnkit").display().to_string()];
    command.extend(words(&format!("--netns {netns} --tap tap0 --config-net --mtu {mtu}")));
    command
}

fn pasta(netns: &str, mtu: u16) -> Vec<String> {
    words(&format!(
        "pasta -f -4 -q --runas 0 --config-net -I tap0 -a 10.0.2.15 -n 24 -g 10.0.2.2 -i ext0 -m {mtu} \
         -t none -u none -T none -U none -D none --netns {netns}"
    ))
}

fn slirp4netns(netns: &str, mtu: u16) -> Vec<String> {
    words(&format!("slirp4netns -c -m {mtu} --netns-type=path {netns} tap0"))
}

/// A process, ended with the measurement.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The two namespaces, by their names.
struct Namespaces {
    host: String,
    guest: String,
}

impl Namespaces {
    fn new() -> Result<Self> {
        let own = std::process::id();
        let these = Self { host: format!("vpnkit-host-{own}"), guest: format!("vpnkit-guest-{own}") };
        for name in [&these.host, &these.guest] {
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {name} link set lo up"))?;
        }
        let host = &these.host;
        // pasta wants a device with a default route, though nothing goes there.
        ip(&format!("-n {host} link add ext0 type veth peer name ext1"))?;
        ip(&format!("-n {host} address add 192.0.2.1/24 dev ext0"))?;
        ip(&format!("-n {host} link set ext0 up"))?;
        ip(&format!("-n {host} link set ext1 up"))?;
        ip(&format!("-n {host} route add default via 192.0.2.254 dev ext0"))?;
        Ok(these)
    }

    fn command(name: &str, command: &[String]) -> Command {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", name]).args(command).stdin(Stdio::null());
        inside
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in [&self.host, &self.guest] {
            // What cannot be removed was not made.
            let _ = ip(&format!("netns delete {name}"));
        }
    }
}

fn ip(line: &str) -> Result<()> {
    let done = Command::new("ip").args(line.split_whitespace()).output().context("ip cannot be started")?;
    if !done.status.success() {
        bail!("ip {line}: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
}

/// Runs one stack and all tests on it; gigabits a second for each.
fn measure(stack: &Stack, mtu: u16) -> Result<Vec<f64>> {
    let spaces = Namespaces::new()?;
    let quiet = |command: &mut Command| -> Result<Running> {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Ok(Running(child.context("a program cannot be started")?))
    };
    let _server = quiet(&mut Namespaces::command(&spaces.host, &words("iperf3 -s")))?;
    let path = format!("/run/netns/{}", spaces.guest);
    let _stack = quiet(&mut Namespaces::command(&spaces.host, &(stack.command)(&path, mtu)))?;
    let client = |extra: &[&str], until: &str| {
        let mut command = words(&format!("iperf3 -J {until} --connect-timeout 1000 -c {}", stack.host));
        command.extend(extra.iter().map(|word| (*word).to_owned()));
        let done =
            Namespaces::command(&spaces.guest, &command).output().context("iperf3 cannot be started")?;
        let report: serde_json::Value =
            serde_json::from_slice(&done.stdout).context("iperf3's report is not JSON")?;
        report["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3 measured nothing")
    };
    let began = Instant::now();
    while let Err(error) = client(&[], "-n 1K") {
        if began.elapsed() > PATIENCE {
            return Err(error.context(format!("{} carries nothing", stack.name)));
        }
        thread::sleep(Duration::from_millis(50));
    }
    TESTS.iter().map(|(_, extra)| client(extra, "-t 1").map(|rate| rate / 1e9)).collect()
}

/// Throughput of each stack, in turn, `runs` times.
pub fn net(runs: usize) -> Result<()> {
    packages::ensure(WANTED)?;
    run(&mut cargo(&["build", "--release", "--quiet", "--package", "vpnkit-cli"]))?;
    if output(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!("`ip netns` needs root");
    }
    for mtu in MTUS {
        let mut rates = vec![Vec::new(); STACKS.len()];
        for _ in 0..runs {
            for (stack, rates) in STACKS.iter().zip(&mut rates) {
                rates.push(measure(stack, mtu)?);
            }
        }
        println!("TCP at MTU {mtu}, Gb/s, {runs} runs each in turn, medians (min-max)");
        let of = |stack: &[Vec<f64>], test: usize| -> Median {
            median(&stack.iter().map(|run| run[test]).collect::<Vec<_>>())
        };
        for (test, (name, _)) in TESTS.iter().enumerate() {
            let cells: Vec<Median> = rates.iter().map(|stack| of(stack, test)).collect();
            let best = cells[1..].iter().map(|cell| cell.middle).fold(0.0, f64::max);
            let cell = |(stack, cell): (&Stack, &Median)| format!("{} {cell}", stack.name);
            let row: Vec<String> = STACKS.iter().zip(&cells).map(cell).collect();
            println!("{name:<26} {}   ours / best {:.2}", row.join("   "), cells[0].middle / best);
        }
    }
    Ok(())
}
