//! Machines that connect and send anything: greetings, frames with their lengths, vhost-user's messages.
//!
//! The first byte chooses what the machine claims to speak.
#![no_main]

use std::io::Write;
use std::os::unix::net::UnixStream;

use ethlink::{Address, Hub, Protocol};
use libfuzzer_sys::fuzz_target;

const PROTOCOLS: [Protocol; 4] = [Protocol::Qemu, Protocol::Vmnet, Protocol::Connect, Protocol::VhostUser];
const ENGINE: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let folder = tempfile::tempdir().expect("there is room for a folder");
    let path = folder.path().join("socket");
    let mut hub = Hub::new(ENGINE, 1500).expect("there are descriptors");
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
