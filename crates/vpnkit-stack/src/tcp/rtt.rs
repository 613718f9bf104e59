//! Retransmission timeout of one endpoint, from measured round trips.
//!
//! Holds no clock: callers pass what they measured. Spec: RFC 6298.

use std::time::Duration;

/// Shortest timeout. RFC 6298 §2.4 says 1 s (SHOULD); the peer is on a local link, so we use Linux's 200 ms.
const RTO_MIN: Duration = Duration::from_millis(200);
/// Longest timeout: RFC 6298 §2.5.
const RTO_MAX: Duration = Duration::from_secs(60);

/// Shortest time after which the tail is probed. RFC 8985 §7.2 has none; ours keeps guests whose processor is taken away
/// for a moment from being sent anything twice.
const PROBE_MIN: Duration = Duration::from_millis(100);

/// The estimator.
#[derive(Debug)]
pub(crate) struct Rtt {
    smoothed: Option<(Duration, Duration)>,
    backoff: u32,
}

impl Rtt {
    pub fn new() -> Self {
        Self { smoothed: None, backoff: 0 }
    }

    /// Takes a measurement of a segment that was sent once (Karn's algorithm is the caller's duty).
    ///
    /// Spec: RFC 6298 §2.2, §2.3.
    pub fn sample(&mut self, measured: Duration) {
        self.smoothed = Some(match self.smoothed {
            None => (measured, measured / 2),
            Some((mean, deviation)) => {
                ((mean * 7 + measured) / 8, (deviation * 3 + mean.abs_diff(measured)) / 4)
            }
        });
    }

    /// Doubles the timeout after a loss. Spec: RFC 6298 §5.5.
    pub fn back_off(&mut self) {
        self.backoff = (self.backoff + 1).min(16);
    }

    /// Ends the doubling: new data was acknowledged.
    pub fn reset(&mut self) {
        self.backoff = 0;
    }

    /// When the tail is to be probed, if that is before the timeout. Spec: RFC 8985 §7.2.
    pub fn probe_timeout(&self) -> Option<Duration> {
        let (mean, _) = self.smoothed?;
        let probe = (mean * 2).max(PROBE_MIN);
        (self.backoff == 0 && probe < self.timeout()).then_some(probe)
    }

    /// The timeout to arm the timer with.
    pub fn timeout(&self) -> Duration {
        let base = match self.smoothed {
            None => Duration::from_secs(1),
            Some((mean, deviation)) => mean + deviation * 4,
        };
        (base.max(RTO_MIN) * (1 << self.backoff)).min(RTO_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_doubles_to_its_limit_and_recovers() {
        let mut rtt = Rtt::new();
        assert_eq!(rtt.timeout(), Duration::from_secs(1));
        rtt.sample(Duration::from_millis(1));
        assert_eq!(rtt.timeout(), RTO_MIN);
        for doubling in 1..20u32 {
            rtt.back_off();
            assert_eq!(rtt.timeout(), (RTO_MIN * (1 << doubling.min(16))).min(RTO_MAX));
        }
        rtt.reset();
        assert_eq!(rtt.timeout(), RTO_MIN);
    }
}
