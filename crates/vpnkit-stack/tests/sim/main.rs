//! Episodes of TCP between the stack and smoltcp, an independent implementation, over a link that loses, delays,
//! repeats and reorders frames; the bytes at both ends are compared. A failing episode prints its seed.
//! With `CORACLE_SOAK=1` there are twenty times as many.

#[path = "../frames/lent.rs"]
mod lent;

mod guest;
mod host;
mod link;
mod world;

use world::{Plan, World};

/// Runs the episodes of `plan` and checks each.
fn check(seeds: std::ops::Range<u64>, plan: fn(&mut link::Random) -> Plan) {
    let soak = std::env::var_os("CORACLE_SOAK").is_some();
    let rounds = if soak { 20 } else { 1 };
    for seed in (0..rounds).flat_map(|round| seeds.clone().map(move |seed| seed + round * 100_000)) {
        let mut random = link::Random(seed);
        let plan = plan(&mut random);
        let mut world = World::new(seed, plan);
        if let Err(what) = world.run() {
            panic!("seed {seed}: {what}\n{:#?}\n{}", world.plan, world.describe());
        }
    }
}

fn perfect(random: &mut link::Random) -> Plan {
    Plan {
        flows: 1 + random.below(4) as usize,
        bytes_max: 300_000,
        mtu: [576, 1500, 9000, 65520][random.below(4) as usize],
        direct: [0, 50, 100][random.below(3) as usize],
        hold: [0, 60][random.below(2) as usize],
        offload: random.below(2) == 1,
        volatile: random.below(2) == 1,
        ..Plan::default()
    }
}

#[test]
fn bytes_arrive_over_a_perfect_link() {
    check(0..60, perfect);
}

#[test]
fn bytes_arrive_over_a_link_that_loses_frames() {
    check(1000..1100, |random| Plan { loss: 1 + random.below(8), bytes_max: 60_000, ..perfect(random) });
}

#[test]
fn bytes_arrive_over_a_link_that_reorders_and_repeats_frames() {
    check(2000..2100, |random| Plan {
        jitter_us: 1 + random.below(20_000),
        duplicates: random.below(10),
        bytes_max: 100_000,
        ..perfect(random)
    });
}

#[test]
fn bytes_arrive_with_everything_wrong_at_once() {
    check(3000..3400, |random| Plan {
        loss: random.below(6),
        jitter_us: random.below(8000),
        duplicates: random.below(6),
        blocked: random.below(30),
        slow_host: random.below(2) == 1,
        slow_guest: random.below(2) == 1,
        guest_buffer: 512 << random.below(8),
        bytes_max: 40_000,
        ..perfect(random)
    });
}

#[test]
fn zero_windows_open_again() {
    check(4000..4080, |random| Plan {
        slow_host: true,
        slow_guest: true,
        guest_buffer: 300 + random.below(3000) as usize,
        loss: random.below(3),
        bytes_max: 30_000,
        ..perfect(random)
    });
}

#[test]
fn a_link_without_room_loses_nothing() {
    check(5000..5060, |random| Plan { blocked: 20 + random.below(60), ..perfect(random) });
}

#[test]
fn resets_of_either_side_end_the_flow_at_the_other() {
    check(6000..6150, |random| Plan {
        resets: true,
        loss: random.below(4),
        bytes_max: 50_000,
        ..perfect(random)
    });
}

#[test]
fn flows_opened_towards_the_guest_carry_bytes() {
    check(7000..7100, |random| Plan {
        inbound: true,
        loss: random.below(5),
        jitter_us: random.below(3000),
        bytes_max: 60_000,
        ..perfect(random)
    });
}

#[test]
fn bytes_arrive_although_the_link_goes_down_and_up() {
    check(8000..8060, |random| Plan {
        outage_every: 3 + random.below(5),
        inbound: random.below(2) == 1,
        slow_host: random.below(2) == 1,
        jitter_us: random.below(300_000),
        bytes_max: 200_000,
        ..perfect(random)
    });
}
