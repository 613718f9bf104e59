//! Which machine has which address, as ARP, neighbour discovery and frames tell; and what waits to be told. Spec: RFC 826, RFC 1122 §2.3.2, RFC 4861.

use std::net::IpAddr;
use std::time::Duration;

use vpnkit_wire::ethernet::MacAddr;

use crate::time::Instant;

/// Shortest time between two requests for one address: RFC 1122 §2.3.2.1 says one a second.
const REQUEST_GAP: Duration = Duration::from_secs(1);
/// Addresses being asked for at once; beyond it requests are repeated more often.
const REQUESTED_MAX: usize = 64;

/// The table. It stays small, so it is searched in order.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    known: Vec<(IpAddr, MacAddr)>,
    requested: Vec<(IpAddr, Instant)>,
}

impl Neighbours {
    pub fn find(&self, address: IpAddr) -> Option<MacAddr> {
        self.known.iter().find(|known| known.0 == address).map(|known| known.1)
    }

    /// Remembers a neighbour, the latest word counts. Returns whether it was unknown. At `limit` the oldest goes.
    pub fn learn(&mut self, address: IpAddr, mac: MacAddr, limit: usize) -> bool {
        if let Some(known) = self.known.iter_mut().find(|known| known.0 == address) {
            known.1 = mac;
            return false;
        }
        if self.known.len() >= limit.max(1) {
            self.known.remove(0);
        }
        self.known.push((address, mac));
        self.requested.retain(|requested| requested.0 != address);
        true
    }

    /// Forgets a neighbour that is gone.
    pub fn forget(&mut self, mac: MacAddr) {
        self.known.retain(|known| known.1 != mac);
    }

    /// Whether a request for `address` is due; if so it counts as sent.
    pub fn may_request(&mut self, now: Instant, address: IpAddr) -> bool {
        if let Some(requested) = self.requested.iter_mut().find(|requested| requested.0 == address) {
            let due = now.since(requested.1) >= REQUEST_GAP;
            if due {
                requested.1 = now;
            }
            return due;
        }
        if self.requested.len() == REQUESTED_MAX {
            self.requested.remove(0);
        }
        self.requested.push((address, now));
        true
    }
}
