//! The guest's network device, plugged into vpnkit.

use std::sync::{Arc, Mutex, PoisonError};

use guest_protocol::Network;
use hyperkit::devices::net::{NetBackend, NetConfig, NetPort, VnetHeader};
use vpnkit::{MemoryLink, Offload};

/// The guest's Ethernet address: locally administered, the same in every machine, since each has a network of its
/// own.
const GUEST_MAC: [u8; 6] = [0x02, 0x63, 0x6f, 0x72, 0x61, 0x63];

/// A cable between one network device and one network.
pub struct Link {
    memory: Arc<MemoryLink>,
    port: Arc<Mutex<Option<Arc<dyn NetPort>>>>,
}
