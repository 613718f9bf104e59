//! Ping: answered for the gateway and the host, passed on for others. Spec: RFC 792, RFC 1122 §3.2.2.6.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::Stack;
use crate::event::{DatagramError, Effect, PingId};
use crate::time::Instant;
use crate::wire::{ParseError, icmp, ipv4};

const IDLE: Duration = Duration::from_secs(60);

/// The echo requests of one identifier.
#[derive(Debug)]
pub(super) struct PingFlow {
    guest: Ipv4Addr,
    ident: u16,
    used: Instant,
}

impl Stack {
    pub(super) fn take_icmp(&mut self, now: Instant, packet: &ipv4::Packet<'_>) -> Result<(), ParseError> {
        let message = icmp::parse(packet.payload)?;
        if message.kind != icmp::ECHO_REQUEST {
            self.counters.unsupported += 1;
            return Ok(());
        }
        if [self.config.gateway, self.config.host].contains(&packet.dst) {
            let header = icmp::emit_header(icmp::ECHO_REPLY, 0, message.rest, message.payload);
            let parts = [&header[..], message.payload];
            self.queue_ipv4(now, packet.dst, packet.src, ipv4::PROTOCOL_ICMP, &parts);
            return Ok(());
        }
        if packet.ttl <= 1 {
            self.send_unreachable(packet, icmp::TIME_EXCEEDED, 0);
            return Ok(());
        }
        if !self.is_outside(packet.dst) {
            self.send_unreachable(packet, icmp::UNREACHABLE, icmp::CODE_HOST);
            return Ok(());
        }
        let flow = self.find_ping(now, packet.src, message.ident());
        let payload = self.payload(message.payload);
        let (to, ttl, sequence) = (packet.dst, packet.ttl - 1, message.sequence());
        self.effects.push_back(Effect::PingSend { flow, to, ttl, sequence, payload });
        Ok(())
    }

    fn find_ping(&mut self, now: Instant, guest: Ipv4Addr, ident: u16) -> PingId {
        if let Some(id) = self.ping_keys.get(&(guest, ident)) {
            if let Some(flow) = self.pings.get_mut(id.0) {
                flow.used = now;
            }
            return *id;
        }
        if self.pings.len() >= self.config.limits.ping_flows {
            let oldest = self.pings.iter().min_by_key(|(_, flow)| flow.used).map(|(key, _)| PingId(key));
            if let Some(oldest) = oldest {
                self.counters.over_limit += 1;
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
    pub fn ping_received(&mut self, now: Instant, id: PingId, from: Ipv4Addr, sequence: u16, payload: &[u8]) {
        let Some(flow) = self.pings.get_mut(id.0) else { return };
        flow.used = now;
        let (guest, rest) = (flow.guest, u32::from(flow.ident) << 16 | u32::from(sequence));
        let header = icmp::emit_header(icmp::ECHO_REPLY, 0, rest, payload);
        self.queue_ipv4(now, from, guest, ipv4::PROTOCOL_ICMP, &[&header, payload]);
    }

    /// An echo request to `to` came to an error, or could not be sent.
    pub fn ping_failed(&mut self, id: PingId, to: Ipv4Addr, sequence: u16, error: DatagramError) {
        let Some(flow) = self.pings.get(id.0) else { return };
        let (guest, rest) = (flow.guest, u32::from(flow.ident) << 16 | u32::from(sequence));
        let echo = icmp::emit_header(icmp::ECHO_REQUEST, 0, rest, &[]);
        self.queue_datagram_error(guest, to, ipv4::PROTOCOL_ICMP, &echo, error);
    }

    /// Queues an ICMP error about a packet of a guest, of which only addresses and the first bytes are known.
    pub(super) fn queue_datagram_error(
        &mut self,
        guest: Ipv4Addr,
        to: Ipv4Addr,
        protocol: u8,
        quoted: &[u8],
        error: DatagramError,
    ) {
        let mut ip = [0; ipv4::HEADER_BYTES];
        ipv4::Header::new(guest, to, protocol, quoted.len()).emit(&mut ip);
        let from = error.from.filter(|from| self.is_outside(*from)).unwrap_or(self.config.gateway);
        let what = (error.kind, error.code, u32::from(error.mtu));
        self.queue_icmp_error(from, guest, what, &[&ip, quoted]);
    }

    pub(super) fn sweep_pings(&mut self, now: Instant) {
        let idle = |flow: &PingFlow| now.since(flow.used) >= IDLE;
        let old: Vec<_> = self.pings.iter().filter(|(_, flow)| idle(flow)).map(|(key, _)| key).collect();
        for key in old {
            self.close_ping(PingId(key));
        }
    }
}
