//! The bytes, and what Wireshark reads in them.

use std::process::Command;

use super::*;

fn frame(comment: &str) -> Captured {
    Captured {
        time_ns: 1_700_000_000_123_456_789,
        port: 0,
        direction: Direction::ToMachine,
        wire_bytes: 60,
        bytes: vec![0xff; 21],
        comment: comment.to_owned(),
    }
}

#[test]
fn a_packet_has_the_bytes_of_the_draft() {
    let mut out = Vec::new();
    packet(&mut out, &frame(""));
    let expected = [
        &[6, 0, 0, 0, 68, 0, 0, 0, 0, 0, 0, 0][..],
        &((1_700_000_000_123_456_789u64 >> 32) as u32).to_le_bytes(),
        &(1_700_000_000_123_456_789u64 as u32).to_le_bytes(),
        &[21, 0, 0, 0, 60, 0, 0, 0],
        &[0xff; 21],
        &[0; 3],
        // epb_flags: outbound; the end of the options.
        &[2, 0, 4, 0, 2, 0, 0, 0, 0, 0, 0, 0],
        &[68, 0, 0, 0],
    ]
    .concat();
    assert_eq!(out, expected);
}

#[test]
fn a_long_comment_is_cut_between_letters() {
    let mut out = Vec::new();
    packet(&mut out, &frame(&"é".repeat(3000)));
    assert!(out.len() < 2 * TEXT_MAX);
    assert_eq!(out.len() % 4, 0);
}

/// Wireshark's own reader is the judge of the whole file.
#[test]
fn tshark_reads_what_is_written() {
    if Command::new("tshark").arg("--version").output().is_err() {
        println!("SKIP: no tshark on this machine");
        return;
    }
    let mut out = Vec::new();
    section(&mut out, "vpnkit");
    interface(&mut out, "web", 64);
    interface(&mut out, "db", 0);
    packet(&mut out, &frame("dropped: no route"));
    packet(&mut out, &Captured { port: 1, direction: Direction::FromMachine, ..frame("") });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("capture.pcapng");
    std::fs::write(&file, &out).unwrap();
    let fields = ["frame.interface_name", "frame.len", "frame.cap_len", "frame.time_epoch", "frame.comment"];
    let mut tshark = Command::new("tshark");
    tshark.arg("-r").arg(&file).args(["-T", "fields"]);
    fields.iter().for_each(|field| {
        tshark.args(["-e", field]);
    });
    let output = tshark.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(rows[0], ["web", "60", "21", "1700000000.123456789", "dropped: no route"], "{text}");
    assert_eq!(rows[1][..3], ["db", "60", "21"], "{text}");
}
