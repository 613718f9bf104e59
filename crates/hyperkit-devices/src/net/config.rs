//! Configuration space and features of the network device. Spec: virtio 1.2 §5.1.3, §5.1.4.

use crate::state;

/// Feature bits that are offered.
pub mod feature {
    /// The device takes frames with unfinished checksums.
    pub const CSUM: u64 = 1 << 0;
    /// So does the driver.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The device advises an MTU.
    pub const MTU: u64 = 1 << 3;
    /// The device has a MAC address.
    pub const MAC: u64 = 1 << 5;
    /// The driver takes TCP over IPv4 in super-frames.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The driver takes TCP over IPv6 in super-frames.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The device takes TCP over IPv4 in super-frames.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The device takes TCP over IPv6 in super-frames.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// A frame may span several of the driver's buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// The state of the link is given.
    pub const STATUS: u64 = 1 << 16;
}

/// What a network device is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetConfig {
    /// The guest's address on the link.
    pub mac: [u8; 6],
    /// Largest IP packet in bytes, 68 or more.
    pub mtu: u16,
    /// Offer checksum and segmentation offload both ways.
    pub offloads: bool,
}

impl NetConfig {
    pub(super) fn features(&self) -> u64 {
        use feature::{
            CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6, MAC, MRG_RXBUF, MTU, STATUS,
        };
        let offloads = CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6;
        MTU | MAC | MRG_RXBUF | STATUS | if self.offloads { offloads } else { 0 }
    }

    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        const LINK_UP: u16 = 1;
        let mut space = [0; 12];
        space[..6].copy_from_slice(&self.mac);
        space[6..8].copy_from_slice(&LINK_UP.to_le_bytes());
        space[8..10].copy_from_slice(&1u16.to_le_bytes()); // max_virtqueue_pairs
        space[10..].copy_from_slice(&self.mtu.to_le_bytes());
        state::read_config(&space, offset, data);
    }
}
