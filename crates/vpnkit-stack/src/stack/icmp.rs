//! Ping: answered for the gateway and the host, passed on for others. Spec: RFC 792, RFC 1122 §3.2.2.6.

use std::net::IpAddr;
use std::time::Duration;

use vpnkit_wire::{ParseError, icmp, icmpv6, ip};

use super::Stack;
use super::address::Place;
use super::icmp_error::Fate;
use crate::drops::DropReason;
use crate::event::{ConnectError, DatagramError, Effect, Hops, PingId};
use crate::time::Instant;

const IDLE: Duration = Duration::from_secs(60);

/// The echo requests of one identifier.
#[derive(Debug)]
pub(super) struct PingFlow {
    guest: IpAddr,
    ident: u16,
    used: Instant,
}

impl Stack {
    pub(super) fn take_icmp(&mut self, now: Instant, packet: &ip::Packet<'_>) -> Result<(), ParseError> {
        let message = icmp::parse(packet.payload)?;
        if message.kind != icmp::ECHO_REQUEST {
            self.count_drop(DropReason::Unsupported);
            return Ok(());
        }
        self.take_echo(now, packet, &message);
        Ok(())
    }

    /// Takes an echo request of either version.
    pub(super) fn take_echo(&mut self, now: Instant, packet: &ip::Packet<'_>, message: &icmp::Message<'_>) {
        match self.place_of(packet.dst) {
            Place::Gateway | Place::Host => {
                self.queue_echo_reply(now, (packet.dst, packet.src), message.rest, message.payload);
            }
            _ if packet.ttl <= 1 => self.send_error(packet, Fate::Expired),
            Place::Nowhere => self.send_error(packet, Fate::NoHost),
            Place::Outside => {
                let flow = self.find_ping(now, packet.src, message.ident());
                let payload = self.payload(message.payload);
                let hops = Hops { ttl: packet.ttl - 1, dont_fragment: packet.dont_fragment };
                let (to, sequence) = (packet.dst, message.sequence());
                self.effects.push_back(Effect::PingSend { flow, to, hops, sequence, payload });
            }
        }
    }

    pub(super) fn queue_echo_reply(
        &mut self,
        now: Instant,
        (src, dst): (IpAddr, IpAddr),
        rest: u32,
        payload: &[u8],
    ) {
        let (header, protocol) = match (src, dst) {
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let what = (icmpv6::ECHO_REPLY, 0, rest);
                (icmpv6::emit_header((src, dst), what, payload), ip::PROTOCOL_ICMPV6)
            }
            _ => (icmp::emit_header(icmp::ECHO_REPLY, 0, rest, payload), ip::PROTOCOL_ICMP),
        };
        self.queue_ip(now, (src, dst), protocol, &[&header, payload]);
    }

    fn find_ping(&mut self, now: Instant, guest: IpAddr, ident: u16) -> PingId {
        if let Some(id) = self.ping_keys.get(&(guest, ident)) {
            if let Some(flow) = self.pings.get_mut(id.0) {
                flow.used = now;
            }
            return *id;
        }
        if self.pings.len() >= self.config.limits.ping_flows {
            let oldest = self.pings.iter().min_by_key(|(_, flow)| flow.used).map(|(key, _)| PingId(key));
            if let Some(oldest) = oldest {
                self.count_drop(DropReason::PingLimit);
                self.close_ping(oldest);
            }
        }
        let id = PingId(self.pings.insert(PingFlow { guest, ident, used: now }));
        self.ping_keys.insert((guest, ident), id);
        self.arm_sweep(now);
        id
    }

    fn close_ping(&mut self, id: PingId) {
        if let Some(flow) = self.pings.remove(id.0) {
            self.ping_keys.remove(&(flow.guest, flow.ident));
            self.effects.push_back(Effect::PingClosed(id));
        }
    }

    /// An echo reply came back.
    pub fn ping_received(&mut self, now: Instant, id: PingId, from: IpAddr, sequence: u16, payload: &[u8]) {
        let Some(flow) = self.pings.get_mut(id.0) else { return };
        flow.used = now;
        let (guest, rest) = (flow.guest, u32::from(flow.ident) << 16 | u32::from(sequence));
        if from.is_ipv4() == guest.is_ipv4() {
            self.queue_echo_reply(now, (from, guest), rest, payload);
        }
    }

    /// An echo request to `to` came to an error.
    pub fn ping_failed(&mut self, id: PingId, to: IpAddr, sequence: u16, error: DatagramError) {
        if let Some((guest, protocol, echo)) = self.echo_request(id, to, sequence) {
            self.queue_datagram_error((guest, to), protocol, &echo, error);
        }
    }

    /// An echo request to `to` could not be sent.
    pub fn ping_unsent(&mut self, id: PingId, to: IpAddr, sequence: u16, error: ConnectError) {
        if let Some((guest, protocol, echo)) = self.echo_request(id, to, sequence)
            && let Some(fate) = Fate::of(error)
        {
            self.queue_fate((guest, to), fate, protocol, &echo);
        }
    }

    /// The guest, the protocol and the header of a request, for quoting.
    fn echo_request(&self, id: PingId, to: IpAddr, sequence: u16) -> Option<(IpAddr, u8, [u8; 8])> {
        let flow = self.pings.get(id.0)?;
        let (guest, rest) = (flow.guest, u32::from(flow.ident) << 16 | u32::from(sequence));
        Some(match (guest, to) {
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let what = (icmpv6::ECHO_REQUEST, 0, rest);
                (guest, ip::PROTOCOL_ICMPV6, icmpv6::emit_header((src, dst), what, &[]))
            }
            _ => (guest, ip::PROTOCOL_ICMP, icmp::emit_header(icmp::ECHO_REQUEST, 0, rest, &[])),
        })
    }

    pub(super) fn sweep_pings(&mut self, now: Instant) {
        let idle = |flow: &PingFlow| now.since(flow.used) >= IDLE;
        let old: Vec<_> = self.pings.iter().filter(|(_, flow)| idle(flow)).map(|(key, _)| key).collect();
        for key in old {
            self.close_ping(PingId(key));
        }
    }
}
