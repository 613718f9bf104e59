//! `cargo xtask bench net`: our network beside pasta and slirp4netns, and beside nothing at all.
//!
//! What a row would be without any network between the same client and server is its floor, measured in the same run: by
//! the loopback device, by a pair of devices, and by a process that only copies frames: between two TAP devices, or two of
//! them back to back at a socket. Ratios are to the best of these that is outside of the kernel, as networks are.

use std::process::Command;

use anyhow::{Result, bail};

use super::between::{Between, Setup, Socket};
use super::measure::{Median, median};
use super::options::Options;
use crate::packages::{self, Wanted};
use crate::run::{cargo, output, run};

/// Packages of the peers and of what measures.
const WANTED: &[Wanted] =
    &[("pasta", "passt"), ("slirp4netns", "slirp4netns"), ("iperf3", "iperf3"), ("ip", "iproute2")];
/// Seconds of a client of requests.
const SECONDS: f64 = 1.0;

const STACKS: &[Between] = &[Between::Vpnkit, Between::Pasta, Between::Slirp4netns];
const ALL: &[Between] = &[
    Between::Loopback,
    Between::Veth,
    Between::Devices,
    Between::Vpnkit,
    Between::Pasta,
    Between::Slirp4netns,
];

/// A client.
#[derive(Debug, Clone, Copy)]
enum Client {
    /// iperf3, with what it is told: more is better.
    Iperf(&'static str),
    /// One of `traffic` that says a rate.
    Rate(&'static str),
    /// One of `traffic` that says a time.
    Time(&'static str),
}

impl Client {
    fn measure(self, setup: &Setup) -> Result<f64> {
        match self {
            Client::Iperf(extra) => setup.iperf(extra),
            Client::Rate(kind) => Ok(setup.traffic(kind, SECONDS)? / 1000.0),
            Client::Time(kind) => setup.traffic(kind, SECONDS),
        }
    }

    /// The better one of two figures.
    fn better(self, one: f64, other: f64) -> f64 {
        if matches!(self, Client::Time(_)) { one.min(other) } else { one.max(other) }
    }
}

type Test = (&'static str, Client);

const TCP: &[Test] = &[
    ("guest to host, 1 stream", Client::Iperf("")),
    ("guest to host, 8 streams", Client::Iperf("-P 8")),
    ("host to guest, 1 stream", Client::Iperf("-R")),
];
const REQUESTS: &[Test] = &[
    ("request and response, us", Client::Time("rr")),
    ("connect and request, k/s", Client::Rate("crr")),
    ("DNS queries, k/s", Client::Rate("dns")),
];
const SOCKET: &[Test] = &[
    ("guest to host, 1 stream", Client::Iperf("")),
    ("host to guest, 1 stream", Client::Iperf("-R")),
    ("host to guest, 8 streams", Client::Iperf("-R -P 8")),
];

/// Tests that are run on the same setups.
struct Group {
    name: &'static str,
    title: &'static str,
    mtu: u16,
    between: &'static [Between],
    tests: &'static [Test],
}

const GROUPS: &[Group] = &[
    Group { name: "tcp-1500", title: "TCP at MTU 1500, Gb/s", mtu: 1500, between: STACKS, tests: TCP },
    Group { name: "tcp-65520", title: "TCP at MTU 65520, Gb/s", mtu: 65520, between: STACKS, tests: TCP },
    Group {
        name: "requests",
        title: "requests of 64 bytes: median time one after the other; 32 connections at a time; 16 queries at a time",
        mtu: 1500,
        between: ALL,
        tests: REQUESTS,
    },
    Group {
        name: "stream",
        title: "TCP behind a stream socket (QEMU's framing), MTU 1500, Gb/s",
        mtu: 1500,
        between: &[Between::Connectors(Socket::Stream), Between::Behind(Socket::Stream)],
        tests: SOCKET,
    },
    Group {
        name: "packets",
        title: "TCP behind a socket of packets (SOCK_SEQPACKET), MTU 1500, Gb/s",
        mtu: 1500,
        between: &[Between::Connectors(Socket::Packets), Between::Behind(Socket::Packets)],
        tests: SOCKET,
    },
    Group {
        name: "datagrams",
        title: "TCP behind a socket of datagrams, MTU 1500, Gb/s",
        mtu: 1500,
        between: &[Between::Connectors(Socket::Datagrams), Between::Behind(Socket::Datagrams)],
        tests: SOCKET,
    },
];

/// Runs the tests of a group once, on each of its setups in turn.
fn take_turn(group: &Group, figures: &mut [Vec<Vec<f64>>]) -> Result<()> {
    for (&between, figures) in group.between.iter().zip(figures) {
        let setup = Setup::new(between, group.mtu)?;
        for ((name, client), figures) in group.tests.iter().zip(figures) {
            match client.measure(&setup) {
                Ok(figure) => figures.push(figure),
                Err(error) if between.is_ours() => return Err(error),
                Err(error) => eprintln!("xtask: {name}, {}: {error:#}", between.name()),
            }
        }
    }
    Ok(())
}

/// Prints a test: what each gave, and ours over the floor and the better peer.
fn print(group: &Group, test: usize, figures: &[Vec<Vec<f64>>]) {
    let (name, client) = group.tests[test];
    let cells: Vec<(Between, Option<Median>)> = group
        .between
        .iter()
        .zip(figures)
        .map(|(between, figures)| (*between, (!figures[test].is_empty()).then(|| median(&figures[test]))))
        .collect();
    let best = |wanted: fn(Between) -> bool| {
        let those = cells.iter().filter(|(between, _)| wanted(*between));
        those
            .filter_map(|(_, cell)| cell.map(|cell| cell.middle))
            .reduce(|one, other| client.better(one, other))
    };
    let mut line = format!("{name:<26}");
    for (_, cell) in &cells {
        line.push_str(&cell.map_or_else(|| format!(" {:>22}", "-"), |cell| format!(" {cell:>22}")));
    }
    let ours = best(Between::is_ours);
    for other in [best(Between::is_floor_outside), best(Between::is_peer)] {
        let ratio = ours.zip(other).map(|(ours, other)| format!("{:.2}", ours / other));
        line.push_str(&format!(" {:>12}", ratio.as_deref().unwrap_or("")));
    }
    println!("{line}");
}

/// Prints what a group's columns are.
fn print_head(group: &Group, runs: usize) {
    println!("\n{}; {runs} runs each in turn, medians (min-max)", group.title);
    let names = group.between.iter().map(|between| format!(" {:>22}", between.name())).collect::<String>();
    println!("{:<26}{names} {:>12} {:>12}", "", "ours / floor", "ours / peer");
}

/// All groups that are wanted, each network in turn, `runs` times.
pub fn net(options: &Options) -> Result<()> {
    options.check_rows(&GROUPS.iter().map(|group| group.name).collect::<Vec<_>>())?;
    packages::ensure(WANTED)?;
    for what in [&["--bin", "vpnkit"], &["--example", "traffic"], &["--example", "connector"]] {
        run(cargo(&["build", "--release", "--quiet", "--workspace"]).args(what))?;
    }
    if output(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!("`ip netns` needs root");
    }
    for group in GROUPS.iter().filter(|group| options.wants(group.name)) {
        let mut figures = vec![vec![Vec::new(); group.tests.len()]; group.between.len()];
        for number in 1..=options.runs {
            eprintln!("xtask: {}, run {number} of {}", group.name, options.runs);
            take_turn(group, &mut figures)?;
        }
        print_head(group, options.runs);
        for test in 0..group.tests.len() {
            print(group, test, &figures);
        }
    }
    Ok(())
}
