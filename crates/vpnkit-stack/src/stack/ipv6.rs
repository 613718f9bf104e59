//! IPv6 from guests: whom a packet is for, fragments, and what of ICMPv6 is no neighbour discovery. Spec: RFC 8200.

use std::net::{IpAddr, Ipv6Addr};

use vpnkit_wire::{ParseError, dhcpv6, ethernet, icmpv6, ip, ipv6, ndp};

use super::Stack;
use super::volatile::Delivery;
use crate::drops::DropReason;
use crate::fragments::Part;
use crate::offload::Offload;
use crate::time::Instant;

impl Stack {
    pub(super) fn take_ipv6(
        &mut self,
        now: Instant,
        offload: Offload,
        frame: &ethernet::Frame<'_>,
        delivery: &mut Delivery<'_>,
    ) -> Result<(), ParseError> {
        if self.config.ipv6.is_none() {
            self.count_drop(DropReason::Unsupported);
            return Ok(());
        }
        let packet = ipv6::parse_beginning(frame.payload, delivery.beyond())?;
        if packet.dst.is_multicast() && !self.is_member(packet.dst) {
            self.count_drop(DropReason::OtherDestination);
            return Ok(());
        }
        if packet.src.is_unspecified() {
            return self.take_unnamed(now, frame, &packet);
        }
        if !self.may_send(packet.src.into()) {
            self.count_drop(DropReason::ForgedSource);
            return Ok(());
        }
        self.learn(packet.src.into(), frame.src);
        let verify = !offload.verified && offload.needs_checksum.is_none();
        let Some(piece) = packet.fragment else {
            return self.take_ipv6_datagram(now, frame, (&packet.datagram(), verify), delivery);
        };
        let part = Part {
            ends: (packet.src.into(), packet.dst.into()),
            ident: piece.ident,
            protocol: packet.protocol,
            offset: piece.offset,
            more: piece.more,
            payload: packet.payload,
        };
        let Some(payload) = self.reassembly.add(now, &part) else { return Ok(()) };
        let whole = ip::Packet { payload: &payload, ..packet.datagram() };
        self.take_ipv6_datagram(now, frame, (&whole, true), delivery)
    }

    fn take_ipv6_datagram(
        &mut self,
        now: Instant,
        frame: &ethernet::Frame<'_>,
        (packet, verify): (&ip::Packet<'_>, bool),
        delivery: &mut Delivery<'_>,
    ) -> Result<(), ParseError> {
        let group = packet.dst.is_multicast();
        match packet.protocol {
            ip::PROTOCOL_ICMPV6 => self.take_icmpv6(now, frame, packet),
            // Nothing else that is for a group is for this one.
            ip::PROTOCOL_UDP if group => self.take_dhcpv6_datagram(now, packet, verify),
            _ if group => {
                self.count_drop(DropReason::OtherDestination);
                Ok(())
            }
            _ => self.take_datagram(now, frame, packet, verify, delivery),
        }
    }

    /// Takes a packet of a station that has no address yet: it looks whether somebody has the one that it wants, or
    /// for a router.
    fn take_unnamed(
        &mut self,
        now: Instant,
        frame: &ethernet::Frame<'_>,
        packet: &ipv6::Packet<'_>,
    ) -> Result<(), ParseError> {
        if packet.protocol == ip::PROTOCOL_ICMPV6 && packet.fragment.is_none() {
            return self.take_icmpv6(now, frame, &packet.datagram());
        }
        self.count_drop(DropReason::ForgedSource);
        Ok(())
    }

    fn take_icmpv6(
        &mut self,
        now: Instant,
        frame: &ethernet::Frame<'_>,
        packet: &ip::Packet<'_>,
    ) -> Result<(), ParseError> {
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (packet.src, packet.dst) else {
            return Err(ParseError::Protocol);
        };
        let message = icmpv6::parse(packet.payload, src, dst)?;
        match message.kind {
            icmpv6::ECHO_REQUEST if dst.is_multicast() => {
                // RFC 4443 §4.2: the answer to a group's echo comes from an address of one.
                let from = self.gateway_like(packet.src);
                self.queue_echo_reply(now, (from, packet.src), message.rest, message.payload);
            }
            icmpv6::ECHO_REQUEST if !src.is_unspecified() => self.take_echo(now, packet, &message),
            ndp::ROUTER_SOLICITATION..=ndp::NEIGHBOUR_ADVERTISEMENT => {
                // RFC 4861 §6.1.1, §7.1: from elsewhere than this link it is dropped.
                if packet.ttl != ndp::HOP_LIMIT || message.code != 0 {
                    return Err(ParseError::Protocol);
                }
                self.take_discovery(now, frame, (src, dst), &message)?;
            }
            _ => self.count_drop(DropReason::Unsupported),
        }
        Ok(())
    }

    /// Whether packets to a group are for this stack too.
    fn is_member(&self, group: Ipv6Addr) -> bool {
        let Some(ipv6) = &self.config.ipv6 else { return false };
        let own = [ipv6.gateway, ipv6.host, self.router].map(ndp::solicited_node);
        [ndp::ALL_NODES, ndp::ALL_ROUTERS, dhcpv6::ALL_AGENTS].contains(&group) || own.contains(&group)
    }
}
