//! What else there is at the gateway's address: ports that lead on, and the host's clock.

use std::collections::HashMap;
use std::net::{SocketAddr, SocketAddrV4};

use super::Stack;
use super::address::Place;
use crate::event::Effect;
use crate::time::Instant;

/// Port of time servers.
pub const NTP_PORT: u16 = 123;
/// Bytes of a time server's messages that are looked at: RFC 5905 §7.3 without extensions.
const NTP_BYTES: usize = 48;

/// Ports of the gateway that lead somewhere else, before any service of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GatewayPorts {
    /// TCP.
    pub tcp: HashMap<u16, SocketAddrV4>,
    /// UDP.
    pub udp: HashMap<u16, SocketAddrV4>,
}

impl Stack {
    /// Replaces the ports of the gateway that lead on. Connections that were made go on.
    pub fn set_gateway_ports(&mut self, ports: GatewayPorts) {
        self.gateway_ports = ports;
    }

    /// Where a connection to the gateway's own port goes.
    pub(super) fn gateway_tcp(&self, place: Place, port: u16) -> Option<SocketAddr> {
        self.gateway_ports.tcp.get(&port).filter(|_| place == Place::Gateway).map(|to| SocketAddr::V4(*to))
    }

    /// Where a datagram to the gateway's own port goes. A guest's socket has one family, and these are of IPv4.
    pub(super) fn gateway_udp(
        &self,
        place: Place,
        (guest, remote): (SocketAddr, SocketAddr),
    ) -> Option<SocketAddr> {
        let to = self.gateway_ports.udp.get(&remote.port())?;
        (place == Place::Gateway && guest.is_ipv4()).then_some(SocketAddr::V4(*to))
    }

    /// The port of the gateway by which a guest knows who answers.
    pub(super) fn gateway_port_of(&self, from: SocketAddr) -> Option<u16> {
        self.gateway_ports.udp.iter().find(|(_, to)| SocketAddr::V4(**to) == from).map(|(port, _)| *port)
    }

    /// A guest asks for the time.
    pub(super) fn take_ntp(&mut self, (guest, server): (SocketAddr, SocketAddr), payload: &[u8]) {
        if let Some(request) = payload.get(..NTP_BYTES) {
            let request = request.to_vec();
            self.effects.push_back(Effect::TimeQuery { guest, server, request });
        }
    }

    /// Gives a guest the time that it asked `server` for with [`Effect::TimeQuery`].
    pub fn time_answered(&mut self, now: Instant, guest: SocketAddr, server: SocketAddr, answer: &[u8]) {
        self.queue_udp(now, server, guest, answer);
    }
}
