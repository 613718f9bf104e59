//! What the control of a network needs of its engine.

use std::net::SocketAddr;

use vpnkit::{Counters, Engine, Flows, Forward, ForwardError};

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
}
