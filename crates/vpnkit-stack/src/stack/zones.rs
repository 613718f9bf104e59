//! Zones with records of their own, as gvproxy has them: names below a zone that no record has do not exist.

use std::net::{IpAddr, Ipv4Addr};

use vpnkit_wire::dns;

use super::Stack;

/// How a record is found.
#[derive(Debug, Clone)]
pub enum Match {
    /// By its name before that of the zone, in lower case.
    Name(String),
    /// By a pattern of that name.
    Pattern(regex_lite::Regex),
}

impl Match {
    /// By a pattern as regular expressions are written.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn pattern(text: &str) -> Result<Self, String> {
        regex_lite::Regex::new(text).map(Self::Pattern).map_err(|error| error.to_string())
    }
}

/// A record of a zone.
#[derive(Debug, Clone)]
pub struct Record {
    /// Which names it is for.
    pub of: Match,
    /// Their address.
    pub address: Ipv4Addr,
}

/// A zone.
#[derive(Debug, Clone)]
pub struct Zone {
    /// Its name, in lower case and without dots around it; empty: the root, which has all names.
    pub name: String,
    /// Its records; the first that fits is taken.
    pub records: Vec<Record>,
    /// The address of all names that no record has.
    pub default: Option<Ipv4Addr>,
}

impl Zone {
    /// What comes before the zone in a name that is below it.
    fn label<'a>(&self, name: &'a str) -> Option<&'a str> {
        if self.name.is_empty() {
            return Some(name);
        }
        let rest = name.strip_suffix(self.name.as_str())?;
        if rest.is_empty() { Some(rest) } else { rest.strip_suffix('.') }
    }

    fn find(&self, label: &str) -> Option<Ipv4Addr> {
        let fits = |record: &&Record| match &record.of {
            Match::Name(name) => name == label,
            Match::Pattern(pattern) => pattern.is_match(label),
        };
        self.records.iter().find(fits).map(|record| record.address).or(self.default)
    }
}

impl Stack {
    /// Replaces the zones; the first that a name is below is taken.
    pub fn set_zones(&mut self, zones: Vec<Zone>) {
        self.zones = zones;
    }

    /// The addresses, or the code, for a name below one of the zones.
    pub(super) fn resolve_in_zones(&self, query: &dns::Query) -> Option<Result<Vec<IpAddr>, u8>> {
        let mut below = self.zones.iter().filter_map(|zone| Some((zone, zone.label(&query.name)?)));
        let (zone, label) = below.next()?;
        match zone.find(label) {
            Some(address) => Some(Ok(vec![address.into()])),
            // The zone itself is there, if with nothing but what is below it.
            None if label.is_empty() => Some(Ok(Vec::new())),
            // The root is no zone of ours: what is not there is asked elsewhere.
            None if zone.name.is_empty() => None,
            None => Some(Err(dns::NXDOMAIN)),
        }
    }
}
