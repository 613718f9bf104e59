//! The handle by which other threads start, question and stop an engine.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use vpnkit_stack::{Counters, Flows};
use vpnkit_wire::ethernet::MacAddr;

use crate::config::{Config, Forward, ForwardError, StartError, Update};
use crate::host::{Bound, Command, Host};
use crate::link::Link;
use crate::waker::Waker;

/// A running network. Dropping it stops it: every connection is closed.
#[derive(Debug)]
pub struct Engine {
    commands: mpsc::Sender<Command>,
    waker: Waker,
    thread: Mutex<Option<JoinHandle<()>>>,
    network: vpnkit_stack::Config,
    backlog: u16,
}

impl Engine {
    /// Starts a network with one guest behind `link`. The ports of `config.forwards` are bound when it returns.
    ///
    /// # Errors
    /// When the configuration is impossible, a port cannot be bound, or the system has no thread or descriptor left.
    pub fn start(config: Config, link: Arc<dyn Link>) -> Result<Self, StartError> {
        let waker = Waker::new().map_err(StartError::os("eventfd"))?;
        let (commands, receiver) = mpsc::channel();
        let network = config.network.clone();
        let host = Host::new(&config, link, waker.clone(), receiver)?;
        let thread = std::thread::Builder::new()
            .name("vpnkit".into())
            .spawn(move || host.run())
            .map_err(StartError::os("starting a thread"))?;
        let engine =
            Self { commands, waker, thread: Mutex::new(Some(thread)), network, backlog: config.backlog };
        for forward in &config.forwards {
            engine.forward(*forward)?;
        }
        Ok(engine)
    }

    /// Forwards a port of the host to a guest and returns where the host listens, with the port that it chose if
    /// `forward.bind` has port 0. Bound when it returns.
    ///
    /// # Errors
    /// When the address is in use, not the host's, or not allowed to this process; when the guest's is no guest's.
    pub fn forward(&self, forward: Forward) -> Result<SocketAddr, ForwardError> {
        self.check_guest(forward.guest)?;
        let bound = Bound::new(forward, self.backlog)?;
        let local = bound.local();
        self.ask(|reply| Command::Forward(bound, reply)).ok_or(ForwardError::Stopped)??;
        Ok(local)
    }

    /// Ends a forward, named by its protocol and the address that [`Engine::forward`] returned. Connections that were
    /// made go on.
    ///
    /// # Errors
    /// When there is no such forward.
    pub fn unforward(&self, forward: Forward) -> Result<(), ForwardError> {
        self.ask(|reply| Command::Unforward(forward, reply)).ok_or(ForwardError::Stopped)?
    }

    /// Whether a guest can have this address.
    ///
    /// # Errors
    /// When it is outside of the network, or the network's own, or has port 0.
    pub fn check_guest(&self, guest: SocketAddr) -> Result<(), ForwardError> {
        if self.network.is_guest(guest.ip()) && guest.port() != 0 {
            return Ok(());
        }
        Err(ForwardError::NotGuest { guest, network: self.network.to_string() })
    }

    /// Leads a connected stream of the host, of any kind, to a guest's port, as if its peer had connected there. It is
    /// closed when the guest refuses.
    ///
    /// # Errors
    /// When the address is no guest's; when the engine has stopped.
    pub fn lead(&self, stream: OwnedFd, guest: SocketAddr) -> Result<(), ForwardError> {
        self.check_guest(guest)?;
        // One that cannot be made so would hold everybody up.
        rustix::io::ioctl_fionbio(&stream, true).map_err(|_| ForwardError::Stopped)?;
        self.commands.send(Command::Lead(stream, guest)).map_err(|_| ForwardError::Stopped)?;
        self.waker.wake();
        Ok(())
    }

    /// Returns the flows of this moment; none when it has stopped.
    pub fn flows(&self) -> Flows {
        self.ask(Command::Flows).unwrap_or_default()
    }

    /// Returns what happened so far.
    pub fn counters(&self) -> Counters {
        self.ask(Command::Counters).unwrap_or_default()
    }

    /// Returns which machine has which address; none when it has stopped.
    pub fn leases(&self) -> Vec<(Ipv4Addr, MacAddr)> {
        self.ask(Command::Leases).unwrap_or_default()
    }

    /// Changes something; it holds for what comes after.
    pub fn update(&self, update: Update) {
        // It fails when the engine has stopped, and then nothing comes after.
        let _ = self.commands.send(Command::Update(update));
        self.waker.wake();
    }

    /// Looks a name up as a guest would, and calls `answer` with the addresses found, which may be none; not at all when
    /// the engine stops before. The host's own address is then the one that guests know it by.
    pub fn lookup(&self, name: &str, answer: impl FnOnce(Vec<IpAddr>) + Send + 'static) {
        // It fails when the engine has stopped.
        let _ = self.commands.send(Command::Lookup(name.to_owned(), Box::new(answer)));
        self.waker.wake();
    }

    /// A handle by which another thread can stop it.
    pub fn stopper(&self) -> Stopper {
        Stopper { commands: self.commands.clone(), waker: self.waker.clone() }
    }

    /// Waits until it is stopped by a [`Stopper`], or its link is gone.
    pub fn wait(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic of the thread was printed; there is nothing to add to it here.
            let _ = thread.join();
        }
    }

    /// Stops the network and waits until its thread is gone.
    pub fn stop(self) {
        self.finish();
    }

    /// Asks the engine's thread; `None` when it is gone.
    fn ask<T>(&self, command: impl FnOnce(mpsc::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = mpsc::channel();
        self.commands.send(command(reply)).ok()?;
        self.waker.wake();
        answer.recv().ok()
    }

    fn finish(&self) {
        self.stopper().stop();
        self.wait();
    }
}

/// Stops an engine.
#[derive(Debug, Clone)]
pub struct Stopper {
    commands: mpsc::Sender<Command>,
    waker: Waker,
}

impl Stopper {
    /// Makes the engine stop; it does so soon.
    pub fn stop(&self) {
        // It fails when the thread is gone, and that is what is wanted.
        let _ = self.commands.send(Command::Stop);
        self.waker.wake();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.finish();
    }
}
