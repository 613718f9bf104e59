//! Guests that break the protocol.

use std::io::Read;

use proptest::prelude::*;

use super::super::packet::{HEADER_BYTES, Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};
use super::guest::Guest;
use super::{NAME, pattern, read_to_end};

/// Sends one packet from a connected socket and expects RST.
fn reset_by(header: Header, payload: &[u8]) {
    let mut guest = Guest::new();
    let _host = guest.connect(NAME);
    guest.send_raw(&Header { buf_alloc: 1000, ..header }, payload);
    guest.poll_until("it is reset", |guest| guest.sockets[&NAME].reset);
}

#[test]
fn packets_against_the_protocol_are_answered_with_rst() {
    reset_by(Guest::header(NAME, op::REQUEST), &[]);
    reset_by(Guest::header(NAME, op::RESPONSE), &[]);
    reset_by(Guest::header(NAME, 0), &[]);
    reset_by(Guest::header(NAME, 99), &[]);
}

#[test]
fn bytes_after_the_guests_own_end_are_answered_with_rst() {
    let mut guest = Guest::new();
    let host = guest.connect(NAME);
    guest.shutdown(NAME, SHUTDOWN_SEND);
    guest.send(NAME, op::RW, 0, b"afterthought");
    guest.poll_until("it is reset", |guest| guest.sockets[&NAME].reset);
    assert_eq!(read_to_end(&host), b"");
}

#[test]
fn more_than_the_window_is_answered_with_rst() {
    let mut guest = Guest::new();
    let mut host = guest.connect(NAME);
    let bytes = pattern(64 << 10);
    for _ in 0..64 {
        guest.send_raw(&Header { len: 64 << 10, ..Guest::header(NAME, op::RW) }, &bytes);
    }
    guest.poll_until("it is reset", |guest| guest.sockets[&NAME].reset);
    let mut first = vec![0; 64 << 10];
    host.read_exact(&mut first).unwrap();
    assert!(first == bytes, "what came before is delivered");
}

#[test]
fn packets_for_nobody_are_answered_with_rst_that_says_whose() {
    let mut guest = Guest::new();
    let stray = Guest::header((5, 6), op::RW);
    let other_kind = Header { kind: 2, ..Guest::header((7, 8), op::REQUEST) };
    let other_cid = Header { dst_cid: 77, ..Guest::header((9, 10), op::REQUEST) };
    let too_long = Header { len: 1, ..Guest::header((11, 12), op::RW) };
    for header in [stray, other_kind, other_cid, too_long] {
        guest.send_raw(&header, &[]);
    }
    guest.send_raw(&Guest::header((1, 2), op::RST), &[]);
    guest.send_raw(&Header { src_cid: 99, ..stray }, &[]);
    guest.send_raw(&Guest::header((13, 14), op::SHUTDOWN), &[]);
    guest.poll_until("five answers come", |guest| guest.stray_resets.len() >= 5);
    let answers: Vec<_> =
        guest.stray_resets.iter().map(|h| (h.src_cid, h.src_port, h.dst_port, h.kind)).collect();
    assert_eq!(answers, [(2, 6, 5, 1), (2, 8, 7, 2), (77, 10, 9, 1), (2, 12, 11, 1), (2, 14, 13, 1)]);
}

#[test]
fn guest_that_offers_no_buffers_is_not_listened_to_for_ever() {
    let mut guest = Guest::new();
    guest.n_buffers = 0;
    guest.poll();
    let mut n_sent = 0;
    let mut idle = 0;
    while idle < 200 {
        while guest.driver.rings[1].take_used().is_some() {
            idle = 0;
        }
        if guest.driver.rings[1].n_pending() < 200 {
            guest.driver.send(1, &[&Guest::header((n_sent, 1), op::RW).emit()], &[]);
            n_sent += 1;
        }
        idle += 1;
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
    assert!((1024..1024 + 256).contains(&n_sent), "{n_sent} were sent");
    guest.n_buffers = 64;
    guest.poll_until("all are answered", |guest| guest.stray_resets.len() == n_sent as usize);
}

#[test]
fn credit_that_makes_no_sense_counts_as_none() {
    let mut guest = Guest::new();
    let mut host = guest.connect(NAME);
    guest.send_raw(&Header { buf_alloc: 100, fwd_cnt: 1, ..Guest::header(NAME, op::CREDIT_UPDATE) }, &[]);
    std::thread::sleep(std::time::Duration::from_millis(20));
    std::io::Write::write_all(&mut host, b"x").unwrap();
    // The guest answers the request for credit with sense, and the byte comes.
    guest.poll_until("the byte comes", |guest| guest.sockets[&NAME].received == b"x");
    assert_eq!(guest.sockets[&NAME].n_credit_requests, 1);
}

#[test]
fn buffers_too_small_for_a_packet_ask_for_a_reset() {
    let mut guest = Guest::new();
    guest.n_buffers = 0;
    guest.request(NAME);
    guest.driver.send(0, &[], &[HEADER_BYTES as u32]);
    guest.driver.wait_needs_reset();
}

#[test]
fn packet_shorter_than_a_header_asks_for_a_reset() {
    let mut guest = Guest::new();
    guest.driver.send(1, &[&[0; HEADER_BYTES - 1]], &[]);
    guest.driver.wait_needs_reset();
}

fn headers() -> impl Strategy<Value = Header> {
    let small = prop_oneof![Just(0u32), Just(1), Just(100), Just(u32::MAX), any::<u32>()];
    let cids =
        (prop_oneof![9 => Just(5u64), 1 => any::<u64>()], prop_oneof![9 => Just(2u64), 1 => any::<u64>()]);
    let ports = (0u32..3, prop_oneof![0u32..3, Just(9000), Just(1 << 30)]);
    let kind = prop_oneof![9 => Just(1u16), 1 => any::<u16>()];
    let flags = prop_oneof![Just(0), Just(SHUTDOWN_RECEIVE), Just(SHUTDOWN_SEND), any::<u32>()];
    (cids, ports, 0u32..300, kind, 0u16..9, flags, small.clone(), small).prop_map(
        |((src_cid, dst_cid), (src_port, dst_port), len, kind, op, flags, buf_alloc, fwd_cnt)| Header {
            src_cid,
            dst_cid,
            src_port,
            dst_port,
            len,
            kind,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_packets_are_survived(headers in proptest::collection::vec(headers(), 1..60)) {
        let mut guest = Guest::new();
        guest.n_buffers = 0;
        for header in &headers {
            let len = header.len.min(200) as usize;
            guest.driver.rings[0].add(&[], &[300]);
            guest.driver.send(1, &[&header.emit(), &pattern(len)], &[]);
            while let Ok((_, host)) = guest.accepted.try_recv() {
                drop(host);
            }
        }
        guest.driver.restart();
        guest.n_buffers = 8;
        while guest.accepted.try_recv().is_ok() {}
        guest.sockets.clear();
        let host = guest.connect(NAME);
        guest.write_all(NAME, b"alive");
        guest.close(NAME);
        prop_assert_eq!(read_to_end(&host), b"alive");
    }

    #[test]
    fn hostile_chains_are_survived(
        queue in 0u16..3,
        chain in proptest::collection::vec((0..48u64 << 20, 0u32..90_000, 0u16..4, 0u16..8), 6),
    ) {
        let mut guest = Guest::new();
        guest.driver.send_raw(queue, &chain);
        guest.driver.restart();
        let host = guest.connect(NAME);
        guest.close(NAME);
        prop_assert_eq!(read_to_end(&host), b"");
    }
}
