//! What the peer has beyond its acknowledgement, as it says itself, and so which holes are to be sent again.
//!
//! It may take that back (RFC 2018 §8), so nothing is released because of it, and all of it is forgotten when it does, and
//! when a second timeout follows the first. Spec: RFC 2018 §5, RFC 6675.

use vpnkit_wire::tcp::Seq;

/// Ranges remembered; what does not fit counts as missing, and is sent again.
const RANGES_MAX: usize = 128;

/// Ranges that have arrived; in order, apart, none empty, all between what is acknowledged and what was sent.
#[derive(Debug, Default)]
pub(crate) struct Scoreboard {
    ranges: Vec<(Seq, Seq)>,
}

impl Scoreboard {
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Forgets everything, and gives its memory back.
    pub fn clear(&mut self) {
        self.ranges = Vec::new();
    }

    /// Notes that `start..end` arrived, and returns how many bytes of it were not known to have. Ranges that cannot be,
    /// and those acknowledged already (RFC 2883), count for nothing.
    pub fn note(&mut self, (start, end): (Seq, Seq), acked: Seq, sent: Seq) -> u32 {
        if !start.before(end) || !acked.before(start) || sent.before(end) {
            return 0;
        }
        let first = self.ranges.partition_point(|range| range.1.before(start));
        let last = self.ranges.partition_point(|range| !end.before(range.0));
        if first == last && self.ranges.len() == RANGES_MAX {
            return 0;
        }
        let mut known = 0;
        let mut merged = (start, end);
        for range in &self.ranges[first..last] {
            known += range.1.since(range.0);
            if range.0.before(merged.0) {
                merged.0 = range.0;
            }
            merged.1 = merged.1.max(range.1);
        }
        self.ranges.splice(first..last, [merged]);
        (merged.1.since(merged.0) - known).unsigned_abs()
    }

    /// All before `acked` is acknowledged. A range that begins there was taken back, and no other is believed: the peer would
    /// have acknowledged it too.
    pub fn acknowledge(&mut self, acked: Seq) {
        if self.ranges.is_empty() {
            return;
        }
        self.ranges.retain(|range| !range.0.before(acked));
        if self.ranges.first().is_none_or(|range| range.0 == acked) {
            self.clear();
        }
    }

    /// The first hole at or after `from`: what lies before a range that arrived.
    pub fn hole(&self, from: Seq) -> Option<(Seq, Seq)> {
        let mut start = from;
        for range in &self.ranges {
            if start.before(range.0) {
                return Some((start, range.0));
            }
            start = start.max(range.1);
        }
        None
    }

    /// All before it that did not arrive is lost, if there is such: as much as `needed` segments arrived after it. Spec:
    /// RFC 6675 §4, IsLost.
    pub fn lost_before(&self, needed: u32, mss: u32) -> Option<Seq> {
        let mut bytes = 0;
        for (count, range) in (1..).zip(self.ranges.iter().rev()) {
            bytes += range.1.since(range.0).unsigned_abs();
            if count >= needed || bytes > (needed - 1) * mss {
                return Some(range.0);
            }
        }
        None
    }

    /// Bytes of `from..to` that did not arrive.
    pub fn missing_bytes(&self, from: Seq, to: Seq) -> u32 {
        let overlap = |range: &(Seq, Seq)| {
            let (after, before) = (range.1.since(to).max(0), from.since(range.0).max(0));
            (range.1.since(range.0) - after - before).max(0)
        };
        let arrived: i32 = self.ranges.iter().map(overlap).sum();
        (to.since(from) - arrived).max(0).unsigned_abs()
    }

    /// Where the next byte at or after `from` is that did not arrive, and where what arrived after it begins, if any did.
    pub fn gap(&self, from: Seq) -> (Seq, Option<Seq>) {
        let after = self.ranges.iter().find(|range| from.before(range.1));
        match after {
            Some(range) if !from.before(range.0) => self.gap(range.1),
            range => (from, range.map(|range| range.0)),
        }
    }

    /// Whether what ends at `end` arrived.
    pub fn reaches(&self, end: Seq) -> bool {
        self.ranges.last().is_some_and(|range| !range.1.before(end))
    }

    /// The last hole of what was sent from `acked` to `sent`.
    pub fn last_hole(&self, acked: Seq, sent: Seq) -> (Seq, Seq) {
        let mut end = sent;
        for range in self.ranges.iter().rev() {
            if range.1 != end {
                return (range.1, end);
            }
            end = range.0;
        }
        (acked, end)
    }

    /// Panics unless the ranges are what they are said to be.
    pub fn check(&self, acked: Seq, sent: Seq) {
        assert!(self.ranges.len() <= RANGES_MAX, "too many ranges that arrived");
        let mut before = acked;
        for range in &self.ranges {
            assert!(before.before(range.0) && range.0.before(range.1), "ranges that arrived in disorder");
            before = range.1;
        }
        assert!(!sent.before(before), "arrived before it was sent");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A board of which 100 is acknowledged and all before 1000 was sent; near where sequence numbers wrap.
    fn board(ranges: &[(u32, u32)]) -> (Scoreboard, Vec<u32>) {
        let mut board = Scoreboard::default();
        let note = |range: &(u32, u32)| board.note((seq(range.0), seq(range.1)), seq(100), seq(1000));
        let news = ranges.iter().map(note).collect();
        (board, news)
    }

    fn seq(at: u32) -> Seq {
        Seq(0xffff_ff00) + at
    }

    #[test]
    fn holes_lie_before_what_arrived() {
        let (mut board, news) = board(&[(200, 300), (500, 600), (250, 350), (350, 400), (500, 600)]);
        assert_eq!(news, [100, 100, 50, 50, 0]);
        let hole = |board: &Scoreboard, from| board.hole(seq(from));
        assert_eq!(hole(&board, 100), Some((seq(100), seq(200))));
        assert_eq!(hole(&board, 150), Some((seq(150), seq(200))));
        assert_eq!(hole(&board, 200), Some((seq(400), seq(500))));
        assert_eq!(hole(&board, 500), None);
        board.acknowledge(seq(400));
        assert_eq!(hole(&board, 400), Some((seq(400), seq(500))));
        board.acknowledge(seq(1000));
        assert!(board.is_empty());
    }

    #[test]
    fn what_three_ranges_or_segments_came_after_is_lost() {
        let mss = 10;
        let lost = |ranges: &[(u32, u32)]| board(ranges).0.lost_before(3, mss);
        assert_eq!(lost(&[]), None);
        assert_eq!(lost(&[(200, 210), (300, 310)]), None);
        assert_eq!(lost(&[(200, 220)]), None, "no more than two segments");
        assert_eq!(lost(&[(200, 221)]), Some(seq(200)));
        assert_eq!(lost(&[(200, 205), (300, 305), (400, 405)]), Some(seq(200)));
        assert_eq!(lost(&[(200, 205), (300, 305), (400, 405), (500, 505)]), Some(seq(300)));
        assert_eq!(lost(&[(200, 205), (300, 400)]), Some(seq(300)));
    }

    #[test]
    fn what_did_not_arrive_is_counted_and_found() {
        let (board, _) = board(&[(200, 300), (500, 600), (900, 1000)]);
        assert_eq!(board.missing_bytes(seq(100), seq(1000)), 600);
        assert_eq!(board.missing_bytes(seq(250), seq(550)), 200);
        assert_eq!(board.missing_bytes(seq(210), seq(290)), 0);
        assert_eq!(board.missing_bytes(seq(300), seq(200)), 0);
        assert_eq!(board.gap(seq(150)), (seq(150), Some(seq(200))));
        assert_eq!(board.gap(seq(200)), (seq(300), Some(seq(500))));
        assert_eq!(board.gap(seq(950)), (seq(1000), None));
        assert_eq!(board.last_hole(seq(100), seq(1000)), (seq(600), seq(900)));
        assert_eq!(board.last_hole(seq(100), seq(1100)), (seq(1000), seq(1100)));
        assert_eq!(
            super::tests::board(&[(200, 1000)]).0.last_hole(seq(100), seq(1000)),
            (seq(100), seq(200))
        );
    }

    #[test]
    fn what_cannot_have_arrived_counts_for_nothing() {
        let (board, news) = board(&[(300, 300), (300, 200), (50, 80), (50, 200), (100, 200), (900, 1001)]);
        assert_eq!(news, [0; 6]);
        assert!(board.is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let ranges: Vec<_> = (0..200).map(|number| (101 + 4 * number, 103 + 4 * number)).collect();
        let (board, _) = board(&ranges);
        assert_eq!(board.ranges.len(), RANGES_MAX);
    }
}
