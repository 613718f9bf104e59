//! Frames cut in software are what a wire would carry.

use super::*;

/// The sum of RFC 1071 as its text says it, word by word.
fn plain_sum(pieces: &[&[u8]]) -> u16 {
    let bytes = pieces.concat();
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn large_v4(data: &[u8], flags: u8) -> Vec<u8> {
    let ip_bytes = (20 + 32 + data.len()) as u16;
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
    frame.extend_from_slice(&ip_bytes.to_be_bytes());
    frame.extend_from_slice(&[0xff, 0xff, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend_from_slice(&tcp(flags));
    frame.extend_from_slice(data);
    frame
}

fn large_v6(data: &[u8], flags: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd, 0x60, 0, 0, 0];
    frame.extend_from_slice(&((32 + data.len()) as u16).to_be_bytes());
    frame.extend_from_slice(&[6, 64]);
    frame.extend_from_slice(&[0xfd; 16]);
    frame.extend_from_slice(&[0xfe; 16]);
    frame.extend_from_slice(&tcp(flags));
    frame.extend_from_slice(data);
    frame
}

/// A header of 32 bytes whose sequence number is about to wrap.
fn tcp(flags: u8) -> Vec<u8> {
    let mut header =
        vec![0, 80, 0xc0, 1, 0xff, 0xff, 0xfc, 0, 0, 0, 0, 9, 0x80, flags, 0x20, 0, 0x12, 0x34, 0, 0];
    header.extend_from_slice(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    header
}

fn vnet(kind: u8, mss: u16, start: u16) -> Vnet {
    let (mss, start) = (mss.to_le_bytes(), start.to_le_bytes());
    Vnet([1, kind, 0, 0, mss[0], mss[1], start[0], start[1], 16, 0, 1, 0])
}

fn cut(vnet: &Vnet, parts: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    finish(vnet, parts, &mut |parts| frames.push(parts.concat())).unwrap();
    frames
}

/// Cuts `frame` and checks every segment; `tcp` is where its TCP header starts, `addresses` where IP's addresses are.
fn check(vnet: &Vnet, frame: &[u8], data: &[u8], tcp: usize, addresses: std::ops::Range<usize>) {
    let head = tcp + 32;
    let pieces = [&frame[..head], &frame[head..head + 333], &frame[head + 333..]];
    let frames = cut(vnet, &pieces);
    assert_eq!(frames, cut(vnet, &[frame]), "pieces make no difference");
    let (mut joined, count) = (Vec::new(), frames.len());
    for (index, segment) in frames.iter().enumerate() {
        let bytes = (segment.len() - tcp) as u16;
        let pseudo = [&segment[addresses.clone()], &[0, 6], &bytes.to_be_bytes()[..]].concat();
        assert_eq!(plain_sum(&[&pseudo, &segment[tcp..]]), 0xffff, "TCP's checksum of segment {index}");
        let seq = u32::from_be_bytes(segment[tcp + 4..tcp + 8].try_into().unwrap());
        assert_eq!(seq, 0xffff_fc00u32.wrapping_add(joined.len() as u32));
        let last = if index + 1 == count { FIN | PSH } else { 0 };
        let first = if index == 0 { CWR } else { 0 };
        assert_eq!(segment[tcp + 13], 0x10 | last | first, "flags of segment {index}");
        joined.extend_from_slice(&segment[head..]);
    }
    assert!(joined == data, "the data differs");
}

#[test]
fn large_frames_become_segments_with_right_numbers_and_sums() {
    let data: Vec<u8> = (0..10_001u32).map(|at| ((at * at) >> 3) as u8).collect();
    let flags = 0x10 | FIN | PSH | CWR;
    let frame = large_v4(&data, flags);
    check(&vnet(1, 1448, 34), &frame, &data, 34, 26..34);
    for (index, segment) in cut(&vnet(1, 1448, 34), &[&frame]).iter().enumerate() {
        assert_eq!(plain_sum(&[&segment[14..34]]), 0xffff, "IP's checksum");
        assert_eq!(usize::from(u16::from_be_bytes([segment[16], segment[17]])), segment.len() - 14);
        assert_eq!(u16::from_be_bytes([segment[18], segment[19]]), 0xffffu16.wrapping_add(index as u16));
    }
    check(&vnet(4, 1000, 54), &large_v6(&data, flags), &data, 54, 22..54);
}

#[test]
fn a_partial_checksum_is_finished() {
    // Its field holds the sum of the pseudo header, as RFC 768 has it.
    let pseudo = [10, 0, 0, 1, 10, 0, 0, 2, 0, 17, 0, 13];
    let mut udp = vec![0, 53, 0, 54, 0, 13, 0, 0, b'h', b'e', b'l', b'l', b'o'];
    udp[6..8].copy_from_slice(&plain_sum(&[&pseudo]).to_be_bytes());
    let header = Vnet([1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 1, 0]);
    let frames = cut(&header, &[&[0; 34][..], &udp].concat().chunks(42).collect::<Vec<_>>());
    assert_eq!(frames.len(), 1);
    assert_eq!(plain_sum(&[&pseudo, &frames[0][34..]]), 0xffff);
}

#[test]
fn frames_that_do_not_fit_their_header_are_refused() {
    let frame = large_v4(&[7; 5000], 0x10);
    let refused = |vnet: Vnet, frame: &[u8]| {
        assert_eq!(finish(&vnet, &[frame], &mut |_| panic!("handed on")), Err(Unfit), "{vnet:?}");
    };
    refused(vnet(1, 0, 34), &frame);
    refused(vnet(1, 4, 34), &frame);
    refused(vnet(1, 1448, 33), &frame);
    refused(vnet(1, 1448, 4000), &frame);
    refused(vnet(4, 1448, 34), &frame);
    refused(vnet(1, 1448, 34), &frame[..60]);
    refused(Vnet([1, 0, 0, 0, 0, 0, 255, 255, 255, 255, 1, 0]), &frame);
}
