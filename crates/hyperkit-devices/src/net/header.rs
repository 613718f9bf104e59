//! The header before each frame: offloaded checksums and segmentation. Spec: virtio 1.2 §5.1.6.

use super::config::feature;

/// Length of the header in bytes.
pub(super) const HEADER_BYTES: usize = 12;

/// Longest frame: an IP packet of 65535 bytes behind an Ethernet header with two VLAN tags.
pub const FRAME_BYTES_MAX: usize = 65535 + 14 + 8;

/// Shortest frame: an Ethernet header.
const FRAME_BYTES_MIN: usize = 14;

/// Flag: the checksum from `csum_start` is to be finished.
pub const NEEDS_CSUM: u8 = 1;
/// Flag: the checksum was verified.
pub const DATA_VALID: u8 = 2;

/// Not a super-frame.
pub const GSO_NONE: u8 = 0;
/// TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;

/// `struct virtio_net_hdr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHeader {
    /// [`NEEDS_CSUM`], [`DATA_VALID`].
    pub flags: u8,
    /// [`GSO_NONE`], [`GSO_TCPV4`], [`GSO_TCPV6`].
    pub gso_type: u8,
    /// Length of all headers of a super-frame in bytes; a hint.
    pub hdr_len: u16,
    /// Bytes of payload in each segment of a super-frame.
    pub gso_size: u16,
    /// Where the checksum starts, from the start of the frame.
    pub csum_start: u16,
    /// Where the checksum goes, from `csum_start`.
    pub csum_offset: u16,
    /// Buffers that the frame spans. The device sets it; a backend leaves it zero and reads it as zero.
    pub num_buffers: u16,
}

impl VnetHeader {
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> VnetHeader {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        VnetHeader {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: u16_at(2),
            gso_size: u16_at(4),
            csum_start: u16_at(6),
            csum_offset: u16_at(8),
            num_buffers: u16_at(10),
        }
    }

    pub(super) fn emit(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        let fields = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, self.num_buffers];
        for (to, field) in bytes[2..].chunks_exact_mut(2).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// The header of a frame that the driver sends, without what means nothing; `None` when it does not fit the
    /// frame or uses what was not negotiated.
    pub(super) fn checked_from_driver(self, frame_bytes: usize, features: u64) -> Option<VnetHeader> {
        self.checked(frame_bytes, features, [feature::CSUM, feature::HOST_TSO4, feature::HOST_TSO6])
    }

    /// The same for a frame to the driver. A checksum the driver cannot finish is not refused: see
    /// [`finish_checksum`].
    pub(super) fn checked_to_driver(self, frame_bytes: usize, features: u64) -> Option<VnetHeader> {
        let valid = self.flags & DATA_VALID;
        let features = match self.gso_type {
            GSO_NONE => features | feature::GUEST_CSUM,
            _ => features,
        };
        let checked = [feature::GUEST_CSUM, feature::GUEST_TSO4, feature::GUEST_TSO6];
        let header = self.checked(frame_bytes, features, checked)?;
        Some(VnetHeader { flags: header.flags | valid, ..header })
    }

    fn checked(self, frame_bytes: usize, features: u64, [csum, tso4, tso6]: [u64; 3]) -> Option<VnetHeader> {
        if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&frame_bytes) {
            return None;
        }
        let mut header = VnetHeader::default();
        if self.flags & NEEDS_CSUM != 0 {
            let end = usize::from(self.csum_start) + usize::from(self.csum_offset) + 2;
            if features & csum == 0 || end > frame_bytes {
                return None;
            }
            header.flags = NEEDS_CSUM;
            header.csum_start = self.csum_start;
            header.csum_offset = self.csum_offset;
        }
        let needed = match self.gso_type {
            GSO_NONE => return Some(header),
            GSO_TCPV4 => tso4,
            GSO_TCPV6 => tso6,
            _ => return None,
        };
        let fits = usize::from(self.hdr_len) <= frame_bytes && self.gso_size > 0;
        if features & needed == 0 || !fits || header.flags & NEEDS_CSUM == 0 {
            return None;
        }
        header.gso_type = self.gso_type;
        header.gso_size = self.gso_size;
        header.hdr_len = self.hdr_len;
        Some(header)
    }
}

/// Finishes the checksum of a frame that is not a super-frame, as a driver would (virtio 1.2 §5.1.6.4.1); the
/// frame has the sum of the pseudo header where the checksum goes. `header` was checked against `frame`.
pub(super) fn finish_checksum(header: &VnetHeader, frame: &mut [u8]) {
    let start = usize::from(header.csum_start);
    let at = start + usize::from(header.csum_offset);
    let mut sum = 0u64;
    for pair in frame[start..].chunks(2) {
        sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Zero means "no checksum" in UDP, and its complement is the same number (RFC 768).
    let checksum = match !(sum as u16) {
        0 => 0xffff,
        checksum => checksum,
    };
    frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}
