//! A link with faults, in one direction, and the random numbers that decide them.

use std::collections::BTreeMap;

/// Reproducible numbers: SplitMix64.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `bound`, or 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    /// True in `percent` of a hundred cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Frames under way, by the time and order of their arrival.
#[derive(Debug, Default)]
pub struct Link {
    frames: BTreeMap<(u64, u64), Vec<u8>>,
    sent: u64,
}

impl Link {
    /// Sends a frame at `now` with the faults given.
    pub fn send(&mut self, now: u64, frame: Vec<u8>, random: &mut Random, plan: &crate::Plan) {
        // Seconds drawn by chance: with regular ones, timers that double meet an outage each time.
        let second = Random(now / 1_000_000).next();
        let down = plan.outage_every > 0 && second.is_multiple_of(plan.outage_every);
        if down || random.percent(plan.loss) {
            return;
        }
        if random.percent(plan.duplicates) {
            self.insert(now + 20 + random.below(plan.jitter_us + 500), frame.clone());
        }
        self.insert(now + 20 + random.below(plan.jitter_us), frame);
    }

    fn insert(&mut self, at: u64, frame: Vec<u8>) {
        self.sent += 1;
        self.frames.insert((at, self.sent), frame);
    }

    /// When the next frame arrives.
    pub fn deadline(&self) -> Option<u64> {
        self.frames.keys().next().map(|key| key.0)
    }

    /// The next frame that has arrived.
    pub fn receive(&mut self, now: u64) -> Option<Vec<u8>> {
        let entry = self.frames.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(entry.remove())
    }
}
