//! Connections from this host's loopback to programs in a namespace that we can open sockets in: the kernel moves the
//! bytes from one socket to the other, past the device and the stack. See splice(2).
//!
//! The program sees a client on 127.0.0.1. It is looked for at the guest's address, then on its loopback.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{self, Shutdown};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use super::Host;
use super::poller::{Owner, Token};

/// Pairs at once: each takes six descriptors. Further connections go through the stack.
const PAIRS_MAX: usize = 1024;
/// Bytes of a pipe, if the system grants them.
const PIPE_BYTES: usize = 256 * 1024;
/// Bytes moved for one pair in one direction before it is the others' turn.
const TURN_BYTES: usize = 1 << 20;

/// One of the two sockets.
#[derive(Debug)]
struct End {
    fd: OwnedFd,
    token: Token,
    readable: bool,
    writable: bool,
}

impl End {
    fn new(fd: OwnedFd, token: Token) -> Self {
        Self { fd, token, readable: false, writable: false }
    }
}

/// One direction: what is between the sockets.
#[derive(Debug)]
struct Pipe {
    to_read: OwnedFd,
    to_write: OwnedFd,
    held: usize,
    /// The source has no more.
    ended: bool,
    /// The other socket was told so.
    told: bool,
}

/// What a direction's turn came to.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Waits,
    More,
    Broken,
}

/// A client and a program.
#[derive(Debug)]
struct Pair {
    ends: [End; 2],
    /// From the client to the program, and back.
    pipes: [Pipe; 2],
    /// Where the program is looked for next when nobody listens.
    next: Option<SocketAddrV4>,
    connecting: bool,
    listed: bool,
}

/// The pairs, by number.
#[derive(Debug, Default)]
pub struct Pairs {
    slots: Vec<Option<Pair>>,
    count: usize,
    /// Those that had more to move after their turn.
    ready: VecDeque<usize>,
}

impl Pairs {
    /// Descriptors in the poller.
    pub fn len(&self) -> usize {
        2 * self.count
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }
}

fn events() -> EventFlags {
    EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET
}

impl Host {
    /// Joins a client to the program at `guest`; gives the client back when it has to go through the stack.
    pub(super) fn splice(&mut self, client: OwnedFd, guest: SocketAddr) -> Result<(), OwnedFd> {
        // The sockets at hand are for IPv4.
        let SocketAddr::V4(guest) = guest else { return Err(client) };
        if self.inside.is_none() || self.pairs.count >= PAIRS_MAX {
            return Err(client);
        }
        let Ok(pipes) = pipe().and_then(|first| Ok([first, pipe()?])) else { return Err(client) };
        let local = SocketAddrV4::new(Ipv4Addr::LOCALHOST, guest.port());
        let (socket, next) = match self.splice_begin(guest) {
            Ok(socket) => (socket, Some(local)),
            Err(Errno::CONNREFUSED) => match self.splice_begin(local) {
                Ok(socket) => (socket, None),
                Err(_) => return Err(client),
            },
            Err(_) => return Err(client),
        };
        let slot = self.pairs.slots.iter().position(Option::is_none).unwrap_or(self.pairs.slots.len());
        let Ok(token) = self.poller.add(&client, Owner::Spliced(slot, 0), events()) else {
            return Err(client);
        };
        let Ok(other) = self.poller.add(&socket, Owner::Spliced(slot, 1), events()) else {
            self.poller.remove(&client, token);
            return Err(client);
        };
        let ends = [End::new(client, token), End::new(socket, other)];
        let pair = Pair { ends, pipes, next, connecting: true, listed: false };
        if slot == self.pairs.slots.len() {
            self.pairs.slots.push(None);
        }
        self.pairs.slots[slot] = Some(pair);
        self.pairs.count += 1;
        Ok(())
    }

    /// A socket of the namespace that begins to connect.
    fn splice_begin(&self, to: SocketAddrV4) -> Result<OwnedFd, Errno> {
        let socket = self.inside.as_ref().and_then(|inside| inside.take()).ok_or(Errno::MFILE)?;
        net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
        match net::connect(&socket, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
            Err(error) => Err(error),
        }
    }

    /// Looks for the program elsewhere, with another socket: what connect(2) does on one that failed is not the same
    /// everywhere.
    fn splice_again(&mut self, slot: usize, to: SocketAddrV4) -> io::Result<()> {
        let socket = self.splice_begin(to)?;
        let token = self.poller.add(&socket, Owner::Spliced(slot, 1), events())?;
        if let Some(Some(pair)) = self.pairs.slots.get_mut(slot) {
            let failed = std::mem::replace(&mut pair.ends[1], End::new(socket, token));
            self.poller.forget(failed.token);
        }
        Ok(())
    }

    pub(super) fn splice_event(&mut self, slot: usize, side: usize, events: EventFlags) {
        let Some(Some(pair)) = self.pairs.slots.get_mut(slot) else { return };
        let broken = events.intersects(EventFlags::ERR | EventFlags::HUP);
        let end = &mut pair.ends[side];
        end.readable |= broken || events.intersects(EventFlags::IN | EventFlags::RDHUP);
        end.writable |= broken || events.intersects(EventFlags::OUT);
        if pair.connecting {
            if side == 0 || !end.writable {
                return;
            }
            let outcome = net::sockopt::socket_error(&end.fd);
            if outcome != Ok(Ok(())) {
                let again = pair.next.take().is_some_and(|next| self.splice_again(slot, next).is_ok());
                if !again {
                    self.splice_end(slot, true);
                }
                return;
            }
            pair.connecting = false;
        }
        self.splice_move(slot);
    }

    /// Goes on with the pairs that had more to move after their turn.
    pub(super) fn splice_resume(&mut self) {
        for _ in 0..self.pairs.ready.len() {
            let Some(slot) = self.pairs.ready.pop_front() else { return };
            if let Some(Some(pair)) = self.pairs.slots.get_mut(slot) {
                pair.listed = false;
                self.splice_move(slot);
            }
        }
    }

    fn splice_move(&mut self, slot: usize) {
        let Some(Some(pair)) = self.pairs.slots.get_mut(slot) else { return };
        if pair.connecting {
            return;
        }
        let [client, program] = &mut pair.ends;
        let [up, down] = &mut pair.pipes;
        let turns = [up.pump(client, program), down.pump(program, client)];
        if turns.contains(&Turn::Broken) {
            return self.splice_end(slot, true);
        }
        if up.told && down.told {
            return self.splice_end(slot, false);
        }
        if turns.contains(&Turn::More) && !pair.listed {
            pair.listed = true;
            self.pairs.ready.push_back(slot);
        }
    }

    fn splice_end(&mut self, slot: usize, reset: bool) {
        let Some(pair) = self.pairs.slots.get_mut(slot).and_then(Option::take) else { return };
        self.pairs.count -= 1;
        for end in pair.ends {
            if reset {
                super::tcp::reset_on_close(&end.fd);
            }
            self.poller.forget(end.token);
        }
    }
}

impl Pipe {
    /// Moves bytes as long as both ends let it, at most a turn's.
    fn pump(&mut self, from: &mut End, to: &mut End) -> Turn {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let mut moved = 0;
        while moved < TURN_BYTES {
            let before = (moved, self.held);
            if from.readable && !self.ended {
                match splice(&from.fd, None, &self.to_write, None, TURN_BYTES, flags) {
                    Ok(0) => self.ended = true,
                    Ok(count) => self.held += count,
                    // The pipe may be full instead.
                    Err(Errno::AGAIN) => from.readable = self.held > 0,
                    Err(Errno::INTR) => continue,
                    Err(_) => return Turn::Broken,
                }
            }
            if self.held > 0 && to.writable {
                match splice(&self.to_read, None, &to.fd, None, self.held, flags) {
                    Ok(count) => {
                        self.held -= count;
                        moved += count;
                    }
                    Err(Errno::AGAIN) => to.writable = false,
                    Err(Errno::INTR) => continue,
                    Err(_) => return Turn::Broken,
                }
            }
            if self.ended && self.held == 0 {
                if !self.told {
                    self.told = true;
                    // It fails only when the connection is gone, which the next event tells.
                    let _ = net::shutdown(&to.fd, Shutdown::Write);
                }
                return Turn::Waits;
            }
            if (moved, self.held) == before && !(from.readable && self.held == 0) {
                return Turn::Waits;
            }
        }
        Turn::More
    }
}

fn pipe() -> Result<Pipe, Errno> {
    let (to_read, to_write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // A smaller one is slower.
    let _ = fcntl_setpipe_size(&to_write, PIPE_BYTES);
    Ok(Pipe { to_read, to_write, held: 0, ended: false, told: false })
}
