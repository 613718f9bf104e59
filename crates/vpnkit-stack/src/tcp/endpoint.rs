//! The state of one endpoint and what its user does with it. Segments come in through `input`, leave through `output`.

use std::time::Duration;

use vpnkit_wire::tcp::{Segment, Seq, parse_syn_options};

use super::assembler::Assembler;
use super::congestion::Congestion;
use super::ring::Ring;
use super::rtt::Rtt;
use super::scoreboard::Scoreboard;
use super::timer::Timer;
use crate::time::Instant;

/// Buffers up to this size are given back whenever they are empty: to allocate one is cheaper than to keep ten
/// thousand. Larger ones wait for [`Endpoint::shrink`].
pub(super) const BUFFER_CHEAP_BYTES: usize = 16 * 1024;
/// Segment size of a peer that names none. RFC 9293 §3.7.1.
const MSS_DEFAULT: u16 = 536;

/// Where the connection stands; the FINs of both directions are kept apart from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The guest's SYN is here; the host's connection is being made.
    Connecting,
    /// Our SYN is sent: SYN-SENT.
    SynSent,
    /// Both SYNs are sent: SYN-RECEIVED.
    SynReceived,
    /// ESTABLISHED and every state up to the last FIN.
    Open,
    /// Both sides are done and ours was first: TIME-WAIT.
    TimeWait,
    /// Nothing is left.
    Closed,
}

/// Where our FIN is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FinOut {
    /// More data may come.
    Open,
    /// To be sent after the data.
    Queued,
    /// Acknowledged.
    Acked,
}

/// Where the probe of the tail is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tail {
    /// There is none.
    Quiet,
    /// To be sent.
    Due,
    /// Sent; `end` is where all that was sent ended, of which `in_flight` bytes were under way, and `again` says whether the
    /// probe was sent before.
    Probed { end: Seq, in_flight: u32, again: bool },
}

/// What an endpoint is to be like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// Our initial sequence number.
    pub iss: Seq,
    /// Largest data of a segment that the link takes, in bytes.
    pub mss: u16,
    /// Bytes that the window may have at first.
    pub window_bytes: u32,
    /// Bytes that the window may ever have.
    pub window_bytes_max: u32,
}

/// What a segment or a timer brought about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// The handshake is complete.
    pub established: bool,
    /// The peer reset the connection, or answers no more.
    pub reset: bool,
    /// There is more for the host to read, or the guest's FIN.
    pub received: bool,
    /// Sent data was acknowledged: there is room.
    pub acked: bool,
    /// The segment deserves a reset with this sequence number; the endpoint is unchanged.
    pub refuse: Option<Seq>,
    /// The retransmission timer expired.
    pub timed_out: bool,
    /// The peer asked whether anybody is there: RFC 9293 §3.8.4.
    pub keepalive: bool,
}

/// The endpoint.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(super) phase: Phase,
    pub(super) timer: Timer,
    pub(super) retries: u32,
    // What we send.
    pub(super) iss: Seq,
    pub(super) snd_una: Seq,
    pub(super) snd_nxt: Seq,
    pub(super) snd_max: Seq,
    pub(super) snd_wnd: u32,
    pub(super) snd_wnd_max: u32,
    pub(super) snd_wl1: Seq,
    pub(super) snd_wl2: Seq,
    pub(super) snd_scale: u8,
    pub(super) mss: u32,
    pub(super) tx: Ring,
    pub(super) fin_out: FinOut,
    pub(super) congestion: Congestion,
    pub(super) rtt: Rtt,
    pub(super) timing: Option<(Seq, Instant)>,
    pub(super) probing: bool,
    // What we receive.
    pub(super) irs: Seq,
    pub(super) rcv_nxt: Seq,
    /// Right edge of the window that the peer was told.
    pub(super) rcv_edge: Seq,
    /// What the peer was last told to be received.
    pub(super) rcv_told: Seq,
    pub(super) rcv_scale: u8,
    pub(super) link_mss: u16,
    pub(super) rx: Ring,
    pub(super) rx_max: u32,
    pub(super) rx_limit: u32,
    /// Bytes consumed since the window grew.
    pub(super) rx_consumed: u32,
    /// Whether the window opens only when everything received is consumed.
    pub(super) paced: bool,
    pub(super) early: Assembler,
    pub(super) fin_early: Option<Seq>,
    pub(super) fin_in: bool,
    /// Whether the guest's FIN came before we sent ours: then the guest keeps TIME-WAIT.
    pub(super) passive_close: bool,
    pub(super) scale_ok: bool,
    pub(super) sack_ok: bool,
    // What is to be sent next.
    pub(super) syn_due: bool,
    pub(super) ack_due: bool,
    pub(super) head_due: bool,
    /// Holes before it were sent again in this recovery: `HighRxt` of RFC 6675.
    pub(super) resent: Seq,
    /// All that was sent again without a timeout is before it.
    pub(super) resent_to: Seq,
    /// What was sent when something was sent again last.
    pub(super) resent_at: Seq,
    /// The tail may be sent again when more than this is acknowledged: `RescueRxt` of RFC 6675.
    pub(super) rescue: Seq,
    /// The probe of the tail.
    pub(super) tail: Tail,
    /// What the peer said to have beyond its acknowledgement.
    pub(super) scoreboard: Scoreboard,
    /// When a segment out of the window was last answered (RFC 5961 §7: not without limit).
    pub(super) answered_at: Option<Instant>,
}

impl Endpoint {
    fn new(settings: &Settings, phase: Phase) -> Self {
        let mut rcv_scale = 0;
        while settings.window_bytes_max >> rcv_scale > 0xffff && rcv_scale < 14 {
            rcv_scale += 1;
        }
        Self {
            phase,
            timer: Timer::Off,
            retries: 0,
            iss: settings.iss,
            snd_una: settings.iss,
            snd_nxt: settings.iss,
            snd_max: settings.iss,
            snd_wnd: 0,
            snd_wnd_max: 0,
            snd_wl1: Seq(0),
            snd_wl2: Seq(0),
            snd_scale: 0,
            mss: u32::from(MSS_DEFAULT.min(settings.mss)),
            tx: Ring::default(),
            fin_out: FinOut::Open,
            congestion: Congestion::new(),
            rtt: Rtt::new(),
            timing: None,
            probing: false,
            irs: Seq(0),
            rcv_nxt: Seq(0),
            rcv_edge: Seq(0),
            rcv_told: Seq(0),
            rcv_scale,
            link_mss: settings.mss,
            rx: Ring::default(),
            rx_max: settings.window_bytes,
            rx_limit: settings.window_bytes_max,
            rx_consumed: 0,
            paced: false,
            early: Assembler::default(),
            fin_early: None,
            fin_in: false,
            passive_close: false,
            scale_ok: true,
            sack_ok: true,
            syn_due: false,
            ack_due: false,
            head_due: false,
            resent: settings.iss,
            resent_to: settings.iss,
            resent_at: settings.iss,
            rescue: settings.iss,
            tail: Tail::Quiet,
            scoreboard: Scoreboard::default(),
            answered_at: None,
        }
    }

    /// Starts from the guest's SYN; nothing is answered before [`Endpoint::accept`].
    pub fn passive(settings: &Settings, syn: &Segment<'_>) -> Self {
        let mut endpoint = Self::new(settings, Phase::Connecting);
        endpoint.take_syn(syn);
        endpoint
    }

    /// Starts with a SYN of ours.
    pub fn active(settings: &Settings) -> Self {
        let mut endpoint = Self::new(settings, Phase::SynSent);
        endpoint.syn_due = true;
        endpoint
    }

    /// Answers the guest's SYN: the host's connection is there.
    pub fn accept(&mut self) {
        debug_assert!(self.phase == Phase::Connecting);
        self.phase = Phase::SynReceived;
        self.syn_due = true;
    }

    /// Takes sequence number, window and options of the peer's SYN. Spec: RFC 7323 §2.2, RFC 9293 §3.7.1.
    pub(super) fn take_syn(&mut self, syn: &Segment<'_>) {
        let options = parse_syn_options(syn.options);
        self.irs = syn.seq;
        self.rcv_nxt = syn.seq + 1;
        self.rcv_edge = self.rcv_nxt;
        // A segment size of less than 64 would let a peer make us send headers only.
        let peer_mss = options.mss.unwrap_or(MSS_DEFAULT).max(64);
        self.mss = u32::from(peer_mss.min(self.link_mss));
        self.scale_ok = options.window_scale.is_some();
        self.snd_scale = options.window_scale.unwrap_or(0);
        if !self.scale_ok {
            self.rcv_scale = 0;
        }
        self.sack_ok = options.sack_permitted;
        // The window of a SYN is never scaled.
        self.snd_wnd = u32::from(syn.window);
        self.snd_wnd_max = self.snd_wnd;
        self.snd_wl1 = syn.seq;
        self.snd_wl2 = self.snd_una;
    }

    /// Lets the window open only when everything received is consumed: for a user that takes bytes as they come. A peer
    /// that is faster then waits with its data in its own memory, instead of keeping our buffer full, through which
    /// every byte would be copied from then on.
    pub fn pace(&mut self) {
        self.paced = true;
    }

    /// Where the connection stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The name of the state in RFC 9293 §3.3.2.
    pub fn state_name(&self) -> &'static str {
        let sent = self.fin_out == FinOut::Queued && self.fin_is_sent();
        match (self.phase, self.fin_out, self.fin_in) {
            (Phase::Connecting, ..) => "CONNECTING",
            (Phase::SynSent, ..) => "SYN-SENT",
            (Phase::SynReceived, ..) => "SYN-RECEIVED",
            (Phase::TimeWait, ..) => "TIME-WAIT",
            (Phase::Closed, ..) => "CLOSED",
            (Phase::Open, FinOut::Acked, _) => "FIN-WAIT-2",
            (Phase::Open, _, false) if sent => "FIN-WAIT-1",
            (Phase::Open, _, true) if sent && self.passive_close => "LAST-ACK",
            (Phase::Open, _, true) if sent => "CLOSING",
            (Phase::Open, _, true) => "CLOSE-WAIT",
            (Phase::Open, _, false) => "ESTABLISHED",
        }
    }

    /// Our next sequence number and what we expect: for a reset.
    pub fn reset_numbers(&self) -> (Seq, Seq) {
        (self.snd_nxt.max(self.snd_una), self.rcv_nxt)
    }

    /// The guest's initial sequence number.
    pub fn irs(&self) -> Seq {
        self.irs
    }

    /// Bytes of data ever received in order, modulo 2³².
    pub fn data_received(&self) -> u32 {
        self.rcv_nxt.0.wrapping_sub(self.irs.0).wrapping_sub(1 + u32::from(self.fin_in))
    }

    /// What was received in order and not consumed.
    pub fn received(&self) -> (&[u8], &[u8]) {
        self.rx.slices(0, self.rx.len())
    }

    /// Bytes received in order and not consumed.
    pub fn received_bytes(&self) -> usize {
        self.rx.len()
    }

    /// Whether the guest will send no more, and everything before is consumed.
    pub fn is_drained(&self) -> bool {
        self.fin_in && self.rx.is_empty()
    }

    /// Removes what the host took; the window may open.
    pub fn consume(&mut self, count: usize) {
        let count = count.min(self.rx.len());
        self.rx.consume(count);
        self.rx_consumed = self.rx_consumed.saturating_add(count as u32);
        if self.rx.capacity() <= BUFFER_CHEAP_BYTES {
            self.release_rx();
        }
        if self.phase == Phase::Open && !self.fin_in && self.window_opens() {
            self.ack_due = true;
        }
    }

    fn release_rx(&mut self) {
        if self.rx.is_empty() && self.early.is_empty() {
            self.rx.release();
        }
    }

    pub(super) fn release_tx(&mut self) {
        if self.tx.is_empty() {
            self.tx.release();
        }
    }

    /// Gives empty buffers back: the flow has been quiet.
    pub fn shrink(&mut self) {
        self.release_rx();
        self.release_tx();
    }

    /// Whether the window deserves to grow: the host took more than a whole one since it last grew.
    pub fn wants_window(&self) -> Option<u32> {
        (self.rx_max < self.rx_limit && self.rx_consumed >= self.rx_max).then_some(self.rx_max)
    }

    /// Doubles the window.
    pub fn grow_window(&mut self) {
        self.rx_max = (self.rx_max * 2).min(self.rx_limit);
        self.rx_consumed = 0;
    }

    /// The window that is promised, in bytes.
    pub fn promised_bytes(&self) -> u32 {
        self.rx_max
    }

    /// Bytes that wait to be sent or acknowledged.
    pub fn queued_bytes(&self) -> usize {
        self.tx.len()
    }

    /// Part of what waits to be sent or acknowledged.
    pub fn queued(&self, offset: usize, len: usize) -> (&[u8], &[u8]) {
        self.tx.slices(offset, len)
    }

    /// Whether the guest will send no more; what it sent may still be here.
    pub fn is_finished_by_peer(&self) -> bool {
        self.fin_in
    }

    /// Bytes that may be under way to the guest at once, as things are.
    pub fn flight_bytes(&self) -> usize {
        self.snd_wnd.min(self.congestion.window()) as usize
    }

    /// Bytes that may be queued, when `limit` may be in the buffer.
    pub fn room_bytes(&self, limit: usize) -> usize {
        if self.fin_out == FinOut::Open { limit.saturating_sub(self.tx.len()) } else { 0 }
    }

    /// Where `want` bytes to be sent go; they count after [`Endpoint::filled`].
    pub fn room(&mut self, want: usize) -> (&mut [u8], &mut [u8]) {
        self.tx.room(want)
    }

    /// Queues `count` bytes that were written to [`Endpoint::room`].
    pub fn filled(&mut self, count: usize) {
        self.tx.extend(count);
    }

    /// Queues `bytes`.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.fin_out == FinOut::Open {
            self.tx.push(bytes);
        }
    }

    /// Ends our side after what is queued.
    pub fn finish(&mut self) {
        if self.fin_out == FinOut::Open {
            self.fin_out = FinOut::Queued;
        }
    }

    /// Memory of both buffers, in bytes.
    pub fn buffer_bytes(&self) -> usize {
        self.rx.capacity() + self.tx.capacity()
    }

    pub(super) fn fin_seq(&self) -> Seq {
        self.snd_una + self.tx.len() as u32
    }

    pub(super) fn fin_is_sent(&self) -> bool {
        self.fin_out == FinOut::Queued && self.fin_seq().before(self.snd_max)
    }

    /// Panics unless all invariants hold. `due` says that its output is still to be looked at.
    pub fn check(&self, due: bool) {
        if matches!(self.phase, Phase::Connecting | Phase::Closed) {
            return;
        }
        assert!(self.snd_una.since(self.snd_nxt) <= 0, "sent before acknowledged");
        assert!(self.snd_nxt.since(self.snd_max) <= 0, "next beyond the furthest sent");
        let syn = u32::from(matches!(self.phase, Phase::SynSent | Phase::SynReceived));
        let fin = u32::from(self.fin_out == FinOut::Queued);
        let sent = self.snd_max.since(self.snd_una).unsigned_abs();
        assert!(sent <= self.tx.len() as u32 + syn + fin, "{sent} sent, {} queued", self.tx.len());
        assert!(self.rx.len() <= self.rx_limit as usize, "received more than the limit");
        self.scoreboard.check(self.snd_una, self.snd_max);
        let in_flight = self.snd_nxt != self.snd_una;
        if self.phase == Phase::Open && in_flight && !due {
            assert!(self.timer != Timer::Off, "unacknowledged and no timer");
        }
    }

    pub(super) fn may_answer(&mut self, now: Instant) -> bool {
        const GAP: Duration = Duration::from_millis(20);
        let due = self.answered_at.is_none_or(|at| now.since(at) >= GAP);
        if due {
            self.answered_at = Some(now);
        }
        due
    }
}
