//! The guest's network device, plugged into vpnkit.

use std::sync::Arc;

use guest_protocol::Network;
use hyperkit::devices::net::{
    GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, NetBackend, NetConfig, NetPort, VnetHeader,
};
use vpnkit::{Gso, MemoryLink, Offload, PartialChecksum};

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
        let offloads = port.offloads();
        let whole = offloads.checksum && offloads.tso4;
        self.0.connect(Arc::new(move |offload, parts| port.deliver(&header(offload), parts)), whole);
    }

    fn transmit(&self, header: &VnetHeader, frame: &mut Vec<u8>) {
        // A frame that the engine has no room for is lost, as on any link; the stack's windows make it rare.
        let _ = self.0.push(offload(header), frame);
    }

    fn detach(&self) {
        self.0.disconnect();
    }

    fn receive_ready(&self) {
        self.0.receive_ready();
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
