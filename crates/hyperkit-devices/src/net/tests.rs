//! The network device as its driver sees it: frames and their headers, both ways.

use std::io::{IoSlice, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use proptest::prelude::*;

use super::header::HEADER_BYTES;
use super::*;
use crate::testing::Driver;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PLAIN: u64 = feature::MAC | feature::MRG_RXBUF;

/// Keeps what it gets.
#[derive(Default)]
struct Wire {
    port: Mutex<Option<Arc<dyn NetPort>>>,
    frames: Mutex<Vec<(VnetHeader, Vec<u8>)>>,
    n_ready: Mutex<u32>,
}

impl NetBackend for Wire {
    fn attach(&self, port: Arc<dyn NetPort>) {
        *self.port.lock().unwrap() = Some(port);
    }
    fn transmit_ready(&self) {
        self.take();
    }
    fn detach(&self) {
        *self.port.lock().unwrap() = None;
    }
    fn receive_ready(&self) {
        *self.n_ready.lock().unwrap() += 1;
    }
}

impl Wire {
    fn port(&self) -> Arc<dyn NetPort> {
        self.port.lock().unwrap().clone().unwrap()
    }

    /// Takes all frames that the guest sends.
    fn take(&self) {
        let port = self.port();
        while port.take(&mut |header, frame| {
            let mut bytes = vec![0; frame.bytes()];
            frame.copy(0, &mut bytes);
            self.frames.lock().unwrap().push((*header, bytes));
        }) {}
    }

    fn sent(&self) -> Vec<(VnetHeader, Vec<u8>)> {
        std::mem::take(&mut *self.frames.lock().unwrap())
    }
}

fn net() -> (Net, Arc<Wire>) {
    let wire = Arc::new(Wire::default());
    (Net::new(NetConfig { mac: MAC, mtu: 1500, offloads: true }, wire.clone()), wire)
}

fn driver() -> (Driver<Net>, Arc<Wire>) {
    let (net, wire) = net();
    (Driver::new(net), wire)
}

fn with_features(features: u64) -> (Driver<Net>, Arc<Wire>) {
    let (net, wire) = net();
    (Driver::with_features(net, Features(features)), wire)
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7) as u8).collect()
}

fn tso(len: u16) -> VnetHeader {
    VnetHeader {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: len,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    }
}

#[test]
fn configuration_gives_mac_link_and_mtu() {
    let (net, _wire) = net();
    let mut space = [0; 12];
    net.read_config(0, &mut space);
    assert_eq!(space, [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0xdc, 0x05]);
}

#[test]
fn frames_of_the_guest_reach_the_wire() {
    let (mut driver, wire) = driver();
    let plain = VnetHeader::default();
    driver.rings[1].add(&[&plain.emit(), &frame(60)], &[]);
    driver.rings[1].add(&[&tso(1448).emit(), &frame(100), &frame(FRAME_BYTES_MAX - 100)], &[]);
    driver.device.notify(1);
    assert_eq!(driver.interrupt.n_used(), 1, "one interrupt for both");
    let big = [frame(100), frame(FRAME_BYTES_MAX - 100)].concat();
    assert_eq!(wire.sent(), [(plain, frame(60)), (tso(1448), big)]);
}

#[test]
fn a_frame_can_be_sent_from_where_it_lies() {
    let (driver, wire) = driver();
    let sent = frame(60_000);
    let Driver { mut rings, .. } = driver;
    rings[1].add(&[&tso(1448).emit(), &sent[..54], &sent[54..9000], &sent[9000..]], &[]);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let reader = std::thread::spawn(move || {
        let mut received = Vec::new();
        theirs.read_to_end(&mut received).unwrap();
        received
    });
    let parts = [54..60_000, 0..10, 8990..9010, 59_999..60_000, 60_000..60_001, 60_002..70_000];
    let mut counts = Vec::new();
    wire.port().take(&mut |_, frame| {
        counts = parts.iter().map(|part| frame.send(part.clone(), ours.as_fd()).unwrap()).collect();
        assert!(rings[1].take_used().is_none(), "its buffers are not the guest's before");
    });
    assert_eq!(counts, [59_946, 10, 20, 1, 0, 0]);
    assert!(rings[1].take_used().is_some());
    drop(ours);
    let expected = [&sent[54..], &sent[..10], &sent[8990..9010], &sent[59_999..]].concat();
    assert!(reader.join().unwrap() == expected);
}

#[test]
fn a_reset_waits_for_the_frame_that_is_handed_over() {
    let (mut driver, wire) = driver();
    driver.rings[1].add(&[&[0; HEADER_BYTES], &frame(60)], &[]);
    let port = wire.port();
    let (begun, has_begun) = mpsc::channel();
    let (over, order) = mpsc::channel();
    let taken = over.clone();
    let engine = std::thread::spawn(move || {
        port.take(&mut |_, frame| {
            begun.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(30));
            let mut bytes = [0; 60];
            frame.copy(0, &mut bytes);
            taken.send("taken").unwrap();
        });
        assert!(!port.take(&mut |_, _| panic!("a frame after the reset")));
    });
    has_begun.recv().unwrap();
    driver.device.reset();
    over.send("reset").unwrap();
    drop(over);
    assert_eq!(order.iter().collect::<Vec<_>>(), ["taken", "reset"]);
    engine.join().unwrap();
    assert!(wire.port.lock().unwrap().is_none());
}

#[test]
fn frames_are_handed_over_in_bursts() {
    let (mut driver, wire) = driver();
    let mut offer = |count, bytes| {
        for _ in 0..count {
            driver.rings[1].add(&[&[0; HEADER_BYTES], &frame(bytes)], &[]);
        }
        let mut bursts = vec![0];
        while wire.port().take(&mut |_, _| *bursts.last_mut().unwrap() += 1) {
            bursts.push(0);
        }
        while driver.rings[1].take_used().is_some() {}
        bursts
    };
    assert_eq!(offer(100, 60), [64, 36]);
    assert_eq!(offer(6, 65_000), [5, 1], "of large ones fewer");
}

#[test]
fn header_may_share_a_buffer_with_the_frame() {
    let (mut driver, wire) = driver();
    driver.send(1, &[&[&[0; HEADER_BYTES][..], &frame(60)].concat()], &[]);
    assert_eq!(wire.sent(), [(VnetHeader::default(), frame(60))]);
}

#[test]
fn frames_with_a_header_that_cannot_be_are_dropped() {
    let (mut driver, wire) = driver();
    let csum = |start, offset| VnetHeader {
        flags: NEEDS_CSUM,
        csum_start: start,
        csum_offset: offset,
        ..VnetHeader::default()
    };
    let bad = [
        (csum(59, 0), 60),
        (csum(u16::MAX, u16::MAX), 60),
        (VnetHeader { gso_size: 0, ..tso(1) }, 60),
        (VnetHeader { flags: 0, ..tso(1) }, 60),
        (VnetHeader { hdr_len: 61, ..tso(1) }, 60),
        (VnetHeader { gso_type: 3, ..tso(1) }, 60),
        (VnetHeader { gso_type: 0x81, ..tso(1) }, 60),
        (VnetHeader::default(), 13),
        (VnetHeader::default(), FRAME_BYTES_MAX + 1),
    ];
    for (header, len) in bad {
        driver.call(1, &[&header.emit(), &frame(len)], &[]);
        assert_eq!(wire.sent(), [], "{header:?}");
    }
    driver.call(1, &[&csum(58, 0).emit(), &frame(60)], &[]);
    assert_eq!(wire.sent().len(), 1);
    assert_eq!(driver.interrupt.n_needs_reset(), 0);
}

#[test]
fn offloads_that_were_not_negotiated_are_dropped() {
    let (mut driver, wire) = with_features(PLAIN);
    driver.call(1, &[&tso(1000).emit(), &frame(2000)], &[]);
    assert_eq!(wire.sent(), []);
    assert_eq!(wire.port().offloads(), ReceiveOffloads::default());
    driver.send(0, &[], &[4096]);
    assert!(wire.port().deliver(&tso(1000), &[IoSlice::new(&frame(2000))]));
    assert_eq!(driver.rings[0].take_used(), None);
}

#[test]
fn frame_for_the_guest_spans_its_buffers() {
    let (mut driver, wire) = driver();
    for len in [100, 12, 2000] {
        driver.rings[0].add(&[], &[len]);
    }
    let sent = frame(1000);
    let pieces = [&sent[..54], &sent[54..500], &[], &sent[500..]].map(IoSlice::new);
    assert!(wire.port().deliver(&tso(500), &pieces));
    let parts: Vec<_> = (0..3).map(|_| driver.rings[0].take_used().unwrap()).collect();
    let received: Vec<u8> = parts.iter().flat_map(|part| part.bytes.clone()).collect();
    assert_eq!(parts.iter().map(|part| part.len).collect::<Vec<_>>(), [100, 12, 900]);
    assert_eq!(received[..HEADER_BYTES], VnetHeader { num_buffers: 3, ..tso(500) }.emit());
    assert_eq!(received[HEADER_BYTES..], frame(1000));
    assert_eq!(driver.interrupt.n_used(), 1);
}

#[test]
fn backend_is_told_when_there_are_buffers_again() {
    let (mut driver, wire) = driver();
    driver.send(0, &[], &[100]);
    assert_eq!(*wire.n_ready.lock().unwrap(), 0, "nobody waits");
    assert!(!wire.port().deliver(&VnetHeader::default(), &[IoSlice::new(&frame(150))]));
    assert!(wire.port().deliver(&VnetHeader::default(), &[IoSlice::new(&frame(80))]), "a shorter one fits");
    assert_eq!(driver.rings[0].take_used().unwrap().len, 92);
    assert!(!wire.port().deliver(&VnetHeader::default(), &[IoSlice::new(&frame(150))]));
    driver.send(0, &[], &[100]);
    assert_eq!(*wire.n_ready.lock().unwrap(), 1);
    driver.send(0, &[], &[100]);
    assert_eq!(*wire.n_ready.lock().unwrap(), 1, "told once");
    assert!(wire.port().deliver(&VnetHeader::default(), &[IoSlice::new(&frame(150))]));
}

#[test]
fn frame_too_long_for_a_buffer_is_dropped_when_it_cannot_span() {
    let (mut driver, wire) = with_features(feature::MAC);
    driver.send(0, &[], &[1526]);
    assert!(wire.port().deliver(&VnetHeader::default(), &[IoSlice::new(&frame(1515))]));
    assert_eq!(driver.rings[0].take_used(), None);
    assert!(wire.port().deliver(&VnetHeader::default(), &[IoSlice::new(&frame(1514))]));
    let used = driver.rings[0].take_used().unwrap();
    assert_eq!((used.len, &used.bytes[10..12]), (1526, &[1, 0][..]), "num_buffers is 1");
}

#[test]
fn checksum_is_finished_for_a_driver_that_cannot() {
    let (mut driver, wire) = with_features(PLAIN);
    driver.send(0, &[], &[200]);
    let header = VnetHeader { flags: NEEDS_CSUM, csum_start: 14, csum_offset: 2, ..VnetHeader::default() };
    let mut sent = vec![0; 14];
    sent.extend([0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6]);
    assert!(wire.port().deliver(&header, &[IoSlice::new(&sent)]));
    let used = driver.rings[0].take_used().unwrap();
    assert_eq!(used.bytes[0], 0, "nothing is left to finish");
    // 0001 + f203 + f4f5 + f600 = 2dcf9 -> dcfb, whose complement is 2304 (RFC 1071).
    assert_eq!(used.bytes[HEADER_BYTES + 16..HEADER_BYTES + 18], [0x23, 0x04]);
}

#[test]
fn reset_unplugs_and_restart_plugs_in_again() {
    let (mut driver, wire) = driver();
    driver.send(0, &[], &[200]);
    let old = wire.port();
    driver.device.reset();
    assert!(wire.port.lock().unwrap().is_none());
    assert!(old.deliver(&VnetHeader::default(), &[IoSlice::new(&frame(60))]), "dropped");
    assert_eq!(driver.rings[0].take_used(), None);
    driver.restart();
    driver.send(0, &[], &[200]);
    assert!(wire.port().deliver(&VnetHeader::default(), &[IoSlice::new(&frame(60))]));
    assert_eq!(driver.wait_used(0).len, 72);
}

#[test]
fn restored_device_goes_on_with_the_same_buffers() {
    let (mut driver, wire) = driver();
    driver.rings[0].add(&[], &[100]);
    driver.send(0, &[], &[100]);
    wire.port().deliver(&VnetHeader::default(), &[IoSlice::new(&frame(60))]);
    let (to, wire) = net();
    driver.migrate(to);
    wire.port().deliver(&VnetHeader::default(), &[IoSlice::new(&frame(61))]);
    assert_eq!([driver.wait_used(0).len, driver.wait_used(0).len], [72, 73]);
}

#[test]
fn buffers_too_small_for_a_header_ask_for_a_reset() {
    let (mut driver, wire) = driver();
    driver.send(0, &[], &[11]);
    assert!(wire.port().deliver(&VnetHeader::default(), &[IoSlice::new(&frame(60))]));
    assert_eq!(driver.interrupt.n_needs_reset(), 1);
    driver.restart();
    driver.send(1, &[&[0; HEADER_BYTES - 1]], &[]);
    assert_eq!(driver.interrupt.n_needs_reset(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn frames_come_whole_in_any_buffers(
        lens in proptest::collection::vec(14usize..4000, 1..20),
        buffers in proptest::collection::vec(12u32..3000, 1..8),
    ) {
        let (mut driver, wire) = driver();
        let mut expected = lens.iter().map(|&len| frame(len));
        let mut waiting = expected.next();
        let mut received: Vec<Vec<u8>> = Vec::new();
        let mut missing = 0;
        for &buffer in buffers.iter().cycle().take(8000) {
            let Some(next) = &waiting else { break };
            if wire.port().deliver(&VnetHeader::default(), &[IoSlice::new(next)]) {
                waiting = expected.next();
            } else {
                driver.send(0, &[], &[buffer]);
            }
            while let Some(used) = driver.rings[0].take_used() {
                if missing == 0 {
                    missing = u16::from_le_bytes([used.bytes[10], used.bytes[11]]);
                    received.push(used.bytes[HEADER_BYTES..].to_vec());
                } else {
                    received.last_mut().unwrap().extend(used.bytes);
                }
                missing -= 1;
            }
        }
        // A frame that not even a full ring could hold is dropped.
        prop_assert!(waiting.is_none());
        let whole: Vec<_> = lens.iter().map(|&len| frame(len)).collect();
        prop_assert!(received == whole || buffers.iter().all(|&buffer| buffer < 64));
    }

    #[test]
    fn hostile_chains_are_survived(
        queue in 0u16..2,
        chain in proptest::collection::vec((0..48u64 << 20, 0u32..90_000, 0u16..4, 0u16..8), 6),
    ) {
        let (mut driver, wire) = driver();
        driver.send_raw(queue, &chain);
        wire.port().deliver(&VnetHeader::default(), &[IoSlice::new(&frame(1000))]);
        wire.port().deliver(&tso(100), &[IoSlice::new(&frame(60_000))]);
        driver.restart();
        wire.sent();
        driver.call(1, &[&[0; HEADER_BYTES], &frame(60)], &[]);
        prop_assert_eq!(wire.sent().len(), 1);
    }
}
