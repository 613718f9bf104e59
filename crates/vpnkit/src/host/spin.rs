//! Whether to stay awake for a moment before sleeping: to be woken costs more than most answers take.
//!
//! It is tried only after naps that were so short that staying awake would have paid, and given up when it does not
//! pay any more: an idle network costs nothing, and one that falls idle a few moments.

use std::time::Duration;

/// Naps that may disappoint before it is given up.
const CREDIT_MAX: u32 = 8;

/// What was learnt lately.
#[derive(Debug)]
pub struct Spin {
    moment: Duration,
    credit: u32,
}

impl Spin {
    /// Stays awake for `moment` at a time; with none of it, never.
    pub fn new(moment: Duration) -> Self {
        Self { moment, credit: 0 }
    }

    /// How long to stay awake.
    pub fn moment(&self) -> Duration {
        self.moment
    }

    /// Whether to stay awake now.
    pub fn is_worth_it(&self) -> bool {
        self.credit > 0
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
    fn without_a_moment_it_never_begins() {
        let mut spin = Spin::new(Duration::ZERO);
        spin.slept(Duration::ZERO);
        assert!(!spin.is_worth_it());
    }
}
