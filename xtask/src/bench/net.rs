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

/// What a test gave: its median in each network, and ours over what it is held against.
struct Outcome {
    cells: Vec<(Between, Option<Median>)>,
    to_floor: Option<f64>,
    to_peer: Option<f64>,
}

impl Outcome {
    fn new(group: &Group, test: usize, figures: &[Vec<Vec<f64>>]) -> Outcome {
        let client = group.tests[test].1;
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
        let ours_to =
            |other: Option<f64>| best(Between::is_ours).zip(other).map(|(ours, other)| ours / other);
        let (to_floor, to_peer) = (ours_to(best(Between::is_floor_outside)), ours_to(best(Between::is_peer)));
        Outcome { cells, to_floor, to_peer }
    }
}

/// Prints a test as a line.
fn print(name: &str, outcome: &Outcome) {
    let mut line = format!("{name:<26}");
    for (_, cell) in &outcome.cells {
        line.push_str(&cell.map_or_else(|| format!(" {:>22}", "-"), |cell| format!(" {cell:>22}")));
    }
    for ratio in [outcome.to_floor, outcome.to_peer] {
        let ratio = ratio.map(|ratio| format!("{ratio:.2}"));
        line.push_str(&format!(" {:>12}", ratio.as_deref().unwrap_or("")));
    }
    println!("{line}");
}

/// A group as JSON: for each test, what every network gave in every run.
fn json(group: &Group, figures: &[Vec<Vec<f64>>]) -> serde_json::Value {
    let rows = group.tests.iter().enumerate().map(|(test, (name, client))| {
        let Outcome { cells, to_floor, to_peer } = Outcome::new(group, test, figures);
        let networks = cells.iter().zip(figures).map(|((between, cell), runs)| {
            let figure = cell.map(
                |m| serde_json::json!({ "median": m.middle, "min": m.least, "max": m.most, "runs": runs[test] }),
            );
            (between.name().to_owned(), figure.into())
        });
        let networks: serde_json::Map<String, serde_json::Value> = networks.collect();
        serde_json::json!({
            "row": name,
            "less_is_better": matches!(client, Client::Time(_)),
            "networks": networks,
            "ours_to_floor": to_floor,
            "ours_to_peer": to_peer,
        })
    });
    let rows: Vec<_> = rows.collect();
    serde_json::json!({ "group": group.name, "title": group.title, "mtu": group.mtu, "rows": rows })
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
    let mut groups = Vec::new();
    for group in GROUPS.iter().filter(|group| options.wants(group.name)) {
        let mut figures = vec![vec![Vec::new(); group.tests.len()]; group.between.len()];
        for number in 1..=options.runs {
            eprintln!("xtask: {}, run {number} of {}", group.name, options.runs);
            take_turn(group, &mut figures)?;
        }
        if options.json {
            groups.push(json(group, &figures));
            continue;
        }
        print_head(group, options.runs);
        for (test, (name, _)) in group.tests.iter().enumerate() {
            print(name, &Outcome::new(group, test, &figures));
        }
    }
    if options.json {
        println!("{:#}", serde_json::json!({ "groups": groups }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_as_json_has_every_run_and_the_ratios_of_its_table() {
        let group = GROUPS.iter().find(|group| group.name == "requests").unwrap();
        let of = |between| group.between.iter().position(|this| *this == between).unwrap();
        let mut figures = vec![vec![Vec::new(); group.tests.len()]; group.between.len()];
        for (between, time, rate) in
            [(Between::Devices, 40.0, 20.0), (Between::Vpnkit, 50.0, 16.0), (Between::Pasta, 100.0, 8.0)]
        {
            figures[of(between)][0] = vec![time, time * 2.0, time / 2.0];
            figures[of(between)][1] = vec![rate];
        }
        let json = json(group, &figures);
        let (time, rate) = (&json["rows"][0], &json["rows"][1]);
        let ours = &time["networks"][Between::Vpnkit.name()];
        assert_eq!(ours["runs"].as_array().unwrap().len(), 3);
        assert_eq!((ours["median"].as_f64(), ours["max"].as_f64()), (Some(50.0), Some(100.0)));
        assert_eq!((time["ours_to_floor"].as_f64(), time["ours_to_peer"].as_f64()), (Some(1.25), Some(0.5)));
        assert_eq!((rate["ours_to_floor"].as_f64(), rate["ours_to_peer"].as_f64()), (Some(0.8), Some(2.0)));
        assert!(
            time["networks"][Between::Slirp4netns.name()].is_null(),
            "what was not measured has no figure"
        );
        assert_eq!(
            (time["less_is_better"].as_bool(), rate["less_is_better"].as_bool()),
            (Some(true), Some(false))
        );
    }
}
