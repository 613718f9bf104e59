//! Whether to stay awake for a moment before sleeping: to be woken costs more than most answers take.
//!
//! It is tried only after naps that were so short that staying awake would have paid, and given up when it does not
//! pay any more: an idle network costs nothing.

use std::time::Duration;

/// How long to stay awake.
pub const SPIN: Duration = Duration::from_micros(50);
/// Naps that may disappoint before it is given up.
const CREDIT_MAX: u32 = 8;

/// What was learnt lately.
#[derive(Debug, Default)]
pub struct Spin {
    credit: u32,
}

impl Spin {
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
        self.credit = if nap < SPIN { CREDIT_MAX } else { self.credit.saturating_sub(1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_naps_begin_it_and_long_ones_end_it() {
        let mut spin = Spin::default();
        assert!(!spin.is_worth_it());
        spin.slept(SPIN / 2);
        assert!(spin.is_worth_it());
        for _ in 0..CREDIT_MAX {
            spin.slept(Duration::from_millis(10));
        }
        assert!(!spin.is_worth_it());
    }
}
