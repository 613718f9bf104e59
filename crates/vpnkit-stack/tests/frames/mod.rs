//! Frames of an IPv4 guest, and what a stack sends for them.
#![allow(dead_code, clippy::unwrap_used, reason = "each test uses a part; a test fails by panicking")]

pub mod lent;

use std::io::IoSlice;
use std::net::Ipv4Addr;

use vpnkit_stack::{Config, Effect, FrameSink, Instant, Offload, Stack};
use vpnkit_wire::{ipv4, tcp, udp};

pub const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
pub const GATEWAY_MAC: [u8; 6] = [0xf6, 0x16, 0x36, 0xbc, 0xf9, 0xc6];
pub const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 65, 3);
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 65, 1);
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 65, 2);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);
pub const NOW: Instant = Instant(1_000_000);

#[derive(Default)]
pub struct Sink(pub Vec<(Offload, Vec<u8>)>);

impl FrameSink for Sink {
    fn send(&mut self, offload: Offload, parts: &[IoSlice<'_>]) -> bool {
        self.0.push((offload, parts.iter().flat_map(|part| part.iter().copied()).collect()));
        true
    }
}

pub fn stack() -> Stack {
    Stack::new(Config::default(), 1).unwrap()
}

pub fn sent(stack: &mut Stack) -> Vec<Vec<u8>> {
    let mut sink = Sink::default();
    assert!(stack.transmit(NOW, &mut sink));
    stack.check();
    sink.0.into_iter().map(|(_, frame)| frame).collect()
}

/// Gives the stack a frame and returns what it sends.
pub fn exchange(stack: &mut Stack, frame: &[u8]) -> Vec<Vec<u8>> {
    stack.on_frame(NOW, Offload::NONE, frame, &mut ());
    sent(stack)
}

pub fn ethernet(dst: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&dst[..], &GUEST_MAC, &ethertype.to_be_bytes(), payload].concat()
}

pub fn packet(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = [0; 20];
    ipv4::Header::new(src, dst, protocol, payload.len()).emit(&mut header);
    ethernet(GATEWAY_MAC, 0x0800, &[&header[..], payload].concat())
}

pub fn datagram(dst: Ipv4Addr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let header = udp::emit_header((GUEST, ports.0), (dst, ports.1), payload);
    packet(GUEST, dst, 17, &[&header[..], payload].concat())
}

pub fn segment(dst: Ipv4Addr, port: u16, numbers: (u32, u32, u8), payload: &[u8]) -> Vec<u8> {
    segment_with_window(dst, port, numbers, 65535, payload)
}

pub fn segment_with_window(
    dst: Ipv4Addr,
    port: u16,
    numbers: (u32, u32, u8),
    window: u16,
    payload: &[u8],
) -> Vec<u8> {
    segment_of(dst, port, numbers, (window, &[]), payload)
}

pub fn segment_with_options(dst: Ipv4Addr, port: u16, numbers: (u32, u32, u8), options: &[u8]) -> Vec<u8> {
    segment_of(dst, port, numbers, (65535, options), b"")
}

fn segment_of(
    dst: Ipv4Addr,
    port: u16,
    (seq, ack, flags): (u32, u32, u8),
    (window, options): (u16, &[u8]),
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = vec![0; 60];
    let header = tcp::Header {
        src_port: 40000,
        dst_port: port,
        seq: tcp::Seq(seq),
        ack: tcp::Seq(ack),
        flags,
        window,
        options,
    };
    let count = header.emit(&mut bytes);
    bytes.truncate(count);
    bytes.extend_from_slice(payload);
    let mut sum = vpnkit_wire::checksum::Checksum::pseudo_v4(GUEST, dst, 6, bytes.len());
    sum.add(&bytes);
    bytes[16..18].copy_from_slice(&sum.finish().to_be_bytes());
    packet(GUEST, dst, 6, &bytes)
}

/// Parses an answer as TCP, with its checksums.
pub fn tcp_of(frame: &[u8]) -> tcp::Segment<'_> {
    let ip = ipv4::parse(&frame[14..]).unwrap();
    tcp::parse(ip.payload, Some((ip.src.into(), ip.dst.into()))).unwrap()
}

pub fn dhcp(mac: [u8; 6], kind: u8, options: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..8].copy_from_slice(&[1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef]);
    message[28..34].copy_from_slice(&mac);
    message[236..240].copy_from_slice(&[99, 130, 83, 99]);
    message.extend([53, 1, kind]);
    message.extend_from_slice(options);
    message.push(255);
    let (any, all) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
    let header = udp::emit_header((any, 68), (all, 67), &message);
    let mut frame = packet(any, all, 17, &[&header[..], &message].concat());
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    frame
}

/// Connects and returns the flow with our sequence number.
pub fn connect(stack: &mut Stack) -> (vpnkit_stack::TcpId, u32) {
    exchange(stack, &segment(OUTSIDE, 80, (100, 0, tcp::SYN), b""));
    let Some(Effect::TcpConnect { flow, .. }) = stack.pop_effect() else { panic!("no connection") };
    stack.tcp_connected(flow);
    let answers = sent(stack);
    let ip = ipv4::parse(&answers[0][14..]).unwrap();
    // Not verified: with offload the checksum is the receiver's to finish.
    let answer = tcp::parse(ip.payload, None).unwrap();
    assert_eq!(answer.flags, tcp::SYN | tcp::ACK);
    let iss = answer.seq.0;
    assert!(exchange(stack, &segment(OUTSIDE, 80, (101, iss + 1, tcp::ACK), b"")).is_empty());
    (flow, iss + 1)
}
