//! What addresses stand for: the gateway, the host, the world outside; and whom guests may say to be.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Stack;

/// What a guest's destination stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The router and name server: this stack.
    Gateway,
    /// The machine that the stack runs on, by its loopback addresses.
    Host,
    /// Anybody that sockets of the host can reach.
    Outside,
    /// Nobody.
    Nowhere,
}

impl Stack {
    /// What `address` stands for.
    pub(super) fn place_of(&self, address: IpAddr) -> Place {
        match address {
            IpAddr::V4(v4) if v4 == self.config.gateway => Place::Gateway,
            IpAddr::V4(v4) if v4 == self.config.host && !v4.is_unspecified() => Place::Host,
            IpAddr::V6(v6) => self.place_of_ipv6(v6),
            other if self.is_outside(other) => Place::Outside,
            _ => Place::Nowhere,
        }
    }

    fn place_of_ipv6(&self, address: Ipv6Addr) -> Place {
        match &self.config.ipv6 {
            Some(ipv6) if address == ipv6.gateway || address == self.router => Place::Gateway,
            Some(ipv6) if address == ipv6.host && !address.is_unspecified() => Place::Host,
            Some(_) if self.is_outside(address.into()) => Place::Outside,
            _ => Place::Nowhere,
        }
    }

    /// Whether an address is one that hosts outside can have.
    pub(super) fn is_outside(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => {
                let [first, ..] = v4.octets();
                !self.config.contains(v4) && first != 0 && first != 127 && first < 224
            }
            // Global and unique local unicast: RFC 4291 §2.4, RFC 4193. The rest of ::/8 is special, and would lead
            // to the host's loopback (::ffff:127.0.0.1); but 64:ff9b::/96 is IPv4 behind the network's NAT64 (RFC 6052).
            IpAddr::V6(v6) => {
                let ours = self.config.ipv6.as_ref().is_some_and(|ipv6| ipv6.contains(v6));
                let is_translated = v6.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0];
                !ours && (is_translated || (v6.octets()[0] != 0 && v6.octets()[0] < 0xfe))
            }
        }
    }

    /// Whether a guest may have this source address.
    pub(super) fn may_send(&self, src: IpAddr) -> bool {
        let config = &self.config;
        match src {
            IpAddr::V4(v4) => {
                config.contains(v4)
                    && ![config.gateway, config.host, config.network(), config.broadcast()].contains(&v4)
            }
            IpAddr::V6(v6) => config.ipv6.as_ref().is_some_and(|ipv6| {
                let theirs = ipv6.contains(v6) || v6.is_unicast_link_local();
                theirs && ![ipv6.gateway, ipv6.host, self.router].contains(&v6)
            }),
        }
    }

    /// Where host sockets send what a guest sends to `remote`, which stands for the host or is outside.
    pub(super) fn outward(&self, place: Place, remote: SocketAddr) -> SocketAddr {
        if place != Place::Host {
            return remote;
        }
        let loopback = match remote {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        SocketAddr::new(loopback, remote.port())
    }

    /// The address by which guests know somebody whom host sockets know as `address`.
    pub(super) fn inward(&self, address: IpAddr) -> IpAddr {
        if address.is_loopback() { self.host_like(address) } else { address }
    }

    /// The gateway's address in the family of `other`; of a link-local IPv6 address the router's own.
    pub(super) fn gateway_like(&self, other: IpAddr) -> IpAddr {
        match (other, &self.config.ipv6) {
            (IpAddr::V6(v6), Some(ipv6)) if !v6.is_unicast_link_local() => ipv6.gateway.into(),
            (IpAddr::V6(_), _) => self.router.into(),
            (IpAddr::V4(_), _) => self.config.gateway.into(),
        }
    }

    /// The address by which guests know peers on the host, in the family of `other`: the host's, or the gateway's if
    /// that is not reached.
    pub(super) fn host_like(&self, other: IpAddr) -> IpAddr {
        match (other, &self.config.ipv6) {
            (IpAddr::V6(_), Some(ipv6)) if ipv6.host.is_unspecified() => ipv6.gateway.into(),
            (IpAddr::V6(_), Some(ipv6)) => ipv6.host.into(),
            _ => self.config.host_alias().into(),
        }
    }

    /// The address by which `guest` knows a peer of a forwarded port.
    pub(super) fn alias_of(&self, peer: SocketAddr, guest: SocketAddr) -> IpAddr {
        // A socket that takes both families shows IPv4 peers mapped: RFC 4291 §2.5.5.2.
        let address = peer.ip().to_canonical();
        if address.is_ipv4() == guest.is_ipv4() && self.is_outside(address) {
            address
        } else {
            self.host_like(guest.ip())
        }
    }
}
