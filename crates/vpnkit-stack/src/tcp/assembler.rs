//! Which bytes beyond the next expected one have arrived. Spec: RFC 9293 §3.10.7.4, RFC 2018 §4.
//!
//! Holds a limited number of ranges; a segment that would need one more is not kept and is sent again by the peer.
//! Many segments may be taken before one acknowledgement goes out, so each range knows whether the peer was told of it:
//! what it was never told of, it would take for lost and send again.

/// Ranges kept: beyond it, early segments are dropped. One frame in twenty of a window of 4 MiB leaves as many holes.
const RANGES_MAX: usize = 128;
/// Ranges in one acknowledgement: what fits into its options.
const BLOCKS_MAX: usize = 4;

/// A range in sequence space relative to the next expected byte.
#[derive(Debug, Clone, Copy)]
struct Range {
    start: u32,
    end: u32,
    /// When it grew last, counted in additions.
    grown: u32,
    /// Whether the peer was told since.
    told: bool,
}

/// The ranges; sorted, apart, none empty.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    ranges: Vec<Range>,
    additions: u32,
}

/// Ranges for one acknowledgement.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Blocks {
    ranges: [(u32, u32); BLOCKS_MAX],
    count: u8,
}

impl Blocks {
    pub fn as_slice(&self) -> &[(u32, u32)] {
        &self.ranges[..usize::from(self.count)]
    }
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
        let first = self.ranges.partition_point(|range| range.end < start);
        let last = self.ranges.partition_point(|range| range.start <= end);
        if first == last && self.ranges.len() == RANGES_MAX {
            return false;
        }
        self.additions = self.additions.wrapping_add(1);
        let grown = Range { start, end, grown: self.additions, told: false };
        let merged = self.ranges[first..last].iter().fold(grown, |sum, range| Range {
            start: sum.start.min(range.start),
            end: sum.end.max(range.end),
            ..sum
        });
        self.ranges.splice(first..last, [merged]);
        true
    }

    /// Moves the origin `by` bytes on, and returns how many bytes from there on have arrived already.
    pub fn advance(&mut self, by: u32) -> u32 {
        let mut ready = 0;
        self.ranges.retain_mut(|range| {
            range.start = range.start.saturating_sub(by);
            range.end = range.end.saturating_sub(by);
            if range.start == 0 {
                ready = range.end;
            }
            range.start != 0
        });
        if self.ranges.is_empty() {
            self.ranges = Vec::new();
        }
        if ready > 0 { ready + self.advance(ready) } else { 0 }
    }

    /// Whether there is a range that the peer was not told of as it is now.
    pub fn has_news(&self) -> bool {
        self.ranges.iter().any(|range| !range.told)
    }

    /// The ranges to report next, as if each addition had been acknowledged by itself: of what the peer was not told the
    /// oldest, then what it was told last, for an acknowledgement that was lost; the latest first.
    pub fn blocks(&self) -> Blocks {
        let mut blocks = Blocks::default();
        let mut chosen = [Range { start: 0, end: 0, grown: 0, told: false }; BLOCKS_MAX];
        let age = |range: &Range| self.additions.wrapping_sub(range.grown);
        let rank = |range: &Range| {
            if range.told { (1, age(range)) } else { (0, u32::MAX - age(range)) }
        };
        for range in &self.ranges {
            let count = usize::from(blocks.count);
            let at = chosen[..count].partition_point(|other| rank(other) < rank(range));
            if at < BLOCKS_MAX {
                chosen.copy_within(at..BLOCKS_MAX - 1, at + 1);
                chosen[at] = *range;
                blocks.count = (blocks.count + 1).min(BLOCKS_MAX as u8);
            }
        }
        let count = usize::from(blocks.count);
        chosen[..count].sort_unstable_by_key(age);
        for (block, range) in blocks.ranges.iter_mut().zip(&chosen[..count]) {
            *block = (range.start, range.end);
        }
        blocks
    }

    /// The peer was told of `blocks`, which are [`Assembler::blocks`] of this moment.
    pub fn told(&mut self, blocks: &Blocks) {
        for range in &mut self.ranges {
            range.told |= blocks.as_slice().contains(&(range.start, range.end));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_become_one() {
        let mut early = Assembler::default();
        assert!(early.add(10, 20) && early.add(30, 40) && early.add(20, 30));
        assert_eq!(early.blocks().as_slice(), [(10, 40)]);
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
        assert_eq!(early.blocks().as_slice(), [(30, 35), (50, 55), (10, 15)]);
    }

    #[test]
    fn no_range_goes_unreported() {
        let mut early = Assembler::default();
        for start in [10, 90, 30, 50, 70, 20] {
            assert!(early.add(start, start + 5));
        }
        let report = |early: &mut Assembler| {
            let blocks = early.blocks();
            early.told(&blocks);
            blocks.as_slice().iter().map(|block| block.0).collect::<Vec<_>>()
        };
        assert_eq!(
            report(&mut early),
            [50, 30, 90, 10],
            "the oldest that are news, the latest of them first"
        );
        assert!(early.has_news());
        assert_eq!(report(&mut early), [20, 70, 50, 30], "the rest, and what was told last");
        assert!(!early.has_news());
        assert!(early.add(95, 99) && early.has_news(), "a range that grew is news");
        assert_eq!(report(&mut early), [90, 20, 70, 50]);
        assert!(!early.has_news());
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
