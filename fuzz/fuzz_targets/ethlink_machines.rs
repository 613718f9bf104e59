//! Machines that connect and send anything: greetings, frames with their lengths and addresses, vhost-user's messages.
//!
//! The first byte chooses what the machine claims to speak.
#![no_main]

use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixStream;

use ethlink::{Address, Addresses, Hub, Protocol};
use libfuzzer_sys::fuzz_target;

const PROTOCOLS: [Protocol; 4] = [Protocol::Qemu, Protocol::Vmnet, Protocol::Connect, Protocol::VhostUser];
const ENGINE: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let folder = tempfile::tempdir().expect("there is room for a folder");
    let path = folder.path().join("socket");
    let mut hub = Hub::new(ENGINE, 1500).expect("there are descriptors");
    let [gateway, gateway6] = [Ipv4Addr::new(10, 0, 0, 1).into(), Ipv6Addr::LOCALHOST.into()];
    let ipv4 = (Ipv4Addr::new(10, 0, 0, 1), 24);
    hub.set_addresses(Addresses { engine: vec![gateway, gateway6], ipv4, ipv6: Some(Ipv6Addr::LOCALHOST) });
    let protocol = PROTOCOLS[usize::from(*kind) % PROTOCOLS.len()];
    hub.listen(protocol, &Address::Unix(path.clone())).expect("the folder is ours");
    let mut machine = UnixStream::connect(&path).expect("somebody listens");
    machine.set_nonblocking(true).expect("a socket can be made so");
    let mut frame = ENGINE.to_vec();
    frame.resize(60, 2);
    for part in bytes.chunks(bytes.len().div_ceil(3).max(1)) {
        // A hub that has closed the connection, or has no room, is one to be tried as well.
        let _ = machine.write(part);
        for _ in 0..3 {
            hub.receive(&mut |_, frame| assert!(frame.len() <= ethlink::FRAME_BYTES_MAX));
            hub.send(&ethlink::Vnet::WHOLE, &[&frame]);
            hub.flush();
        }
    }
});
