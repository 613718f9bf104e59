//! Subscribers, the ring, and what they lose.

use std::time::Instant;

use super::*;

const UDP_53: &str = "udp port 53";

/// An IPv4 UDP frame to this port, of `bytes` bytes.
fn frame(port: u16, bytes: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 17, 0, 0];
    frame.extend([10, 0, 0, 1, 10, 0, 0, 2, 0x9c, 0x40]);
    frame.extend(port.to_be_bytes());
    frame.resize(bytes.max(60), 0);
    frame
}

fn record(recorder: &Recorder, bytes: &[u8]) {
    let (head, tail) = bytes.split_at(14);
    recorder.record(7, 0, Direction::FromMachine, &[IoSlice::new(head), IoSlice::new(tail)], "");
}

/// Enhanced packet blocks in a pcapng file.
fn packets(file: &[u8]) -> usize {
    let (mut at, mut count) = (0, 0);
    while let Some(head) = file.get(at..at + 8) {
        count += usize::from(head[0] == 6);
        at += u32::from_le_bytes(head[4..].try_into().unwrap()) as usize;
    }
    assert_eq!(at, file.len(), "the file ends in the middle of a block");
    count
}

#[test]
fn a_recorder_that_nobody_listens_to_is_inactive() {
    let recorder = Arc::new(Recorder::default());
    assert!(!recorder.is_active());
    let subscription = recorder.subscribe(Wanted::default());
    assert!(recorder.is_active());
    drop(subscription);
    assert!(!recorder.is_active());
}

#[test]
fn a_subscriber_sees_what_its_filter_lets_through() {
    let recorder = Arc::new(Recorder::default());
    recorder.add_port("web");
    let wanted = Wanted { filter: UDP_53.parse().unwrap(), snap_bytes: 40, ..Wanted::default() };
    let mut subscription = recorder.subscribe(wanted).unwrap();
    record(&recorder, &frame(53, 100));
    record(&recorder, &frame(80, 100));
    record(&recorder, &frame(53, 100));
    let mut file = Vec::new();
    assert!(subscription.take(&mut file, Duration::ZERO));
    assert_eq!(packets(&file), 2);
    assert!(file.len() < 400, "the frames were not cut at 40 bytes: {}", file.len());
}

#[test]
fn a_port_that_comes_later_is_described_before_its_frames() {
    let recorder = Arc::new(Recorder::default());
    let mut subscription = recorder.subscribe(Wanted::default()).unwrap();
    let mut file = Vec::new();
    subscription.take(&mut file, Duration::ZERO);
    let section = file.len();
    recorder.add_port("late");
    record(&recorder, &frame(53, 60));
    subscription.take(&mut file, Duration::ZERO);
    assert_eq!(file[section], 1, "an interface description comes first");
    assert_eq!(packets(&file), 1);
}

#[test]
fn the_ring_keeps_the_last_frames_in_its_memory() {
    let recorder = Recorder::new(64 << 10, 0);
    recorder.add_port("web");
    for _ in 0..1000 {
        record(&recorder, &frame(80, 1500));
    }
    record(&recorder, &frame(53, 60));
    let all = recorder.ring_pcapng(&Filter::default());
    assert!(all.len() <= 80 << 10, "{} bytes", all.len());
    assert!(packets(&all) > 30);
    assert_eq!(packets(&recorder.ring_pcapng(&UDP_53.parse().unwrap())), 1);
}

#[test]
fn a_subscriber_that_takes_nothing_loses_the_oldest_and_holds_up_nobody() {
    let recorder = Arc::new(Recorder::default());
    let mut subscription = recorder.subscribe(Wanted::default()).unwrap();
    let big = frame(80, 60_000);
    for _ in 0..400 {
        record(&recorder, &big);
    }
    assert!(subscription.lost() > 200);
    let mut file = Vec::new();
    subscription.take(&mut file, Duration::ZERO);
    assert!(file.len() <= QUEUE_BYTES_MAX + 4096);
}

#[test]
fn taking_waits_for_a_frame_and_ends_with_the_recorder() {
    let recorder = Arc::new(Recorder::default());
    let mut subscription = recorder.subscribe(Wanted::default()).unwrap();
    let mut file = Vec::new();
    subscription.take(&mut file, Duration::ZERO);
    let other = Arc::clone(&recorder);
    let thread = std::thread::spawn(move || {
        record(&other, &frame(53, 60));
        other.end();
    });
    let limit = Instant::now() + Duration::from_secs(20);
    while subscription.take(&mut file, Duration::from_secs(20)) {
        assert!(Instant::now() < limit);
    }
    thread.join().unwrap();
    assert_eq!(packets(&file), 1);
}
