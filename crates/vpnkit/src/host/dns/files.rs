//! `resolv.conf(5)` and `hosts(5)`, read again when they change.
//!
//! They are looked at when the engine is awake, at most once a second: nothing runs while the guest is idle, and a file that is
//! replaced, or a link that leads elsewhere, is noticed like one that is written.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use vpnkit_stack::{Hosts, Instant};

use crate::config::Resolvers;

const GAP: Duration = Duration::from_secs(1);
/// Bytes read of a file; hosts files for blocking advertisements have a few megabytes.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// As in resolv.conf(5): more name servers are ignored.
const RESOLVERS_MAX: usize = 3;

type Stamp = Option<(SystemTime, u64)>;

/// The files and what was in them.
#[derive(Debug)]
pub struct Followed {
    source: Resolvers,
    resolvers: Vec<SocketAddr>,
    hosts: Option<PathBuf>,
    stamps: Option<(Stamp, Stamp)>,
    checked: Instant,
}

impl Followed {
    pub fn new(source: Resolvers, hosts: Option<PathBuf>) -> Self {
        let resolvers = match &source {
            Resolvers::Fixed(servers) => servers.clone(),
            Resolvers::File(_) => Vec::new(),
        };
        Self { source, resolvers, hosts, stamps: None, checked: Instant(0) }
    }

    /// Asks these from now on.
    pub fn set_resolvers(&mut self, servers: Vec<SocketAddr>) {
        self.source = Resolvers::Fixed(servers.clone());
        self.resolvers = servers;
    }

    /// The resolvers, in the order in which they are asked.
    pub fn resolvers(&self) -> &[SocketAddr] {
        &self.resolvers
    }

    /// Looks whether the files have changed; returns the names of the hosts file if that has.
    pub fn refresh(&mut self, now: Instant) -> Option<Hosts> {
        if self.stamps.is_some() && now.since(self.checked) < GAP {
            return None;
        }
        self.checked = now;
        let resolvers_stamp = match &self.source {
            Resolvers::File(path) => stamp(path),
            Resolvers::Fixed(_) => None,
        };
        let hosts_stamp = self.hosts.as_deref().and_then(stamp);
        let before = self.stamps.replace((resolvers_stamp, hosts_stamp));
        if let Resolvers::File(path) = &self.source
            && before.is_none_or(|before| before.0 != resolvers_stamp)
        {
            self.resolvers = parse_resolvers(&read(path));
        }
        let changed = before.is_none_or(|before| before.1 != hosts_stamp);
        let hosts = self.hosts.as_deref().filter(|_| changed)?;
        Some(Hosts::parse(&read(hosts)))
    }
}

fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// Reads a file; one that is missing or too large counts as empty.
fn read(path: &Path) -> String {
    let small = fs::metadata(path).is_ok_and(|metadata| metadata.len() <= FILE_BYTES_MAX);
    let bytes = if small { fs::read(path).unwrap_or_default() } else { Vec::new() };
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns the name servers of a `resolv.conf(5)`; without any it is the one on this machine.
pub fn parse_resolvers(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let word = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        word.parse::<IpAddr>().ok()
    };
    let mut found: Vec<SocketAddr> =
        text.lines().filter_map(address).take(RESOLVERS_MAX).map(|ip| SocketAddr::new(ip, 53)).collect();
    if found.is_empty() {
        found.push((Ipv4Addr::LOCALHOST, 53).into());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_and_the_rest_skipped() {
        let text =
            "# c\nsearch a.b\nnameserver 1.1.1.1\n nameserver ::1 # x\noptions edns0\nnameserver nonsense\n";
        let expected: Vec<SocketAddr> = vec!["1.1.1.1:53".parse().unwrap(), "[::1]:53".parse().unwrap()];
        assert_eq!(parse_resolvers(text), expected);
    }

    #[test]
    fn without_a_name_server_this_machine_is_asked() {
        assert_eq!(parse_resolvers("search x\n"), vec!["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn a_change_of_the_file_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        let mut files = Followed::new(Resolvers::File(path.clone()), None);
        files.refresh(Instant(0));
        assert_eq!(files.resolvers(), ["10.0.0.1:53".parse().unwrap()]);
        fs::write(&path, "nameserver 10.0.0.22\n").unwrap();
        files.refresh(Instant(500_000));
        assert_eq!(files.resolvers(), ["10.0.0.1:53".parse().unwrap()]);
        files.refresh(Instant(1_600_000));
        assert_eq!(files.resolvers(), ["10.0.0.22:53".parse().unwrap()]);
    }
}
