//! UDP: one host socket for each port of a guest, whoever it talks to (endpoint-independent mapping), and ports of the
//! host that are forwarded to a guest. Spec: RFC 768, RFC 4787.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use vpnkit_wire::ethernet::Frame;
use vpnkit_wire::{ParseError, dhcp, dns, ip, udp};

use super::Stack;
use super::address::Place;
use super::gateway::NTP_PORT;
use super::icmp_error::Fate;
use crate::drops::DropReason;
use crate::event::{ConnectError, DatagramError, Effect, ForwardId, Hops, UdpId, UdpSnapshot};
use crate::table::FlowKey;
use crate::time::Instant;

/// RFC 4787 §4.3 says two minutes or more (SHOULD); VPNKit had one, and local machines are many.
const IDLE: Duration = Duration::from_secs(60);
/// Ports tried for a peer whose own port is in use.
const ALIASES_MAX: u16 = 64;

/// Who began a flow.
#[derive(Debug, Clone, Copy)]
enum Origin {
    /// The guest: any peer may answer.
    Guest,
    /// A peer of a forwarded port, whom the guest knows as `remote`.
    Peer { forward: ForwardId, peer: SocketAddr, remote: SocketAddr },
}

/// A flow.
#[derive(Debug)]
pub(super) struct UdpFlow {
    guest: SocketAddr,
    origin: Origin,
    used: Instant,
    /// Whether it was used since it was last considered for eviction.
    recent: bool,
    /// Whether it sent to a port of the gateway that leads on, so that answers may come from there.
    uses_gateway: bool,
    bytes_up: u64,
    bytes_down: u64,
}

impl Stack {
    pub(super) fn take_udp(
        &mut self,
        now: Instant,
        frame: &Frame<'_>,
        packet: &ip::Packet<'_>,
        verify: bool,
    ) -> Result<(), ParseError> {
        let datagram = udp::parse(packet.payload, verify.then_some((packet.src, packet.dst)))?;
        if let IpAddr::V4(dst) = packet.dst {
            let to_server = dst == self.config.gateway || dst.is_broadcast();
            if to_server && datagram.dst_port == dhcp::SERVER_PORT && datagram.src_port == dhcp::CLIENT_PORT {
                return self.take_dhcp(frame, datagram.payload);
            }
        }
        if packet.src.is_unspecified() {
            self.count_drop(DropReason::ForgedSource);
            return Ok(());
        }
        if datagram.dst_port == 0 {
            return Err(ParseError::Protocol);
        }
        let guest = SocketAddr::new(packet.src, datagram.src_port);
        let remote = SocketAddr::new(packet.dst, datagram.dst_port);
        if let Some(id) = self.forward_keys.get(&FlowKey { guest, remote }).copied() {
            self.reply_to_peer(now, id, datagram.payload);
            return Ok(());
        }
        let place = self.place_of(packet.dst);
        let is_own = place == Place::Gateway && self.gateway_udp(place, (guest, remote)).is_none();
        if is_own && datagram.dst_port == NTP_PORT {
            self.take_ntp((guest, remote), datagram.payload);
            return Ok(());
        }
        if is_own && datagram.dst_port == dns::PORT {
            self.take_dns_datagram(now, (guest, remote), datagram.payload);
            return Ok(());
        }
        self.send_out(now, packet, (guest, remote), datagram.payload);
        Ok(())
    }

    /// Passes a datagram on to the world outside.
    fn send_out(
        &mut self,
        now: Instant,
        packet: &ip::Packet<'_>,
        (guest, remote): (SocketAddr, SocketAddr),
        payload: &[u8],
    ) {
        let place = self.place_of(packet.dst);
        let leads_on = self.gateway_udp(place, (guest, remote));
        match place {
            Place::Gateway if leads_on.is_some() => {}
            Place::Gateway => return self.send_error(packet, Fate::NoPort),
            Place::Nowhere => return self.send_error(packet, Fate::NoHost),
            Place::Outside if packet.ttl <= 1 => return self.send_error(packet, Fate::Expired),
            Place::Outside | Place::Host => {}
        }
        let flow = match self.udp_keys.get(&guest) {
            Some(id) => *id,
            None => {
                let id = self.add_udp(now, guest, Origin::Guest);
                self.udp_keys.insert(guest, id);
                id
            }
        };
        if let Some(flow) = self.udp.get_mut(flow.0).filter(|_| leads_on.is_some()) {
            flow.uses_gateway = true;
        }
        self.count_udp(now, flow, payload.len(), 0);
        let to = leads_on.unwrap_or_else(|| self.outward(place, remote));
        let payload = self.payload(payload);
        // To the host itself there is no hop.
        let hops = if place == Place::Outside {
            Hops { ttl: packet.ttl - 1, dont_fragment: packet.dont_fragment }
        } else {
            Hops { ttl: 64, dont_fragment: false }
        };
        self.effects.push_back(Effect::UdpSend { flow, to, hops, payload });
    }

    fn reply_to_peer(&mut self, now: Instant, id: UdpId, payload: &[u8]) {
        let Some(Origin::Peer { forward, peer, .. }) = self.udp.get(id.0).map(|flow| flow.origin) else {
            return;
        };
        self.count_udp(now, id, payload.len(), 0);
        let payload = self.payload(payload);
        self.effects.push_back(Effect::UdpReply { forward, to: peer, payload });
    }

    fn count_udp(&mut self, now: Instant, id: UdpId, up: usize, down: usize) {
        if let Some(flow) = self.udp.get_mut(id.0) {
            flow.used = now;
            // The first use is not a sign of a second one.
            flow.recent = flow.bytes_up + flow.bytes_down > 0;
            flow.bytes_up += up as u64;
            flow.bytes_down += down as u64;
        }
    }

    /// Adds a flow, after the one used least recently made way if there are too many.
    fn add_udp(&mut self, now: Instant, guest: SocketAddr, origin: Origin) -> UdpId {
        while self.udp.len() >= self.config.limits.udp_flows.max(1) {
            self.count_drop(DropReason::UdpLimit);
            self.evict_udp();
        }
        let flow = UdpFlow {
            guest,
            origin,
            used: now,
            recent: false,
            uses_gateway: false,
            bytes_up: 0,
            bytes_down: 0,
        };
        let id = UdpId(self.udp.insert(flow));
        self.udp_order.push_back(id);
        self.arm_sweep(now);
        id
    }

    /// Closes a flow that was not used lately: the second-chance algorithm, so that each datagram costs nothing.
    fn evict_udp(&mut self) {
        while let Some(id) = self.udp_order.pop_front() {
            match self.udp.get_mut(id.0) {
                Some(flow) if flow.recent => {
                    flow.recent = false;
                    self.udp_order.push_back(id);
                }
                Some(_) => return self.close_udp(id),
                None => {}
            }
        }
    }

    fn close_udp(&mut self, id: UdpId) {
        let Some(flow) = self.udp.remove(id.0) else { return };
        match flow.origin {
            Origin::Guest => {
                self.udp_keys.remove(&flow.guest);
                self.effects.push_back(Effect::UdpClosed(id));
            }
            Origin::Peer { remote, .. } => {
                self.forward_keys.remove(&FlowKey { guest: flow.guest, remote });
            }
        }
    }

    /// A datagram came to the socket of a flow.
    pub fn udp_received(&mut self, now: Instant, id: UdpId, from: SocketAddr, payload: &[u8]) {
        let Some(flow) = self.udp.get(id.0) else { return };
        let (guest, uses_gateway) = (flow.guest, flow.uses_gateway);
        if guest.is_ipv4() != from.is_ipv4() {
            return;
        }
        self.count_udp(now, id, 0, payload.len());
        let src = match self.gateway_port_of(from).filter(|_| uses_gateway) {
            Some(port) => SocketAddr::new(self.gateway_like(guest.ip()), port),
            None => SocketAddr::new(self.inward(from.ip()), from.port()),
        };
        self.queue_udp(now, src, guest, payload);
    }

    /// A datagram of a flow to `to` came to an error.
    pub fn udp_failed(&mut self, id: UdpId, to: SocketAddr, error: DatagramError) {
        let Some(guest) = self.udp.get(id.0).map(|flow| flow.guest) else { return };
        let remote = SocketAddr::new(self.inward(to.ip()), to.port());
        let header = udp::emit_header(guest, remote, &[]);
        self.queue_datagram_error((guest.ip(), remote.ip()), ip::PROTOCOL_UDP, &header, error);
    }

    /// A datagram of a flow to `to` could not be sent.
    pub fn udp_unsent(&mut self, id: UdpId, to: SocketAddr, error: ConnectError) {
        let Some(guest) = self.udp.get(id.0).map(|flow| flow.guest) else { return };
        let remote = SocketAddr::new(self.inward(to.ip()), to.port());
        if let Some(fate) = Fate::of(error) {
            let header = udp::emit_header(guest, remote, &[]);
            self.queue_fate((guest.ip(), remote.ip()), fate, ip::PROTOCOL_UDP, &header);
        }
    }

    /// A datagram came to a forwarded port: it goes to `guest`, and what the guest answers comes back as
    /// [`Effect::UdpReply`]. The guest sees the peer's own address, or the host's for peers on the host.
    pub fn udp_forwarded(
        &mut self,
        now: Instant,
        forward: ForwardId,
        peer: SocketAddr,
        guest: SocketAddr,
        payload: &[u8],
    ) {
        let Some((id, remote)) = self.find_peer(now, forward, peer, guest) else {
            self.count_drop(DropReason::UdpLimit);
            return;
        };
        self.count_udp(now, id, 0, payload.len());
        self.queue_udp(now, remote, guest, payload);
    }

    fn find_peer(
        &mut self,
        now: Instant,
        forward: ForwardId,
        peer: SocketAddr,
        guest: SocketAddr,
    ) -> Option<(UdpId, SocketAddr)> {
        let address = self.alias_of(peer, guest);
        for step in 0..ALIASES_MAX {
            let port = peer.port().checked_add(step).unwrap_or(1024 + step);
            let remote = SocketAddr::new(address, port);
            let key = FlowKey { guest, remote };
            let Some(id) = self.forward_keys.get(&key).copied() else {
                let id = self.add_udp(now, guest, Origin::Peer { forward, peer, remote });
                self.forward_keys.insert(key, id);
                return Some((id, remote));
            };
            let origin = self.udp.get(id.0).map(|flow| flow.origin);
            if matches!(origin, Some(Origin::Peer { forward: f, peer: p, .. }) if (f, p) == (forward, peer)) {
                return Some((id, remote));
            }
        }
        None
    }

    /// Forgets the flows of a forwarded port.
    pub fn udp_unforward(&mut self, forward: ForwardId) {
        let of_port = |flow: &UdpFlow| matches!(flow.origin, Origin::Peer { forward: f, .. } if f == forward);
        let flows: Vec<_> = self.udp.iter().filter(|(_, flow)| of_port(flow)).map(|(key, _)| key).collect();
        for key in flows {
            self.close_udp(UdpId(key));
        }
    }

    pub(super) fn sweep_udp(&mut self, now: Instant) {
        let idle = |flow: &UdpFlow| now.since(flow.used) >= IDLE;
        let old: Vec<_> = self.udp.iter().filter(|(_, flow)| idle(flow)).map(|(key, _)| key).collect();
        for key in old {
            self.close_udp(UdpId(key));
        }
        let udp = &self.udp;
        self.udp_order.retain(|id| udp.get(id.0).is_some());
    }

    pub(super) fn udp_snapshots(&self) -> Vec<UdpSnapshot> {
        let snapshot = |flow: &UdpFlow| UdpSnapshot {
            guest: flow.guest,
            peer: match flow.origin {
                Origin::Guest => None,
                Origin::Peer { peer, .. } => Some(peer),
            },
            bytes_up: flow.bytes_up,
            bytes_down: flow.bytes_down,
        };
        self.udp.iter().map(|(_, flow)| snapshot(flow)).collect()
    }
}
