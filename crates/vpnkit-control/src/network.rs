//! What the control of a network needs of its engine.

use std::net::{Ipv4Addr, SocketAddr};

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
