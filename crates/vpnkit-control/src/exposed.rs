//! Which ports are exposed: a table beside the engine's own, with who asked for what.
//!
//! Exposing what is exposed already, or hiding what is not, is no error: clients that restart say everything again.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vpnkit::{Forward, ForwardError, Protocol};

use crate::network::Network;

/// Ports that may be exposed at once.
pub const PORTS_MAX: usize = 16 << 10;

/// Why a port was not exposed.
#[derive(Debug, thiserror::Error)]
pub enum ExposeError {
    /// The engine could not.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// Nobody may listen there.
    #[error("{0} is not one of the addresses that ports may be bound to")]
    NotAllowed(IpAddr),
    /// It leads elsewhere already.
    #[error("{protocol} {bind} leads to {guest} already")]
    Taken {
        /// Its protocol.
        protocol: Protocol,
        /// Where the host listens.
        bind: SocketAddr,
        /// Where that leads.
        guest: SocketAddr,
    },
    /// There are too many.
    #[error("{PORTS_MAX} ports are exposed already")]
    TooMany,
}

/// `EAFNOSUPPORT` of Linux: there is no IPv6.
const NO_FAMILY: i32 = 97;

impl ExposeError {
    /// Whether it is about the family of the address, which the host does not have or that may not be bound.
    fn is_of_family(&self) -> bool {
        match self {
            Self::NotAllowed(_) | Self::Forward(ForwardError::NotLocal { .. }) => true,
            Self::Forward(ForwardError::Os { source, .. }) => source.raw_os_error() == Some(NO_FAMILY),
            _ => false,
        }
    }

    /// The error with its causes, in one line; where Docker has words for it, which it shows its users and some of them
    /// look for, in those.
    ///
    /// Spec: moby/vpnkit, `src/hostnet/forward.ml`.
    pub fn shown(&self) -> String {
        let listen = |protocol: Protocol, bind: SocketAddr, why: &str| {
            let call = if protocol == Protocol::Udp { "udp" } else { "tcp" };
            format!("listen {call} {bind}: bind: {why}")
        };
        match self {
            Self::Taken { bind, .. } | Self::Forward(ForwardError::InUse { bind, .. }) => {
                already_allocated(*bind)
            }
            Self::Forward(ForwardError::NotLocal { protocol, bind }) => {
                listen(*protocol, *bind, "cannot assign requested address")
            }
            Self::Forward(ForwardError::Denied { protocol, bind }) => {
                listen(*protocol, *bind, "permission denied")
            }
            other => with_causes(other),
        }
    }
}

/// Docker's words for a port that leads elsewhere already.
pub fn already_allocated(bind: SocketAddr) -> String {
    format!("Bind for {bind} failed: port is already allocated")
}

/// An error and what caused it, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line = format!("{line}: {cause}");
        source = cause.source();
    }
    line
}

/// A port that is exposed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// What was asked for: port 0 of the host stays 0 here.
    pub asked: Forward,
    /// Where the host listens.
    pub local: SocketAddr,
    /// What the client said about it.
    pub annotation: String,
}

/// The exposed ports of a network.
pub struct Exposed {
    network: Arc<dyn Network>,
    /// Empty: any.
    allowed: Vec<IpAddr>,
    ports: Mutex<BTreeMap<(bool, SocketAddr), Port>>,
}

impl std::fmt::Debug for Exposed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exposed").field("ports", &self.list().len()).finish_non_exhaustive()
    }
}

fn key(protocol: Protocol, bind: SocketAddr) -> (bool, SocketAddr) {
    (protocol == Protocol::Udp, bind)
}

impl Exposed {
    /// No ports yet. Only `allowed` addresses of the host may be bound; with 0.0.0.0 or none, any.
    pub fn new(network: Arc<dyn Network>, allowed: Vec<IpAddr>) -> Self {
        let any = allowed.iter().any(IpAddr::is_unspecified);
        Self { network, allowed: if any { Vec::new() } else { allowed }, ports: Mutex::default() }
    }

    /// The network that they are of.
    pub fn network(&self) -> &Arc<dyn Network> {
        &self.network
    }

    /// Exposes a port; returns where the host listens.
    ///
    /// # Errors
    /// When the address may not be bound, or cannot; when it leads elsewhere already.
    pub fn expose(&self, forward: Forward, annotation: &str) -> Result<SocketAddr, ExposeError> {
        let bind = forward.bind;
        if !self.allowed.is_empty() && !self.allowed.contains(&bind.ip()) {
            return Err(ExposeError::NotAllowed(bind.ip()));
        }
        let mut ports = self.ports();
        if let Some(port) = ports.get(&key(forward.protocol, bind)) {
            let guest = port.asked.guest;
            if guest == forward.guest {
                return Ok(port.local);
            }
            return Err(ExposeError::Taken { protocol: forward.protocol, bind, guest });
        }
        if ports.len() >= PORTS_MAX {
            return Err(ExposeError::TooMany);
        }
        let local = self.network.forward(forward)?;
        let port = Port { asked: forward, local, annotation: annotation.to_owned() };
        ports.insert(key(forward.protocol, local), port);
        Ok(local)
    }

    /// Exposes a port of all addresses of the host: `forward` is bound to those of IPv4, and to those of IPv6 as far as the
    /// host has any and they may be bound. Peers over IPv6 are led to the same guest.
    ///
    /// # Errors
    /// As [`Exposed::expose`].
    pub fn expose_everywhere(&self, forward: Forward) -> Result<(), ExposeError> {
        let local = self.expose(forward, "")?;
        let bind = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), local.port());
        match self.expose(Forward { bind, ..forward }, "") {
            Err(error) if !error.is_of_family() => {
                // All or nothing; that it may fail to go does not change why.
                let _ = self.unexpose(forward.protocol, local);
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Hides the port that the host listens at; returns whether there was one.
    ///
    /// # Errors
    /// When the network has stopped.
    pub fn unexpose(&self, protocol: Protocol, local: SocketAddr) -> Result<bool, ForwardError> {
        let mut ports = self.ports();
        let Some(port) = ports.remove(&key(protocol, local)) else { return Ok(false) };
        match self.network.unforward(Forward { bind: port.local, ..port.asked }) {
            Ok(()) => Ok(true),
            Err(ForwardError::Unknown { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All of them: TCP before UDP, each by address.
    pub fn list(&self) -> Vec<Port> {
        self.ports().values().cloned().collect()
    }

    fn ports(&self) -> MutexGuard<'_, BTreeMap<(bool, SocketAddr), Port>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
