//! A link to many machines, on sockets and devices, joined by a switch.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use ethlink::{Aside, Hub, Vnet};
use vpnkit_stack::{DropReason, Offload};
use vpnkit_wire::ethernet::MacAddr;

use super::{Link, LinkDrops, Received, Take};
use crate::waker::Waker;

/// The link. What machines cannot do of checksums and segmentation is done on the way to them.
#[derive(Debug)]
pub struct HubLink {
    /// Used by the engine's thread, but for a look at who is there.
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

    /// The hardware addresses of machines that sent something, each with the number of the port where it is.
    pub fn stations(&self) -> Vec<(MacAddr, usize)> {
        self.hub().stations().map(|(mac, port)| (MacAddr(mac), port)).collect()
    }

    /// Calls `watcher` with each frame that the engine does not get, in its thread: those between machines, and those that
    /// the switch drops, with why.
    pub fn watch(&self, watcher: impl Fn(&[u8], Option<DropReason>) + Send + Sync + 'static) {
        self.hub().watch(move |frame, aside| {
            watcher(frame, (aside == Aside::Forged).then_some(DropReason::ForgedSource));
        });
    }

    fn hub(&self) -> std::sync::MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Link for HubLink {
    fn attach(&self, _waker: Waker) {}

    fn receive(&self, take: &mut Take<'_>) -> Received {
        if self.hub().receive(&mut |vnet, frame| {
            let mut header = [0; 10];
            header.copy_from_slice(&vnet.0[..10]);
            take(Offload::from_virtio(&header), frame.into());
        }) {
            Received::Some
        } else {
            Received::All
        }
    }

    fn send(&self, offload: Offload, parts: &[IoSlice<'_>]) -> bool {
        // The first part of a large frame is all headers.
        let header_bytes = parts.first().map_or(0, |part| part.len());
        let vnet = Vnet(offload.to_virtio(header_bytes as u16));
        let mut slices: [&[u8]; 4] = [&[]; 4];
        for (slice, part) in slices.iter_mut().zip(parts) {
            *slice = part;
        }
        self.hub().send(&vnet, &slices[..parts.len().min(4)])
    }

    fn flush(&self) {
        self.hub().flush();
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.events.as_fd())
    }

    fn departed(&self) -> Vec<MacAddr> {
        self.hub().take_departed().into_iter().map(MacAddr).collect()
    }

    fn drops(&self) -> LinkDrops {
        let hub = self.hub();
        LinkDrops { forged: hub.forged(), full: hub.dropped() }
    }

    fn offload(&self) -> Option<bool> {
        Some(true)
    }
}
