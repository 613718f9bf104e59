//! The IPv6 side of a network.

use std::net::Ipv6Addr;

use vpnkit_wire::ethernet::MacAddr;

use super::ConfigError;

/// A network with one router. Guests make addresses of their own from its prefix (SLAAC), or are given them (DHCPv6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipv6Network {
    /// Name server of the guests, and an address of their router.
    pub gateway: Ipv6Addr,
    /// Stands for the host: TCP and UDP to it go to `::1` there. `::`, or an IPv4 network whose guests do not reach the
    /// host: nor do they over IPv6.
    pub host: Ipv6Addr,
    /// The address leased first; further machines get those after it.
    pub guest: Ipv6Addr,
    /// Whether guests are offered a default route. Without one they reach the network itself, and use IPv4 for what
    /// is outside.
    pub default_route: bool,
}

/// Bits of the prefix: RFC 4862 needs 64 on Ethernet (RFC 2464 §4).
pub const PREFIX_BITS: u8 = 64;

impl Default for Ipv6Network {
    /// A network of unique local addresses (RFC 4193).
    fn default() -> Self {
        let of = |last| Ipv6Addr::new(0xfd76, 0x706e, 0x6b69, 0x7400, 0, 0, 0, last);
        Self { gateway: of(1), host: of(2), guest: of(3), default_route: true }
    }
}

impl Ipv6Network {
    /// The address with all bits after the prefix clear.
    pub fn network(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.gateway.to_bits() & (u128::MAX << (128 - PREFIX_BITS)))
    }

    /// Whether `address` has the network's prefix.
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        (address.to_bits() ^ self.gateway.to_bits()) >> (128 - PREFIX_BITS) == 0
    }

    /// Errs unless the addresses form one network.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let (network, prefix) = (self.network().into(), PREFIX_BITS);
        let host = if self.host.is_unspecified() { None } else { Some(("host", self.host)) };
        for (what, address) in [("gateway", self.gateway), ("guest", self.guest)].into_iter().chain(host) {
            let reserved = address.is_multicast() || address.is_loopback() || address.is_unicast_link_local();
            if !self.contains(address) || address == self.network() || reserved {
                return Err(ConfigError::Outside { what, address: address.into(), network, prefix });
            }
        }
        if self.gateway == self.host || self.gateway == self.guest {
            return Err(ConfigError::Twice(self.gateway.into()));
        }
        if self.host == self.guest { Err(ConfigError::Twice(self.host.into())) } else { Ok(()) }
    }
}

/// The link-local address that a hardware address makes. Spec: RFC 4291 §2.5.6, appendix A.
pub fn link_local(mac: MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let word = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, word(a ^ 2, b), word(c, 0xff), word(0xfe, d), word(e, f))
}
