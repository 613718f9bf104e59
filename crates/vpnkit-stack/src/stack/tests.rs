//! What idle connections cost the others: flows looked at and timers kept are counted, so that no clock decides.

use std::time::Duration;

use vpnkit_wire::tcp::{ACK, PSH, SYN};
use vpnkit_wire::{ipv4, tcp};

// The tests from outside have the same guest.
#[path = "../../tests/frames/mod.rs"]
mod frames;

pub(super) use self::frames::{NOW, Sink};
use self::frames::{OUTSIDE, segment};
use super::{SWEEP, Stack};
use crate::config::Config;
use crate::event::{Effect, TcpId};
use crate::offload::Offload;
use crate::time::Instant;

const ASK: &[u8] = b"ask";
const ANSWER: &[u8] = b"answer";
/// Longer than any timer of a connection lasts that is made and acknowledged.
const SETTLED: Duration = Duration::from_secs(3);
const ROUNDS: usize = 100;

/// A network whose guest has one busy connection, to port 80, and idle ones.
struct Net {
    stack: Stack,
    now: Instant,
    flow: TcpId,
    /// Where the guest and its peer are in their streams.
    next: (u32, u32),
}

impl Net {
    fn with_idle(connections: u16) -> Self {
        let mut stack = Stack::new(Config::default(), 1).unwrap();
        for number in 0..connections {
            open(&mut stack, 10_000 + number);
        }
        let (flow, peer) = open(&mut stack, 80);
        let mut net = Self { stack, now: NOW, flow, next: (101, peer) };
        net.wait(SETTLED);
        net
    }

    fn wait(&mut self, span: Duration) {
        self.now = self.now + span;
        self.stack.on_time(self.now);
        assert!(self.stack.pop_effect().is_none());
    }

    /// The guest asks, the host answers.
    fn round(&mut self) {
        self.now = self.now + Duration::from_micros(10);
        let ask = segment(OUTSIDE, 80, (self.next.0, self.next.1, ACK | PSH), ASK);
        assert_eq!(self.stack.on_frame(self.now, Offload::NONE, &ask, &mut ()), None);
        assert_eq!(self.stack.pop_effect(), Some(Effect::TcpReceived(self.flow)));
        self.stack.tcp_consumed(self.now, self.flow, ASK.len());
        let (room, _) = self.stack.tcp_buffer(self.flow, ANSWER.len());
        room.copy_from_slice(ANSWER);
        self.stack.tcp_filled(self.flow, ANSWER.len());
        let mut sink = Sink::default();
        assert!(self.stack.transmit(self.now, &mut sink));
        assert!(sink.0.iter().any(|(_, frame)| frame.ends_with(ANSWER)), "no answer");
        self.stack.on_time(self.now);
        self.next = (self.next.0 + ASK.len() as u32, self.next.1 + ANSWER.len() as u32);
    }

    /// Flows that are looked at while `act` is done.
    fn visits(&mut self, act: impl FnOnce(&mut Self)) -> usize {
        let before = self.stack.tcp.visits();
        act(self);
        self.stack.tcp.visits() - before
    }
}

/// Makes a connection; returns it and the peer's next sequence number.
pub(super) fn open(stack: &mut Stack, port: u16) -> (TcpId, u32) {
    stack.on_frame(NOW, Offload::NONE, &segment(OUTSIDE, port, (100, 0, SYN), b""), &mut ());
    let Some(Effect::TcpConnect { flow, .. }) = stack.pop_effect() else { panic!("no connection") };
    stack.tcp_connected(flow);
    let mut sink = Sink::default();
    assert!(stack.transmit(NOW, &mut sink));
    let (_, answer) = sink.0.last().unwrap();
    // Not verified: with offload the checksum is the receiver's to finish.
    let next = tcp::parse(ipv4::parse(&answer[14..]).unwrap().payload, None).unwrap().seq.0 + 1;
    stack.on_frame(NOW, Offload::NONE, &segment(OUTSIDE, port, (101, next, ACK), b""), &mut ());
    (flow, next)
}

#[test]
fn idle_connections_are_not_looked_at_in_a_round_of_another() {
    let [few, many] = [10, 10_000].map(|idle| {
        let mut net = Net::with_idle(idle);
        let visits = net.visits(|net| (0..ROUNDS).for_each(|_| net.round()));
        net.stack.check();
        (visits, net.stack.timers.len(), net.stack.dirty.len(), net.stack.held.len())
    });
    assert_eq!(few, many, "flows looked at, and entries of the queues after that");
    assert!(few.0 >= ROUNDS, "visits are not counted");
    assert_eq!(few.1, 1, "timers of what is idle");
}

#[test]
fn idle_connections_wake_nobody_but_for_one_look_at_each() {
    for idle in [10, 10_000] {
        let mut net = Net::with_idle(idle);
        assert_eq!(net.stack.deadline(), Some(NOW + SWEEP), "with {idle}");
        assert_eq!(net.visits(|net| net.wait(Duration::from_millis(1))), 0, "nothing is due, with {idle}");
        let sweep = net.visits(|net| net.wait(SWEEP));
        // One connection is not idle yet: it was opened, as the others were.
        assert_eq!(sweep, usize::from(idle) + 1, "each once");
        assert_eq!(net.stack.deadline(), Some(net.now + SWEEP), "then it sleeps on, with {idle}");
    }
}
