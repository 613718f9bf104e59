//! How much a stack takes from the host for its guest.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod frames;

use frames::{OUTSIDE, exchange, segment, segment_with_window, sent, stack, tcp_of};
use vpnkit_stack::{Effect, Stack, TcpId};
use vpnkit_wire::tcp;

/// What is queued ahead of what may be under way.
const AHEAD_BYTES: usize = 256 * 1024;

/// Connects to `port` and returns the flow, with the number that the guest expects.
fn connect(stack: &mut Stack, port: u16) -> (TcpId, u32) {
    exchange(stack, &segment(OUTSIDE, port, (100, 0, tcp::SYN), b""));
    let Some(Effect::TcpConnect { flow, .. }) = stack.pop_effect() else { panic!("no connection") };
    stack.tcp_connected(flow);
    let answers = sent(stack);
    let expected = tcp_of(&answers[0]).seq.0.wrapping_add(1);
    exchange(stack, &segment(OUTSIDE, port, (101, expected, tcp::ACK), b""));
    (flow, expected)
}

/// Queues as much as the flow has room for.
fn fill(stack: &mut Stack, flow: TcpId) -> usize {
    let room = stack.tcp_room(flow);
    stack.tcp_buffer(flow, room);
    stack.tcp_filled(flow, room);
    stack.check();
    room
}

#[test]
fn a_guest_with_room_gets_what_may_be_under_way_and_something_ahead_of_it() {
    let mut stack = stack();
    let (flow, _) = connect(&mut stack, 80);
    assert_eq!(stack.tcp_room(flow), 65_535 + AHEAD_BYTES);
}

#[test]
fn a_guest_that_takes_nothing_has_little_queued() {
    let mut stack = stack();
    let (flow, expected) = connect(&mut stack, 80);
    exchange(&mut stack, &segment_with_window(OUTSIDE, 80, (101, expected, tcp::ACK), 0, b""));
    assert_eq!(fill(&mut stack, flow), AHEAD_BYTES);
    assert_eq!(stack.tcp_room(flow), 0);
}

#[test]
fn flows_that_queue_much_together_have_less_each_and_none_stands_still() {
    let mut stack = stack();
    let mut shares = Vec::new();
    for port in 1..40 {
        let (flow, _) = connect(&mut stack, port);
        shares.push(fill(&mut stack, flow));
    }
    assert_eq!(shares[0], 65_535 + AHEAD_BYTES);
    assert_eq!(shares[38], AHEAD_BYTES);
    assert!(shares.is_sorted_by(|earlier, later| earlier >= later), "{shares:?}");
    // What waited is read once there is room for it, and no earlier.
    while stack.pop_effect().is_some() {}
    assert!(!sent(&mut stack).is_empty());
    assert!(stack.pop_effect().is_none(), "nothing was acknowledged");
}
