//! Which frames somebody wants to see: the part of pcap-filter(7) that people type.
//!
//! ```
//! # use vpnkit_capture::Filter;
//! let filter: Filter = "tcp port 80 and not src host 192.168.65.3".parse()?;
//! # Ok::<(), vpnkit_capture::FilterError>(())
//! ```
//!
//! Understood: `and`, `or`, `not` and brackets; `arp`, `ip`, `ip6`, `tcp`, `udp`, `icmp`, `icmp6`, `broadcast`,
//! `multicast`; `host`, `net`, `port`, `portrange` after an optional protocol and `src` or `dst`; `ether host`; `less`
//! and `greater`. As there, a port is one of TCP or UDP, and a name alone takes the words before it: `port 80 or 443`.
//! Not understood: `vlan`, byte access (`tcp[13]`), names that need a resolver.

mod parse;
mod summary;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use summary::Summary;

/// Longest expression, in bytes.
pub const EXPRESSION_MAX: usize = 4096;

/// Deepest nesting of brackets and `not`.
pub const DEPTH_MAX: usize = 64;

/// Why an expression was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// A word is not one that belongs there.
    #[error("`{word}` at column {column} is not understood: expected {expected}")]
    Word {
        /// What was found; `the end` when nothing was.
        word: String,
        /// Where, from 1 on.
        column: usize,
        /// What could have been there.
        expected: &'static str,
    },
    /// It is too long.
    #[error("the expression has more than {EXPRESSION_MAX} bytes")]
    Long,
    /// Too many brackets.
    #[error("the expression is nested more than {DEPTH_MAX} deep")]
    Deep,
}

/// An expression. The default lets everything through.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter(Option<Expression>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Expression {
    And(Box<Expression>, Box<Expression>),
    Or(Box<Expression>, Box<Expression>),
    Not(Box<Expression>),
    Test(Test),
}

/// One thing to ask of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Protocol(Protocol),
    Broadcast,
    Multicast,
    /// At most so many bytes.
    Less(usize),
    /// At least so many bytes.
    Greater(usize),
    Ether(Side, [u8; 6]),
    Net {
        protocol: Option<Protocol>,
        side: Side,
        address: IpAddr,
        prefix: u8,
    },
    Port {
        protocol: Option<Protocol>,
        side: Side,
        ports: RangeInclusive<u16>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Arp,
    Ip,
    Ip6,
    Tcp,
    Udp,
    Icmp,
    Icmp6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
    Either,
}

impl Filter {
    /// Whether the frame, from its Ethernet header on, is wanted. Any bytes are good.
    pub fn matches(&self, frame: &[u8]) -> bool {
        match &self.0 {
            None => true,
            Some(expression) => holds(expression, &Summary::of(frame)),
        }
    }

    /// Whether it lets everything through.
    pub fn is_everything(&self) -> bool {
        self.0.is_none()
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        parse::parse(text).map(Filter)
    }
}

/// Goes no deeper than the parser did.
fn holds(expression: &Expression, frame: &Summary) -> bool {
    match expression {
        Expression::And(left, right) => holds(left, frame) && holds(right, frame),
        Expression::Or(left, right) => holds(left, frame) || holds(right, frame),
        Expression::Not(inner) => !holds(inner, frame),
        Expression::Test(test) => test.holds(frame),
    }
}

impl Test {
    fn holds(&self, frame: &Summary) -> bool {
        match self {
            Self::Protocol(protocol) => frame.has(*protocol),
            Self::Broadcast => frame.ether.is_some_and(|(_, dst)| dst == [0xff; 6]),
            Self::Multicast => frame.ether.is_some_and(|(_, dst)| dst[0] & 1 != 0),
            Self::Less(bytes) => frame.bytes <= *bytes,
            Self::Greater(bytes) => frame.bytes >= *bytes,
            Self::Ether(side, address) => side.any(frame.ether, |found| found == address),
            Self::Net { protocol, side, address, prefix } => {
                protocol.is_none_or(|protocol| frame.has(protocol))
                    && side.any(frame.addresses, |found| within(found, address, *prefix))
            }
            Self::Port { protocol, side, ports } => {
                protocol.is_none_or(|protocol| frame.has(protocol))
                    && side.any(frame.ports, |found| ports.contains(found))
            }
        }
    }
}

impl Side {
    fn any<T>(self, pair: Option<(T, T)>, test: impl Fn(&T) -> bool) -> bool {
        pair.is_some_and(|(source, destination)| match self {
            Self::Source => test(&source),
            Self::Destination => test(&destination),
            Self::Either => test(&source) || test(&destination),
        })
    }
}

/// Whether `found` is in the network of `prefix` bits around `address`.
fn within(found: &IpAddr, address: &IpAddr, prefix: u8) -> bool {
    match (found, address) {
        (IpAddr::V4(found), IpAddr::V4(address)) => {
            let shift = 32u32.saturating_sub(u32::from(prefix));
            let (found, address) = (u64::from(found.to_bits()), u64::from(address.to_bits()));
            found >> shift == address >> shift
        }
        (IpAddr::V6(found), IpAddr::V6(address)) => {
            let shift = 128u32.saturating_sub(u32::from(prefix));
            let differ = found.to_bits() ^ address.to_bits();
            differ.checked_shr(shift).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
