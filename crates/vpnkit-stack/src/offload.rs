//! What a link leaves to the other end: a checksum to be finished, a segment to be cut.
//!
//! Has the meaning of `struct virtio_net_hdr`, which tap devices use too. Spec: virtio 1.2 §5.1.6.

/// Bytes of the header with `num_buffers` (virtio 1.x, and taps with `TUNSETVNETHDRSZ` 12).
pub const VIRTIO_HEADER_BYTES: usize = 12;

const F_NEEDS_CSUM: u8 = 1;
const F_DATA_VALID: u8 = 2;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;

/// Where a checksum is still to be computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialChecksum {
    /// First byte of the frame that is summed; the sum goes to the frame's end.
    pub start: u16,
    /// Where it is stored, from `start`. The field holds the sum of the pseudo header.
    pub offset: u16,
}

/// How a large frame is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gso {
    /// It is not.
    #[default]
    None,
    /// Into TCP segments over IPv4 with at most `mss` bytes of data each.
    TcpV4 {
        /// Bytes of data in a segment.
        mss: u16,
    },
    /// Into TCP segments over IPv6 with at most `mss` bytes of data each.
    TcpV6 {
        /// Bytes of data in a segment.
        mss: u16,
    },
}

/// What comes beside a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// The checksum that the receiver finishes, or need not verify.
    pub needs_checksum: Option<PartialChecksum>,
    /// Whether the frame stands for several.
    pub gso: Gso,
    /// Whether the link is known to have damaged nothing, so that no checksum need be verified.
    pub verified: bool,
}

impl Offload {
    /// Nothing left to do: an ordinary frame.
    pub const NONE: Offload = Offload { needs_checksum: None, gso: Gso::None, verified: false };

    /// Reads a `virtio_net_hdr`, little-endian, of 10 or 12 bytes. Unknown segmentation is none.
    pub fn from_virtio(header: &[u8; 10]) -> Offload {
        let field = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let needs_checksum =
            (header[0] & F_NEEDS_CSUM != 0).then(|| PartialChecksum { start: field(6), offset: field(8) });
        let gso = match header[1] & !GSO_ECN {
            GSO_TCPV4 => Gso::TcpV4 { mss: field(4) },
            GSO_TCPV6 => Gso::TcpV6 { mss: field(4) },
            _ => Gso::None,
        };
        Offload { needs_checksum, gso, verified: header[0] & F_DATA_VALID != 0 }
    }

    /// Returns the `virtio_net_hdr`, with `num_buffers` 1. `header_bytes` is the length of all headers of the frame.
    pub fn to_virtio(self, header_bytes: u16) -> [u8; VIRTIO_HEADER_BYTES] {
        let mut out = [0; VIRTIO_HEADER_BYTES];
        if let Some(partial) = self.needs_checksum {
            out[0] = F_NEEDS_CSUM;
            out[6..8].copy_from_slice(&partial.start.to_le_bytes());
            out[8..10].copy_from_slice(&partial.offset.to_le_bytes());
        }
        let (kind, mss) = match self.gso {
            Gso::None => (0, 0),
            Gso::TcpV4 { mss } => (GSO_TCPV4, mss),
            Gso::TcpV6 { mss } => (GSO_TCPV6, mss),
        };
        out[1] = kind;
        if kind != 0 {
            out[2..4].copy_from_slice(&header_bytes.to_le_bytes());
            out[4..6].copy_from_slice(&mss.to_le_bytes());
        }
        out[10] = 1;
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_written_is_read_back() {
        let partial = PartialChecksum { start: 34, offset: 16 };
        let offload =
            Offload { needs_checksum: Some(partial), gso: Gso::TcpV4 { mss: 1460 }, verified: false };
        let bytes = offload.to_virtio(54);
        assert_eq!(bytes, [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 1, 0]);
        let mut header = [0; 10];
        header.copy_from_slice(&bytes[..10]);
        assert_eq!(Offload::from_virtio(&header), offload);
    }
}
