//! What a guest's data costs on its way to a socket of the host, without a processor of the guest: its driver is a loop of
//! this process. Counted is the processor time of the device when it is notified, and of the engine's thread.
//!
//! `cargo bench -p coracle --bench ring`
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement prints, and fails by panicking")]

#[allow(dead_code, reason = "a test uses the rest")]
#[path = "../tests/ring/guest.rs"]
mod guest;
#[allow(dead_code, reason = "the product uses the rest")]
#[path = "../src/glue/net.rs"]
mod net;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use guest::{Guest, until};
use rustix::net::RecvFlags;

/// Data of all frames.
const BYTES: u64 = 4_000_000_000;
/// Data under way at most: sockets have room for it.
const AHEAD: u64 = 480_000;

/// Takes data and throws it away without looking.
fn sink(listener: &TcpListener, received: &AtomicU64) {
    let (stream, _) = listener.accept().unwrap();
    let mut buffer = vec![0; 1 << 20];
    while let Ok((_, count @ 1..)) = rustix::net::recv(&stream, &mut buffer[..], RecvFlags::TRUNC) {
        received.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// Nanoseconds that the engine's thread ran.
fn engine_ns() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap().path());
    let name = |task: &std::path::Path| std::fs::read_to_string(task.join("comm")).unwrap_or_default();
    let task = tasks.into_iter().find(|task| name(task).trim() == "vpnkit").unwrap();
    let times = std::fs::read_to_string(task.join("schedstat")).unwrap();
    times.split(' ').next().unwrap().parse().unwrap()
}

fn main() {
    for bytes in [60_000, 16_000] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let received = Arc::new(AtomicU64::new(0));
        let count = received.clone();
        thread::spawn(move || sink(&listener, &count));
        let mut guest = Guest::new();
        guest.connect(port);
        let data = vec![7; bytes];
        let before = engine_ns();
        let mut sent = 0;
        while sent < BYTES {
            guest.send(&data);
            sent += bytes as u64;
            until("the data arrives", || received.load(Ordering::Relaxed) + AHEAD >= sent);
        }
        until("all arrives", || received.load(Ordering::Relaxed) == sent);
        let engine = engine_ns() - before;
        let device = u64::try_from(guest.notifying().as_nanos()).unwrap();
        let per_gb = |ns: u64| ns as f64 / sent as f64;
        println!(
            "frames of {bytes:6}: {:.3} s/GB: device {:.3}, engine {:.3}",
            per_gb(device + engine),
            per_gb(device),
            per_gb(engine)
        );
    }
}
