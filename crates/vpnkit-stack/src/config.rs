//! What a network looks like, and what it may cost.

mod ipv6;

use std::net::{IpAddr, Ipv4Addr};

use vpnkit_wire::ethernet::MacAddr;

pub use ipv6::{Ipv6Network, PREFIX_BITS, link_local};

/// Largest packet size that a link can have: with the header, TAP devices take 65535 bytes at most.
pub const MTU_MAX: u16 = 65520;

/// A network with one gateway.
#[derive(Debug, Clone)]
pub struct Config {
    /// Router, name server and DHCP server of the guests.
    pub gateway: Ipv4Addr,
    /// Stands for the host: TCP and UDP to it go to 127.0.0.1 there. 0.0.0.0: guests do not reach the host.
    pub host: Ipv4Addr,
    /// The address leased first; further machines get those after it.
    pub guest: Ipv4Addr,
    /// The address leased last; `None` is the last of the network.
    pub guest_last: Option<Ipv4Addr>,
    /// Bits of the network in an address, 8 to 30.
    pub prefix: u8,
    /// The network's IPv6 side, if it has one. With an MTU below 1280 it has none: RFC 8200 §5.
    pub ipv6: Option<Ipv6Network>,
    /// Largest IP packet, in bytes: 576 to [`MTU_MAX`].
    pub mtu: u16,
    /// Whether the link takes partial checksums and large segments (`virtio_net_hdr`).
    pub offload: bool,
    /// Hardware address of gateway and host.
    pub gateway_mac: MacAddr,
    /// Domain given to guests; empty for none.
    pub domain: String,
    /// Domains that guests search.
    pub search: Vec<String>,
    /// Host name given to guests; empty for none.
    pub hostname: String,
    /// Seconds that a lease lasts.
    pub lease_seconds: u32,
    /// Names of `host`.
    pub host_names: Vec<String>,
    /// Names of `gateway`.
    pub gateway_names: Vec<String>,
    /// Names of the guest that asks.
    pub guest_names: Vec<String>,
    /// Bounds.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            gateway: Ipv4Addr::new(192, 168, 65, 1),
            host: Ipv4Addr::new(192, 168, 65, 2),
            guest: Ipv4Addr::new(192, 168, 65, 3),
            guest_last: None,
            prefix: 24,
            ipv6: Some(Ipv6Network::default()),
            mtu: 1500,
            offload: false,
            gateway_mac: MacAddr([0xf6, 0x16, 0x36, 0xbc, 0xf9, 0xc6]),
            domain: String::new(),
            search: Vec::new(),
            hostname: String::new(),
            lease_seconds: 0x7fff_ffff,
            host_names: vec!["host.internal".into()],
            gateway_names: vec!["gateway.internal".into()],
            guest_names: vec!["vm.internal".into()],
            limits: Limits::default(),
        }
    }
}

impl std::fmt::Display for Config {
    /// The networks: `192.168.65.0/24`, and the one of IPv6 after it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)?;
        match &self.ipv6 {
            Some(ipv6) => write!(f, ", {}/{PREFIX_BITS}", ipv6.network()),
            None => Ok(()),
        }
    }
}

/// Why a [`Config`] describes no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum ConfigError {
    #[error("a prefix of {0} bits is not between 8 and 30")]
    Prefix(u8),
    #[error("an MTU of {0} is not between 576 and {MTU_MAX}")]
    Mtu(u16),
    #[error("{what} {address} is not an address of the gateway's network {network}/{prefix}")]
    Outside { what: &'static str, address: IpAddr, network: IpAddr, prefix: u8 },
    #[error("the last guest {last} comes before the first {first}")]
    Last { first: Ipv4Addr, last: Ipv4Addr },
    #[error("{0} is used twice")]
    Twice(IpAddr),
}

impl Config {
    /// Errs unless the addresses form one network and the sizes are possible.
    ///
    /// # Errors
    /// Says what is wrong with which value.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(8..=30).contains(&self.prefix) {
            return Err(ConfigError::Prefix(self.prefix));
        }
        if !(576..=MTU_MAX).contains(&self.mtu) {
            return Err(ConfigError::Mtu(self.mtu));
        }
        let (network, prefix) = (self.network(), self.prefix);
        let last = self.guest_last.unwrap_or(self.guest);
        let host = if self.host.is_unspecified() { None } else { Some(("host", self.host)) };
        let addresses = [("gateway", self.gateway), ("guest", self.guest), ("last guest", last)];
        for (what, address) in addresses.into_iter().chain(host) {
            if !self.contains(address) || address == network || address == self.broadcast() {
                return Err(ConfigError::Outside {
                    what,
                    address: address.into(),
                    network: network.into(),
                    prefix,
                });
            }
        }
        if last < self.guest {
            return Err(ConfigError::Last { first: self.guest, last });
        }
        if self.gateway == self.host || self.gateway == self.guest {
            return Err(ConfigError::Twice(self.gateway.into()));
        }
        if self.host == self.guest {
            return Err(ConfigError::Twice(self.host.into()));
        }
        self.ipv6.as_ref().map_or(Ok(()), Ipv6Network::validate)
    }

    /// Whether a guest can have the address.
    pub fn is_guest(&self, address: IpAddr) -> bool {
        match (address, &self.ipv6) {
            (IpAddr::V4(v4), _) => self.contains(v4) && ![self.gateway, self.host].contains(&v4),
            (IpAddr::V6(v6), Some(ipv6)) => ipv6.contains(v6) && ![ipv6.gateway, ipv6.host].contains(&v6),
            (IpAddr::V6(_), None) => false,
        }
    }

    /// The address by which a guest knows peers on the host: the host's, or the gateway's if that is not reached.
    pub fn host_alias(&self) -> Ipv4Addr {
        if self.host.is_unspecified() { self.gateway } else { self.host }
    }

    /// The addresses that the stack itself has: of gateway, host and router, in both families.
    pub fn own_addresses(&self) -> Vec<IpAddr> {
        let ipv4 = [self.gateway, self.host].map(IpAddr::V4);
        let router = ipv6::link_local(self.gateway_mac);
        let ipv6 = self.ipv6.iter().flat_map(|ipv6| [ipv6.gateway, ipv6.host, router]).map(IpAddr::V6);
        ipv4.into_iter().chain(ipv6).filter(|address| !address.is_unspecified()).collect()
    }

    /// Network mask.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX << (32 - self.prefix))
    }

    /// First address of the network, which no station has.
    pub fn network(&self) -> Ipv4Addr {
        self.gateway & self.mask()
    }

    /// Address of every station of the network.
    pub fn broadcast(&self) -> Ipv4Addr {
        self.gateway | !self.mask()
    }

    /// Whether `address` belongs to the network.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address & self.mask() == self.network()
    }
}

/// What a stack may hold at most. Memory is bounded by `buffer_bytes` plus about 1 KiB for each flow.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// TCP flows, those in TIME-WAIT included; a SYN beyond it is refused.
    pub tcp_flows: usize,
    /// TCP flows whose host connection is being made; a SYN beyond it is dropped.
    pub tcp_connecting: usize,
    /// UDP flows; the one idle longest makes way.
    pub udp_flows: usize,
    /// Ping flows; the one idle longest makes way.
    pub ping_flows: usize,
    /// DNS queries without an answer; a query beyond it is answered with SERVFAIL.
    pub dns_queries: usize,
    /// First window of a flow, in bytes.
    pub window_bytes: u32,
    /// Largest window of a flow, in bytes.
    pub window_bytes_max: u32,
    /// Bytes from the host that flows may queue together before each has to do with little.
    pub send_bytes: usize,
    /// Bytes that all flows together may promise and queue.
    pub buffer_bytes: u64,
    /// Frames other than TCP data that wait for the link; the one beyond it is dropped.
    pub queued_frames: usize,
    /// Neighbours remembered.
    pub neighbours: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tcp_flows: 32768,
            tcp_connecting: 4096,
            udp_flows: 4096,
            ping_flows: 64,
            dns_queries: 2048,
            window_bytes: 64 * 1024,
            window_bytes_max: 512 * 1024,
            send_bytes: 2 << 20,
            buffer_bytes: 512 << 20,
            queued_frames: 1024,
            neighbours: 256,
        }
    }
}
