//! The guest's network device, plugged into vpnkit.

use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use guest_protocol::Network;
use hyperkit::devices::net::{
    GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, NetBackend, NetConfig, NetPort, SentFrame, VnetHeader,
};
use vpnkit::{Frame, Gso, MemoryLink, Offload, PartialChecksum, Take, VolatileFrame};

/// The guest's Ethernet address: locally administered, the same in every machine, since each has a network of its
/// own.
const GUEST_MAC: [u8; 6] = [0x02, 0x63, 0x6f, 0x72, 0x61, 0x63];

/// A cable between one network device and one network.
pub struct Cable(Arc<MemoryLink>);

impl Cable {
    /// A cable whose other end is `link`.
    pub fn new(link: Arc<MemoryLink>) -> Cable {
        Cable(link)
    }
}

impl NetBackend for Cable {
    fn attach(&self, port: Arc<dyn NetPort>) {
        self.0.connect(Arc::new(Device(port)));
    }

    fn transmit_ready(&self) {
        self.0.ready();
    }

    fn detach(&self) {
        self.0.disconnect();
    }

    fn receive_ready(&self) {
        self.0.ready();
    }
}

/// The guest's device, as the network sees it.
struct Device(Arc<dyn NetPort>);

impl vpnkit::Machine for Device {
    fn transmit(&self, take: &mut Take<'_>) -> bool {
        self.0.take(&mut |header, frame| {
            take(offload(header), Frame::Volatile(&Sent(frame)));
        })
    }

    fn receive(&self, offload: Offload, parts: &[IoSlice<'_>]) -> bool {
        self.0.deliver(&header(offload), parts)
    }

    fn offload(&self) -> bool {
        let offloads = self.0.offloads();
        offloads.checksum && offloads.tso4
    }
}

/// A frame in the guest's memory.
struct Sent<'a>(&'a SentFrame<'a>);

impl VolatileFrame for Sent<'_> {
    fn bytes(&self) -> usize {
        self.0.bytes()
    }

    fn copy(&self, start: usize, to: &mut [u8]) {
        self.0.copy(start, to);
    }

    fn send(&self, part: Range<usize>, socket: BorrowedFd<'_>) -> std::io::Result<usize> {
        self.0.send(part, socket)
    }
}

fn header(offload: Offload) -> VnetHeader {
    let mut header = VnetHeader::default();
    if let Some(partial) = offload.needs_checksum {
        header.flags = NEEDS_CSUM;
        (header.csum_start, header.csum_offset) = (partial.start, partial.offset);
    }
    (header.gso_type, header.gso_size) = match offload.gso {
        Gso::None => (GSO_NONE, 0),
        Gso::TcpV4 { mss } => (GSO_TCPV4, mss),
        Gso::TcpV6 { mss } => (GSO_TCPV6, mss),
    };
    header
}

fn offload(header: &VnetHeader) -> Offload {
    let partial = PartialChecksum { start: header.csum_start, offset: header.csum_offset };
    Offload {
        needs_checksum: (header.flags & NEEDS_CSUM != 0).then_some(partial),
        gso: match header.gso_type {
            GSO_TCPV4 => Gso::TcpV4 { mss: header.gso_size },
            GSO_TCPV6 => Gso::TcpV6 { mss: header.gso_size },
            _ => Gso::None,
        },
        // It comes out of this process's own memory.
        verified: true,
    }
}

/// The device that belongs to a network.
pub fn device(network: &vpnkit::Network) -> NetConfig {
    NetConfig { mac: GUEST_MAC, mtu: network.mtu, offloads: true }
}

/// What the guest is told of its network.
pub fn guest_network(network: &vpnkit::Network) -> Network {
    Network {
        address: network.guest,
        prefix: network.prefix,
        gateway: network.gateway,
        dns: network.gateway,
        host: network.host,
        mtu: network.mtu,
        search: network.search.clone(),
    }
}
