//! Sets of hosts as people write them: `example.com, .internal, *.corp.example, 10.0.0.0/8, 192.168.1.1, *`.

use std::net::{IpAddr, Ipv4Addr};

/// Most rules of a set; what is beyond is not read.
const RULES_MAX: usize = 10_000;

/// A set of hosts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hosts(Vec<Rule>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    All,
    /// The domain, and everything below it.
    Domain(String),
    Address(IpAddr),
    Network(Ipv4Addr, u8),
}

impl Hosts {
    /// Reads words between commas and white space. A word that is no address is a domain.
    pub fn parse(text: &str) -> Self {
        let words = text.split(|letter: char| letter == ',' || letter.is_whitespace());
        Self(words.filter(|word| !word.is_empty()).take(RULES_MAX).map(rule).collect())
    }

    /// The set that all of `words` make together.
    pub fn of(words: &[String]) -> Self {
        Self(words.iter().flat_map(|word| Self::parse(word).0).take(RULES_MAX).collect())
    }

    /// Whether `host`, a name or an address without port, is in it.
    pub fn contains(&self, host: &str) -> bool {
        let host = host.trim_start_matches('[').trim_end_matches([']', '.']);
        let address: Option<IpAddr> = host.parse().ok();
        self.0.iter().any(|rule| match (rule, address) {
            (Rule::All, _) => true,
            (Rule::Domain(domain), None) => is_below(host, domain),
            (Rule::Address(wanted), Some(address)) => *wanted == address,
            (Rule::Network(network, prefix), Some(IpAddr::V4(address))) => {
                let shift = 32 - u32::from(*prefix);
                u64::from(network.to_bits()) >> shift == u64::from(address.to_bits()) >> shift
            }
            _ => false,
        })
    }
}

fn rule(word: &str) -> Rule {
    if word == "*" {
        return Rule::All;
    }
    if let Ok(address) = word.parse() {
        return Rule::Address(address);
    }
    let network = word.split_once('/').and_then(|(address, prefix)| {
        let prefix: u8 = prefix.parse().ok()?;
        (prefix <= 32).then_some(Rule::Network(address.parse().ok()?, prefix))
    });
    network
        .unwrap_or_else(|| Rule::Domain(word.trim_start_matches('*').trim_matches('.').to_ascii_lowercase()))
}

fn is_below(host: &str, domain: &str) -> bool {
    let Some(at) = host.len().checked_sub(domain.len()) else { return false };
    host.is_char_boundary(at)
        && host[at..].eq_ignore_ascii_case(domain)
        && (at == 0 || host[..at].ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_found_by_their_rules() {
        let hosts = Hosts::parse("example.com, .internal *.corp.example\t10.0.0.0/8,192.168.1.1 ::1");
        let within = [
            "example.com",
            "WWW.Example.com",
            "a.internal",
            "x.corp.example",
            "10.255.0.1",
            "192.168.1.1",
            "[::1]",
            "example.com.",
        ];
        for host in within {
            assert!(hosts.contains(host), "{host}");
        }
        for host in ["notexample.com", "example.org", "11.0.0.1", "192.168.1.2", "::2", "", "é"] {
            assert!(!hosts.contains(host), "{host}");
        }
        assert!(Hosts::parse("*").contains("anything"));
        assert!(Hosts::parse("0.0.0.0/0").contains("1.2.3.4"));
        assert!(!Hosts::parse("").contains("example.com"));
    }
}
