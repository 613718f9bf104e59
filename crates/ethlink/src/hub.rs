//! Many machines on many sockets, joined by a switch, with one more station: the engine.
//!
//! Machines come and go as they like; each connection is a port of its own. What waits for a slow one is bounded, and
//! nobody else waits for it.

mod listener;

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::net::{self, SocketFlags, SocketType};

use crate::framing::Framing;
use crate::greeting::{Greeting, Terms};
use crate::guard::{Addresses, Guard};
use crate::identity::Identities;
use crate::interval::interval_timer;
use crate::port::{Device, Left, Packets, Port, SCRATCH_BYTES, Stream};
use crate::switch::{Mac, PortId, Switch, Verdict};
use crate::tap::Tap;
use crate::vhost::VhostUser;
use crate::vnet::Vnet;

pub use listener::{Address, Protocol};
use listener::{Listener, widen};

/// Machines at once.
const PORTS_MAX: usize = 256;
/// Departures remembered until they are asked for; the earliest are forgotten.
const DEPARTED_MAX: usize = 64 * PORTS_MAX;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;
/// Events taken in one round.
const EVENTS_MAX: usize = 64;
/// Where the numbers of listening sockets begin.
const LISTENERS_AT: u64 = 1 << 32;
/// The number of the timer.
const TIMER: u64 = 1 << 33;
/// How often it is looked whether a machine on datagrams is gone.
const LOOK: Duration = Duration::from_secs(1);
/// IEEE 802 local experimental EtherType 1: of no protocol that anybody speaks.
const TYPE_EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];

#[derive(Debug)]
struct Slot {
    port: Port,
    /// Whether it waits for the socket to have room.
    blocked: bool,
    /// Whether frames were queued since the last flush.
    dirty: bool,
}

/// What became of a frame that the engine did not get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aside {
    /// It went to other machines.
    Between,
    /// It was dropped: see [`Hub::forged`].
    Forged,
}

/// Called with a frame, and what became of it.
type Tell = dyn Fn(&[u8], Aside) + Send + Sync;

/// Who is told of frames that the engine does not get.
struct Watcher(Box<Tell>);

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watcher")
    }
}

/// The hub.
#[derive(Debug)]
pub struct Hub {
    epoll: OwnedFd,
    listeners: Vec<Listener>,
    slots: Vec<Option<Slot>>,
    switch: Switch,
    guard: Option<Guard>,
    watcher: Option<Watcher>,
    /// Where machines are on datagrams.
    timer: Option<OwnedFd>,
    /// A frame of the engine to itself, which nobody minds.
    probe: [u8; 60],
    terms: Terms,
    dropped: u64,
    forged: u64,
    /// Hardware addresses of machines that left since that was asked.
    departed: Vec<Mac>,
    scratch: Vec<u8>,
}

impl Hub {
    /// A hub without machines on which the engine has the address `engine`.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn new(engine: Mac, mtu: u16) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let terms = Terms { mtu, serial: 0, identities: None };
        let (switch, scratch) = (Switch::new(engine), vec![0; SCRATCH_BYTES]);
        let (listeners, slots, departed) = (Vec::new(), Vec::new(), Vec::new());
        let mut probe = [0; 60];
        probe[..6].copy_from_slice(&engine);
        probe[6..12].copy_from_slice(&engine);
        probe[12..14].copy_from_slice(&TYPE_EXPERIMENTAL);
        Ok(Self {
            epoll,
            listeners,
            slots,
            switch,
            guard: None,
            watcher: None,
            timer: None,
            probe,
            terms,
            dropped: 0,
            forged: 0,
            departed,
            scratch,
        })
    }

    /// Lets machines connect. A Unix socket that nobody listens to any more is replaced.
    ///
    /// # Errors
    /// When the address is in use or not ours to bind.
    pub fn listen(&mut self, protocol: Protocol, address: &Address) -> io::Result<()> {
        let listener = Listener::bind(protocol, address)?;
        if protocol == Protocol::Datagram {
            let fd = listener.fd.try_clone()?;
            // The path lives as long as the hub.
            self.listeners.push(listener);
            self.start_timer()?;
            return self.add(Port::Packets(Packets::new(fd, false)));
        }
        self.accept_from(listener)
    }

    fn start_timer(&mut self) -> io::Result<()> {
        if self.timer.is_none() {
            let timer = interval_timer(LOOK)?;
            epoll::add(&self.epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
            self.timer = Some(timer);
        }
        Ok(())
    }

    fn look(&mut self) {
        if let Some(timer) = &self.timer {
            // It says how often it ran out.
            let _ = rustix::io::read(timer, &mut [0; 8]);
        }
        for slot in self.slots.iter_mut().flatten() {
            slot.port.look(&self.probe);
        }
    }

    /// Lets machines connect to a socket that is bound already, whoever bound it.
    ///
    /// # Errors
    /// When it cannot be listened at.
    pub fn listen_on(&mut self, protocol: Protocol, fd: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        self.accept_from(Listener { fd, protocol, path: None })
    }

    fn accept_from(&mut self, listener: Listener) -> io::Result<()> {
        net::listen(&listener.fd, BACKLOG)?;
        let number = LISTENERS_AT + self.listeners.len() as u64;
        epoll::add(&self.epoll, &listener.fd, EventData::new_u64(number), EventFlags::IN)?;
        self.listeners.push(listener);
        Ok(())
    }

    /// Attaches a machine at the other end of a connected socket: a stream with QEMU's framing, or one of packets.
    ///
    /// # Errors
    /// When it is no socket, or there are too many machines.
    pub fn attach(&mut self, fd: OwnedFd) -> io::Result<()> {
        let kind = net::sockopt::socket_type(&fd)?;
        rustix::io::ioctl_fionbio(&fd, true)?;
        let port = if kind == SocketType::STREAM {
            Port::Stream(Stream::new(fd, Framing::Be32, Greeting::Done, self.next_terms()))
        } else {
            Port::Packets(Packets::new(fd, true))
        };
        self.add(port)
    }

    /// Lets machines that connect from now on prefer addresses.
    pub fn set_identities(&mut self, identities: Arc<Identities>) {
        self.terms.identities = Some(identities);
    }

    /// Lets machines use no addresses but their own from now on: see [`Guard`].
    pub fn set_addresses(&mut self, addresses: Addresses) {
        self.guard = Some(Guard::new(addresses));
    }

    /// Tells `watcher` of each frame that the engine does not get.
    pub fn watch(&mut self, watcher: impl Fn(&[u8], Aside) + Send + Sync + 'static) {
        self.watcher = Some(Watcher(Box::new(watcher)));
    }

    /// Attaches what is behind a TAP device.
    ///
    /// # Errors
    /// When there are too many machines.
    pub fn attach_tap(&mut self, tap: Tap) -> io::Result<()> {
        self.add(Port::Device(Device::new(tap)))
    }

    fn next_terms(&mut self) -> Terms {
        self.terms.serial += 1;
        self.terms.clone()
    }

    fn add(&mut self, port: Port) -> io::Result<()> {
        widen(port.as_fd());
        let id = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        if id >= PORTS_MAX {
            return Err(io::Error::other(format!("more than {PORTS_MAX} machines")));
        }
        epoll::add(&self.epoll, &port, EventData::new_u64(id as u64), EventFlags::IN)?;
        let slot = Slot { port, blocked: false, dirty: false };
        if id == self.slots.len() {
            self.slots.push(Some(slot));
        } else {
            self.slots[id] = Some(slot);
        }
        Ok(())
    }

    /// Machines attached now.
    pub fn ports(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Frames that were dropped because too many waited for a machine.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Frames that were dropped because their sender used an address that is not its own.
    pub fn forged(&self) -> u64 {
        self.forged
    }

    /// Acts on everything that machines did, hands frames for the engine to `take`, and passes those between machines
    /// on. Returns whether there may be more; if not, [`AsFd`] tells of what comes.
    pub fn receive(&mut self, take: &mut dyn FnMut(&Vnet, &[u8])) -> bool {
        let mut buffer = [const { MaybeUninit::<Event>::uninit() }; EVENTS_MAX];
        let events: Vec<(u64, EventFlags)> =
            match epoll::wait(&self.epoll, &mut buffer[..], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
                Ok((events, _)) => events.iter().map(|event| (event.data.u64(), event.flags)).collect(),
                Err(_) => return false,
            };
        let mut more = events.len() == EVENTS_MAX;
        for (number, flags) in &events {
            if *number == TIMER {
                self.look();
                continue;
            }
            if let Some(index) = number.checked_sub(LISTENERS_AT) {
                self.accept(index as usize);
                continue;
            }
            let id = *number as PortId;
            if flags.intersects(EventFlags::OUT) {
                self.flush_port(id);
            }
            if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                more |= self.receive_port(id, take);
            }
        }
        more
    }

    fn accept(&mut self, index: usize) {
        let Some(listener) = self.listeners.get(index) else { return };
        let protocol = listener.protocol;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // A client that is gone already, or has no place, is closed: it can try again.
        let Ok(fd) = net::accept_with(&listener.fd, flags) else { return };
        let _ = net::sockopt::set_tcp_nodelay(&fd, true);
        let terms = self.next_terms();
        let stream = |fd, framing, greeting| Port::Stream(Stream::new(fd, framing, greeting, terms));
        let port = match protocol {
            Protocol::Qemu => stream(fd, Framing::Be32, Greeting::Done),
            Protocol::Vmnet => stream(fd, Framing::Le16, Greeting::Hello),
            Protocol::Connect => stream(fd, Framing::Le16, Greeting::Request),
            Protocol::Bess | Protocol::Datagram => Port::Packets(Packets::new(fd, true)),
            Protocol::VhostUser => match VhostUser::new(fd) {
                Ok(machine) => Port::VhostUser(machine),
                Err(_) => return,
            },
        };
        let _ = self.add(port);
    }

    /// Returns whether there may be more.
    fn receive_port(&mut self, id: PortId, take: &mut dyn FnMut(&Vnet, &[u8])) -> bool {
        // The port is taken out of its slot, so that its frames can go to the others.
        let Some(mut slot) = self.slots.get_mut(id).and_then(Option::take) else { return false };
        let mut scratch = std::mem::take(&mut self.scratch);
        let left = slot.port.receive(&mut scratch, &mut |vnet, frame| {
            let slots = &mut self.slots;
            let verdict = match self.switch.of_port(id, frame) {
                Verdict::Nowhere => Verdict::Nowhere,
                _ if self.guard.as_mut().is_some_and(|guard| !guard.allows(id, frame)) => Verdict::Forged,
                verdict => verdict,
            };
            if let Some(Watcher(tell)) = &self.watcher {
                match verdict {
                    Verdict::Port(_) | Verdict::Others => tell(frame, Aside::Between),
                    Verdict::Forged => tell(frame, Aside::Forged),
                    Verdict::Engine | Verdict::Everybody | Verdict::Nowhere => {}
                }
            }
            match verdict {
                Verdict::Engine => take(vnet, frame),
                Verdict::Port(other) => self.dropped += u64::from(!send_to(slots, other, vnet, &[frame])),
                Verdict::Others => self.dropped += send_to_all(slots, vnet, &[frame]),
                Verdict::Everybody => {
                    self.dropped += send_to_all(slots, vnet, &[frame]);
                    take(vnet, frame);
                }
                Verdict::Nowhere => {}
                Verdict::Forged => self.forged += 1,
            }
        });
        self.scratch = scratch;
        slot.dirty = true;
        self.slots[id] = Some(slot);
        if left == Left::Closed {
            self.remove(id);
        }
        left == Left::More
    }

    fn remove(&mut self, id: PortId) {
        if let Some(slot) = self.slots.get_mut(id).and_then(Option::take) {
            // It is closed with the slot, but a datagram socket has a second descriptor.
            let _ = epoll::delete(&self.epoll, &slot.port);
            self.switch.forget(id, &mut self.departed);
            if let Some(guard) = &mut self.guard {
                guard.forget(id);
            }
            let excess = self.departed.len().saturating_sub(DEPARTED_MAX);
            self.departed.drain(..excess);
        }
    }

    /// The hardware addresses of machines that left since this was asked last.
    pub fn take_departed(&mut self) -> Vec<Mac> {
        std::mem::take(&mut self.departed)
    }

    /// The hardware addresses of machines, each with the number of its port.
    pub fn stations(&self) -> impl Iterator<Item = (Mac, PortId)> {
        self.switch.owners()
    }

    /// Takes a frame of the engine, in pieces of which the first has all headers; what `vnet` leaves to the receiver is
    /// done here for machines that cannot. Returns false when its only machine has no room for it now. With several machines
    /// it is dropped instead, as nobody is to wait for another.
    pub fn send(&mut self, vnet: &Vnet, parts: &[&[u8]]) -> bool {
        let head = parts.first().copied().unwrap_or(&[]);
        let alone = self.ports() == 1;
        if let Some(guard) = &mut self.guard {
            guard.learn_lease(head, |mac| self.switch.owner_of(mac));
        }
        match self.switch.of_engine(head) {
            Verdict::Port(id) => {
                let full = |slot: &Slot| !slot.port.has_room();
                if alone && self.slots.get(id).is_some_and(|slot| slot.as_ref().is_some_and(full)) {
                    self.flush_port(id);
                    if self.slots.get(id).is_some_and(|slot| slot.as_ref().is_some_and(full)) {
                        return false;
                    }
                }
                self.dropped += u64::from(!send_to(&mut self.slots, id, vnet, parts));
            }
            _ => self.dropped += send_to_all(&mut self.slots, vnet, parts),
        }
        true
    }

    /// Sends what was queued.
    pub fn flush(&mut self) {
        for id in 0..self.slots.len() {
            if self.slots[id].as_ref().is_some_and(|slot| slot.dirty && !slot.blocked) {
                self.flush_port(id);
            }
        }
    }

    fn flush_port(&mut self, id: PortId) {
        let Some(Some(slot)) = self.slots.get_mut(id) else { return };
        slot.dirty = false;
        let blocked = match slot.port.flush() {
            Ok(all) => !all,
            Err(_) => return self.remove(id),
        };
        if blocked != slot.blocked {
            slot.blocked = blocked;
            let events = if blocked { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            // It can only fail for a descriptor that is not in the set.
            let _ = epoll::modify(&self.epoll, &slot.port, EventData::new_u64(id as u64), events);
        }
    }
}

fn send_to(slots: &mut [Option<Slot>], id: PortId, vnet: &Vnet, parts: &[&[u8]]) -> bool {
    let Some(Some(slot)) = slots.get_mut(id) else { return false };
    slot.dirty = true;
    slot.port.send(vnet, parts)
}

/// Sends a frame to all that are there; returns how many had no room.
fn send_to_all(slots: &mut [Option<Slot>], vnet: &Vnet, parts: &[&[u8]]) -> u64 {
    let mut dropped = 0;
    for id in 0..slots.len() {
        if slots[id].is_some() {
            dropped += u64::from(!send_to(slots, id, vnet, parts));
        }
    }
    dropped
}

impl AsFd for Hub {
    /// Readable as long as there is something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests;
