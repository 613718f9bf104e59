//! Frames of a hostile guest and events of its host, with time between them.
//!
//! The input is records of an opcode, a length and that many bytes. Opcode 0 is a frame, and 7 the beginning of a long one
//! in the guest's memory; the others answer what the stack asked for last, or let time pass.
#![no_main]

use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use libfuzzer_sys::fuzz_target;
use vpnkit_stack::{
    Config, ConnectError, Data, Effect, Frame, FrameSink, Instant, Offload, Sockets, Stack, TcpId,
    VolatileFrame,
};

/// A link that takes everything.
struct Nowhere;

impl FrameSink for Nowhere {
    fn send(&mut self, _: Offload, _: &[IoSlice<'_>]) -> bool {
        true
    }
}

/// Bytes of a frame in the guest's memory: enough for its data to stay there.
const VOLATILE_BYTES: usize = 4000;

/// Such a frame.
struct Lent(Vec<u8>);

impl VolatileFrame for Lent {
    fn bytes(&self) -> usize {
        self.0.len()
    }

    fn copy(&self, start: usize, to: &mut [u8]) {
        to.copy_from_slice(&self.0[start..start + to.len()]);
    }

    fn send(&self, _: Range<usize>, _: BorrowedFd<'_>) -> std::io::Result<usize> {
        unreachable!("the stack has no socket")
    }
}

/// Sockets that take half of what they are offered, having looked at all of it.
struct Half;

impl Sockets for Half {
    fn write(&mut self, _: TcpId, data: Data<'_>) -> usize {
        data.copy(&mut vec![0; data.len()]);
        data.len() / 2
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
            (0, _, _) => drop(stack.on_frame(Instant(now), Offload::NONE, record, &mut ())),
            (7, _, _) => give_volatile(&mut stack, Instant(now), record),
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

/// Gives the stack a frame that begins so, in memory that it may hold no slice of.
fn give_volatile(stack: &mut Stack, now: Instant, beginning: &[u8]) {
    let mut bytes = beginning.to_vec();
    bytes.resize(VOLATILE_BYTES, 0);
    let trusted = Offload { verified: true, ..Offload::NONE };
    stack.on_frame(now, trusted, Frame::Volatile(&Lent(bytes)), &mut Half);
}

/// Gives the guest `count` bytes, or what there is room for.
fn fill(stack: &mut Stack, flow: TcpId, count: usize) {
    let room = stack.tcp_room(flow).min(count);
    let (a, b) = stack.tcp_buffer(flow, room);
    let count = (a.len() + b.len()).min(room);
    stack.tcp_filled(flow, count);
}
