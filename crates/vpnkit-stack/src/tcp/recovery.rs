//! What is lost, and what is sent again when. Spec: RFC 6675, RFC 3042 (limited transmit), RFC 8985 §7 (tail loss probe).
//!
//! Beyond RFC 6675, what was sent again and lost again is found without a timeout: as RFC 8985 has it, a segment is lost when
//! what was sent well after it arrived. There is one mark for all that was sent again, not a time for each segment.

use vpnkit_wire::tcp::{ACK, Seq};

use super::endpoint::{Endpoint, Phase, Tail};
use super::output::{Plan, Why};
use super::timer::Timer;

impl Endpoint {
    /// Whether more is to be looked at than what comes next in line.
    pub(super) fn is_disturbed(&self) -> bool {
        !self.scoreboard.is_empty()
            || self.head_due
            || self.tail == Tail::Due
            || self.congestion.selective().is_some()
    }

    /// What is to be sent now, in a recovery and around it. Spec: RFC 6675 §4, NextSeg.
    #[cold]
    pub(super) fn plan_disturbed(&self, len_max: usize) -> Option<Plan> {
        if self.head_due {
            return Some(self.plan_head(len_max));
        }
        if self.tail == Tail::Due
            && let Some(plan) = self.plan_probe(len_max)
        {
            return Some(plan);
        }
        let allowance = self.congestion.allowance(self.mss, !self.scoreboard.is_empty());
        let room = allowance.saturating_sub(self.pipe());
        let lost = self.congestion.selective().and_then(|_| self.plan_lost(room, len_max));
        // After a timeout, what arrived is left out.
        let (next, arrived) = self.scoreboard.gap(self.snd_nxt);
        let gap = arrived.map_or(usize::MAX, |at| at.since(next).unsigned_abs() as usize);
        lost.or_else(|| self.plan_next((next, gap), room, len_max))
            .or_else(|| self.plan_suspected(room, len_max))
            .or_else(|| self.ack_due.then(|| self.plan_ack(self.snd_nxt, ACK, 0, 0)))
    }

    /// Bytes taken to be under way. Spec: RFC 6675 §4, SetPipe.
    pub(super) fn pipe(&self) -> u32 {
        let selective = self.congestion.selective().is_some();
        if self.scoreboard.is_empty() && !selective {
            return self.snd_nxt.since(self.snd_una).unsigned_abs();
        }
        if self.snd_nxt.before(self.snd_max) {
            // After a timeout all else is taken for lost.
            return self.scoreboard.missing_bytes(self.snd_una, self.snd_nxt);
        }
        let lost = self.lost_before().unwrap_or(self.snd_una);
        let again = if selective { self.scoreboard.missing_bytes(self.snd_una, self.resent) } else { 0 };
        self.scoreboard.missing_bytes(lost.max(self.snd_una), self.snd_nxt) + again
    }

    /// All before it that did not arrive is lost.
    fn lost_before(&self) -> Option<Seq> {
        self.scoreboard.lost_before(self.congestion.needed(), self.mss)
    }

    /// The peer got what ends at `end` twice: if it was sent again without a timeout, it was late and not lost.
    pub(super) fn note_copy(&mut self, end: Seq) {
        if !self.resent_to.before(end) && !self.congestion.is_going_back() {
            self.congestion.on_late();
        }
    }

    /// The first unacknowledged segment, and no more of it than is missing.
    pub(super) fn plan_head(&self, len_max: usize) -> Plan {
        let end = self.scoreboard.hole(self.snd_una).map_or(self.snd_max, |hole| hole.1);
        let missing = end.since(self.snd_una).unsigned_abs().min(self.mss) as usize;
        let len = self.tx.len().min(missing).min(len_max);
        self.plan_data(Why::Head, self.snd_una, 0, len)
    }

    /// What is lost and was not sent again, for `room` bytes. Spec: RFC 6675 §4, NextSeg rule 1.
    pub(super) fn plan_lost(&self, room: u32, len_max: usize) -> Option<Plan> {
        let lost = self.lost_before()?;
        let (start, end) = self.scoreboard.hole(self.resent.max(self.snd_una))?;
        if room < self.mss || !start.before(lost) {
            return None;
        }
        self.plan_hole((start, end), (room - room % self.mss) as usize, len_max)
    }

    /// What may be lost, when there is nothing else to send. Spec: RFC 6675 §4, NextSeg rules 3 and 4.
    pub(super) fn plan_suspected(&self, room: u32, len_max: usize) -> Option<Plan> {
        self.congestion.selective()?;
        if room < self.mss {
            return None;
        }
        if let Some(hole) = self.scoreboard.hole(self.resent.max(self.snd_una)) {
            return self.plan_hole(hole, self.mss as usize, len_max);
        }
        let plan =
            self.rescue.before(self.snd_una).then(|| self.plan_tail(Why::Rescue, len_max)).flatten()?;
        // Nobody rescues what is under way again.
        (!plan.seq.before(self.resent)).then_some(plan)
    }

    fn plan_hole(&self, (start, end): (Seq, Seq), room: usize, len_max: usize) -> Option<Plan> {
        let offset = start.since(self.snd_una).unsigned_abs() as usize;
        let hole = end.since(start).unsigned_abs() as usize;
        let len = hole.min(room).min(len_max).min(self.tx.len().saturating_sub(offset));
        (len > 0).then(|| self.plan_data(Why::Lost, start, offset, len))
    }

    /// The last segment that did not arrive.
    fn plan_tail(&self, why: Why, len_max: usize) -> Option<Plan> {
        let (start, end) = self.scoreboard.last_hole(self.snd_una, self.snd_max);
        let fin = u32::from(self.fin_is_sent() && end == self.snd_max);
        let data = (end.since(start).max(0).unsigned_abs()).saturating_sub(fin);
        let len = data.min(self.mss).min(len_max as u32);
        let seq = end - fin - len;
        let offset = seq.since(self.snd_una).unsigned_abs() as usize;
        (len + fin > 0).then(|| self.plan_data(why, seq, offset, len as usize))
    }

    /// A probe of the tail: a new segment, or the last one again. Spec: RFC 8985 §7.3.
    pub(super) fn plan_probe(&self, len_max: usize) -> Option<Plan> {
        let offset = self.snd_nxt.since(self.snd_una).unsigned_abs() as usize;
        let queued = self.tx.len().saturating_sub(offset).min(self.mss as usize).min(len_max);
        if queued > 0 && self.snd_wnd as usize >= offset + queued {
            return Some(self.plan_data(Why::Probe, self.snd_nxt, offset, queued));
        }
        self.plan_tail(Why::Probe, len_max)
    }

    /// Notes that `plan`, which ends before `end`, is under way at last, or again.
    pub(super) fn note_recovery(&mut self, plan: &Plan, end: Seq) {
        match plan.why {
            Why::Next => return,
            Why::Head => {
                self.head_due = false;
                self.resent = self.resent.max(end);
                self.rescue = end;
            }
            Why::Lost => self.resent = self.resent.max(end),
            Why::Rescue => self.rescue = self.congestion.selective().unwrap_or(end),
            Why::Probe => {
                let again = plan.seq.before(self.snd_max);
                let in_flight = self.snd_max.since(self.snd_una).unsigned_abs();
                self.tail = Tail::Probed { end: end.max(self.snd_max), in_flight, again };
                self.timer = Timer::Off;
            }
        }
        if plan.seq.before(self.snd_max) {
            self.timing = None;
            self.resent_at = self.snd_max;
            self.resent_to = self.resent_to.max(end);
        }
    }

    /// Whether the tail may be probed. The acknowledgement of a single segment may be delayed for longer than the timeout.
    pub(super) fn may_probe(&self) -> bool {
        let in_flight = self.snd_nxt.since(self.snd_una).unsigned_abs();
        in_flight > self.mss
            && self.sack_ok
            && self.phase == Phase::Open
            && self.tail == Tail::Quiet
            && self.retries == 0
            && self.snd_nxt == self.snd_max
            && self.scoreboard.is_empty()
            && self.congestion.is_calm()
    }

    /// Looks for losses after an acknowledgement. Spec: RFC 6675 §5.
    pub(super) fn detect_loss(&mut self, duplicate: bool) {
        if duplicate {
            self.congestion.on_duplicate(self.mss);
        }
        let selective = !self.scoreboard.is_empty();
        if !duplicate && !selective {
            return;
        }
        if self.congestion.is_recovering() {
            if selective {
                self.congestion.begin_selection();
                self.detect_loss_again();
            }
            return;
        }
        let lost = self.lost_before().is_some_and(|edge| self.snd_una.before(edge));
        // The probe was sent long after all else: what did not arrive before it is lost.
        let lost = lost || matches!(self.tail, Tail::Probed { end, .. } if self.scoreboard.reaches(end));
        if self.snd_una.before(self.snd_max) && self.congestion.suspects(lost) {
            let in_flight = self.snd_max.since(self.snd_una).unsigned_abs();
            self.congestion.begin_recovery(in_flight, self.snd_max, self.mss, selective);
            self.head_due = true;
            self.resent = self.snd_una;
            self.tail = Tail::Quiet;
        }
    }

    /// Sends again what is missing still, although much arrived that was sent after it was sent again.
    fn detect_loss_again(&mut self) {
        let after = self.snd_max.since(self.resent_at).max(0).unsigned_abs();
        let arrived = after - self.scoreboard.missing_bytes(self.resent_at, self.snd_max).min(after);
        if arrived > (self.congestion.needed() - 1) * self.mss
            && self.scoreboard.missing_bytes(self.snd_una, self.resent) > 0
        {
            self.resent = self.snd_una;
            self.resent_at = self.snd_max;
        }
    }

    /// Sees what became of a probe of the tail. `copied` says that the peer got something twice. Spec: RFC 8985 §7.4.
    pub(super) fn settle_probe(&mut self, ack: Seq, acked: i32, copied: bool) {
        let (end, in_flight, again) = match self.tail {
            Tail::Probed { end, in_flight, again } if !ack.before(end) => (end, in_flight, again),
            // It is not due any more.
            Tail::Due if acked > 0 => return self.tail = Tail::Quiet,
            _ => return,
        };
        if !again || copied || acked == 0 {
            self.tail = Tail::Quiet;
        } else if end.before(ack) {
            self.congestion.on_repaired(in_flight, self.mss);
            self.tail = Tail::Quiet;
        }
    }

    /// Ends all that a loss began; `all` forgets what the peer has too.
    pub(super) fn forget_holes(&mut self, all: bool) {
        if all {
            self.scoreboard.clear();
        }
        self.congestion.end_recovery(self.mss);
        self.head_due = false;
        self.tail = Tail::Quiet;
    }
}
