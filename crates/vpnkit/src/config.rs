//! What an engine is started with, and what can go wrong.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ethlink::inside::Inside;
use vpnkit_stack::{ConfigError, GatewayPorts, Zone};
use vpnkit_wire::ethernet::MacAddr;

use crate::intercept::Intercept;
use crate::upstream::Upstreams;

/// A network and its ties to the host.
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses, names and limits.
    pub network: vpnkit_stack::Config,
    /// Who answers DNS queries for names that are not the network's own.
    pub dns: Resolvers,
    /// A `hosts(5)` file whose names are answered too, followed as it changes.
    pub hosts: Option<PathBuf>,
    /// Ports of the host that lead to the guest from the start.
    pub forwards: Vec<Forward>,
    /// Connections that may wait to be accepted at a forwarded port; the kernel has its own limit.
    pub backlog: u16,
    /// How long the engine stays awake for more, while answers come in less than that: to be woken takes longer than many
    /// of them. Zero is never.
    pub busy_poll: Duration,
    /// Where connections of guests really go, if not straight.
    pub intercept: Option<Arc<dyn Intercept>>,
    /// Where sockets of the guest's namespace come from, if it is one: TCP connections from this host's loopback to a
    /// forwarded port then go past the device.
    pub inside: Option<Arc<Inside>>,
}

/// See [`Config::backlog`].
const BACKLOG: u16 = 4096;

/// See [`Config::busy_poll`].
const BUSY_POLL: Duration = Duration::from_micros(50);

impl Default for Config {
    fn default() -> Self {
        Self {
            network: vpnkit_stack::Config::default(),
            dns: Resolvers::default(),
            hosts: Some(PathBuf::from("/etc/hosts")),
            forwards: Vec::new(),
            backlog: BACKLOG,
            busy_poll: BUSY_POLL,
            intercept: None,
            inside: None,
        }
    }
}

/// Name servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolvers {
    /// Those of a `resolv.conf(5)`, followed as it changes.
    File(PathBuf),
    /// These, in this order.
    Fixed(Vec<SocketAddr>),
}

impl Default for Resolvers {
    fn default() -> Self {
        Resolvers::File(PathBuf::from("/etc/resolv.conf"))
    }
}

/// A change of a running network.
#[derive(Debug, Clone)]
pub enum Update {
    /// The text of a `hosts(5)` file, in place of the one before.
    Hosts(String),
    /// Name servers, in place of those before, which are not followed any more.
    Resolvers(Upstreams),
    /// An address that is kept for a machine.
    Reserve(MacAddr, Ipv4Addr),
    /// Ports of the gateway that lead on, in place of those before.
    GatewayPorts(GatewayPorts),
    /// Zones of the name server, in place of those before.
    Zones(Vec<Zone>),
    /// What guests are told by DHCP: their domain, empty for none, and the domains that they search.
    Domains {
        /// The domain.
        domain: String,
        /// Searched in this order.
        search: Vec<String>,
    },
}

/// Protocol of a forwarded port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// A port of the host that leads to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Forward {
    /// Protocol.
    pub protocol: Protocol,
    /// Where the host listens; port 0 lets it choose.
    pub bind: SocketAddr,
    /// Where it leads.
    pub guest: SocketAddr,
}

impl Forward {
    /// A TCP port.
    pub fn tcp(bind: SocketAddr, guest: SocketAddr) -> Self {
        Self { protocol: Protocol::Tcp, bind, guest }
    }

    /// A UDP port.
    pub fn udp(bind: SocketAddr, guest: SocketAddr) -> Self {
        Self { protocol: Protocol::Udp, bind, guest }
    }
}

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum StartError {
    #[error("the network is impossible")]
    Config(#[from] ConfigError),
    #[error("{what} failed")]
    Os { what: &'static str, source: io::Error },
    #[error(transparent)]
    Forward(#[from] ForwardError),
}

impl StartError {
    pub(crate) fn os(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
        move |source| StartError::Os { what, source }
    }
}

/// Why a port is not forwarded.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum ForwardError {
    #[error("{protocol} {bind} is already in use on the host")]
    InUse { protocol: Protocol, bind: SocketAddr },
    #[error("{protocol} {bind} needs a privilege that this process does not have")]
    Denied { protocol: Protocol, bind: SocketAddr },
    #[error("{0} is not an address of the host", bind.ip())]
    NotLocal { protocol: Protocol, bind: SocketAddr },
    #[error("{guest} is not an address that a guest of {network} can have")]
    NotGuest { guest: SocketAddr, network: String },
    #[error("{protocol} {bind} cannot be bound")]
    Os { protocol: Protocol, bind: SocketAddr, source: io::Error },
    #[error("{protocol} {bind} is not forwarded")]
    Unknown { protocol: Protocol, bind: SocketAddr },
    #[error("a path in a machine is reached through its forwarder only: start the network with --vsock-path")]
    NoForwarder,
    #[error("{} is no path of a socket in a machine: it has 1 to 107 bytes", .0.display())]
    NotPath(std::path::PathBuf),
    #[error("the network has stopped")]
    Stopped,
}

impl ForwardError {
    /// Says what a failed bind of `forward` means.
    pub(crate) fn of_bind(forward: &Forward, source: io::Error) -> Self {
        let (protocol, bind) = (forward.protocol, forward.bind);
        match source.kind() {
            io::ErrorKind::AddrInUse => ForwardError::InUse { protocol, bind },
            io::ErrorKind::PermissionDenied => ForwardError::Denied { protocol, bind },
            io::ErrorKind::AddrNotAvailable => ForwardError::NotLocal { protocol, bind },
            _ => ForwardError::Os { protocol, bind, source },
        }
    }
}
