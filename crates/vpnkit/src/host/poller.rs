//! Who owns which file descriptor, and which of them have something to tell: epoll(7).
//!
//! A token names a slot and its generation, so that an event of a descriptor that was closed in the same round
//! finds nothing.

use std::collections::HashSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use vpnkit_stack::{PingId, TcpId, UdpId};

/// Events taken in one round.
const EVENTS_MAX: usize = 512;

/// Who a descriptor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Owner {
    Waker,
    Link,
    Tcp(TcpId),
    Udp(UdpId),
    Ping(PingId),
    /// A forwarded port, by its number.
    Forward(u32),
    /// One socket of a spliced pair: the pair's number, and which of the two.
    Spliced(usize, usize),
    /// Where sockets of a namespace come from.
    Inside,
    /// An attempt to ask a resolver, by its slot.
    Dns(usize),
}

/// How many descriptors each kind of owner has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Owned {
    pub waker: usize,
    pub link: usize,
    pub inside: usize,
    /// Two for each pair.
    pub pairs: usize,
    pub tcp: usize,
    pub udp: usize,
    pub pings: usize,
    pub forwards: usize,
    pub dns: usize,
}

impl Owned {
    fn of(&mut self, owner: Owner) -> &mut usize {
        match owner {
            Owner::Waker => &mut self.waker,
            Owner::Link => &mut self.link,
            Owner::Inside => &mut self.inside,
            Owner::Spliced(..) => &mut self.pairs,
            Owner::Tcp(_) => &mut self.tcp,
            Owner::Udp(_) => &mut self.udp,
            Owner::Ping(_) => &mut self.pings,
            Owner::Forward(_) => &mut self.forwards,
            Owner::Dns(_) => &mut self.dns,
        }
    }
}

/// What is registered; given back to take it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token(u64);

/// The set.
#[derive(Debug)]
pub struct Poller {
    epoll: std::os::fd::OwnedFd,
    slots: Vec<(u32, Option<Owner>)>,
    free: Vec<u32>,
    /// Tokens and flags of the last wait.
    events: Vec<(u64, EventFlags)>,
}

impl Poller {
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, slots: Vec::new(), free: Vec::new(), events: Vec::with_capacity(EVENTS_MAX) })
    }

    pub fn add(&mut self, fd: impl AsFd, owner: Owner, events: EventFlags) -> io::Result<Token> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            (self.slots.len() - 1) as u32
        });
        let token = Token(u64::from(self.slots[index as usize].0) << 32 | u64::from(index));
        if let Err(error) = epoll::add(&self.epoll, fd, EventData::new_u64(token.0), events) {
            self.free.push(index);
            return Err(error.into());
        }
        self.slots[index as usize].1 = Some(owner);
        Ok(token)
    }

    pub fn modify(&self, fd: impl AsFd, token: Token, events: EventFlags) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, fd, EventData::new_u64(token.0), events)?)
    }

    /// Takes a descriptor out that is closed next, which the kernel notices by itself.
    pub fn forget(&mut self, token: Token) {
        let index = token.0 as u32;
        let slot = &mut self.slots[index as usize];
        if slot.0 == (token.0 >> 32) as u32 && slot.1.take().is_some() {
            slot.0 = slot.0.wrapping_add(1);
            self.free.push(index);
        }
    }

    /// Takes a descriptor out; it is still open.
    pub fn remove(&mut self, fd: impl AsFd, token: Token) {
        // It can only fail for a descriptor that is not in the set.
        let _ = epoll::delete(&self.epoll, fd);
        self.forget(token);
    }

    /// Takes out the descriptor of an owner of whom there is one.
    pub fn remove_owner(&mut self, fd: impl AsFd, owner: Owner) {
        let index = self.slots.iter().position(|slot| slot.1 == Some(owner));
        if let Some(index) = index {
            let token = Token(u64::from(self.slots[index].0) << 32 | index as u64);
            self.remove(fd, token);
        }
    }

    /// Waits for events, at most for `timeout`; they are then taken with [`Poller::event`].
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        let timeout = timeout.map(|duration| Timespec {
            tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(duration.subsec_nanos()),
        });
        self.events.clear();
        let mut buffer = [const { MaybeUninit::<Event>::uninit() }; EVENTS_MAX];
        match epoll::wait(&self.epoll, &mut buffer[..], timeout.as_ref()) {
            Ok((events, _)) => {
                self.events.extend(events.iter().map(|event| (event.data.u64(), event.flags)));
                Ok(self.events.len())
            }
            Err(rustix::io::Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// The event `index` of the last wait, unless its descriptor is gone.
    pub fn event(&self, index: usize) -> Option<(Owner, EventFlags)> {
        let (token, flags) = *self.events.get(index)?;
        let slot = self.slots.get(token as u32 as usize)?;
        if slot.0 != (token >> 32) as u32 {
            return None;
        }
        Some((slot.1?, flags))
    }

    /// Counts the descriptors of each kind of owner. Panics when one owner has two.
    pub fn owned(&self) -> Owned {
        let mut owned = Owned::default();
        let mut seen = HashSet::new();
        for owner in self.slots.iter().filter_map(|slot| slot.1) {
            assert!(seen.insert(owner), "{owner:?} has two descriptors");
            *owned.of(owner) += 1;
        }
        assert_eq!(seen.len(), self.slots.len() - self.free.len(), "slots that are neither free nor owned");
        owned
    }
}
