//! The timer of an endpoint: one at a time. Spec: RFC 6298, RFC 9293 §3.8.6.1, RFC 8985 §7.

use super::endpoint::{Changes, Endpoint, FinOut, Phase, Tail};
use crate::time::Instant;

/// Unanswered retransmissions after which the peer is gone (RFC 9293 §3.8.3, R2): about ten minutes.
const RETRIES_MAX: u32 = 15;
/// Unanswered SYNs after which an open towards the guest fails: about a minute (Linux: `tcp_syn_retries` 6).
const SYN_RETRIES_MAX: u32 = 5;

/// What a timer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timer {
    Off,
    Retransmit(Instant),
    Persist(Instant),
    /// The tail is probed: RFC 8985 §7.
    Probe(Instant),
}

impl Endpoint {
    /// When [`Endpoint::on_timer`] is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        match self.timer {
            Timer::Off => None,
            Timer::Retransmit(at) | Timer::Persist(at) | Timer::Probe(at) => Some(at),
        }
    }

    /// Acts on an expired timer. Spec: RFC 6298 §5.4 to §5.7, RFC 9293 §3.8.6.1.
    pub fn on_timer(&mut self, now: Instant) -> Changes {
        match self.timer {
            Timer::Persist(at) if at <= now => {
                self.timer = Timer::Off;
                self.probing = true;
                self.rtt.back_off();
            }
            Timer::Retransmit(at) if at <= now => {
                self.timer = Timer::Off;
                self.retries += 1;
                let opening = matches!(self.phase, Phase::SynSent | Phase::SynReceived);
                if self.retries > if opening { SYN_RETRIES_MAX } else { RETRIES_MAX } {
                    self.phase = Phase::Closed;
                    return Changes { reset: true, ..Changes::default() };
                }
                self.go_back();
                return Changes { timed_out: true, ..Changes::default() };
            }
            Timer::Probe(at) if at <= now => {
                self.timer = Timer::Off;
                if self.may_probe() {
                    self.tail = Tail::Due;
                } else {
                    let waited = self.rtt.probe_timeout().unwrap_or_default();
                    self.timer = Timer::Retransmit(now + self.rtt.timeout().saturating_sub(waited));
                }
            }
            _ => {}
        }
        Changes::default()
    }

    /// Prepares to send everything unacknowledged again.
    fn go_back(&mut self) {
        self.rtt.back_off();
        self.timing = None;
        if matches!(self.phase, Phase::SynSent | Phase::SynReceived) {
            self.syn_due = true;
            return;
        }
        let in_flight = self.snd_max.since(self.snd_una).unsigned_abs();
        self.congestion.on_timeout(in_flight, self.snd_max, self.mss);
        self.snd_nxt = self.snd_una;
        // RFC 2018 §8 would have it forgotten at once; RFC 6675 §5.1 has it used. A peer that took it back acknowledges
        // nothing of it, which is seen, or goes on being silent.
        self.forget_holes(self.retries > 1);
        // A window too small for anything must still be probed.
        self.probing = self.snd_wnd < self.mss;
    }

    /// Sets the timer for what is under way, or for what the peer has no window for. Called when output is done;
    /// `blocked` when the link had no room.
    pub fn arm_timer(&mut self, now: Instant, blocked: bool) {
        let opening = matches!(self.phase, Phase::SynSent | Phase::SynReceived);
        let in_flight = self.snd_nxt != self.snd_una || opening;
        let waiting = !self.tx.is_empty() || self.fin_out == FinOut::Queued;
        let live = opening || self.phase == Phase::Open;
        match self.timer {
            Timer::Retransmit(_) | Timer::Probe(_) if live && in_flight => {}
            _ if live && in_flight => self.timer = self.loss_timer(now),
            Timer::Persist(_) if live && waiting => {}
            _ if live && waiting && !blocked => self.timer = Timer::Persist(now + self.rtt.timeout()),
            _ => self.timer = Timer::Off,
        }
    }

    /// The timer for what is under way: a probe of its end where that makes sense, or the timeout.
    fn loss_timer(&self, now: Instant) -> Timer {
        if self.may_probe()
            && let Some(probe) = self.rtt.probe_timeout()
        {
            return Timer::Probe(now + probe);
        }
        Timer::Retransmit(now + self.rtt.timeout())
    }
}
