//! Makes whole frames for the guest, all but TCP's, and hands everything to the link.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};

use vpnkit_wire::{ethernet, ip, ipv6, udp};

use super::{FrameSink, Stack};
use crate::drops::DropReason;
use crate::offload::Offload;
use crate::time::Instant;

/// Packets that wait for hardware addresses.
const UNRESOLVED_MAX: usize = 64;

impl Stack {
    /// Hands frames to the link until there are no more or the link has no room; returns whether there are no more.
    /// After `false`, call again when the link has room.
    pub fn transmit(&mut self, now: Instant, sink: &mut dyn FrameSink) -> bool {
        self.transmit_some(now, false, sink)
    }

    /// As [`Stack::transmit`], but keeps acknowledgements of little data back, in the hope that an answer of the host
    /// takes them along. For a caller that is about to look for more events; [`Stack::transmit`] must follow soon.
    pub fn transmit_answers(&mut self, now: Instant, sink: &mut dyn FrameSink) -> bool {
        self.transmit_some(now, true, sink)
    }

    /// Whether acknowledgements are kept back.
    pub fn holds_back(&self) -> bool {
        !self.held.is_empty()
    }

    pub(super) fn transmit_some(&mut self, now: Instant, hold: bool, sink: &mut dyn FrameSink) -> bool {
        while let Some(frame) = self.frames.pop_front() {
            if !sink.send(Offload::NONE, &[IoSlice::new(&frame)]) {
                self.frames.push_front(frame);
                return false;
            }
            self.counters.frames_out += 1;
            self.counters.bytes_out += frame.len() as u64;
            self.recycle(frame);
        }
        self.transmit_tcp(now, hold, sink)
    }

    /// Queues a frame with an Ethernet header and `parts`.
    pub(super) fn queue_frame(&mut self, dst: ethernet::MacAddr, ethertype: u16, parts: &[&[u8]]) {
        self.queue_frame_with(dst, ethertype, &[], parts);
    }

    /// Queues a frame with an Ethernet header, `head` and `parts`.
    fn queue_frame_with(&mut self, dst: ethernet::MacAddr, ethertype: u16, head: &[u8], parts: &[&[u8]]) {
        if self.frames.len() >= self.config.limits.queued_frames {
            self.count_drop(DropReason::QueueFull);
            return;
        }
        let mut frame = self.payload(&[0; ethernet::HEADER_BYTES]);
        ethernet::emit(&mut frame, dst, self.config.gateway_mac, ethertype);
        frame.extend_from_slice(head);
        for part in parts {
            frame.extend_from_slice(part);
        }
        self.frames.push_back(frame);
    }

    /// Queues a datagram for a guest; one larger than the MTU is sent in fragments. Both addresses are of one family.
    pub(super) fn queue_ip(
        &mut self,
        now: Instant,
        (src, dst): (IpAddr, IpAddr),
        protocol: u8,
        parts: &[&[u8]],
    ) {
        let payload_bytes: usize = parts.iter().map(|part| part.len()).sum();
        let room = usize::from(self.config.mtu) - ip::header_bytes(dst);
        if payload_bytes <= room {
            let head = ip::Head::new((src, dst), protocol, payload_bytes, None);
            return self.queue_or_ask(now, dst, head, parts);
        }
        let whole = parts.concat();
        let ident = self.draw() as u32;
        let step = if dst.is_ipv4() { room } else { room - ipv6::FRAGMENT_BYTES } / 8 * 8;
        let mut offset = 0;
        while offset < whole.len() {
            let end = (offset + step).min(whole.len());
            let piece = ip::Piece { ident, offset, more: end < whole.len() };
            let head = ip::Head::new((src, dst), protocol, end - offset, Some(piece));
            self.queue_or_ask(now, dst, head, &[&whole[offset..end]]);
            offset = end;
        }
    }

    /// Queues a packet, or keeps it until the guest's hardware address is known.
    fn queue_or_ask(&mut self, now: Instant, dst: IpAddr, head: ip::Head, parts: &[&[u8]]) {
        if let Some(mac) = self.neighbours.find(dst) {
            return self.queue_frame_with(mac, ethertype_of(dst), head.bytes(), parts);
        }
        if self.unresolved.len() == UNRESOLVED_MAX {
            self.unresolved.pop_front();
            self.count_drop(DropReason::NoNeighbour);
        }
        self.unresolved.push_back((dst, [head.bytes(), &parts.concat()].concat()));
        self.ask_for(now, dst);
    }

    /// Queues a packet that fits the link for a station whose hardware address is known.
    pub(super) fn queue_packet(
        &mut self,
        mac: ethernet::MacAddr,
        (src, dst): (IpAddr, IpAddr),
        protocol: u8,
        parts: &[&[u8]],
    ) {
        let payload_bytes = parts.iter().map(|part| part.len()).sum();
        let head = ip::Head::new((src, dst), protocol, payload_bytes, None);
        self.queue_frame_with(mac, ethertype_of(dst), head.bytes(), parts);
    }

    /// Sends what waited for the hardware address of `address`.
    pub(super) fn queue_unresolved(&mut self, address: IpAddr, mac: ethernet::MacAddr) {
        let (ready, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.unresolved).into_iter().partition(|packet| packet.0 == address);
        self.unresolved = rest.into();
        for (_, packet) in ready {
            self.queue_frame(mac, ethertype_of(address), &[&packet]);
        }
    }

    /// Queues a UDP datagram for a guest. Both addresses are of one family.
    pub(super) fn queue_udp(&mut self, now: Instant, src: SocketAddr, dst: SocketAddr, payload: &[u8]) {
        let header = udp::emit_header(src, dst, payload);
        self.queue_ip(now, (src.ip(), dst.ip()), ip::PROTOCOL_UDP, &[&header, payload]);
    }
}

fn ethertype_of(address: IpAddr) -> u16 {
    if address.is_ipv4() { ethernet::TYPE_IPV4 } else { ethernet::TYPE_IPV6 }
}
