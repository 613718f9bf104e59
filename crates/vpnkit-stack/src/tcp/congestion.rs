//! How much may be under way to the guest. Spec: RFC 5681, RFC 6582 (NewReno).
//!
//! The link is a copy in memory and loses nothing unless a ring overflows, so it starts with a large window, and is
//! still a good citizen when frames are lost.

use vpnkit_wire::tcp::Seq;

/// Bytes under way before the first acknowledgement. RFC 6928 says ten segments for the Internet.
const WINDOW_FIRST: u32 = 128 * 1024;
/// Bound of the window, in bytes.
const WINDOW_MAX: u32 = 8 << 20;

/// The state of one endpoint.
#[derive(Debug)]
pub(crate) struct Congestion {
    window: u32,
    threshold: u32,
    duplicates: u8,
    /// While a fast recovery lasts: what was sent when it began.
    recover: Option<Seq>,
}

impl Congestion {
    pub fn new() -> Self {
        Self { window: WINDOW_FIRST, threshold: WINDOW_MAX, duplicates: 0, recover: None }
    }

    /// Bytes that may be under way.
    pub fn window(&self) -> u32 {
        self.window
    }

    /// Whether a fast recovery lasts.
    pub fn is_recovering(&self) -> bool {
        self.recover.is_some()
    }

    /// New data was acknowledged up to `ack`. Returns whether the segment at `ack` is lost too (a partial
    /// acknowledgement, RFC 6582 §3.2 step 3).
    pub fn on_ack(&mut self, acked: u32, ack: Seq, mss: u32) -> bool {
        self.duplicates = 0;
        match self.recover {
            Some(recover) if ack.before(recover) => {
                self.window = self.window.saturating_sub(acked).max(mss) + mss.min(acked);
                true
            }
            Some(_) => {
                self.recover = None;
                self.window = self.threshold.max(mss);
                false
            }
            None if self.window < self.threshold => {
                self.window = (self.window + acked).min(WINDOW_MAX);
                false
            }
            None => {
                let step = u64::from(mss) * u64::from(acked) / u64::from(self.window.max(1));
                self.window = (self.window + (step as u32).max(1)).min(WINDOW_MAX);
                false
            }
        }
    }

    /// A duplicate acknowledgement came. Returns whether the first unacknowledged segment is to be sent again.
    ///
    /// Spec: RFC 5681 §3.2.
    pub fn on_duplicate(&mut self, in_flight: u32, sent: Seq, mss: u32) -> bool {
        if self.recover.is_some() {
            self.window = (self.window + mss).min(WINDOW_MAX);
            return false;
        }
        self.duplicates += 1;
        if self.duplicates < 3 {
            return false;
        }
        self.duplicates = 0;
        self.recover = Some(sent);
        self.threshold = (in_flight / 2).max(2 * mss);
        self.window = self.threshold + 3 * mss;
        true
    }

    /// The retransmission timer expired. Spec: RFC 5681 §3.1.
    pub fn on_timeout(&mut self, in_flight: u32, mss: u32) {
        self.threshold = (in_flight / 2).max(2 * mss);
        self.window = mss;
        self.duplicates = 0;
        self.recover = None;
    }
}
