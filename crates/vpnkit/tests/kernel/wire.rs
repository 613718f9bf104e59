//! A wire between the engine and the guest's device that loses, repeats and reorders frames as a seed says: what netem
//! does, on every kernel.

use std::collections::{BTreeMap, VecDeque};
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use ethlink::{Tap, VNET_HEADER_BYTES, Vnet, segment};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use vpnkit::{Frame, Machine, MemoryLink, Offload, Take};

/// How long a frame is under way.
const DELAY: Duration = Duration::from_micros(300);

/// What frames are, between the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frames {
    /// As on Ethernet: neither end leaves anything to the other.
    Plain,
    /// Super-frames at both ends, cut on the way as a network card does: parts of them are lost.
    Cut,
    /// Super-frames all the way, as at a device whose queue is full: lost as a whole.
    Whole,
}

/// What happens to frames in each direction. Probabilities are in percent.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    pub seed: u64,
    pub loss: u64,
    pub duplicates: u64,
    /// Frames that come up to 2 ms late, and so after others.
    pub late: u64,
}

/// What a direction did so far, in TCP segments with data.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub carried: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub late: u64,
}

/// Both directions.
#[derive(Debug, Default)]
struct Lanes {
    up: Lane,
    down: Lane,
}

/// One direction: frames under way, by the time and order of their arrival, each after its header.
#[derive(Debug, Default)]
struct Lane {
    random: u64,
    under_way: BTreeMap<(Instant, u64), Vec<u8>>,
    taken: u64,
    tally: Tally,
}

/// The wire.
pub struct Wire {
    lanes: Arc<Mutex<Lanes>>,
}

/// The wire's end at the engine.
struct End {
    lanes: Arc<Mutex<Lanes>>,
    /// Rung when a frame sets out to the guest.
    bell: OwnedFd,
    /// Frames that are there, for the engine to take.
    arrived: Mutex<VecDeque<(Offload, Vec<u8>)>>,
    frames: Frames,
    faults: Faults,
}

impl Machine for End {
    fn transmit(&self, take: &mut Take<'_>) -> bool {
        let arrived = std::mem::take(&mut *lock(&self.arrived));
        for (offload, frame) in &arrived {
            take(*offload, Frame::Whole(frame));
        }
        !arrived.is_empty()
    }

    fn receive(&self, offload: Offload, parts: &[IoSlice<'_>]) -> bool {
        let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
        let header = Vnet(offload.to_virtio(parts[0].len() as u16));
        lock(&self.lanes).down.take(&header, &parts, self.frames, &self.faults);
        rustix::io::write(&self.bell, &1u64.to_ne_bytes()).unwrap();
        true
    }

    fn offload(&self) -> bool {
        self.frames != Frames::Plain
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

impl Wire {
    /// Joins the engine's `link` and the guest's `tap`, for the life of the process.
    pub fn join(link: Arc<MemoryLink>, tap: Tap, frames: Frames, faults: Faults) -> Self {
        let mut lanes = Lanes::default();
        (lanes.up.random, lanes.down.random) = (faults.seed, !faults.seed);
        let lanes = Arc::new(Mutex::new(lanes));
        let bell = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let end = End { lanes: lanes.clone(), bell, arrived: Mutex::default(), frames, faults };
        let end = Arc::new(end);
        link.connect(end.clone());
        thread::spawn(move || carry(&end, &link, &tap));
        Self { lanes }
    }

    /// What the direction to the engine did, and what the one to the guest.
    pub fn tallies(&self) -> (Tally, Tally) {
        let lanes = lock(&self.lanes);
        (lanes.up.tally, lanes.down.tally)
    }
}

/// Moves frames between the ends until the device goes.
fn carry(end: &End, link: &MemoryLink, tap: &Tap) {
    let End { lanes, bell, arrived, frames, faults } = end;
    let frames = *frames;
    let header_bytes = if frames == Frames::Plain { 0 } else { VNET_HEADER_BYTES };
    let mut buffer = vec![0; 1 << 17];
    loop {
        wait(lanes, tap, bell);
        loop {
            let count = match rustix::io::read(tap, &mut buffer) {
                Ok(count) => count,
                Err(Errno::AGAIN) => break,
                Err(_) => return,
            };
            let (header, frame) = buffer[..count].split_at(header_bytes);
            let header = header.try_into().map_or(Vnet::WHOLE, Vnet);
            lock(lanes).up.take(&header, &[frame], frames, faults);
        }
        let now = Instant::now();
        while let Some(mut frame) = lock(lanes).up.arrived(now) {
            let header: Vec<u8> = frame.drain(..VNET_HEADER_BYTES).collect();
            let offload = Offload::from_virtio(header[..10].try_into().unwrap());
            lock(arrived).push_back((offload, frame));
            link.ready();
        }
        while let Some(frame) = lock(lanes).down.arrived(now) {
            // What the kernel refuses is lost, as on a wire.
            let _ = rustix::io::write(tap, &frame[VNET_HEADER_BYTES - header_bytes..]);
        }
    }
}

/// Waits for a frame from either end, or for one that is under way to arrive.
fn wait(lanes: &Mutex<Lanes>, tap: &Tap, bell: &OwnedFd) {
    let due = {
        let lanes = lock(lanes);
        [&lanes.up, &lanes.down].into_iter().filter_map(Lane::deadline).min()
    };
    let left = due.map(|at| Timespec::try_from(at.saturating_duration_since(Instant::now())).unwrap());
    let mut ends = [PollFd::from_borrowed_fd(tap.as_fd(), PollFlags::IN), PollFd::new(bell, PollFlags::IN)];
    let _ = poll(&mut ends, left.as_ref());
    let _ = rustix::io::read(bell, &mut [0; 8]);
}

impl Lane {
    /// Takes a frame of an end.
    fn take(&mut self, header: &Vnet, parts: &[&[u8]], frames: Frames, faults: &Faults) {
        if frames == Frames::Whole {
            return self.begin([&header.0[..], &parts.concat()].concat(), header.segment_bytes(), faults);
        }
        let cut = &mut |parts: &[&[u8]]| {
            self.begin([&Vnet::WHOLE.0[..], &parts.concat()].concat(), 0, faults);
        };
        segment::finish(header, parts, cut).expect("a frame is what its header says");
    }

    /// Lets a frame set out, or not.
    fn begin(&mut self, frame: Vec<u8>, segment_bytes: usize, faults: &Faults) {
        let segments = data_segments(&frame[VNET_HEADER_BYTES..], segment_bytes);
        self.tally.carried += segments;
        if self.percent(faults.loss) {
            self.tally.lost += segments;
            return;
        }
        let mut delay = DELAY;
        if self.percent(faults.late) {
            self.tally.late += segments;
            delay += Duration::from_micros(self.draw() % 2000);
        }
        if self.percent(faults.duplicates) {
            self.tally.duplicated += segments;
            self.insert(delay + DELAY, frame.clone());
        }
        self.insert(delay, frame);
    }

    fn insert(&mut self, delay: Duration, frame: Vec<u8>) {
        self.taken += 1;
        self.under_way.insert((Instant::now() + delay, self.taken), frame);
    }

    fn deadline(&self) -> Option<Instant> {
        self.under_way.keys().next().map(|key| key.0)
    }

    fn arrived(&mut self, now: Instant) -> Option<Vec<u8>> {
        let entry = self.under_way.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(entry.remove())
    }

    /// SplitMix64.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn percent(&mut self, percent: u64) -> bool {
        self.draw() % 100 < percent
    }
}

/// How many TCP segments with data a frame stands for.
fn data_segments(frame: &[u8], segment_bytes: usize) -> u64 {
    let (tcp, protocol, end) = match (frame[12], frame[13]) {
        (0x08, 0x00) => {
            let bytes = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
            (14 + usize::from(frame[14] & 15) * 4, frame[23], 14 + bytes)
        }
        (0x86, 0xdd) => (54, frame[20], frame.len()),
        _ => return 0,
    };
    if protocol != 6 {
        return 0;
    }
    let data = end - tcp - usize::from(frame[tcp + 12] >> 4) * 4;
    data.div_ceil(if segment_bytes == 0 { data.max(1) } else { segment_bytes }) as u64
}
