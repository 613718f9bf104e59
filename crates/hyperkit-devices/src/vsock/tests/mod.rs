//! The device against a guest that plays Linux's part.

mod guest;
mod hostile;
mod streams;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use guest::{CID, Guest, REFUSED_PORT, device};

use super::packet::{SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};
use super::*;
use crate::testing::Driver;

const NAME: guest::Name = (40_000, 1024);

/// Bytes that differ from place to place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Reads until the end of file, which is not an error.
fn read_to_end(mut stream: &std::os::unix::net::UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("the end is an end of file");
    bytes
}

#[test]
fn configuration_gives_the_address() {
    let (device, ..) = device();
    let mut cid = [0xff; 8];
    device.read_config(0, &mut cid);
    assert_eq!(u64::from_le_bytes(cid), u64::from(CID));
}

#[test]
fn bytes_go_both_ways() {
    let mut guest = Guest::new();
    let mut host = guest.connect(NAME);
    guest.write_all(NAME, b"ping");
    let mut bytes = [0; 4];
    host.read_exact(&mut bytes).unwrap();
    host.write_all(b"pong!").unwrap();
    guest.poll_until("the answer comes", |guest| guest.sockets[&NAME].received.len() == 5);
    assert_eq!((&bytes, guest.read(NAME, 9)), (b"ping", b"pong!".to_vec()));
}

#[test]
fn port_that_nobody_serves_refuses() {
    let mut guest = Guest::new();
    guest.request((1, REFUSED_PORT));
    guest.poll_until("it is refused", |guest| guest.sockets[&(1, REFUSED_PORT)].reset);
}

#[test]
fn each_direction_ends_by_itself() {
    let mut guest = Guest::new();
    let mut host = guest.connect(NAME);
    guest.write_all(NAME, b"question");
    guest.shutdown(NAME, SHUTDOWN_SEND);
    assert_eq!(read_to_end(&host), b"question");
    host.write_all(b"answer").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    guest.poll_until("the end comes", |guest| guest.sockets[&NAME].peer_shutdown & SHUTDOWN_SEND != 0);
    assert_eq!(guest.read(NAME, 99), b"answer");
    assert!(!guest.sockets[&NAME].reset);
}

#[test]
fn host_that_ends_first_still_reads() {
    let mut guest = Guest::new();
    let host = guest.connect(NAME);
    host.shutdown(Shutdown::Write).unwrap();
    guest.poll_until("the end comes", |guest| guest.sockets[&NAME].peer_shutdown != 0);
    assert_eq!(guest.sockets[&NAME].peer_shutdown, SHUTDOWN_SEND);
    guest.write_all(NAME, b"more");
    guest.close(NAME);
    assert_eq!(read_to_end(&host), b"more");
    guest.poll_until("the connection is gone", |guest| guest.sockets[&NAME].reset);
}

#[test]
fn what_was_written_before_exit_arrives_though_nobody_reads_yet() {
    let mut guest = Guest::new();
    let host = guest.connect(NAME);
    let mut sent = 0;
    let all = pattern(4 << 20);
    // Fill socket and window, so that some of it waits in the device.
    for _ in 0..200 {
        guest.poll();
        sent += guest.write(NAME, &all[sent..]);
        thread::sleep(Duration::from_micros(100));
    }
    assert!(sent > WINDOW_BYTES_MAX as usize && guest.sockets[&NAME].credit() == 0);
    guest.close(NAME);
    guest.poll_until("the connection is gone", |guest| guest.sockets[&NAME].reset);
    assert!(read_to_end(&host) == all[..sent]);
}

#[test]
fn what_was_written_before_reset_or_power_off_arrives() {
    for power_off in [false, true] {
        let mut guest = Guest::new();
        let host = guest.connect(NAME);
        let all = pattern(guest.sockets[&NAME].credit());
        guest.write_all(NAME, &all);
        if power_off {
            drop(guest);
        } else {
            guest.driver.device.reset();
        }
        assert!(read_to_end(&host) == all, "power off: {power_off}");
    }
}

#[test]
fn bytes_before_a_guests_rst_arrive() {
    let mut guest = Guest::new();
    let host = guest.connect(NAME);
    let all = pattern(guest.sockets[&NAME].credit());
    guest.write_all(NAME, &all);
    guest.send(NAME, op::RST, 0, &[]);
    assert!(read_to_end(&host) == all);
}

#[test]
fn guest_learns_that_nobody_reads() {
    let mut guest = Guest::new();
    let mut host = guest.connect(NAME);
    host.write_all(b"last words").unwrap();
    drop(host);
    guest.poll_until("both ends come", |guest| {
        guest.sockets[&NAME].peer_shutdown == SHUTDOWN_SEND | SHUTDOWN_RECEIVE
    });
    assert_eq!(guest.read(NAME, 99), b"last words");
    guest.send(NAME, op::RST, 0, &[]);
}

#[test]
fn host_that_only_stops_reading_can_go_on_writing() {
    let mut guest = Guest::new();
    let mut host = guest.connect(NAME);
    host.shutdown(Shutdown::Read).unwrap();
    guest.write_all(NAME, b"in vain");
    guest.poll_until("the guest is told", |guest| guest.sockets[&NAME].peer_shutdown != 0);
    assert_eq!(guest.sockets[&NAME].peer_shutdown, SHUTDOWN_RECEIVE);
    host.write_all(b"still here").unwrap();
    guest.poll_until("bytes come", |guest| guest.sockets[&NAME].received.len() == 10);
}

#[test]
fn host_cannot_write_to_a_guest_that_reads_no_more() {
    let mut guest = Guest::new();
    let mut host = guest.connect(NAME);
    guest.shutdown(NAME, SHUTDOWN_RECEIVE);
    guest.poll_until("writing fails", |_| host.write(b"x").is_err());
    guest.write_all(NAME, b"but this comes");
    guest.shutdown(NAME, SHUTDOWN_SEND);
    assert_eq!(read_to_end(&host), b"but this comes");
    guest.poll_until("the connection is gone", |guest| guest.sockets[&NAME].reset);
}

#[test]
fn closing_with_unread_bytes_is_an_end_of_file_for_the_host() {
    let mut guest = Guest::new();
    guest.window = 0;
    let mut host = guest.connect(NAME);
    host.write_all(b"never read").unwrap();
    guest.write_all(NAME, b"bye");
    guest.close(NAME);
    assert_eq!(read_to_end(&host), b"bye");
}

#[test]
fn ports_can_be_used_again_while_the_host_still_reads_the_old() {
    let mut guest = Guest::new();
    let first = guest.connect(NAME);
    let all = pattern(guest.sockets[&NAME].credit());
    guest.write_all(NAME, &all);
    guest.close(NAME);
    guest.poll_until("the connection is gone", |guest| guest.sockets[&NAME].reset);
    let second = guest.connect(NAME);
    guest.write_all(NAME, b"second");
    guest.close(NAME);
    assert_eq!(read_to_end(&second), b"second");
    assert!(read_to_end(&first) == all);
}

#[test]
fn host_connects_into_the_guest() {
    let mut guest = Guest::new();
    guest.listening.push(22);
    let handle = guest.handle.clone();
    let asking = thread::spawn(move || handle.connect(22));
    guest.poll_until("the answer is in", |_| asking.is_finished());
    let mut host = asking.join().unwrap().unwrap();
    let name = *guest.sockets.keys().next().unwrap();
    host.write_all(b"SSH?").unwrap();
    guest.poll_until("bytes come", |guest| guest.sockets[&name].received == b"SSH?");
    guest.write_all(name, b"SSH!");
    guest.close(name);
    assert_eq!(read_to_end(&host), b"SSH!");
}

#[test]
fn connecting_into_the_guest_fails_as_it_should() {
    let mut guest = Guest::new();
    let connect = |guest: &mut Guest, timeout: Duration, reset: bool| {
        let handle = guest.handle.clone();
        let asking = thread::spawn(move || handle.connect_timeout(22, timeout));
        if reset {
            thread::sleep(Duration::from_millis(20));
            guest.driver.device.reset();
        } else if timeout > Duration::from_secs(1) {
            guest.poll_until("the answer is in", |_| asking.is_finished());
        }
        asking.join().unwrap().unwrap_err().kind()
    };
    let long = Duration::from_secs(30);
    assert_eq!(connect(&mut guest, long, false), ErrorKind::ConnectionRefused);
    guest.n_buffers = 0;
    guest.poll();
    guest.driver.restart();
    assert_eq!(connect(&mut guest, Duration::from_millis(10), false), ErrorKind::TimedOut);
    assert_eq!(connect(&mut guest, long, true), ErrorKind::ConnectionReset);
    assert_eq!(connect(&mut guest, Duration::ZERO, false), ErrorKind::NotConnected);
}

#[test]
fn request_that_timed_out_is_taken_back() {
    let mut guest = Guest::new();
    guest.n_buffers = 0;
    let refused = guest.handle.connect_timeout(22, Duration::from_millis(5)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TimedOut);
    thread::sleep(Duration::from_millis(20));
    guest.n_buffers = 8;
    guest.listening.push(22);
    guest.poll_until("only RST comes", |guest| !guest.stray_resets.is_empty());
    assert!(guest.sockets.is_empty());
}

#[test]
fn restored_guest_is_told_that_its_connections_are_gone() {
    let mut guest = Guest::new();
    let host = guest.connect(NAME);
    let (to, _handle, accepted) = device();
    guest.driver.migrate(to);
    guest.accepted = accepted;
    assert_eq!(guest.driver.call(2, &[], &[8]).bytes, [0; 4]);
    assert_eq!(read_to_end(&host), b"");
    guest.driver.send(2, &[], &[8]);
    let mut host = guest.connect((NAME.0 + 1, NAME.1));
    host.write_all(b"new").unwrap();
    guest.poll_until("bytes come", |guest| guest.sockets[&(NAME.0 + 1, NAME.1)].received == b"new");
    assert_eq!(guest.driver.rings[2].take_used(), None, "told once");
}

#[test]
fn fresh_device_sends_no_reset_event() {
    let mut driver = Driver::new(device().0);
    driver.send(2, &[], &[8]);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.rings[2].take_used(), None);
}
