//! What the peer has beyond its acknowledgement, as it says itself, and so which holes are to be sent again.
//!
//! It may take that back (RFC 2018 §8), so nothing is released because of it, and a timeout forgets all of it. Spec: RFC
//! 2018 §5, RFC 6675.

use vpnkit_wire::tcp::Seq;

/// Ranges remembered; what does not fit counts as missing, and is sent again.
const RANGES_MAX: usize = 32;

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

    /// All before `acked` is acknowledged. A range that begins there was taken back: its peer would have said so.
    pub fn acknowledge(&mut self, acked: Seq) {
        if self.ranges.is_empty() {
            return;
        }
        self.ranges.retain(|range| acked.before(range.0));
        if self.ranges.is_empty() {
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
    fn what_cannot_have_arrived_counts_for_nothing() {
        let (board, news) = board(&[(300, 300), (300, 200), (50, 80), (50, 200), (100, 200), (900, 1001)]);
        assert_eq!(news, [0; 6]);
        assert!(board.is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let ranges: Vec<_> = (0..100).map(|number| (101 + 4 * number, 103 + 4 * number)).collect();
        let (board, _) = board(&ranges);
        assert_eq!(board.ranges.len(), RANGES_MAX);
    }
}
