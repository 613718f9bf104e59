//! `resolv.conf(5)` and `hosts(5)`, read again when they change.
//!
//! They are looked at when the engine is awake, at most once a second: nothing runs while the guest is idle, and a file that is
//! replaced, or a link that leads elsewhere, is noticed like one that is written.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use vpnkit_stack::{Hosts, Instant};

use crate::config::Resolvers;
use crate::upstream::Upstreams;

const GAP: Duration = Duration::from_secs(1);
/// Bytes read of a file; hosts files for blocking advertisements have a few megabytes.
const FILE_BYTES_MAX: u64 = 16 << 20;

type Stamp = Option<(SystemTime, u64)>;

/// The files and what was in them.
#[derive(Debug)]
pub struct Followed {
    source: Resolvers,
    resolvers: Arc<Upstreams>,
    hosts: Option<PathBuf>,
    stamps: Option<(Stamp, Stamp)>,
    checked: Instant,
}

impl Followed {
    pub fn new(source: Resolvers, hosts: Option<PathBuf>) -> Self {
        let resolvers = match &source {
            Resolvers::Fixed(servers) => servers.clone().into(),
            Resolvers::File(_) => Vec::new().into(),
        };
        let resolvers = Arc::new(resolvers);
        Self { source, resolvers, hosts, stamps: None, checked: Instant(0) }
    }

    /// Asks these from now on.
    pub fn set_resolvers(&mut self, servers: Upstreams) {
        self.source = Resolvers::Fixed(Vec::new());
        self.resolvers = Arc::new(servers);
    }

    /// The resolvers.
    pub fn resolvers(&self) -> &Arc<Upstreams> {
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
            self.resolvers = Arc::new(Upstreams::of_resolv_conf(&read(path)));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_the_file_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        let first = |files: &Followed| files.resolvers().servers[0].address.to_string();
        let mut files = Followed::new(Resolvers::File(path.clone()), None);
        files.refresh(Instant(0));
        assert_eq!(first(&files), "10.0.0.1:53");
        fs::write(&path, "nameserver 10.0.0.22\n").unwrap();
        files.refresh(Instant(500_000));
        assert_eq!(first(&files), "10.0.0.1:53");
        files.refresh(Instant(1_600_000));
        assert_eq!(first(&files), "10.0.0.22:53");
    }
}
