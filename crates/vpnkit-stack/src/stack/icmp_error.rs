//! ICMP errors to guests: about their packets, and those that sockets of the host came to.
//!
//! Spec: RFC 1122 §3.2.2, RFC 4443 §2.4.

use std::net::IpAddr;

use vpnkit_wire::{icmp, icmpv6, ip, ipv4, ipv6};

use super::Stack;
use super::address::Place;
use crate::event::{ConnectError, DatagramError};

/// Bytes of an IPv4 packet that are quoted after its header: RFC 1122 §3.2.2 says at least 8, RFC 1812 §4.3.2.3 not
/// beyond 576 in all.
const QUOTED_BYTES_V4: usize = 64;
/// Bytes of an IPv6 packet that are quoted, headers included: RFC 4443 §2.4 (c), not beyond the smallest MTU in all.
const QUOTED_BYTES_V6: usize = ipv6::MTU_MIN as usize - ipv6::HEADER_BYTES - icmpv6::HEADER_BYTES;

/// Why a packet goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// No route leads to the network.
    NoNetwork,
    /// The host does not answer, or there is none.
    NoHost,
    /// Nobody listens on the port.
    NoPort,
    /// The protocol is not spoken.
    NoProtocol,
    /// Forbidden.
    Prohibited,
    /// It was sent too few hops far.
    Expired,
}

impl Fate {
    /// What a failure of the host's sockets says, if it is for ICMP to say.
    pub(super) fn of(error: ConnectError) -> Option<Fate> {
        match error {
            ConnectError::NetUnreachable => Some(Fate::NoNetwork),
            ConnectError::HostUnreachable => Some(Fate::NoHost),
            ConnectError::Prohibited => Some(Fate::Prohibited),
            ConnectError::Refused | ConnectError::TimedOut => None,
        }
    }

    /// Type and code of the message that says so, in the family of `guest`.
    fn message(self, guest: IpAddr) -> (u8, u8) {
        if guest.is_ipv4() {
            return match self {
                Fate::NoNetwork => (icmp::UNREACHABLE, icmp::CODE_NET),
                Fate::NoHost => (icmp::UNREACHABLE, icmp::CODE_HOST),
                Fate::NoPort => (icmp::UNREACHABLE, icmp::CODE_PORT),
                Fate::NoProtocol => (icmp::UNREACHABLE, icmp::CODE_PROTOCOL),
                Fate::Prohibited => (icmp::UNREACHABLE, icmp::CODE_PROHIBITED),
                Fate::Expired => (icmp::TIME_EXCEEDED, 0),
            };
        }
        match self {
            Fate::NoNetwork => (icmpv6::UNREACHABLE, icmpv6::CODE_NO_ROUTE),
            Fate::NoHost => (icmpv6::UNREACHABLE, icmpv6::CODE_ADDRESS),
            Fate::NoPort => (icmpv6::UNREACHABLE, icmpv6::CODE_PORT),
            Fate::NoProtocol => (icmpv6::PARAMETER_PROBLEM, icmpv6::CODE_NEXT_HEADER),
            Fate::Prohibited => (icmpv6::UNREACHABLE, icmpv6::CODE_PROHIBITED),
            Fate::Expired => (icmpv6::TIME_EXCEEDED, 0),
        }
    }
}

impl Stack {
    /// Answers a guest's packet with an ICMP error from the gateway, if errors may be sent about it.
    pub(super) fn send_error(&mut self, packet: &ip::Packet<'_>, fate: Fate) {
        let (kind, code) = fate.message(packet.src);
        let (answerable, room) = match packet.dst {
            IpAddr::V4(dst) => (
                !dst.is_multicast()
                    && dst != self.config.broadcast()
                    && !dst.is_broadcast()
                    && (packet.protocol != ip::PROTOCOL_ICMP || icmp::may_be_answered(packet.payload)),
                QUOTED_BYTES_V4,
            ),
            IpAddr::V6(dst) => (
                !dst.is_multicast()
                    && (packet.protocol != ip::PROTOCOL_ICMPV6 || icmpv6::may_be_answered(packet.payload)),
                QUOTED_BYTES_V6.saturating_sub(packet.header.len()),
            ),
        };
        if !answerable {
            return;
        }
        let quoted = &packet.payload[..packet.payload.len().min(room)];
        // The field that is not understood: where the fixed header names what follows it, or the last extension does.
        let unknown = fate == Fate::NoProtocol && packet.src.is_ipv6();
        let rest = if unknown { next_header_at(packet.header) } else { 0 };
        let src = self.gateway_like(packet.src);
        self.queue_icmp_error((src, packet.src), (kind, code, rest), &[packet.header, quoted]);
    }

    /// Queues an ICMP error about a packet of a guest, of which only addresses and the first bytes are known.
    pub(super) fn queue_datagram_error(
        &mut self,
        (guest, to): (IpAddr, IpAddr),
        protocol: u8,
        quoted: &[u8],
        error: DatagramError,
    ) {
        let known = |from: &IpAddr| {
            from.is_ipv4() == guest.is_ipv4() && matches!(self.place_of(*from), Place::Host | Place::Outside)
        };
        let from = error.from.map(|from| self.inward(from)).filter(known);
        let from = from.unwrap_or_else(|| self.gateway_like(guest));
        let what = (error.kind, error.code, u32::from(error.mtu));
        self.queue_error_about((guest, to), (from, what), protocol, quoted);
    }

    /// As [`Stack::send_error`], about a packet that is known no more than its addresses and first bytes.
    pub(super) fn queue_fate(
        &mut self,
        (guest, to): (IpAddr, IpAddr),
        fate: Fate,
        protocol: u8,
        quoted: &[u8],
    ) {
        let (kind, code) = fate.message(guest);
        let from = self.gateway_like(guest);
        self.queue_error_about((guest, to), (from, (kind, code, 0)), protocol, quoted);
    }

    fn queue_error_about(
        &mut self,
        (guest, to): (IpAddr, IpAddr),
        (from, what): (IpAddr, (u8, u8, u32)),
        protocol: u8,
        quoted: &[u8],
    ) {
        match (guest, to) {
            (IpAddr::V4(guest_v4), IpAddr::V4(to)) => {
                let mut ip = [0; ipv4::HEADER_BYTES];
                ipv4::Header::new(guest_v4, to, protocol, quoted.len()).emit(&mut ip);
                self.queue_icmp_error((from, guest), what, &[&ip, quoted]);
            }
            (IpAddr::V6(guest_v6), IpAddr::V6(to)) => {
                let mut ip = [0; ipv6::HEADER_BYTES];
                ipv6::Header::new(guest_v6, to, protocol, quoted.len()).emit(&mut ip);
                self.queue_icmp_error((from, guest), what, &[&ip, quoted]);
            }
            _ => {}
        }
    }

    /// Queues an ICMP error that quotes `quote`, from `src` to the guest `dst`.
    fn queue_icmp_error(
        &mut self,
        (src, dst): (IpAddr, IpAddr),
        (kind, code, rest): (u8, u8, u32),
        quote: &[&[u8]],
    ) {
        let quote = quote.concat();
        let (header, protocol) = match (src, dst) {
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                (icmpv6::emit_header((src, dst), (kind, code, rest), &quote), ip::PROTOCOL_ICMPV6)
            }
            _ => (icmp::emit_header(kind, code, rest, &quote), ip::PROTOCOL_ICMP),
        };
        // Whom the packet came from is known; if it is forgotten meanwhile, the error is not worth a question.
        if let Some(mac) = self.neighbours.find(dst) {
            self.queue_packet(mac, (src, dst), protocol, &[&header, &quote]);
        }
    }
}

/// Where a chain of IPv6 headers names what follows the last of them.
fn next_header_at(headers: &[u8]) -> u32 {
    let (mut field, mut at) = (6usize, ipv6::HEADER_BYTES);
    while let (Some(kind), Some(length)) = (headers.get(field), headers.get(at + 1)) {
        field = at;
        at += if *kind == ipv6::FRAGMENT { 8 } else { 8 + usize::from(*length) * 8 };
    }
    field as u32
}
