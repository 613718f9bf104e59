//! Bytes arrive over a wire that loses, repeats and reorders frames, and little is sent twice for it.

use std::net::{SocketAddr, TcpListener};

use crate::wire::{Faults, Frames, Tally};
use crate::world::{World, run_over};
use crate::{HOST, download_from, listen, upload_to};

/// Blocks of 65,521 bytes in each direction: 8 MB.
const BLOCKS: usize = 128;
/// What is sent again beside what was lost: tails that were probed, segments that were sent again and lost again.
const SPARE: u64 = 40;

/// A counter of the guest's kernel, by its name in `/proc/net/snmp` or `/proc/net/netstat`.
fn kernel_counter(world: &World, name: &str) -> u64 {
    let text = world.shell("cat /proc/net/snmp /proc/net/netstat");
    let lines: Vec<&str> = text.lines().collect();
    let find = |pair: &[&str]| {
        let at = pair[0].split_whitespace().position(|word| word == name)?;
        pair[1].split_whitespace().nth(at)?.parse().ok()
    };
    lines.chunks_exact(2).find_map(find).unwrap_or_else(|| panic!("no counter {name}"))
}

/// Moves bytes both ways at `host`, and says what each direction's wire did and what its sender sent again.
#[expect(clippy::print_stdout, reason = "a test says what it measured")]
fn exchange(world: &World, host: &str, listen: impl Fn() -> TcpListener) -> [(Tally, u64); 2] {
    upload_to(world, host, listen(), BLOCKS);
    let (up, _) = world.tallies();
    let up_again = kernel_counter(world, "RetransSegs");
    let (_, before) = world.tallies();
    let again_before = world.engine.counters().retransmitted;
    download_from(world, host, listen(), BLOCKS);
    let (_, after) = world.tallies();
    let down = Tally {
        carried: after.carried - before.carried,
        lost: after.lost - before.lost,
        duplicated: after.duplicated - before.duplicated,
        late: after.late - before.late,
    };
    let down_again = world.engine.counters().retransmitted - again_before;
    let timeouts = kernel_counter(world, "TCPTimeouts");
    let needless = kernel_counter(world, "TCPDSACKOldSent") + kernel_counter(world, "TCPDSACKOfoSent");
    println!(
        "up {up:?}: {up_again} again, {timeouts} timeouts; down {down:?}: {down_again} again, {needless} needless"
    );
    // The guest says when it gets something twice, as it does of what the wire repeats.
    let twice = down.duplicated + down.late + down.lost / 10 + 5;
    assert!(needless <= twice, "{needless} segments came twice for {down:?}");
    [(up, up_again), (down, down_again)]
}

/// Panics unless about what was lost was sent again, in both directions.
fn check_again([up, down]: [(Tally, u64); 2]) {
    // Linux takes more of what is late for lost, and counts what it probes with.
    check_direction(up, 8);
    check_direction(down, 5);
}

fn check_direction((tally, again): (Tally, u64), quarters: u64) {
    assert!(tally.lost > 20, "the wire lost nothing: {tally:?}");
    assert!(again * 2 >= tally.lost, "{again} segments sent again for {tally:?}");
    // What is late looks lost until it comes.
    let reasons = tally.lost + tally.late;
    assert!(again <= reasons * quarters / 4 + SPARE, "{again} segments sent again for {tally:?}");
}

fn check(test: &str, frames: Frames, faults: Faults) {
    run_over(test, 1500, (frames, faults), |world| {
        check_again(exchange(world, HOST, || listen().0));
    });
}

const LOSS: Faults = Faults { seed: 1, loss: 3, duplicates: 0, late: 0 };
const EVERYTHING: Faults = Faults { seed: 2, loss: 2, duplicates: 1, late: 2 };

#[test]
fn plain_frames_that_are_lost_are_sent_again() {
    check("loss::plain_frames_that_are_lost_are_sent_again", Frames::Plain, LOSS);
}

#[test]
fn parts_of_super_frames_that_are_lost_are_sent_again() {
    check("loss::parts_of_super_frames_that_are_lost_are_sent_again", Frames::Cut, LOSS);
}

#[test]
fn super_frames_that_are_lost_are_sent_again() {
    check("loss::super_frames_that_are_lost_are_sent_again", Frames::Whole, Faults { seed: 3, ..LOSS });
}

#[test]
fn one_frame_in_twenty_is_lost() {
    check("loss::one_frame_in_twenty_is_lost", Frames::Cut, Faults { seed: 4, loss: 5, ..LOSS });
}

#[test]
fn frames_are_lost_repeated_and_late() {
    check("loss::frames_are_lost_repeated_and_late", Frames::Plain, EVERYTHING);
}

#[test]
fn frames_are_lost_repeated_and_late_over_ipv6() {
    let test = "loss::frames_are_lost_repeated_and_late_over_ipv6";
    run_over(test, 1500, (Frames::Cut, EVERYTHING), |world| {
        crate::ipv6::configured(world);
        let bind = "[::1]:0".parse::<SocketAddr>().unwrap();
        let directions = exchange(world, crate::ipv6::HOST6, || TcpListener::bind(bind).unwrap());
        check_again(directions);
    });
}
