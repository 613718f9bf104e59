//! The checker of an endpoint finds what it is there for: each violation is planted, and seen.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::endpoint::{Endpoint, FinOut, Phase};
use super::episodes::connected;
use super::timer::Timer;
use crate::time::Instant;

/// What the checker says of an endpoint with a segment under way, after `plant`.
fn found(plant: fn(&mut Endpoint)) -> String {
    let mut endpoint = connected();
    endpoint.push(&[7; 3000]);
    let plan = endpoint.plan(1448).expect("a segment");
    endpoint.commit(Instant(2000), &plan);
    endpoint.arm_timer(Instant(2000), false);
    endpoint.check(false);
    plant(&mut endpoint);
    let panic = catch_unwind(AssertUnwindSafe(|| endpoint.check(false))).expect_err("nobody finds it");
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).expect("a panic with words")
}

impl Endpoint {
    /// Makes it one that is over, and that nobody removed.
    pub(crate) fn plant_death(&mut self) {
        self.phase = Phase::Closed;
        self.fin_in = true;
        self.fin_out = FinOut::Acked;
    }
}

#[test]
fn violations_of_every_invariant_are_found() {
    type Plant = fn(&mut Endpoint);
    let plants: [(&str, Plant); 7] = [
        ("sent before acknowledged", |endpoint| endpoint.snd_una = endpoint.snd_nxt + 1),
        ("next beyond the furthest sent", |endpoint| endpoint.snd_nxt += 1),
        ("sent, 0 queued", |endpoint| endpoint.tx.consume(3000)),
        ("received more than the limit", |endpoint| {
            endpoint.rx_limit = 2;
            endpoint.rx.push(b"too much");
        }),
        ("unacknowledged and no timer", |endpoint| endpoint.timer = Timer::Off),
        ("arrived before it was sent", |endpoint| {
            let (start, sent) = (endpoint.snd_max + 10, endpoint.snd_max + 20);
            endpoint.scoreboard.note((start, sent), endpoint.snd_una, sent);
        }),
        ("ranges that arrived in disorder", |endpoint| {
            let (start, end) = (endpoint.snd_una + 10, endpoint.snd_una + 20);
            endpoint.scoreboard.note((start, end), endpoint.snd_una, endpoint.snd_max);
            endpoint.snd_una += 15;
        }),
    ];
    for (expected, plant) in plants {
        let said = found(plant);
        assert!(said.contains(expected), "{said:?} is said, and not {expected:?}");
    }
}
