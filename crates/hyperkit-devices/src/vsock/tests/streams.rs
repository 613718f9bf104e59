//! Long streams, both ways at once, against random timing.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use proptest::prelude::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::super::packet::SHUTDOWN_SEND;
use super::guest::{Guest, Name};
use super::pattern;
use crate::testing::until;

/// How both sides of one run behave.
#[derive(Debug, Clone)]
struct Plan {
    to_host: usize,
    to_guest: usize,
    guest_window: u32,
    buffer_bytes: u32,
    n_buffers: usize,
    guest_chunk: usize,
    host_chunk: usize,
    host_pause_us: u64,
}

fn plans() -> impl Strategy<Value = Plan> {
    let sizes = (0usize..3 << 20, 0usize..3 << 20, 1u32..300_000, 1u32..9000);
    let chunks = (1usize..64, 1usize..70_000, 1usize..70_000, 0u64..50);
    (sizes, chunks).prop_map(|((to_host, to_guest, window, buffer), (n_buffers, guest, host, pause))| Plan {
        // Keep the number of packets of one run within reason.
        to_host: to_host.min(guest * 1000),
        to_guest: to_guest.min(host * 1000).min(buffer as usize * 1000).min(window as usize * 500),
        guest_window: window,
        buffer_bytes: buffer,
        n_buffers,
        guest_chunk: guest,
        host_chunk: host,
        host_pause_us: pause,
    })
}

/// Writes everything, ends, and reads to the end, all at once.
fn host_side(stream: UnixStream, plan: &Plan) -> Vec<u8> {
    let (to_guest, chunk, pause) = (pattern(plan.to_guest), plan.host_chunk, plan.host_pause_us);
    let mut writer = stream.try_clone().unwrap();
    let writing = thread::spawn(move || {
        to_guest.chunks(chunk).for_each(|bytes| writer.write_all(bytes).unwrap());
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    let mut bytes = vec![0; chunk];
    let mut reader = &stream;
    loop {
        let n = reader.read(&mut bytes).unwrap();
        if n == 0 {
            break;
        }
        received.extend(&bytes[..n]);
        thread::sleep(std::time::Duration::from_micros(pause));
    }
    writing.join().unwrap();
    received
}

/// The same for the guest; then waits for nothing.
fn guest_side(guest: &mut Guest, name: Name, plan: &Plan) -> Vec<u8> {
    let to_host = pattern(plan.to_host);
    let (mut sent, mut ended, mut received) = (0, false, Vec::new());
    until("both streams end", || {
        guest.poll();
        let end = to_host.len().min(sent + plan.guest_chunk);
        sent += guest.write(name, &to_host[sent..end]);
        if sent == to_host.len() && !std::mem::replace(&mut ended, true) {
            guest.shutdown(name, SHUTDOWN_SEND);
        }
        while !guest.sockets[&name].received.is_empty() {
            received.extend(guest.read(name, plan.guest_chunk));
        }
        ended && guest.sockets[&name].at_end()
    });
    received
}

fn check(plan: &Plan) {
    let mut guest = Guest::new();
    guest.window = plan.guest_window;
    guest.buffer_bytes = plan.buffer_bytes;
    guest.n_buffers = plan.n_buffers;
    let name = (1, 2);
    let stream = guest.connect(name);
    let of_host = plan.clone();
    let host = thread::spawn(move || host_side(stream, &of_host));
    let at_guest = guest_side(&mut guest, name, plan);
    let at_host = host.join().unwrap();
    assert!(at_guest == pattern(plan.to_guest), "to the guest: {} bytes came", at_guest.len());
    assert!(at_host == pattern(plan.to_host), "to the host: {} bytes came", at_host.len());
    assert_eq!(guest.driver.interrupt.n_needs_reset(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn streams_arrive_whole_both_ways_at_once(plan in plans()) {
        check(&plan);
    }
}

#[test]
fn sixteen_mebibytes_each_way_with_linux_sizes() {
    check(&Plan {
        to_host: 16 << 20,
        to_guest: 16 << 20,
        guest_window: 256 << 10,
        buffer_bytes: 4096,
        n_buffers: 64,
        guest_chunk: 64 << 10,
        host_chunk: 64 << 10,
        host_pause_us: 0,
    });
}

/// Connections that this process has descriptors for, two each, once it has asked for all it may have.
fn connections_possible() -> u32 {
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, all).unwrap();
    let descriptors = limit.maximum.unwrap_or(u64::MAX).min(u64::from(u32::MAX)) as u32;
    descriptors.saturating_sub(500) / 2
}

#[test]
fn two_thousand_connections_at_once() {
    let mut guest = Guest::new();
    let names: Vec<Name> = (0..connections_possible().min(2000)).map(|i| (i + 1, 7)).collect();
    let mut streams = Vec::new();
    for &name in &names {
        streams.push(guest.connect(name));
    }
    for &name in &names {
        guest.write_all(name, &name.0.to_le_bytes());
    }
    for (&name, stream) in names.iter().zip(&mut streams) {
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), name.0);
        stream.write_all(&bytes).unwrap();
    }
    guest.poll_until("all have an answer", |guest| {
        guest.sockets.iter().all(|(name, socket)| socket.received == name.0.to_le_bytes())
    });
    for &name in &names {
        guest.close(name);
    }
    guest.poll_until("all are gone", |guest| guest.sockets.values().all(|socket| socket.reset));
}
