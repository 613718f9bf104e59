//! Frames in a guest's memory: the headers of large segments are copied, their data is not; all else is copied whole.

use vpnkit_wire::tcp::Segment;
use vpnkit_wire::{ethernet, ip, tcp};

use super::{Sockets, Stack};
use crate::offload::Offload;
use crate::time::Instant;
use crate::volatile::{Counted, Data, VolatileFrame};

/// Bytes of the longest headers of a segment: Ethernet, IPv4 and TCP, all options included. IPv6 with none is shorter.
const HEAD_BYTES: usize = ethernet::HEADER_BYTES + 60 + tcp::HEADER_BYTES_MAX;
/// Bytes of the shortest frame that is not copied whole: to copy less is cheaper than to do without.
const LARGE_BYTES_MIN: usize = 2048;

/// What a frame that is being taken comes with: the sockets for its data, and what of it was not copied.
pub(super) struct Delivery<'a> {
    sockets: &'a mut dyn Sockets,
    /// The frame, when only its first [`HEAD_BYTES`] are at hand.
    frame: Option<&'a dyn VolatileFrame>,
}

impl<'a> Delivery<'a> {
    /// Everything is at hand.
    pub fn new(sockets: &'a mut dyn Sockets) -> Self {
        Self { sockets, frame: None }
    }

    /// Bytes of the frame that are not at hand.
    pub fn beyond(&self) -> usize {
        self.frame.map_or(0, |frame| frame.bytes() - HEAD_BYTES)
    }

    /// The data of the frame's segment, and the sockets.
    pub fn split<'s>(&'s mut self, segment: &Segment<'s>) -> (Data<'s>, &'s mut dyn Sockets) {
        let data = match self.frame {
            // What is at hand of the data reaches to the end of what was copied.
            Some(frame) if segment.beyond > 0 => Data::Volatile {
                frame,
                start: HEAD_BYTES - segment.payload.len(),
                bytes: segment.payload.len() + segment.beyond,
            },
            _ => Data::Here(segment.payload),
        };
        (data, &mut *self.sockets)
    }
}

impl Stack {
    /// Takes a frame that lies in a guest's memory. Nothing in it is read twice but the data of a large segment, which
    /// nobody here looks at.
    pub(super) fn take_volatile(
        &mut self,
        now: Instant,
        offload: Offload,
        frame: &dyn VolatileFrame,
        sockets: &mut dyn Sockets,
    ) {
        let frame = Counted::new(frame);
        let bytes = frame.bytes();
        let verified = offload.verified || offload.needs_checksum.is_some();
        let mut head = [0; HEAD_BYTES];
        if bytes >= LARGE_BYTES_MIN && verified {
            frame.copy(0, &mut head);
        }
        if is_whole_segment(&head) {
            self.take_frame(now, offload, &head, &mut Delivery { sockets, frame: Some(&frame) });
        } else {
            let mut gathered = std::mem::take(&mut self.gathered);
            gathered.resize(gathered.len().max(bytes), 0);
            frame.copy(0, &mut gathered[..bytes]);
            self.take_frame(now, offload, &gathered[..bytes], &mut Delivery::new(sockets));
            self.gathered = gathered;
        }
        self.counters.copied_bytes += frame.copied();
    }
}

/// Whether a frame that begins so has a TCP segment, and no piece of one, right after its IP header.
fn is_whole_segment(head: &[u8; HEAD_BYTES]) -> bool {
    let packet = &head[ethernet::HEADER_BYTES..];
    match u16::from_be_bytes([head[12], head[13]]) {
        // All bits but "don't fragment": more fragments, and the offset.
        ethernet::TYPE_IPV4 => packet[9] == ip::PROTOCOL_TCP && packet[6] & 0x3f == 0 && packet[7] == 0,
        ethernet::TYPE_IPV6 => packet[6] == ip::PROTOCOL_TCP,
        _ => false,
    }
}
