//! What a frame leaves to its receiver: `struct virtio_net_hdr`. Spec: virtio 1.2 §5.1.6.

/// Bytes of the header, `num_buffers` included.
pub const VNET_HEADER_BYTES: usize = 12;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`.
const DATA_VALID: u8 = 2;
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
const TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV6`.
const TCPV6: u8 = 4;
/// `VIRTIO_NET_HDR_GSO_ECN`, which says that the first segment has CWR; it is seen there.
const ECN: u8 = 0x80;

/// The header, as it is on a TAP device and in a virtqueue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vnet(pub [u8; VNET_HEADER_BYTES]);

/// Which packets a large frame stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Large {
    /// Segments of TCP over IPv4.
    TcpV4,
    /// Segments of TCP over IPv6.
    TcpV6,
}

impl Vnet {
    /// The header of a frame that is whole, and whose checksums nobody looked at.
    pub const WHOLE: Vnet = Vnet([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);

    /// The header of a frame that is whole and comes from memory of this machine: no checksum of it need be looked at.
    pub const TRUSTED: Vnet = Vnet([DATA_VALID, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);

    /// Says that no checksum of the frame need be looked at: it was in no memory but this machine's.
    #[must_use]
    pub fn trusted(mut self) -> Self {
        if !self.needs_checksum() {
            self.0[0] |= DATA_VALID;
        }
        self
    }

    /// Whether the frame is as it would be on a wire.
    pub fn is_whole(&self) -> bool {
        !self.needs_checksum() && self.0[1] & !ECN == 0
    }

    /// Whether a checksum is to be finished.
    pub fn needs_checksum(&self) -> bool {
        self.0[0] & NEEDS_CSUM != 0
    }

    /// First byte that is summed, and where the sum is stored, both in bytes from the frame's start.
    pub fn checksum_at(&self) -> (usize, usize) {
        let start = usize::from(self.field(6));
        (start, start + usize::from(self.field(8)))
    }

    /// What a large frame stands for; `None` for one that is none, and for kinds that were never offered.
    pub fn large(&self) -> Option<Large> {
        match self.0[1] & !ECN {
            TCPV4 => Some(Large::TcpV4),
            TCPV6 => Some(Large::TcpV6),
            _ => None,
        }
    }

    /// Bytes of data in each segment of a large frame.
    pub fn segment_bytes(&self) -> usize {
        usize::from(self.field(4))
    }

    fn field(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }
}
