//! The guest's network device and vpnkit joined as the product joins them: from a guest's memory to a socket of the host.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "a benchmark uses the rest")]
mod guest;
#[allow(dead_code, reason = "the product uses the rest")]
#[path = "../../src/glue/net.rs"]
mod net;

use std::io::Read;
use std::net::TcpListener;
use std::thread::{self, JoinHandle};

use guest::{Guest, HEADER_BYTES, until};

/// Bytes that are copied of a large segment: the longest headers.
const HEAD_BYTES: u64 = 14 + 60 + 60;

fn pattern(count: usize) -> Vec<u8> {
    (0..count as u32).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect()
}

/// A server that takes one connection and returns what comes.
fn server() -> (u16, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let received = thread::spawn(move || {
        let mut received = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
        received
    });
    (port, received)
}

#[test]
fn data_of_super_frames_goes_to_the_socket_and_only_headers_are_copied() {
    let (port, received) = server();
    let mut guest = Guest::new();
    guest.connect(port);
    let data = pattern(180_000);
    for part in data.chunks(60_000) {
        guest.send(part);
    }
    guest.finish();
    assert!(received.join().unwrap() == data, "what arrived is not what was sent");
    let counters = guest.counters();
    assert_eq!(counters.straight_bytes, 180_000);
    let small_frames = 3; // SYN, ACK, FIN
    assert_eq!(counters.copied_bytes, 3 * HEAD_BYTES + small_frames * HEADER_BYTES as u64);
}

#[test]
fn what_the_socket_has_no_room_for_waits_and_the_ring_goes_on() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut guest = Guest::new();
    guest.connect(listener.local_addr().unwrap().port());
    let data = pattern(60_000);
    // The server reads nothing. Each frame is sent until it is taken as a whole: then the window, which the guest here
    // does not look at, had room for it.
    let (mut frames, mut waiting) = (0, 0);
    while waiting == 0 {
        guest.send(&data);
        frames += 1;
        until("the frame is taken", || {
            let counters = guest.counters();
            let heads = frames * HEAD_BYTES + 2 * HEADER_BYTES as u64;
            waiting = counters.copied_bytes.saturating_sub(heads);
            counters.straight_bytes + waiting == frames * 60_000
        });
    }
    guest.finish();
    let mut received = Vec::new();
    listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
    assert_eq!(received.len() as u64, frames * 60_000);
    assert!(received.chunks(60_000).all(|chunk| chunk == data), "what arrived is not what was sent");
    assert!(waiting <= 60_000, "more than the last frame was copied");
}
