//! Whose addresses machines may use. No machine speaks for the engine, nor for another machine: it is not believed when
//! it says to be there (ARP, neighbour discovery), to route, or to give addresses away.
//!
//! An address of the network belongs to the port that the engine leased it to, else to the one that used it first, as long
//! as that is attached. Other addresses are left alone: a machine may route. Spec: RFC 7039 (SAVI), RFC 7513 §6 (learning
//! from DHCP), RFC 6105 (RA-Guard), RFC 7610 (DHCPv6-Shield).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use vpnkit_wire::ethernet::{TYPE_ARP, TYPE_IPV4, TYPE_IPV6};

use crate::switch::{Mac, PortId};

/// Addresses that one port may have; IPv6 machines make new ones from time to time (RFC 8981).
const PORT_ADDRESSES_MAX: usize = 1024;
/// IEEE 802.1Q and 802.1ad: a tag of four bytes before the type. Machines take frames of no VLAN for untagged ones.
const TAGS: [u16; 2] = [0x8100, 0x88a8];
/// Tags of one frame that are looked behind.
const TAGS_MAX: usize = 4;
/// Extension headers of one packet that are looked behind.
const EXTENSIONS_MAX: usize = 8;

const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// BOOTP: ports of server and client (RFC 2131 §4.1), and where a reply has its addresses (§2).
const BOOTP: (u16, u16) = (67, 68);
const BOOTP_YIADDR: usize = 16;
const BOOTP_CHADDR: usize = 28;
/// DHCPv6: RFC 8415 §7.2.
const DHCPV6: (u16, u16) = (547, 546);
/// Neighbour discovery: RFC 4861 §4.
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// The addresses of a network, as far as they are guarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// Those of the engine: gateway, host, router.
    pub engine: Vec<IpAddr>,
    /// An address of the IPv4 network, and its prefix in bits.
    pub ipv4: (Ipv4Addr, u8),
    /// An address of the IPv6 network, of 64 bits, if there is one; link-local addresses are always guarded.
    pub ipv6: Option<Ipv6Addr>,
}

impl Addresses {
    fn contain(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => {
                let (of, prefix) = self.ipv4;
                let differ = v4.to_bits() ^ of.to_bits();
                // The network's own address and its broadcast are nobody's.
                let host = v4.to_bits() & u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
                let all = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
                differ.checked_shr(32 - u32::from(prefix.min(32))).unwrap_or(0) == 0
                    && host != 0
                    && host != all
            }
            IpAddr::V6(v6) => {
                let same = |of: Ipv6Addr| (of.to_bits() ^ v6.to_bits()) >> 64 == 0;
                v6.is_unicast_link_local() || self.ipv6.is_some_and(same)
            }
        }
    }
}

/// The guard.
#[derive(Debug)]
pub struct Guard {
    addresses: Addresses,
    owners: HashMap<IpAddr, PortId>,
    /// How many addresses each port has.
    counts: HashMap<PortId, usize>,
    /// Who was found right last, and mostly is next.
    last: Option<(IpAddr, PortId)>,
}

impl Guard {
    /// A guard of a network without machines.
    pub fn new(addresses: Addresses) -> Self {
        Self { addresses, owners: HashMap::new(), counts: HashMap::new(), last: None }
    }

    /// Learns from a frame of `port` and says whether it may go on.
    pub fn allows(&mut self, port: PortId, frame: &[u8]) -> bool {
        let Some((ethertype, payload)) = payload_of(frame) else { return false };
        match ethertype {
            TYPE_ARP => self.allows_arp(port, mac_at(frame, 6), payload),
            TYPE_IPV4 => {
                let Some(src) = ipv4_at(payload, 12) else { return true };
                self.may_use(port, src.into()) && !is_from_server(ipv4_udp(payload), BOOTP)
            }
            TYPE_IPV6 => {
                let Some(src) = ipv6_at(payload, 8) else { return true };
                self.may_use(port, src.into()) && self.allows_ipv6(port, payload)
            }
            _ => true,
        }
    }

    fn allows_arp(&mut self, port: PortId, from: Option<Mac>, packet: &[u8]) -> bool {
        let (Some(mac), Some(sender)) = (mac_at(packet, 8), ipv4_at(packet, 14)) else { return false };
        // A probe (RFC 5227) has no sender address yet.
        Some(mac) == from && (sender.is_unspecified() || self.may_use(port, sender.into()))
    }

    fn allows_ipv6(&mut self, port: PortId, packet: &[u8]) -> bool {
        match ipv6_transport(packet) {
            Some((UDP, datagram)) => !is_from_server(Some(datagram), DHCPV6),
            Some((ICMPV6, message)) => match message.first() {
                Some(&(ROUTER_ADVERTISEMENT | REDIRECT)) => false,
                Some(&NEIGHBOUR_ADVERTISEMENT) => {
                    ipv6_at(message, 8).is_some_and(|target| self.may_use(port, target.into()))
                }
                _ => true,
            },
            _ => true,
        }
    }

    fn may_use(&mut self, port: PortId, address: IpAddr) -> bool {
        if self.last == Some((address, port)) {
            return true;
        }
        if self.addresses.engine.contains(&address) {
            return false;
        }
        if !self.addresses.contain(address) {
            return true;
        }
        let right = match self.owners.get(&address) {
            Some(owner) => *owner == port,
            None if self.counts.get(&port).is_some_and(|count| *count >= PORT_ADDRESSES_MAX) => false,
            None => {
                self.give(address, port);
                true
            }
        };
        if right {
            self.last = Some((address, port));
        }
        right
    }

    /// Learns from a frame of the engine: an address that it leases is the client's from then on, whoever used it before.
    /// `owner_of` knows where a hardware address is.
    pub fn learn_lease(&mut self, frame: &[u8], owner_of: impl FnOnce(Mac) -> Option<PortId>) {
        // The engine's packets have no options: most frames are seen through at once.
        if u16_at(frame, 34) != Some(BOOTP.0) {
            return;
        }
        let Some((TYPE_IPV4, packet)) = payload_of(frame) else { return };
        let Some(datagram) = ipv4_udp(packet).filter(|datagram| is_from_server(Some(datagram), BOOTP)) else {
            return;
        };
        let reply = &datagram[8..];
        let (yours, client) = (ipv4_at(reply, BOOTP_YIADDR), mac_at(reply, BOOTP_CHADDR));
        if let (Some(yours), Some(owner)) = (yours, client.and_then(owner_of))
            && !yours.is_unspecified()
        {
            self.give(yours.into(), owner);
        }
    }

    fn give(&mut self, address: IpAddr, port: PortId) {
        if let Some(former) = self.owners.insert(address, port)
            && let Some(count) = self.counts.get_mut(&former)
        {
            *count -= 1;
        }
        *self.counts.entry(port).or_default() += 1;
        self.last = None;
    }

    /// Forgets a port's addresses: it is gone.
    pub fn forget(&mut self, port: PortId) {
        self.owners.retain(|_, owner| *owner != port);
        self.counts.remove(&port);
        self.last = None;
    }
}

/// The type of a frame behind its tags, and what is in it.
fn payload_of(frame: &[u8]) -> Option<(u16, &[u8])> {
    let mut at = 12;
    for _ in 0..=TAGS_MAX {
        let ethertype = u16_at(frame, at)?;
        if !TAGS.contains(&ethertype) {
            return Some((ethertype, &frame[at + 2..]));
        }
        at += 4;
    }
    None
}

/// The UDP datagram of an IPv4 packet, if it is one and has its header.
fn ipv4_udp(packet: &[u8]) -> Option<&[u8]> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let is_first = u16_at(packet, 6)? & 0x1fff == 0;
    let datagram = packet.get(header..)?;
    (packet[9] == UDP && is_first && datagram.len() >= 8).then_some(datagram)
}

/// What an IPv6 packet carries behind its extension headers: RFC 8200 §4. Nothing of a fragment but the first.
fn ipv6_transport(packet: &[u8]) -> Option<(u8, &[u8])> {
    let (mut next, mut rest) = (*packet.get(6)?, packet.get(40..)?);
    for _ in 0..EXTENSIONS_MAX {
        let bytes = match next {
            // Hop-by-hop options, routing, destination options.
            0 | 43 | 60 => (usize::from(*rest.get(1)?) + 1) * 8,
            44 if u16_at(rest, 2)? & 0xfff8 == 0 => 8,
            44 => return None,
            _ => return Some((next, rest)),
        };
        (next, rest) = (*rest.first()?, rest.get(bytes..)?);
    }
    None
}

fn is_from_server(datagram: Option<&[u8]>, (server, client): (u16, u16)) -> bool {
    datagram
        .is_some_and(|datagram| u16_at(datagram, 0) == Some(server) && u16_at(datagram, 2) == Some(client))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

fn mac_at(bytes: &[u8], at: usize) -> Option<Mac> {
    bytes.get(at..at + 6)?.try_into().ok()
}

fn ipv4_at(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

fn ipv6_at(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(octets.into())
}

#[cfg(test)]
mod tests;
