//! What a segment does to an endpoint. Spec: RFC 9293 §3.10.7, RFC 5961.

use vpnkit_wire::tcp::{ACK, FIN, RST, SYN, Segment, Seq, sack_blocks};

use super::endpoint::{BUFFER_CHEAP_BYTES, Changes, Endpoint, FinOut, Phase, Tail};
use super::timer::Timer;
use crate::time::Instant;
use crate::volatile::Data;

impl Endpoint {
    /// Takes a segment of the peer and its data. Data that is next in line, with nothing before it, is offered to
    /// `write`, which returns how many of its bytes it took: those are consumed and never stored.
    pub fn on_segment(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        data: Data<'_>,
        write: &mut dyn FnMut(Data<'_>) -> usize,
    ) -> Changes {
        match self.phase {
            Phase::Connecting => self.on_segment_connecting(segment),
            Phase::SynSent => self.on_segment_syn_sent(now, segment),
            Phase::TimeWait => self.on_segment_time_wait(now, segment),
            Phase::Closed => Changes::default(),
            Phase::SynReceived | Phase::Open => self.on_segment_synchronized(now, segment, data, write),
        }
    }

    /// Before our SYN-ACK only a reset matters; a repeated SYN is answered when the host's connection is there.
    fn on_segment_connecting(&mut self, segment: &Segment<'_>) -> Changes {
        let mut changes = Changes::default();
        if segment.has(RST) && (segment.seq == self.rcv_nxt || segment.seq == self.irs) {
            self.phase = Phase::Closed;
            changes.reset = true;
        }
        changes
    }

    /// Spec: RFC 9293 §3.10.7.3.
    fn on_segment_syn_sent(&mut self, now: Instant, segment: &Segment<'_>) -> Changes {
        let mut changes = Changes::default();
        let acks_syn = segment.has(ACK) && segment.ack == self.iss + 1;
        if segment.has(ACK) && !acks_syn {
            changes.refuse = (!segment.has(RST)).then_some(segment.ack);
            return changes;
        }
        if segment.has(RST) {
            if acks_syn {
                self.phase = Phase::Closed;
                changes.reset = true;
            }
            return changes;
        }
        if !segment.has(SYN) {
            return changes;
        }
        self.take_syn(segment);
        if acks_syn {
            self.open(now, segment);
            self.ack_due = true;
            changes.established = true;
        } else {
            self.phase = Phase::SynReceived;
            self.syn_due = true;
        }
        changes
    }

    /// Spec: RFC 9293 §3.10.7.4, TIME-WAIT: a retransmitted FIN is acknowledged; RFC 1337: resets are ignored.
    fn on_segment_time_wait(&mut self, now: Instant, segment: &Segment<'_>) -> Changes {
        if !segment.has(RST) && !segment.is_empty() && self.may_answer(now) {
            self.ack_due = true;
        }
        Changes::default()
    }

    fn on_segment_synchronized(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        data: Data<'_>,
        write: &mut dyn FnMut(Data<'_>) -> usize,
    ) -> Changes {
        let mut changes = Changes::default();
        if self.phase == Phase::SynReceived && segment.has(SYN) && segment.seq == self.irs {
            if segment.has(ACK) && segment.ack == self.iss + 1 {
                // A simultaneous open: RFC 9293 figure 7.
                self.open(now, segment);
                self.ack_due = true;
                changes.established = true;
            } else {
                self.syn_due = true;
            }
            return changes;
        }
        if !self.is_acceptable(segment) {
            changes.keepalive = segment.flags == ACK && segment.is_empty() && segment.seq + 1 == self.rcv_nxt;
            let answer = !segment.has(RST) && (segment.data_bytes() > 0 || self.may_answer(now));
            self.ack_due |= answer;
            return changes;
        }
        if segment.has(RST) {
            // RFC 5961 §3.2: only the exact number resets, others in the window are challenged.
            if segment.seq == self.rcv_nxt {
                self.phase = Phase::Closed;
                self.timer = Timer::Off;
                // In CLOSING and LAST-ACK it only means that the guest has forgotten: nothing is lost.
                changes.reset = !(self.fin_in && self.fin_is_sent());
            } else {
                self.ack_due |= self.may_answer(now);
            }
            return changes;
        }
        if segment.has(SYN) {
            self.ack_due |= self.may_answer(now);
            return changes;
        }
        if !segment.has(ACK) {
            return changes;
        }
        if self.phase == Phase::SynReceived {
            if segment.ack != self.iss + 1 {
                changes.refuse = Some(segment.ack);
                return changes;
            }
            self.open(now, segment);
            changes.established = true;
        }
        if !self.take_ack(now, segment, &mut changes) {
            return changes;
        }
        self.take_data(segment, data, write, &mut changes);
        self.close_if_done();
        changes
    }

    /// Spec: RFC 9293 §3.10.7.4, first check. What starts at the next expected byte always passes: with a window
    /// of zero its acknowledgement and reset still count (§3.10.7.4, "special allowance").
    fn is_acceptable(&self, segment: &Segment<'_>) -> bool {
        if segment.seq == self.rcv_nxt {
            return true;
        }
        let window = self.window_bytes().cast_signed();
        let start = segment.seq.since(self.rcv_nxt);
        let end = (segment.seq + segment.len()).since(self.rcv_nxt);
        if segment.is_empty() { 0 <= start && start < window } else { start < window && end > 0 }
    }

    /// Bytes that fit, from the next expected one on.
    pub(super) fn window_bytes(&self) -> u32 {
        self.rx_max.saturating_sub(self.rx.len() as u32)
    }

    fn open(&mut self, now: Instant, segment: &Segment<'_>) {
        self.phase = Phase::Open;
        self.syn_due = false;
        self.retries = 0;
        self.rtt.reset();
        self.timer = Timer::Off;
        if let Some((_, at)) = self.timing.take() {
            self.rtt.sample(now.since(at));
        }
        self.snd_una = self.iss + 1;
        self.snd_nxt = self.snd_una;
        self.snd_max = self.snd_una;
        let shift = if segment.has(SYN) { 0 } else { self.snd_scale };
        self.snd_wnd = u32::from(segment.window) << shift;
        self.snd_wnd_max = self.snd_wnd_max.max(self.snd_wnd);
        self.snd_wl1 = segment.seq;
        self.snd_wl2 = segment.ack;
    }

    /// Takes acknowledgement and window; returns whether the rest of the segment counts.
    ///
    /// Spec: RFC 9293 §3.10.7.4, fifth check; RFC 5961 §5.2; RFC 5681 §2 (duplicate).
    fn take_ack(&mut self, now: Instant, segment: &Segment<'_>, changes: &mut Changes) -> bool {
        let acked = segment.ack.since(self.snd_una);
        let beyond = segment.ack.since(self.snd_max) > 0;
        let ancient = acked < 0 && acked.unsigned_abs() > self.snd_wnd_max.max(1 << 16);
        if beyond || ancient {
            self.ack_due |= self.may_answer(now);
            return false;
        }
        let window = u32::from(segment.window) << self.snd_scale;
        let news = self.take_sack(segment);
        let same = segment.is_empty() && self.snd_max != self.snd_una && window == self.snd_wnd && window > 0;
        // RFC 6675 §2: what tells of more that arrived is a duplicate, whatever else it says.
        let duplicate = acked == 0 && (same || news > 0);
        if acked > 0 {
            self.take_new_ack(now, segment.ack, acked.unsigned_abs(), changes);
        }
        if duplicate || acked > 0 {
            self.detect_loss(duplicate);
        }
        if acked >= 0 {
            if self.tail != Tail::Quiet {
                self.settle_probe(segment.ack, acked, copied(segment).is_some());
            }
            self.take_window(segment, window);
        }
        true
    }

    /// Notes what the segment says to have arrived beyond what is acknowledged; returns how many bytes of it are news.
    fn take_sack(&mut self, segment: &Segment<'_>) -> u32 {
        if !self.sack_ok || segment.options.is_empty() {
            return 0;
        }
        let acked = self.snd_una.max(segment.ack);
        if let Some(end) = copied(segment) {
            self.note_copy(end);
        }
        sack_blocks(segment.options).map(|block| self.scoreboard.note(block, acked, self.snd_max)).sum()
    }

    fn take_new_ack(&mut self, now: Instant, ack: Seq, acked: u32, changes: &mut Changes) {
        let fin = self.fin_is_sent() && ack.since(self.fin_seq()) > 0;
        let data = acked - u32::from(fin);
        self.tx.consume((data as usize).min(self.tx.len()));
        if self.tx.capacity() <= BUFFER_CHEAP_BYTES {
            self.release_tx();
        }
        if fin {
            self.fin_out = FinOut::Acked;
        }
        self.snd_una = ack;
        self.resent_to = self.resent_to.max(ack);
        self.snd_nxt = self.snd_nxt.max(ack);
        self.retries = 0;
        self.rtt.reset();
        self.probing = false;
        if let Some((seq, at)) = self.timing
            && ack.since(seq) > 0
        {
            self.rtt.sample(now.since(at));
            self.timing = None;
        }
        self.scoreboard.acknowledge(ack);
        self.head_due = self.congestion.on_ack(acked, ack, self.mss) && self.snd_max != self.snd_una;
        // Output arms the timer again if anything is still under way: RFC 6298 §5.3.
        self.timer = Timer::Off;
        changes.acked = true;
    }

    fn take_window(&mut self, segment: &Segment<'_>, window: u32) {
        let newer = self.snd_wl1.before(segment.seq)
            || (self.snd_wl1 == segment.seq && segment.ack.since(self.snd_wl2) >= 0);
        if !newer {
            return;
        }
        let opens = window > self.snd_wnd;
        let in_flight = self.snd_max.since(self.snd_una).unsigned_abs();
        // More is under way than there was room for, or it timed out: the peer had no memory, and dropped it.
        let dropped = self.retries > 0 || (self.snd_wnd < self.mss && in_flight > self.snd_wnd);
        self.snd_wnd = window;
        self.snd_wnd_max = self.snd_wnd_max.max(window);
        self.snd_wl1 = segment.seq;
        self.snd_wl2 = segment.ack;
        if segment.ack == self.snd_una && self.snd_max != self.snd_una {
            // The peer lives: a probe that it has no room for is no lost segment.
            self.retries = 0;
        }
        if opens && (self.probing || in_flight <= 1 || dropped) {
            // The timeout has doubled with every attempt: nothing waits for it now.
            self.probing = false;
            self.snd_nxt = self.snd_una;
            self.forget_holes(true);
            self.rtt.reset();
            self.timing = None;
            self.timer = Timer::Off;
        }
    }

    /// Spec: RFC 9293 §3.10.7.4, seventh and eighth check.
    fn take_data(
        &mut self,
        segment: &Segment<'_>,
        data: Data<'_>,
        write: &mut dyn FnMut(Data<'_>) -> usize,
        changes: &mut Changes,
    ) {
        if data.is_empty() && !segment.has(FIN) {
            return;
        }
        self.ack_due = true;
        if self.fin_in {
            return;
        }
        let fin = segment.has(FIN).then(|| segment.seq + data.len() as u32);
        let skip = self.rcv_nxt.since(segment.seq).max(0).unsigned_abs() as usize;
        let data = data.after(skip);
        let start = segment.seq.since(self.rcv_nxt).max(0).unsigned_abs();
        let fits = (self.window_bytes().saturating_sub(start) as usize).min(data.len());
        if fits > 0 {
            self.store(start, data.first(fits), write, changes);
        }
        if fin.is_some() && fits == data.len() {
            self.fin_early = fin;
        }
        if self.fin_early == Some(self.rcv_nxt) {
            self.rcv_nxt += 1;
            self.fin_in = true;
            self.passive_close = !self.fin_is_sent() && self.fin_out != FinOut::Acked;
            self.early = super::assembler::Assembler::default();
            changes.received = true;
        }
    }

    /// Stores bytes that start `start` after the next expected one.
    fn store(
        &mut self,
        start: u32,
        data: Data<'_>,
        write: &mut dyn FnMut(Data<'_>) -> usize,
        changes: &mut Changes,
    ) {
        let queued = self.rx.len();
        if start == 0 && self.early.is_empty() {
            let taken = if queued == 0 { write(data).min(data.len()) } else { 0 };
            self.rx.push(data.after(taken));
            self.rx_consumed = self.rx_consumed.saturating_add(taken as u32);
            self.rcv_nxt += data.len() as u32;
            changes.received = true;
            return;
        }
        if start > 0 && !self.early.add(start, start + data.len() as u32) {
            return;
        }
        self.rx.write_at(queued + start as usize, data);
        if start == 0 {
            let count = data.len() as u32;
            let count = count + self.early.advance(count);
            self.rx.extend(count as usize);
            self.rcv_nxt += count;
            changes.received = true;
        }
    }

    fn close_if_done(&mut self) {
        if self.phase == Phase::Open && self.fin_in && self.fin_out == FinOut::Acked {
            self.phase = if self.passive_close { Phase::Closed } else { Phase::TimeWait };
            self.timer = Timer::Off;
        }
    }
}

/// Where what the peer got twice ends, if it says so. Spec: RFC 2883 §4.
fn copied(segment: &Segment<'_>) -> Option<Seq> {
    let first = sack_blocks(segment.options).next();
    first.map(|block| block.1).filter(|end| !segment.ack.before(*end))
}
