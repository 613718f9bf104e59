//! ARP: the gateway's and the host's addresses are answered, guests are remembered and asked for.

use std::net::IpAddr;

use vpnkit_wire::ParseError;
use vpnkit_wire::arp::{self, Operation, Packet};
use vpnkit_wire::ethernet::{Frame, MacAddr, TYPE_ARP};

use super::Stack;
use crate::drops::DropReason;
use crate::time::Instant;

impl Stack {
    pub(super) fn take_arp(&mut self, frame: &Frame<'_>) -> Result<(), ParseError> {
        let packet = arp::parse(frame.payload)?;
        if packet.sender_mac != frame.src {
            self.count_drop(DropReason::ForgedSource);
            return Ok(());
        }
        if self.may_send(packet.sender.into()) {
            self.learn(packet.sender.into(), frame.src);
        }
        let config = &self.config;
        if packet.operation != Operation::Request || ![config.gateway, config.host].contains(&packet.target) {
            return Ok(());
        }
        let reply = arp::emit(&Packet {
            operation: Operation::Reply,
            sender_mac: config.gateway_mac,
            sender: packet.target,
            target_mac: packet.sender_mac,
            target: packet.sender,
        });
        self.queue_frame(frame.src, TYPE_ARP, &[&reply]);
        Ok(())
    }

    /// Remembers where a guest is, and sends what waited for it.
    pub(super) fn learn(&mut self, address: IpAddr, mac: MacAddr) {
        if !self.neighbours.learn(address, mac, self.config.limits.neighbours) {
            return;
        }
        if !self.unresolved.is_empty() {
            self.queue_unresolved(address, mac);
        }
        for id in std::mem::take(&mut self.waiting) {
            if let Some(flow) = self.tcp.get_mut(id.0) {
                flow.waiting = false;
            }
            self.touch_tcp(id);
        }
    }

    /// Asks who has `address`, not more than once a second.
    pub(super) fn ask_for(&mut self, now: Instant, address: IpAddr) {
        if !self.neighbours.may_request(now, address) {
            return;
        }
        let address = match address {
            IpAddr::V4(address) => address,
            IpAddr::V6(address) => return self.solicit(address),
        };
        let request = arp::emit(&Packet {
            operation: Operation::Request,
            sender_mac: self.config.gateway_mac,
            sender: self.config.gateway,
            target_mac: MacAddr([0; 6]),
            target: address,
        });
        self.queue_frame(MacAddr::BROADCAST, TYPE_ARP, &[&request]);
    }
}
