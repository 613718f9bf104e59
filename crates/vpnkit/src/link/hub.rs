//! A link to many machines on sockets, joined by a switch.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use ethlink::Hub;
use vpnkit_stack::Offload;

use super::{Link, Received};
use crate::waker::Waker;

/// The link. Frames are whole: neither checksums nor segmentation are left to the machines.
#[derive(Debug)]
pub struct HubLink {
    /// Used by the engine's thread only.
    hub: Mutex<Hub>,
    /// The hub's descriptor.
    events: OwnedFd,
}

impl HubLink {
    /// A link over a hub, whose engine has the address of the network's gateway.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn new(hub: Hub) -> std::io::Result<Self> {
        let events = hub.as_fd().try_clone_to_owned()?;
        Ok(Self { hub: Mutex::new(hub), events })
    }

    fn hub(&self) -> std::sync::MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Link for HubLink {
    fn attach(&self, _waker: Waker) {}

    fn receive(&self, take: &mut dyn FnMut(Offload, &[u8])) -> Received {
        if self.hub().receive(&mut |frame| take(Offload::NONE, frame)) {
            Received::Some
        } else {
            Received::All
        }
    }

    fn send(&self, _offload: Offload, parts: &[IoSlice<'_>]) -> bool {
        let mut slices: [&[u8]; 4] = [&[]; 4];
        for (slice, part) in slices.iter_mut().zip(parts) {
            *slice = part;
        }
        self.hub().send(&slices[..parts.len().min(4)])
    }

    fn flush(&self) {
        self.hub().flush();
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.events.as_fd())
    }

    fn offload(&self) -> Option<bool> {
        Some(false)
    }
}
