//! How much may be under way to the guest. Spec: RFC 5681, RFC 6582 (NewReno), RFC 6675, RFC 3042.
//!
//! The link is a copy in memory and loses nothing unless a ring overflows, so it starts with a large window, and is
//! still a good citizen when frames are lost.

use vpnkit_wire::tcp::Seq;

/// Bytes under way before the first acknowledgement. RFC 6928 says ten segments for the Internet.
const WINDOW_FIRST: u32 = 128 * 1024;
/// Bound of the window, in bytes.
const WINDOW_MAX: u32 = 8 << 20;
/// Duplicates after which a segment is lost: `DupThresh` of RFC 6675 §2.
pub(super) const DUPLICATES: u32 = 3;
/// As many at most when the link is seen to reorder.
const DUPLICATES_MAX: u32 = 64;

/// How a fast recovery goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recovery {
    /// By acknowledgements alone: RFC 6582.
    Guessing,
    /// By what the peer says to have: RFC 6675.
    Selective,
}

/// The state of one endpoint.
#[derive(Debug)]
pub(crate) struct Congestion {
    window: u32,
    threshold: u32,
    duplicates: u32,
    /// Duplicates after which a segment is lost.
    needed: u32,
    /// While a fast recovery lasts: what was sent when it began.
    recover: Option<(Seq, Recovery)>,
    /// After a timeout: what was sent then. No recovery begins before it is acknowledged: RFC 6675 §5.1.
    barred: Option<Seq>,
}

impl Congestion {
    pub fn new() -> Self {
        Self {
            window: WINDOW_FIRST,
            threshold: WINDOW_MAX,
            duplicates: 0,
            needed: DUPLICATES,
            recover: None,
            barred: None,
        }
    }

    /// Bytes that may be under way. The first two duplicates without a word on what arrived allow a segment each: RFC
    /// 3042; otherwise what arrived is known to be under way no more.
    pub fn allowance(&self, mss: u32, selective: bool) -> u32 {
        let limited = self.recover.is_none() && !selective;
        let more = if limited { self.duplicates.min(DUPLICATES - 1) * mss } else { 0 };
        self.window + more
    }

    /// The congestion window, in bytes.
    pub fn window(&self) -> u32 {
        self.window
    }

    /// Whether a fast recovery lasts.
    pub fn is_recovering(&self) -> bool {
        self.recover.is_some()
    }

    /// While a recovery by what the peer has lasts: what was sent when it began.
    pub fn selective(&self) -> Option<Seq> {
        self.recover.filter(|recover| recover.1 == Recovery::Selective).map(|recover| recover.0)
    }

    /// Whether nothing was lost lately.
    pub fn is_calm(&self) -> bool {
        self.recover.is_none() && self.barred.is_none()
    }

    /// Whether all is sent again after a timeout.
    pub fn is_going_back(&self) -> bool {
        self.barred.is_some()
    }

    /// New data was acknowledged up to `ack`. Returns whether the segment at `ack` is lost too (a partial
    /// acknowledgement, RFC 6582 §3.2 step 3).
    pub fn on_ack(&mut self, acked: u32, ack: Seq, mss: u32) -> bool {
        self.duplicates = 0;
        if self.barred.is_some_and(|barred| !ack.before(barred)) {
            self.barred = None;
        }
        match self.recover {
            Some((recover, Recovery::Guessing)) if ack.before(recover) => {
                self.window = self.window.saturating_sub(acked).max(mss) + mss.min(acked);
                return true;
            }
            Some((recover, Recovery::Selective)) if ack.before(recover) => {}
            Some(_) => self.end_recovery(mss),
            None if self.window < self.threshold => self.window = (self.window + acked).min(WINDOW_MAX),
            None => {
                let step = u64::from(mss) * u64::from(acked) / u64::from(self.window.max(1));
                self.window = (self.window + (step as u32).max(1)).min(WINDOW_MAX);
            }
        }
        false
    }

    /// A duplicate acknowledgement came. Spec: RFC 5681 §3.2.
    pub fn on_duplicate(&mut self, mss: u32) {
        match self.recover {
            Some((_, Recovery::Guessing)) => self.window = (self.window + mss).min(WINDOW_MAX),
            Some((_, Recovery::Selective)) => {}
            None => self.duplicates = self.duplicates.saturating_add(1),
        }
    }

    /// Whether a recovery is to begin; `lost` says that the first segment is lost by what the peer has.
    pub fn suspects(&self, lost: bool) -> bool {
        self.is_calm() && (lost || self.duplicates >= self.needed)
    }

    /// Duplicates after which a segment is lost.
    pub fn needed(&self) -> u32 {
        self.needed
    }

    /// What was taken for lost was late: more is to arrive before the next is. RFC 6675 §3 leaves this to implementations.
    pub fn on_late(&mut self) {
        self.needed = (self.needed + 1).min(DUPLICATES_MAX);
    }

    /// Begins a recovery. Spec: RFC 5681 §3.2, RFC 6675 §5 step 4.
    pub fn begin_recovery(&mut self, in_flight: u32, sent: Seq, mss: u32, selective: bool) {
        self.duplicates = 0;
        self.threshold = (in_flight / 2).max(2 * mss);
        self.window = self.threshold + if selective { 0 } else { DUPLICATES * mss };
        let kind = if selective { Recovery::Selective } else { Recovery::Guessing };
        self.recover = Some((sent, kind));
    }

    /// The peer began to say what it has.
    pub fn begin_selection(&mut self) {
        if let Some((_, kind @ Recovery::Guessing)) = &mut self.recover {
            *kind = Recovery::Selective;
            self.window = self.threshold;
        }
    }

    /// Ends a recovery, if there is one.
    pub fn end_recovery(&mut self, mss: u32) {
        if self.recover.take().is_some() {
            self.window = self.threshold.max(mss);
        }
    }

    /// A probe of the tail repaired a loss. Spec: RFC 8985 §7.4.2.
    pub fn on_repaired(&mut self, in_flight: u32, mss: u32) {
        if self.is_calm() {
            self.threshold = (in_flight / 2).max(2 * mss);
            self.window = self.window.min(self.threshold);
        }
    }

    /// The retransmission timer expired; all before `sent` was sent. Spec: RFC 5681 §3.1.
    pub fn on_timeout(&mut self, in_flight: u32, sent: Seq, mss: u32) {
        self.threshold = (in_flight / 2).max(2 * mss);
        self.window = mss;
        self.duplicates = 0;
        self.needed = DUPLICATES;
        self.recover = None;
        self.barred = Some(sent);
    }
}
