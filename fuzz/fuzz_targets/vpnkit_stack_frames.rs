//! Frames of a hostile guest and events of its host, with time between them.
//!
//! The input is records of an opcode, a length and that many bytes. Opcode 0 is a frame; the others answer what the
//! stack asked for last, or let time pass.
#![no_main]

use std::io::IoSlice;

use libfuzzer_sys::fuzz_target;
use vpnkit_stack::{Config, ConnectError, Effect, FrameSink, Instant, Offload, Stack, TcpId};

/// A link that takes everything.
struct Nowhere;

impl FrameSink for Nowhere {
    fn send(&mut self, _: Offload, _: &[IoSlice<'_>]) -> bool {
        true
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let config = Config { offload: kind & 1 != 0, ..Config::default() };
    let mut stack = Stack::new(config, 1).expect("the configuration is valid");
    let (mut now, mut flow, mut query) = (1_000_000, None, None);
    let mut rest = bytes;
    while let [opcode, length, more @ ..] = rest {
        let (record, after) = more.split_at(usize::from(*length).min(more.len()));
        rest = after;
        match (opcode % 8, flow, query) {
            (0 | 7, _, _) => drop(stack.on_frame(Instant(now), Offload::NONE, record, &mut ())),
            (1, _, _) => now += 1 + (u64::from(*length) << (opcode >> 3)),
            (2, Some(flow), _) => stack.tcp_connected(flow),
            (3, Some(flow), _) => stack.tcp_connect_failed(flow, ConnectError::Refused),
            (4, Some(flow), _) => fill(&mut stack, flow, record.len()),
            (5, Some(flow), _) => stack.tcp_finished(flow),
            (6, _, Some(asked)) => {
                stack.dns_answered(Instant(now), asked, (!record.is_empty()).then_some(record));
                query = None;
            }
            _ => {}
        }
        stack.on_time(Instant(now));
        while let Some(effect) = stack.pop_effect() {
            match effect {
                Effect::TcpConnect { flow: new, .. } => flow = Some(new),
                Effect::TcpClosed { flow: gone, .. } if flow == Some(gone) => flow = None,
                Effect::TcpReceived(from) => {
                    let (a, b) = stack.tcp_received(from);
                    let count = a.len() + b.len();
                    stack.tcp_consumed(Instant(now), from, count);
                }
                Effect::UdpSend { payload, .. } | Effect::PingSend { payload, .. } => stack.recycle(payload),
                Effect::DnsQuery { query: asked, .. } => query = Some(asked),
                _ => {}
            }
        }
        stack.transmit(Instant(now), &mut Nowhere);
        stack.check();
    }
});

/// Gives the guest `count` bytes, or what there is room for.
fn fill(stack: &mut Stack, flow: TcpId, count: usize) {
    let room = stack.tcp_room(flow).min(count);
    let (a, b) = stack.tcp_buffer(flow, room);
    let count = (a.len() + b.len()).min(room);
    stack.tcp_filled(flow, count);
}
