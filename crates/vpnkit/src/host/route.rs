//! Whether the host has a way to the IPv6 Internet: guests are offered a default route only if it has.

use std::net::{Ipv6Addr, UdpSocket};
use std::time::Duration;

use super::Host;

/// How often the host is asked, while there is traffic.
pub const INTERVAL: Duration = Duration::from_secs(10);
/// An address of the global range (RFC 4291 §2.4), and any port.
const PROBE: (Ipv6Addr, u16) = (Ipv6Addr::new(0x2600, 0, 0, 0, 0, 0, 0, 1), 9);

impl Host {
    /// Tells the stack whether there is a route; guests hear of a change.
    pub(super) fn follow_route(&mut self) {
        self.route_checked = self.now();
        if self.stack.config().ipv6.is_some() {
            self.stack.set_default_route(leads_out());
        }
    }
}

/// Asks the kernel for a route: to connect a datagram socket sends nothing.
fn leads_out() -> bool {
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).and_then(|socket| socket.connect(PROBE)).is_ok()
}
