//! The checker of invariants finds what it is there for: each violation is planted, and seen.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Stack;
use super::tests::open;
use crate::config::Config;
use crate::event::{PingId, TcpId, UdpId};
use crate::table::FlowKey;

/// What the checker says of a network with one connection, after `plant`.
fn found(plant: fn(&mut Stack, TcpId)) -> String {
    let mut stack = Stack::new(Config::default(), 1).unwrap();
    let (flow, _) = open(&mut stack, 80);
    assert!(stack.transmit(super::tests::NOW, &mut super::tests::Sink::default()));
    stack.check();
    plant(&mut stack, flow);
    let panic = catch_unwind(AssertUnwindSafe(|| stack.check())).expect_err("a violation that nobody finds");
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).expect("a panic with words")
}

fn key(stack: &mut Stack, flow: TcpId) -> FlowKey {
    stack.tcp.get_mut(flow.0).expect("the flow").key
}

#[test]
fn violations_of_every_invariant_are_found() {
    type Plant = fn(&mut Stack, TcpId);
    let plants: [(&str, Plant); 14] = [
        ("flows and their keys", |stack, _| stack.tcp_keys.clear()),
        ("flows and their keys", |stack, flow| drop(stack.tcp.remove(flow.0))),
        ("a flow that its key does not find", |stack, flow| {
            let mut key = key(stack, flow);
            stack.tcp_keys.remove(&key);
            key.remote.set_port(81);
            stack.tcp_keys.insert(key, flow);
        }),
        ("too many flows", |stack, _| stack.config.limits.tcp_flows = 0),
        ("bytes accounted", |stack, _| stack.buffered.promised += 1),
        ("bytes accounted", |stack, flow| {
            // Queued, and not told to who keeps the account.
            stack.tcp.get_mut(flow.0).expect("the flow").endpoint.push(b"behind its back");
        }),
        ("flows being connected", |stack, _| stack.tcp_connecting += 1),
        ("flows with something to send", |stack, flow| {
            stack.tcp.get_mut(flow.0).expect("the flow").dirty = true;
        }),
        ("flows that wait for a hardware address", |stack, flow| stack.waiting.push(flow)),
        ("UDP flows and their keys", |stack, flow| {
            let guest = key(stack, flow).guest;
            stack.udp_keys.insert(guest, UdpId(flow.0));
        }),
        ("ping flows and their keys", |stack, flow| {
            let guest = key(stack, flow).guest.ip();
            stack.ping_keys.insert((guest, 1), PingId(flow.0));
        }),
        ("too many frames queued", |stack, _| {
            stack.config.limits.queued_frames = 0;
            stack.frames.push_back(vec![0; 60]);
        }),
        ("flows that nobody looks after", |stack, _| stack.sweep_at = None),
        ("a dead flow", |stack, flow| {
            stack.tcp.get_mut(flow.0).expect("the flow").endpoint.plant_death();
        }),
    ];
    for (number, (expected, plant)) in plants.into_iter().enumerate() {
        let said = found(plant);
        assert!(said.contains(expected), "violation {number}: {said:?} is said, and not {expected:?}");
    }
}
