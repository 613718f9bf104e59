//! The 9P transport as its driver sees it: messages in, answers out, whatever their order.

use std::collections::HashMap;
use std::io;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use p9p::client::{Client, Exchange};
use p9p::filesystem::OpenFlags;
use p9p::{HostDir, Session};
use proptest::prelude::*;

use super::*;
use crate::testing::{Driver, until};

/// Turns a request round; those whose type is in `held` wait until it is let go.
#[derive(Default)]
struct Mirror {
    held: Mutex<HashMap<u8, bool>>,
    changed: Condvar,
    accepted: Mutex<Vec<Vec<u8>>>,
    n_ended: Mutex<u32>,
    n_dropped: Mutex<u32>,
}

struct MirrorRequest(Arc<Mirror>);

impl P9Service for Mirror {
    fn message_bytes_max(&self) -> usize {
        4096
    }
    fn accept(self: Arc<Self>, start: &[u8]) -> Box<dyn P9Request> {
        self.accepted.lock().unwrap().push(start.to_vec());
        Box::new(MirrorRequest(self))
    }
    fn end(&self) {
        *self.n_ended.lock().unwrap() += 1;
    }
}

impl P9Request for MirrorRequest {
    fn answer(&mut self, request: &[u8], reply: &mut [u8]) -> usize {
        let held = self.0.held.lock().unwrap();
        let waits =
            |held: &mut HashMap<u8, bool>| request.get(4).and_then(|kind| held.get(kind)) == Some(&true);
        drop(self.0.changed.wait_while(held, waits).unwrap());
        let n = request.len().min(reply.len());
        for (to, from) in reply.iter_mut().zip(request.iter().rev()) {
            *to = *from;
        }
        n
    }
}

impl Drop for MirrorRequest {
    fn drop(&mut self) {
        *self.0.n_dropped.lock().unwrap() += 1;
    }
}

impl Mirror {
    fn hold(&self, kind: u8, held: bool) {
        self.held.lock().unwrap().insert(kind, held);
        self.changed.notify_all();
    }
}

fn mirror() -> (Driver<P9>, Arc<Mirror>) {
    let mirror = Arc::new(Mirror::default());
    let service = Arc::clone(&mirror);
    let device = P9::new("share", Box::new(move || Arc::clone(&service) as Arc<dyn P9Service>)).unwrap();
    (Driver::new(device), mirror)
}

/// A message of this type, tag and body.
fn message(kind: u8, tag: u16, body: &[u8]) -> Vec<u8> {
    let size = 7 + body.len() as u32;
    [&size.to_le_bytes()[..], &[kind], &tag.to_le_bytes(), body].concat()
}

fn reversed(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().rev().copied().collect()
}

#[test]
fn tag_is_in_the_configuration() {
    let (driver, _) = mirror();
    let mut space = [0; 7];
    driver.device.read_config(0, &mut space);
    assert_eq!(space, *b"\x05\0share");
    for tag in ["", "a\0b", &"x".repeat(256)] {
        assert!(P9::new(tag, Box::new(|| Arc::new(Mirror::default()))).is_err());
    }
}

#[test]
fn reply_fills_the_buffers_that_there_are() {
    let (mut driver, _) = mirror();
    let request = message(100, 1, b"hello");
    let used = driver.call(0, &[&request[..3], &request[3..]], &[5, 100]);
    assert_eq!(used.bytes, reversed(&request));
    assert_eq!(driver.call(0, &[&request], &[4]).bytes, reversed(&request)[..4]);
    assert_eq!(driver.call(0, &[&request], &[]).len, 0);
}

#[test]
fn bytes_after_the_message_do_not_count() {
    let (mut driver, _) = mirror();
    let request = message(100, 1, b"abc");
    assert_eq!(driver.call(0, &[&request, b"garbage"], &[100]).bytes, reversed(&request));
}

#[test]
fn message_longer_than_allowed_is_cut() {
    let (mut driver, _) = mirror();
    assert_eq!(driver.call(0, &[&message(100, 1, &[7; 5000])], &[8192]).len, 4096);
}

#[test]
fn request_that_blocks_does_not_hold_up_others() {
    let (mut driver, mirror) = mirror();
    mirror.hold(1, true);
    let slow = message(1, 1, b"slow");
    driver.send(0, &[&slow], &[100]);
    for tag in 2..40 {
        let quick = message(2, tag, b"quick");
        assert_eq!(driver.call(0, &[&quick], &[100]).bytes, reversed(&quick));
    }
    mirror.hold(1, false);
    assert_eq!(driver.wait_used(0).bytes, reversed(&slow));
}

#[test]
fn requests_are_accepted_in_order_even_when_all_threads_are_held_up() {
    let (mut driver, mirror) = mirror();
    mirror.hold(1, true);
    let all: Vec<_> = (0..50).map(|tag| message(1, tag, b"xy")).collect();
    for request in &all {
        driver.send(0, &[request], &[100]);
    }
    assert_eq!(*mirror.accepted.lock().unwrap(), all);
    mirror.hold(1, false);
    for _ in &all {
        driver.wait_used(0);
    }
    until("all requests are dropped after their replies", || *mirror.n_dropped.lock().unwrap() == 50);
}

#[test]
fn reset_does_not_wait_and_late_replies_go_nowhere() {
    let (mut driver, mirror) = mirror();
    mirror.hold(1, true);
    for tag in 0..30 {
        driver.send(0, &[&message(1, tag, b"")], &[100]);
    }
    driver.device.reset();
    assert_eq!(*mirror.n_ended.lock().unwrap(), 1);
    mirror.hold(1, false);
    until("all requests are dropped", || *mirror.n_dropped.lock().unwrap() == 30);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(driver.rings[0].take_used(), None);
    driver.restart();
    let request = message(2, 1, b"again");
    assert_eq!(driver.call(0, &[&request], &[100]).bytes, reversed(&request));
}

#[test]
fn snapshot_waits_for_requests_under_way() {
    let (mut driver, service) = mirror();
    service.hold(1, true);
    driver.send(0, &[&message(1, 1, b"")], &[100]);
    let later = Arc::clone(&service);
    let letting_go = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        later.hold(1, false);
    });
    assert_eq!(driver.device.queue_positions(), [(1, 1)]);
    letting_go.join().unwrap();
    let (to, _) = mirror();
    driver.migrate(to.device);
    driver.wait_used(0);
    assert_eq!(driver.call(0, &[&message(2, 1, b"")], &[7]).len, 7);
}

#[test]
fn request_made_available_again_and_again_asks_for_a_reset() {
    let (mut driver, mirror) = mirror();
    mirror.hold(1, true);
    driver.rings[0].add(&[&message(1, 1, b"")], &[100]);
    let head = 0;
    for _ in 0..300 {
        driver.device.notify(0);
        driver.rings[0].make_available(head);
    }
    driver.device.notify(0);
    driver.wait_needs_reset();
    assert!(mirror.accepted.lock().unwrap().len() <= 256);
    mirror.hold(1, false);
}

#[test]
fn chain_without_a_message_asks_for_a_reset() {
    let (mut driver, _) = mirror();
    driver.send(0, &[&[0; 6]], &[100]);
    assert_eq!(driver.interrupt.n_needs_reset(), 1);
}

/// A client over the device.
struct Wire(Driver<P9>);

impl Exchange for Wire {
    fn exchange(&mut self, request: &[u8], reply: &mut Vec<u8>) -> io::Result<()> {
        let (header, rest) = request.split_at(7);
        *reply = self.0.call(0, &[header, rest], &[11, 128 << 10]).bytes;
        Ok(())
    }
}

#[test]
fn host_directory_is_served() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("greeting"), "hello from the host").unwrap();
    let share: Arc<dyn p9p::Filesystem> = Arc::new(HostDir::new(dir.path(), false).unwrap());
    let driver = Driver::new(P9::new("share", serve(share, 64 << 10)).unwrap());
    let mut client = Client::connect(Wire(driver), 64 << 10).unwrap();
    let root = client.attach(b"root", 0, b"").unwrap();
    let file = client.walk(root, &[b"greeting"]).unwrap();
    client.open(file, OpenFlags::RDWR).unwrap();
    assert_eq!(client.read_to_end(file).unwrap(), b"hello from the host");
    let long: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
    client.write_all(file, 0, &long).unwrap();
    assert_eq!(client.read_to_end(file).unwrap(), long);
    assert_eq!(std::fs::read(dir.path().join("greeting")).unwrap(), long);
}

#[test]
fn flush_is_answered() {
    let session: Arc<dyn P9Service> = Arc::new(Session::new(Arc::new(Nothing), 8192));
    let device = P9::new("share", Box::new(move || Arc::clone(&session))).unwrap();
    let mut driver = Driver::new(device);
    let version = message(100, 0xffff, &[&8192u32.to_le_bytes()[..], &[8, 0], b"9P2000.L"].concat());
    assert_eq!(driver.call(0, &[&version], &[100]).bytes[4], 101);
    assert_eq!(driver.call(0, &[&message(108, 8, &[7, 0])], &[100]).bytes, message(109, 8, &[]));
}

/// A file system that lets nobody in.
struct Nothing;

impl p9p::Filesystem for Nothing {
    fn attach(
        &self,
        _: &p9p::filesystem::Attach<'_>,
    ) -> p9p::filesystem::Answer<Arc<dyn p9p::filesystem::Node>> {
        Err(p9p::Errno::EACCES)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn hostile_chains_are_survived(
        chain in proptest::collection::vec((0..48u64 << 20, 0u32..90_000, 0u16..4, 0u16..8), 6),
    ) {
        let (mut driver, _) = mirror();
        driver.send_raw(0, &chain);
        driver.restart();
        prop_assert_eq!(driver.call(0, &[&message(2, 1, b"")], &[7]).len, 7);
    }
}
