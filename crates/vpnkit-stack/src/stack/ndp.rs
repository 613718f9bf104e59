//! Neighbour discovery: the gateway's and the host's addresses are answered and defended, guests are asked for, and
//! the router tells about its network. Spec: RFC 4861, RFC 4862, RFC 8106.

use std::net::Ipv6Addr;
use std::time::Duration;

use vpnkit_wire::ethernet::{Frame, MacAddr, TYPE_IPV6};
use vpnkit_wire::icmp::Message;
use vpnkit_wire::{ParseError, icmpv6, ip, ipv6, ndp};

use super::Stack;
use crate::drops::DropReason;
use crate::time::Instant;

/// How often the router tells unasked: RFC 4861 §6.2.1.
const ADVERTISE: Duration = Duration::from_secs(600);
/// Seconds that a station uses the router without having heard of it: the most that RFC 4861 §6.2.1 allows.
const ROUTER_SECONDS: u16 = 9000;
/// Seconds that addresses are valid, and that new connections use them: RFC 4861 §6.2.1.
const VALID_SECONDS: u32 = 2_592_000;
const PREFERRED_SECONDS: u32 = 604_800;

impl Stack {
    pub(super) fn take_discovery(
        &mut self,
        now: Instant,
        frame: &Frame<'_>,
        (src, dst): (Ipv6Addr, Ipv6Addr),
        message: &Message<'_>,
    ) -> Result<(), ParseError> {
        match message.kind {
            ndp::ROUTER_SOLICITATION => {
                // Unasked words follow for those that came.
                self.advertise_at.get_or_insert(now + ADVERTISE);
                self.send_router(Some((src, frame.src)).filter(|(src, _)| !src.is_unspecified()));
            }
            ndp::NEIGHBOUR_SOLICITATION => {
                let asked = ndp::parse_neighbour(message)?;
                self.advertise_at.get_or_insert(now + ADVERTISE);
                self.answer_solicitation(frame.src, src, asked.target);
            }
            ndp::NEIGHBOUR_ADVERTISEMENT if !dst.is_unspecified() => {
                let said = ndp::parse_neighbour(message)?;
                let own = said.mac.is_none_or(|mac| mac == frame.src);
                if own && !src.is_unspecified() && self.may_send(said.target.into()) {
                    self.learn(said.target.into(), frame.src);
                }
            }
            // Other routers are not listened to.
            _ => self.count_drop(DropReason::ForgedSource),
        }
        Ok(())
    }

    /// Answers a question for an address of ours. One of nobody asks whether it may be had: everybody hears that not.
    fn answer_solicitation(&mut self, mac: MacAddr, src: Ipv6Addr, target: Ipv6Addr) {
        let Some(ipv6) = &self.config.ipv6 else { return };
        if target.is_unspecified() || ![ipv6.gateway, ipv6.host, self.router].contains(&target) {
            return;
        }
        let (to, mac) = if src.is_unspecified() {
            (ndp::ALL_NODES, ndp::multicast_mac(ndp::ALL_NODES))
        } else {
            (src, mac)
        };
        let is_router = target != ipv6.host;
        let (rest, body) =
            ndp::emit_advertisement(target, self.config.gateway_mac, is_router, !src.is_unspecified());
        self.send_discovery((target, to), mac, (ndp::NEIGHBOUR_ADVERTISEMENT, rest), &body);
    }

    /// Asks who has `address`.
    pub(super) fn solicit(&mut self, address: Ipv6Addr) {
        let group = ndp::solicited_node(address);
        let body = ndp::emit_solicitation(address, self.config.gateway_mac);
        let ends = (self.router, group);
        self.send_discovery(ends, ndp::multicast_mac(group), (ndp::NEIGHBOUR_SOLICITATION, 0), &body);
    }

    /// Says whether guests are offered a default route for IPv6, as the host has one or not; they hear of a change.
    pub fn set_default_route(&mut self, default_route: bool) {
        let Some(ipv6) = &mut self.config.ipv6 else { return };
        if ipv6.default_route != default_route {
            ipv6.default_route = default_route;
            self.send_router(None);
        }
    }

    /// Tells everybody about the network now: those that are up already need not ask.
    pub fn announce(&mut self) {
        self.send_router(None);
    }

    /// Tells everybody about the network from time to time.
    pub(super) fn advertise(&mut self, now: Instant) {
        if self.advertise_at.is_some_and(|at| at <= now) {
            self.advertise_at = Some(now + ADVERTISE);
            self.send_router(None);
        }
    }

    /// Tells one station, or all, about the network.
    fn send_router(&mut self, to: Option<(Ipv6Addr, MacAddr)>) {
        let Some(ipv6) = &self.config.ipv6 else { return };
        let search = self.search_domains();
        let (rest, body) = ndp::emit_router(&ndp::Router {
            mac: self.config.gateway_mac,
            lifetime_seconds: if ipv6.default_route { ROUTER_SECONDS } else { 0 },
            prefix: ipv6.network(),
            valid_seconds: VALID_SECONDS,
            preferred_seconds: PREFERRED_SECONDS,
            mtu: self.config.mtu,
            dns: ipv6.gateway,
            dns_seconds: ROUTER_SECONDS.into(),
            search: &search,
        });
        let (to, mac) = to.unwrap_or((ndp::ALL_NODES, ndp::multicast_mac(ndp::ALL_NODES)));
        self.send_discovery((self.router, to), mac, (ndp::ROUTER_ADVERTISEMENT, rest), &body);
    }

    fn send_discovery(
        &mut self,
        (src, dst): (Ipv6Addr, Ipv6Addr),
        mac: MacAddr,
        (kind, rest): (u8, u32),
        body: &[u8],
    ) {
        let header = icmpv6::emit_header((src, dst), (kind, 0, rest), body);
        let mut head = [0; ipv6::HEADER_BYTES];
        let payload_bytes = header.len() + body.len();
        let ip = ipv6::Header::new(src, dst, ip::PROTOCOL_ICMPV6, payload_bytes);
        ipv6::Header { hop_limit: ndp::HOP_LIMIT, ..ip }.emit(&mut head);
        self.queue_frame(mac, TYPE_IPV6, &[&head, &header, body]);
    }
}
