//! What an endpoint sends next. Spec: RFC 9293 §3.8, RFC 5681, RFC 7323 §2.
//!
//! In two steps, so that a link without room costs nothing: [`Endpoint::plan`] says what would be sent and changes
//! nothing, [`Endpoint::commit`] notes that it was.

use vpnkit_wire::tcp::{ACK, FIN, PSH, SYN, Seq};

use super::endpoint::{Endpoint, FinOut, Phase};
use crate::time::Instant;

/// Data whose acknowledgement may wait, in bytes: half of it at most.
const HELD_BYTES_MAX: u32 = 4096;

/// Why something is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// It is next in line.
    Next,
    /// It is the first that is unacknowledged, and lost.
    Head,
    /// It did not arrive, and what came after it did.
    Lost,
    /// It is the last that did not arrive, and nothing else is left in a recovery.
    Rescue,
    /// It asks whether the end arrived.
    Probe,
}

/// One segment to be sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub seq: Seq,
    pub ack: Seq,
    pub flags: u8,
    /// Window field, scaled.
    pub window: u16,
    /// Where the data starts in the send queue, and its length.
    pub offset: usize,
    pub len: usize,
    /// Largest data of one segment of it.
    pub mss: u16,
    /// Right edge that the window field tells.
    edge: Seq,
    pub(super) why: Why,
    options: [u8; 40],
    options_bytes: u8,
}

impl Plan {
    /// Whether it is a probe of the tail.
    pub fn is_probe(&self) -> bool {
        self.why == Why::Probe
    }

    /// The options, padded.
    pub fn options(&self) -> &[u8] {
        &self.options[..usize::from(self.options_bytes)]
    }
}

impl Endpoint {
    /// Largest data of one segment, in bytes.
    pub fn segment_bytes(&self) -> usize {
        self.mss as usize
    }

    /// Returns what is to be sent now, of at most `len_max` bytes of data, if anything.
    pub fn plan(&self, len_max: usize) -> Option<Plan> {
        match self.phase {
            Phase::SynSent | Phase::SynReceived => self.syn_due.then(|| self.plan_syn()),
            Phase::Open => self.plan_open(len_max),
            Phase::TimeWait => self.ack_due.then(|| self.plan_ack(self.snd_nxt, ACK, 0, 0)),
            Phase::Connecting | Phase::Closed => None,
        }
    }

    /// Whether `plan` is an acknowledgement of so little that it may wait for data to go with it. RFC 9293 §3.8.6.3
    /// allows this for less than two full segments.
    pub fn may_wait(&self, plan: &Plan) -> bool {
        let unacknowledged = self.rcv_nxt.since(self.rcv_told).max(0).unsigned_abs();
        plan.len == 0
            && plan.flags == ACK
            && self.phase == Phase::Open
            && self.early.is_empty()
            && 0 < unacknowledged
            && unacknowledged < 2 * self.mss.min(HELD_BYTES_MAX)
            && !self.window_opens()
    }

    fn plan_syn(&self) -> Plan {
        let answer = self.phase == Phase::SynReceived;
        let mut plan = self.plan_ack(self.iss, if answer { SYN | ACK } else { SYN }, 0, 0);
        if !answer {
            plan.ack = Seq(0);
        }
        // Never scaled in a SYN: RFC 7323 §2.2.
        let window = self.window_bytes().min(0xffff);
        plan.window = window as u16;
        plan.edge = self.rcv_nxt + window;
        let [high, low] = self.link_mss.to_be_bytes();
        let mut options = Options::new();
        options.add(&[2, 4, high, low]);
        if self.sack_ok {
            options.add(&[4, 2, 1, 1]);
        }
        if self.scale_ok {
            options.add(&[1, 3, 3, self.rcv_scale]);
        }
        plan.options = options.bytes;
        plan.options_bytes = options.len;
        plan
    }

    /// A segment with what every one carries: acknowledgement, window, early ranges.
    pub(super) fn plan_ack(&self, seq: Seq, flags: u8, offset: usize, len: usize) -> Plan {
        let (edge, window) = self.window_to_tell();
        let mut options = Options::new();
        if self.sack_ok && !self.early.is_empty() && self.phase == Phase::Open {
            self.add_sack(&mut options);
        }
        Plan {
            seq,
            ack: self.rcv_nxt,
            flags,
            window,
            offset,
            len,
            mss: (self.mss - u32::from(options.len)) as u16,
            edge,
            why: Why::Next,
            options: options.bytes,
            options_bytes: options.len,
        }
    }

    /// Spec: RFC 2018 §3.
    fn add_sack(&self, options: &mut Options) {
        let blocks = self.early.blocks();
        options.add(&[1, 1, 5, 2 + 8 * blocks.as_slice().len() as u8]);
        for (start, end) in blocks.as_slice() {
            options.add(&(self.rcv_nxt + *start).0.to_be_bytes());
            options.add(&(self.rcv_nxt + *end).0.to_be_bytes());
        }
    }

    /// Returns the right edge of the window and its field. The edge never moves back, and moves on only by a
    /// worthwhile step. Spec: RFC 9293 §3.8.6.2.2.
    fn window_to_tell(&self) -> (Seq, u16) {
        let told = self.told_bytes();
        let room = if self.waits_for_user() { told.min(self.window_bytes()) } else { self.window_bytes() };
        let step = u32::from(self.link_mss).min(self.rx_max / 2).max(1);
        let bytes = if room >= told + step { room } else { told.min(room) };
        let field = (bytes >> self.rcv_scale).min(0xffff);
        (self.rcv_nxt + (field << self.rcv_scale), field as u16)
    }

    /// Bytes that the peer may still send, as far as it knows.
    fn told_bytes(&self) -> u32 {
        self.rcv_edge.since(self.rcv_nxt).max(0).unsigned_abs()
    }

    /// Whether the window has grown enough to send an acknowledgement for nothing else.
    pub(super) fn window_opens(&self) -> bool {
        let told = self.told_bytes();
        let small = u32::from(self.link_mss).min(self.rx_max / 2).max(1);
        let step = if told < small { small } else { (self.rx_max / 4).max(1) };
        !self.waits_for_user() && self.window_bytes() >= told + step
    }

    fn waits_for_user(&self) -> bool {
        self.paced && !self.rx.is_empty()
    }

    fn plan_open(&self, len_max: usize) -> Option<Plan> {
        if self.is_disturbed() {
            return self.plan_disturbed(len_max);
        }
        let in_flight = self.snd_nxt.since(self.snd_una).unsigned_abs();
        let room = self.congestion.allowance(self.mss, false).saturating_sub(in_flight);
        if let Some(plan) = self.plan_next((self.snd_nxt, usize::MAX), room, len_max) {
            return Some(plan);
        }
        self.ack_due.then(|| self.plan_ack(self.snd_nxt, ACK, 0, 0))
    }

    /// What comes next in line and lies in a gap, from a byte on and so many bytes long, for `room` bytes. Spec: RFC 6675
    /// §4, NextSeg rule 2.
    pub(super) fn plan_next(&self, (next, gap): (Seq, usize), room: u32, len_max: usize) -> Option<Plan> {
        let offset = next.since(self.snd_una).unsigned_abs() as usize;
        let queued = self.tx.len().saturating_sub(offset);
        let fin = self.fin_out == FinOut::Queued && offset <= self.tx.len();
        if queued == 0 && !fin {
            return None;
        }
        let window = (self.snd_wnd as usize).saturating_sub(offset).min(room as usize);
        let fits = window.min(queued).min(len_max);
        let len = if gap <= fits { gap } else { self.worthwhile(fits, queued, len_max) };
        let ends = queued == 0 && (self.snd_wnd as usize > offset || self.probing);
        (len > 0 || ends).then(|| self.plan_data(Why::Next, next, offset, len))
    }

    /// Avoids silly small segments: sends whole ones, or everything, or half of what the peer ever took.
    ///
    /// Spec: RFC 9293 §3.8.6.2.1.
    fn worthwhile(&self, fits: usize, queued: usize, len_max: usize) -> usize {
        // A peer whose window is not two segments large must still get two: it may delay the acknowledgement of one.
        let mss = (self.mss.min((self.snd_wnd_max / 2).max(1)) as usize).min(len_max);
        let fits = if mss < self.mss as usize { fits.min(mss) } else { fits };
        if fits == queued {
            return fits;
        }
        if fits >= mss {
            return fits - fits % mss;
        }
        if self.probing { fits.max(1) } else { 0 }
    }

    pub(super) fn plan_data(&self, why: Why, seq: Seq, offset: usize, len: usize) -> Plan {
        let mut plan = self.plan_ack(seq, ACK, offset, len);
        plan.why = why;
        if plan.options_bytes > 0 && len > usize::from(plan.mss) {
            // Super-frames carry no options: each segment cut from it would repeat them for nothing.
            plan.options_bytes = 0;
            plan.mss = self.mss as u16;
        }
        if offset + len == self.tx.len() {
            plan.flags |= if len > 0 { PSH } else { 0 };
            let fits = self.snd_wnd as usize > offset + len || self.probing;
            plan.flags |= if self.fin_out == FinOut::Queued && (fits || len == 0) { FIN } else { 0 };
        }
        plan
    }

    /// Notes which early ranges `plan` told the peer; returns whether there are more that it does not know.
    fn tells_more(&mut self, plan: &Plan) -> bool {
        if plan.options_bytes > 0 {
            let blocks = self.early.blocks();
            self.early.told(&blocks);
        }
        self.early.has_news()
    }

    /// Notes that `plan` was sent at `now`; returns how many segments of it were sent before.
    pub fn commit(&mut self, now: Instant, plan: &Plan) -> u64 {
        let taken = plan.len as u32 + u32::from(plan.flags & FIN != 0) + u32::from(plan.flags & SYN != 0);
        let end = plan.seq + taken;
        self.ack_due = self.sack_ok && !self.early.is_empty() && self.tells_more(plan);
        self.rcv_told = plan.ack;
        self.rcv_edge = plan.edge.max(self.rcv_edge);
        if taken == 0 {
            return 0;
        }
        let again = self.snd_max.since(plan.seq).clamp(0, taken.cast_signed()).unsigned_abs();
        let fresh = self.snd_max.before(end);
        if plan.flags & SYN != 0 {
            self.syn_due = false;
            self.timing = if fresh { Some((plan.seq, now)) } else { None };
        } else if fresh && plan.seq == self.snd_max && self.timing.is_none() {
            self.timing = Some((plan.seq, now));
        }
        self.note_recovery(plan, end);
        self.probing = false;
        self.snd_nxt = self.snd_nxt.max(end);
        self.snd_max = self.snd_max.max(end);
        u64::from(again.div_ceil(u32::from(plan.mss).max(1)))
    }
}

/// Options being written.
struct Options {
    bytes: [u8; 40],
    len: u8,
}

impl Options {
    fn new() -> Self {
        Self { bytes: [0; 40], len: 0 }
    }

    fn add(&mut self, bytes: &[u8]) {
        let at = usize::from(self.len);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len() as u8;
    }
}
