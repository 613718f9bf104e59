//! Connections of guests that go elsewhere than they think: to a proxy, or through a tunnel.

use std::fmt;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;

/// Decides where TCP connections of guests really go. Called by the engine's thread, which waits meanwhile.
pub trait Intercept: Send + Sync + fmt::Debug {
    /// What becomes of a connection from `guest` to `to`; `None`: it goes there.
    fn intercept(&self, guest: SocketAddr, to: SocketAddr) -> Option<Detour>;
}

/// Another way than straight.
pub enum Detour {
    /// To a proxy on loopback, which is told of the connection's own address before it comes.
    Proxy {
        /// Where the proxy listens.
        address: SocketAddr,
        /// Tells it.
        announce: Box<dyn FnOnce(SocketAddr) + Send>,
    },
    /// Through a stream, on which a request is sent and accepted first: both have a length of two bytes, little-endian,
    /// before their JSON. Spec: VPNKit's `go/pkg/tunnel`.
    Tunnel {
        /// The stream, connected.
        stream: UnixStream,
        /// The request's JSON.
        request: Vec<u8>,
    },
    /// Nowhere: the guest is refused.
    Refuse,
}

impl fmt::Debug for Detour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proxy { address, .. } => f.debug_tuple("Proxy").field(address).finish(),
            Self::Tunnel { stream, .. } => f.debug_tuple("Tunnel").field(stream).finish(),
            Self::Refuse => f.write_str("Refuse"),
        }
    }
}
