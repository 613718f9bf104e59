//! Which bytes beyond the next expected one have arrived. Spec: RFC 9293 §3.10.7.4, RFC 2018 §4.
//!
//! Holds a few ranges; a segment that would need one more is not kept and is sent again by the peer.

/// Ranges kept: beyond it, early segments are dropped.
const RANGES_MAX: usize = 8;

/// Ranges as `start..end` in sequence space relative to the next expected byte; sorted, apart, none empty.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    ranges: Vec<(u32, u32)>,
    /// Start of the range that grew last: it is reported first (RFC 2018 §4).
    latest: u32,
}

impl Assembler {
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Notes `start..end` and returns whether it may be kept.
    pub fn add(&mut self, start: u32, end: u32) -> bool {
        if start >= end {
            return true;
        }
        let first = self.ranges.partition_point(|range| range.1 < start);
        let last = self.ranges.partition_point(|range| range.0 <= end);
        if first == last && self.ranges.len() == RANGES_MAX {
            return false;
        }
        let merged = self.ranges[first..last]
            .iter()
            .fold((start, end), |sum, range| (sum.0.min(range.0), sum.1.max(range.1)));
        self.ranges.splice(first..last, [merged]);
        self.latest = merged.0;
        true
    }

    /// Moves the origin `by` bytes on, and returns how many bytes from there on have arrived already.
    pub fn advance(&mut self, by: u32) -> u32 {
        let mut ready = 0;
        self.ranges.retain_mut(|range| {
            *range = (range.0.saturating_sub(by), range.1.saturating_sub(by));
            if range.0 == 0 {
                ready = range.1;
            }
            range.0 != 0
        });
        self.latest = self.latest.saturating_sub(by);
        if ready > 0 { ready + self.advance(ready) } else { 0 }
    }

    /// Up to three ranges to report, the latest first.
    pub fn blocks(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let latest = self.ranges.iter().filter(|range| range.0 == self.latest);
        let others = self.ranges.iter().filter(|range| range.0 != self.latest);
        latest.chain(others).take(3).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_become_one() {
        let mut early = Assembler::default();
        assert!(early.add(10, 20) && early.add(30, 40) && early.add(20, 30));
        assert_eq!(early.blocks().collect::<Vec<_>>(), [(10, 40)]);
        assert_eq!(early.advance(5), 0);
        assert_eq!(early.advance(5), 30);
        assert!(early.is_empty());
    }

    #[test]
    fn the_latest_range_is_reported_first() {
        let mut early = Assembler::default();
        for start in [10, 50, 30] {
            assert!(early.add(start, start + 5));
        }
        assert_eq!(early.blocks().next(), Some((30, 35)));
    }

    #[test]
    fn one_range_too_many_is_refused() {
        let mut early = Assembler::default();
        for range in 0..RANGES_MAX as u32 {
            assert!(early.add(range * 10 + 5, range * 10 + 7));
        }
        assert!(!early.add(1000, 1001));
        assert!(early.add(6, 1000));
    }
}
