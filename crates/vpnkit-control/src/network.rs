//! What the control of a network needs of its engine.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;

use vpnkit::{Counters, Engine, Flows, Forward, ForwardError, MacAddr, Update};

/// A running network. Every call may come from any thread.
pub trait Network: Send + Sync {
    /// Forwards a port of the host; returns where the host listens.
    ///
    /// # Errors
    /// As [`Engine::forward`].
    fn forward(&self, forward: Forward) -> Result<SocketAddr, ForwardError>;

    /// Ends a forward.
    ///
    /// # Errors
    /// When there is none.
    fn unforward(&self, forward: Forward) -> Result<(), ForwardError>;

    /// Whether a guest can have this address.
    ///
    /// # Errors
    /// As [`Engine::check_guest`].
    fn check_guest(&self, guest: SocketAddr) -> Result<(), ForwardError>;

    /// Leads a connected stream of the host to a guest's port.
    ///
    /// # Errors
    /// As [`Engine::lead`].
    fn lead(&self, stream: OwnedFd, guest: SocketAddr) -> Result<(), ForwardError>;

    /// Leads a connected stream of the host to a Unix socket in the machine.
    ///
    /// # Errors
    /// When there is no way to it: over an Ethernet there is none. When the path is impossible.
    fn lead_to_path(&self, stream: OwnedFd, path: &Path) -> Result<(), ForwardError>;

    /// Whether [`Network::lead_to_path`] can lead there.
    ///
    /// # Errors
    /// As it.
    fn check_path(&self, path: &Path) -> Result<(), ForwardError>;

    /// The flows of this moment.
    fn flows(&self) -> Flows;

    /// What happened so far.
    fn counters(&self) -> Counters;

    /// Which machine has which address.
    fn leases(&self) -> Vec<(Ipv4Addr, MacAddr)>;

    /// Changes something; it holds for what comes after.
    fn update(&self, update: Update);
}

impl Network for Engine {
    fn forward(&self, forward: Forward) -> Result<SocketAddr, ForwardError> {
        Engine::forward(self, forward)
    }

    fn unforward(&self, forward: Forward) -> Result<(), ForwardError> {
        Engine::unforward(self, forward)
    }

    fn check_guest(&self, guest: SocketAddr) -> Result<(), ForwardError> {
        Engine::check_guest(self, guest)
    }

    fn lead(&self, stream: OwnedFd, guest: SocketAddr) -> Result<(), ForwardError> {
        Engine::lead(self, stream, guest)
    }

    fn lead_to_path(&self, _stream: OwnedFd, path: &Path) -> Result<(), ForwardError> {
        self.check_path(path)
    }

    fn check_path(&self, _path: &Path) -> Result<(), ForwardError> {
        Err(ForwardError::NoForwarder)
    }

    fn flows(&self) -> Flows {
        Engine::flows(self)
    }

    fn counters(&self) -> Counters {
        Engine::counters(self)
    }

    fn leases(&self) -> Vec<(Ipv4Addr, MacAddr)> {
        Engine::leases(self)
    }

    fn update(&self, update: Update) {
        Engine::update(self, update);
    }
}
