//! Episodes of two endpoints over a link that loses, repeats and delays segments, by a seed: the bytes arrive, and what is
//! sent again, and how often a timer must help, is counted.

use std::collections::{BTreeMap, BTreeSet};

use vpnkit_wire::tcp::{ACK, SYN, Segment, Seq};

use super::endpoint::{Endpoint, Phase, Settings};
use crate::time::Instant;
use crate::volatile::Data;

const MSS: usize = 1448;
/// Bytes queued at most: what the stack queues for a flow.
const QUEUE_BYTES: usize = 256 * 1024;
/// Virtual time of one direction, in microseconds.
const DELAY_US: u64 = 500;

/// What an episode is like. Probabilities are in a thousand.
#[derive(Debug, Clone, Copy)]
struct Plan {
    seed: u64,
    bytes: usize,
    /// Bytes that the program sends at once before it waits until all arrived.
    burst: usize,
    loss: u64,
    duplicates: u64,
    late: u64,
    /// Whether several segments leave as one frame.
    large: bool,
}

/// What an episode took, in segments with data.
#[derive(Debug, Default, Clone, Copy)]
struct Cost {
    lost: u64,
    again: u64,
    /// Arrived when all of it had arrived before.
    needless: u64,
    timeouts: u64,
    micros: u64,
}

#[derive(Debug, Clone)]
struct Packet {
    seq: Seq,
    ack: Seq,
    flags: u8,
    window: u16,
    options: Vec<u8>,
    payload: Vec<u8>,
}

impl Packet {
    fn segment(&self) -> Segment<'_> {
        Segment {
            src_port: 1,
            dst_port: 2,
            seq: self.seq,
            ack: self.ack,
            flags: self.flags,
            window: self.window,
            options: &self.options,
            payload: &self.payload,
            beyond: 0,
        }
    }

    fn arrive(&self, at: &mut Endpoint, now: Instant) {
        at.on_segment(now, &self.segment(), Data::Here(&self.payload), &mut |_| 0);
    }
}

struct Episode {
    plan: Plan,
    random: u64,
    now: u64,
    sender: Endpoint,
    receiver: Endpoint,
    /// By time and order: whether it goes to the receiver, and what.
    under_way: BTreeMap<(u64, u64), (bool, Packet)>,
    count: u64,
    sent: usize,
    received: usize,
    /// Starts of segments that arrived.
    seen: BTreeSet<u32>,
    cost: Cost,
}

fn byte(at: usize) -> u8 {
    ((at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

impl Episode {
    fn new(plan: Plan) -> Self {
        let settings = |iss| Settings {
            iss: Seq(iss),
            mss: MSS as u16,
            window_bytes: 256 * 1024,
            window_bytes_max: 4 << 20,
        };
        let mut sender = Endpoint::active(&settings(u32::MAX - 100_000));
        let syn = packets(&mut sender, Instant(0), MSS, &mut 0).remove(0);
        let mut receiver = Endpoint::passive(&settings(7), &syn.segment());
        receiver.accept();
        let answer = packets(&mut receiver, Instant(0), MSS, &mut 0).remove(0);
        assert_eq!(answer.flags, SYN | ACK);
        answer.arrive(&mut sender, Instant(2 * DELAY_US));
        let random = plan.seed;
        let (under_way, seen, cost) = (BTreeMap::new(), BTreeSet::new(), Cost::default());
        let now = 2 * DELAY_US;
        Self { plan, random, now, sender, receiver, under_way, count: 0, sent: 0, received: 0, seen, cost }
    }

    /// SplitMix64.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn chance(&mut self, thousandths: u64) -> bool {
        self.draw() % 1000 < thousandths
    }

    fn begin(&mut self, down: bool, packet: Packet) {
        if self.chance(self.plan.loss) {
            self.cost.lost += u64::from(down);
            return;
        }
        let mut at = self.now + DELAY_US;
        if self.chance(self.plan.late) {
            at += self.draw() % (4 * DELAY_US);
        }
        if self.chance(self.plan.duplicates) {
            self.count += 1;
            self.under_way.insert((at + DELAY_US, self.count), (down, packet.clone()));
        }
        self.count += 1;
        self.under_way.insert((at, self.count), (down, packet));
    }

    /// Everything at one moment.
    fn step(&mut self) {
        let now = Instant(self.now);
        while let Some(entry) = self.under_way.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let (down, packet) = entry.remove();
            if down {
                let known = packet.seq.before(self.receiver.reset_numbers().1);
                let first = packet.payload.is_empty() || (self.seen.insert(packet.seq.0) && !known);
                self.cost.needless += u64::from(!first);
                packet.arrive(&mut self.receiver, now);
            } else {
                packet.arrive(&mut self.sender, now);
            }
        }
        let before = self.sender.retries;
        assert!(!self.sender.on_timer(now).reset && !self.receiver.on_timer(now).reset);
        self.cost.timeouts += u64::from(self.sender.retries > before);
        let (first, second) = self.receiver.received();
        let bytes = [first, second].concat();
        let right = bytes.iter().enumerate().all(|(at, got)| *got == byte(self.received + at));
        assert!(right, "a wrong byte after {}", self.received);
        self.received += bytes.len();
        self.receiver.consume(bytes.len());
        let room = self.sender.room_bytes(QUEUE_BYTES).min(self.plan.bytes - self.sent);
        let paused = self.sent.is_multiple_of(self.plan.burst) && self.received < self.sent;
        let room = if paused { 0 } else { room.min(self.plan.burst - self.sent % self.plan.burst) };
        let more: Vec<u8> = (self.sent..self.sent + room).map(byte).collect();
        self.sender.push(&more);
        self.sent += room;
        let len_max = if self.plan.large { 44 * MSS } else { MSS };
        for packet in packets(&mut self.sender, now, len_max, &mut self.cost.again) {
            self.begin(true, packet);
        }
        for packet in packets(&mut self.receiver, now, len_max, &mut 0) {
            self.begin(false, packet);
        }
        self.sender.check(false);
        self.receiver.check(false);
    }

    fn run(mut self) -> Cost {
        while self.received < self.plan.bytes {
            self.step();
            assert!(self.now < 3_600_000_000, "{:?} does not end: {:#?}", self.plan, self.sender);
            let timers = [self.sender.deadline(), self.receiver.deadline()];
            let next = timers
                .into_iter()
                .flatten()
                .map(|at| at.0)
                .chain(self.under_way.keys().next().map(|at| at.0));
            self.now = next.min().expect("something is to come").max(self.now + 1);
        }
        assert_eq!(self.sender.phase(), Phase::Open);
        self.cost.micros = self.now;
        self.cost
    }
}

/// What an endpoint sends now, cut into segments.
fn packets(endpoint: &mut Endpoint, now: Instant, len_max: usize, again: &mut u64) -> Vec<Packet> {
    let mut all = Vec::new();
    while let Some(plan) = endpoint.plan(len_max) {
        let (first, second) = endpoint.queued(plan.offset, plan.len);
        let data = [first, second].concat();
        let mut pieces: Vec<&[u8]> = data.chunks(usize::from(plan.mss)).collect();
        if pieces.is_empty() {
            pieces.push(&[]);
        }
        for (at, piece) in pieces.into_iter().enumerate() {
            all.push(Packet {
                seq: plan.seq + (at * usize::from(plan.mss)) as u32,
                ack: plan.ack,
                flags: plan.flags,
                window: plan.window,
                options: plan.options().to_vec(),
                payload: piece.to_vec(),
            });
        }
        *again += endpoint.commit(now, &plan);
        assert!(all.len() < 100_000, "it sends for ever");
    }
    endpoint.arm_timer(now, false);
    all
}

/// Runs episodes, and adds up what they took.
fn costs(what: &str, seeds: std::ops::Range<u64>, plan: fn(u64) -> Plan) -> Cost {
    let mut sum = Cost::default();
    for seed in seeds {
        let cost = Episode::new(plan(seed)).run();
        sum.lost += cost.lost;
        sum.again += cost.again;
        sum.needless += cost.needless;
        sum.timeouts += cost.timeouts;
        sum.micros += cost.micros;
    }
    println!("{what}: {sum:?}");
    sum
}

/// An endpoint that is connected to another.
pub(super) fn connected() -> Endpoint {
    Episode::new(plan(1)).sender
}

fn plan(seed: u64) -> Plan {
    let large = seed.is_multiple_of(2);
    Plan { seed, bytes: 1_000_000, burst: 1_000_000, loss: 0, duplicates: 0, late: 0, large }
}

#[test]
fn nothing_is_sent_again_when_nothing_is_lost() {
    let cost = costs("nothing lost", 0..20, plan);
    assert_eq!((cost.again, cost.timeouts), (0, 0));
}

/// Episodes of one bulk transfer each with `loss` in a thousand lost, from seed `first` on.
fn bulk(loss: u64, first: u64) -> Cost {
    let plans = |seed: u64| Plan { loss: seed / 10_000, ..plan(seed % 10_000) };
    costs(&format!("{loss} of 1000 lost"), loss * 10_000 + first..loss * 10_000 + first + 200, plans)
}

#[test]
fn what_is_lost_is_sent_again_and_little_else() {
    for (loss, first) in [(5, 100), (10, 300), (30, 500), (50, 700)] {
        let cost = bulk(loss, first);
        assert!(cost.lost > 400 && cost.again >= cost.lost, "{cost:?}");
        // A lost acknowledgement of the last segments, or a timeout, costs some.
        assert!(cost.needless * 6 <= cost.lost, "{cost:?}");
        // A segment that is lost, sent again and lost again waits for a timer if nothing was sent after it.
        assert!(cost.timeouts * 100 <= cost.lost * (1 + loss / 3), "{cost:?}");
    }
}

#[test]
fn ends_of_bursts_that_are_lost_seldom_wait_for_the_timeout() {
    let plans = |seed| Plan { burst: 20_000, loss: 20, bytes: 400_000, ..plan(seed) };
    let cost = costs("ends of bursts", 3000..3200, plans);
    assert!(cost.lost > 400 && cost.timeouts * 4 <= cost.lost, "{cost:?}");
    assert!(cost.needless * 20 <= cost.lost, "{cost:?}");
}

#[test]
fn bytes_arrive_whatever_happens_to_segments() {
    costs("everything", 1000..2000, |seed| Plan {
        bytes: 100_000,
        burst: 1 + (seed * 7919 % 100_000) as usize,
        loss: seed % 150,
        duplicates: seed % 70,
        late: seed % 300,
        ..plan(seed)
    });
}

#[test]
fn bytes_arrive_when_segments_are_late() {
    let cost = costs("late", 4000..4200, |seed| Plan { late: 20, ..plan(seed) });
    assert_eq!(cost.timeouts, 0, "nothing was lost");
}
