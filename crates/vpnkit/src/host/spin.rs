//! Whether to stay awake for a moment before sleeping: to be woken costs more than most answers take.
//!
//! It is tried only after naps that were so short that staying awake would have paid, and given up when it does not
//! pay any more: an idle network costs nothing, and one that falls idle a few moments.

use std::time::Duration;

/// Bytes moved between two naps from which on somebody is busy with them for longer than it takes to wake the engine.
const BYTES_MAX: u64 = 32 * 1024;
/// Naps that may disappoint before it is given up.
const CREDIT_MAX: u32 = 8;

/// What was learnt lately.
#[derive(Debug)]
pub struct Spin {
    moment: Duration,
    credit: u32,
    /// Bytes moved until the last nap.
    moved: u64,
    /// Whether much moved since.
    bulk: bool,
}

impl Spin {
    /// Stays awake for `moment` at a time; with none of it, never.
    pub fn new(moment: Duration) -> Self {
        Self { moment, credit: 0, moved: 0, bulk: false }
    }

    /// How long to stay awake.
    pub fn moment(&self) -> Duration {
        self.moment
    }

    /// Whether to stay awake now.
    pub fn is_worth_it(&self) -> bool {
        self.credit > 0 && !self.bulk
    }

    /// All that could be moved for now was, `total` bytes so far. Who streams is not waited for: what is gathered
    /// meanwhile is moved with fewer calls.
    pub fn moved(&mut self, total: u64) {
        self.bulk = total - self.moved > BYTES_MAX;
        self.moved = total;
    }

    /// Something came while awake.
    pub fn paid(&mut self) {
        self.credit = CREDIT_MAX;
    }

    /// Nothing came while awake, if it was; then it slept for so long.
    pub fn slept(&mut self, nap: Duration) {
        self.credit = if nap < self.moment { CREDIT_MAX } else { self.credit.saturating_sub(1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_micros(50);

    #[test]
    fn short_naps_begin_it_and_long_ones_end_it() {
        let mut spin = Spin::new(MOMENT);
        assert!(!spin.is_worth_it());
        spin.slept(MOMENT / 2);
        assert!(spin.is_worth_it());
        for _ in 0..CREDIT_MAX {
            spin.slept(Duration::from_millis(10));
        }
        assert!(!spin.is_worth_it());
    }

    #[test]
    fn streams_are_not_waited_for() {
        let mut spin = Spin::new(MOMENT);
        spin.slept(MOMENT / 2);
        spin.moved(1000);
        assert!(spin.is_worth_it());
        spin.moved(100_000);
        assert!(!spin.is_worth_it());
        spin.moved(101_000);
        assert!(spin.is_worth_it(), "the stream is over");
    }

    #[test]
    fn without_a_moment_it_never_begins() {
        let mut spin = Spin::new(Duration::ZERO);
        spin.slept(Duration::ZERO);
        assert!(!spin.is_worth_it());
    }
}
