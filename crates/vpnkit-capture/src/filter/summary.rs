//! What a filter can ask of a frame, read once. Nothing in a frame is trusted; what is cut off is absent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Protocol;

const TYPE_IPV4: u16 = 0x0800;
const TYPE_ARP: u16 = 0x0806;
const TYPE_IPV6: u16 = 0x86dd;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;

/// IPv6 extension headers that are walked over (RFC 8200 §4): hop-by-hop, routing, destination options.
const EXTENSIONS: [u8; 3] = [0, 43, 60];
const FRAGMENT: u8 = 44;
/// Most extension headers of one packet.
const EXTENSIONS_MAX: usize = 8;

/// The parts of a frame that filters know; a pair is source and destination.
#[derive(Debug, Default)]
pub struct Summary {
    pub bytes: usize,
    pub ether: Option<([u8; 6], [u8; 6])>,
    ethertype: u16,
    pub addresses: Option<(IpAddr, IpAddr)>,
    protocol: Option<u8>,
    pub ports: Option<(u16, u16)>,
}

impl Summary {
    pub fn of(frame: &[u8]) -> Self {
        let mut summary = Self { bytes: frame.len(), ..Self::default() };
        let (Some(dst), Some(src), Some(ethertype)) = (take(frame, 0), take(frame, 6), number(frame, 12))
        else {
            return summary;
        };
        summary.ether = Some((src, dst));
        summary.ethertype = ethertype;
        let payload = &frame[14..];
        match ethertype {
            TYPE_IPV4 => summary.ipv4(payload),
            TYPE_IPV6 => summary.ipv6(payload),
            TYPE_ARP => {
                // RFC 826 for IPv4 over Ethernet: sender's and target's protocol addresses.
                if let (Some(sender), Some(target)) = (take::<4>(payload, 14), take::<4>(payload, 24)) {
                    summary.addresses = Some((Ipv4Addr::from(sender).into(), Ipv4Addr::from(target).into()));
                }
            }
            _ => {}
        }
        summary
    }

    pub fn has(&self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Arp => self.ethertype == TYPE_ARP && self.ether.is_some(),
            Protocol::Ip => self.ethertype == TYPE_IPV4,
            Protocol::Ip6 => self.ethertype == TYPE_IPV6,
            Protocol::Tcp => self.protocol == Some(TCP),
            Protocol::Udp => self.protocol == Some(UDP),
            Protocol::Icmp => self.ethertype == TYPE_IPV4 && self.protocol == Some(ICMP),
            Protocol::Icmp6 => self.ethertype == TYPE_IPV6 && self.protocol == Some(ICMP6),
        }
    }

    fn ipv4(&mut self, packet: &[u8]) {
        let (Some(src), Some(dst)) = (take::<4>(packet, 12), take::<4>(packet, 16)) else { return };
        self.addresses = Some((Ipv4Addr::from(src).into(), Ipv4Addr::from(dst).into()));
        self.protocol = packet.get(9).copied();
        let header = usize::from(packet[0] & 0xf) * 4;
        let is_first = number(packet, 6).is_some_and(|fragment| fragment & 0x1fff == 0);
        if is_first && header >= 20 {
            self.transport(packet.get(header..).unwrap_or_default());
        }
    }

    fn ipv6(&mut self, packet: &[u8]) {
        let (Some(src), Some(dst)) = (take::<16>(packet, 8), take::<16>(packet, 24)) else { return };
        self.addresses = Some((Ipv6Addr::from(src).into(), Ipv6Addr::from(dst).into()));
        let mut next = packet[6];
        let mut rest = packet.get(40..).unwrap_or_default();
        for _ in 0..EXTENSIONS_MAX {
            let length = match next {
                FRAGMENT if number(rest, 2).is_some_and(|fragment| fragment & 0xfff8 != 0) => {
                    self.protocol = rest.first().copied();
                    return;
                }
                FRAGMENT => 8,
                _ if EXTENSIONS.contains(&next) => 8 + usize::from(rest.get(1).copied().unwrap_or(0)) * 8,
                _ => break,
            };
            let Some(following) = rest.first().copied() else { return };
            next = following;
            rest = rest.get(length..).unwrap_or_default();
        }
        self.protocol = Some(next);
        self.transport(rest);
    }

    fn transport(&mut self, segment: &[u8]) {
        if matches!(self.protocol, Some(TCP | UDP)) {
            self.ports = number(segment, 0).zip(number(segment, 2));
        }
    }
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    take(bytes, at).map(u16::from_be_bytes)
}
