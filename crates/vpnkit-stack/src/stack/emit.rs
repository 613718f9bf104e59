//! Makes whole frames for the guest, all but TCP's, and hands everything to the link.

use std::io::IoSlice;
use std::net::Ipv4Addr;

use super::{FrameSink, Stack};
use crate::offload::Offload;
use crate::time::Instant;
use crate::wire::{ethernet, icmp, ipv4, udp};

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
        if self.frames.len() >= self.config.limits.queued_frames {
            self.counters.over_limit += 1;
            return;
        }
        let mut frame = self.payload(&[0; ethernet::HEADER_BYTES]);
        ethernet::emit(&mut frame, dst, self.config.gateway_mac, ethertype);
        for part in parts {
            frame.extend_from_slice(part);
        }
        self.frames.push_back(frame);
    }

    /// Queues an IPv4 datagram for a guest; one larger than the MTU is sent in fragments.
    pub(super) fn queue_ipv4(
        &mut self,
        now: Instant,
        src: Ipv4Addr,
        dst: Ipv4Addr,
        protocol: u8,
        parts: &[&[u8]],
    ) {
        let payload_bytes: usize = parts.iter().map(|part| part.len()).sum();
        let room = usize::from(self.config.mtu) - ipv4::HEADER_BYTES;
        let mut header = ipv4::Header::new(src, dst, protocol, payload_bytes);
        if payload_bytes <= room {
            return self.queue_packet(now, header, parts);
        }
        let whole = parts.concat();
        header.ident = self.draw() as u16;
        let step = room / 8 * 8;
        let mut offset = 0;
        while offset < whole.len() {
            let end = (offset + step).min(whole.len());
            header.payload_bytes = end - offset;
            header.fragment = (offset / 8) as u16 | if end < whole.len() { 0x2000 } else { 0 };
            self.queue_packet(now, header, &[&whole[offset..end]]);
            offset = end;
        }
    }

    fn queue_packet(&mut self, now: Instant, header: ipv4::Header, parts: &[&[u8]]) {
        let mut bytes = [0; ipv4::HEADER_BYTES];
        header.emit(&mut bytes);
        let mut pieces = [&[][..]; 5];
        pieces[0] = &bytes;
        let count = parts.len().min(4);
        pieces[1..=count].copy_from_slice(&parts[..count]);
        match self.neighbours.find(header.dst) {
            Some(mac) => self.queue_frame(mac, ethernet::TYPE_IPV4, &pieces[..=count]),
            None => {
                if self.unresolved.len() == UNRESOLVED_MAX {
                    self.unresolved.pop_front();
                    self.counters.over_limit += 1;
                }
                self.unresolved.push_back((header.dst, pieces[..=count].concat()));
                self.ask_for(now, header.dst);
            }
        }
    }

    /// Sends what waited for the hardware address of `address`.
    pub(super) fn queue_unresolved(&mut self, address: Ipv4Addr, mac: ethernet::MacAddr) {
        let (ready, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.unresolved).into_iter().partition(|packet| packet.0 == address);
        self.unresolved = rest.into();
        for (_, packet) in ready {
            self.queue_frame(mac, ethernet::TYPE_IPV4, &[&packet]);
        }
    }

    /// Queues a UDP datagram for a guest.
    pub(super) fn queue_udp(
        &mut self,
        now: Instant,
        src: (Ipv4Addr, u16),
        dst: (Ipv4Addr, u16),
        payload: &[u8],
    ) {
        let header = udp::emit_header(src, dst, payload);
        self.queue_ipv4(now, src.0, dst.0, ipv4::PROTOCOL_UDP, &[&header, payload]);
    }

    /// Answers a guest's packet with an ICMP error from the gateway, if errors may be sent about it.
    ///
    /// Spec: RFC 1122 §3.2.2.
    pub(super) fn send_unreachable(&mut self, packet: &ipv4::Packet<'_>, kind: u8, code: u8) {
        let answerable = !packet.is_fragment()
            && !packet.dst.is_multicast()
            && packet.dst != self.config.broadcast()
            && !packet.dst.is_broadcast()
            && (packet.protocol != ipv4::PROTOCOL_ICMP || icmp::may_be_answered(packet.payload));
        if answerable {
            // RFC 1122 §3.2.2: at least 8 bytes of the payload; RFC 1812 §4.3.2.3: not beyond 576 in all.
            let quoted = &packet.payload[..packet.payload.len().min(64)];
            self.queue_icmp_error(self.config.gateway, packet.src, (kind, code, 0), &[packet.header, quoted]);
        }
    }

    /// Queues an ICMP error that quotes `quote`, from `src` to the guest `dst`.
    pub(super) fn queue_icmp_error(
        &mut self,
        src: Ipv4Addr,
        dst: Ipv4Addr,
        (kind, code, rest): (u8, u8, u32),
        quote: &[&[u8]],
    ) {
        let quote = quote.concat();
        let header = icmp::emit_header(kind, code, rest, &quote);
        if let Some(mac) = self.neighbours.find(dst) {
            let mut ip = [0; ipv4::HEADER_BYTES];
            ipv4::Header::new(src, dst, ipv4::PROTOCOL_ICMP, header.len() + quote.len()).emit(&mut ip);
            self.queue_frame(mac, ethernet::TYPE_IPV4, &[&ip, &header, &quote]);
        }
    }
}
