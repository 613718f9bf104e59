//! TCP sockets of the host. Events are edge-triggered: what a socket can do is remembered until it says otherwise.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SendFlags, Shutdown, SocketFlags, SocketType};
use vpnkit_stack::{ConnectError, Data, Sockets, TcpId};

use super::Host;
use super::greeting::Greeting;
use super::poller::{Owner, Token};
use crate::intercept::Detour;

/// Bytes asked for in the first read of a connection; it grows with what comes.
const READ_BYTES_MIN: usize = 4096;
const READ_BYTES_MAX: usize = 128 * 1024;
/// How long a connection is idle until its peer is asked, and then asked again. The guest was idle for its own time
/// before it asked first; routers between forget sooner than the system's two hours.
const KEEPALIVE: std::time::Duration = std::time::Duration::from_secs(60);
/// Data of a frame that is worth a system call of its own; less is gathered over a burst.
const DIRECT_BYTES_MIN: usize = 8 * 1024;

/// A socket.
#[derive(Debug)]
struct Connection {
    flow: TcpId,
    fd: OwnedFd,
    token: Token,
    connecting: bool,
    /// What is said before the connection counts as made.
    greeting: Option<Box<Greeting>>,
    readable: bool,
    writable: bool,
    /// The peer has sent its FIN, which reading has not reached.
    hung_up: bool,
    /// Urgent data or an error came: a short read may end before it, and is then no end.
    urgent: bool,
    nagle: Nagle,
    finished: bool,
    /// Whether it is in the list of those that have more to read.
    listed: bool,
    read_bytes: usize,
}

/// Nagle's algorithm, which holds data back while other data is not acknowledged: RFC 9293 §3.7.4. It does nothing to
/// what is written first, so connections of one request are spared the call that switches it off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nagle {
    /// It is on, and nothing was written.
    Idle,
    /// It is on, and something was written: the next write may be held back.
    Due,
    /// It is off.
    Off,
}

/// The sockets, by the index of their flows.
#[derive(Debug, Default)]
pub struct Connections {
    slots: Vec<Option<Connection>>,
    count: usize,
    /// Those that had more to read after their turn.
    ready: VecDeque<TcpId>,
}

impl Connection {
    /// Sends `parts` without delay.
    fn send(&mut self, parts: &[IoSlice<'_>]) -> Result<usize, Errno> {
        self.hurry();
        let mut control = net::SendAncillaryBuffer::default();
        net::sendmsg(&self.fd, parts, &mut control, SendFlags::NOSIGNAL)
    }

    /// Sends data of a frame without delay, from where it lies.
    fn send_data(&mut self, data: Data<'_>) -> Result<usize, Errno> {
        match data {
            Data::Here(bytes) => self.send(&[IoSlice::new(bytes)]),
            Data::Volatile { frame, start, bytes } => {
                self.hurry();
                let sent = frame.send(start..start + bytes, self.fd.as_fd());
                sent.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
            }
        }
    }

    /// Switches Nagle's algorithm off before it would do anything.
    fn hurry(&mut self) {
        self.nagle = match self.nagle {
            Nagle::Idle => Nagle::Due,
            Nagle::Due => {
                // Where that fails, the socket works, with delays.
                let _ = net::sockopt::set_tcp_nodelay(&self.fd, true);
                Nagle::Off
            }
            Nagle::Off => Nagle::Off,
        };
    }
}

impl Connections {
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether a socket has more to read.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    fn get(&mut self, flow: TcpId) -> Option<&mut Connection> {
        self.slots.get_mut(flow.0.index())?.as_mut().filter(|connection| connection.flow == flow)
    }

    fn insert(&mut self, connection: Connection) {
        let index = connection.flow.0.index();
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        debug_assert!(self.slots[index].is_none(), "the flow before it was closed");
        self.slots[index] = Some(connection);
        self.count += 1;
    }

    fn remove(&mut self, flow: TcpId) -> Option<Connection> {
        self.get(flow)?;
        self.count -= 1;
        self.slots.get_mut(flow.0.index())?.take()
    }
}

impl Sockets for Connections {
    fn write(&mut self, flow: TcpId, data: Data<'_>) -> usize {
        let Some(connection) = self.get(flow) else { return 0 };
        if data.len() < DIRECT_BYTES_MIN || connection.connecting || !connection.writable {
            return 0;
        }
        match connection.send_data(data) {
            Ok(count) => {
                connection.writable = count == data.len();
                count
            }
            Err(Errno::AGAIN) => {
                connection.writable = false;
                0
            }
            // The error comes again when the data, which waits now, is written.
            Err(_) => 0,
        }
    }
}

fn events() -> EventFlags {
    EventFlags::IN | EventFlags::OUT | EventFlags::PRI | EventFlags::RDHUP | EventFlags::ET
}

impl Host {
    pub(super) fn tcp_connect(&mut self, flow: TcpId, to: SocketAddr) {
        let guest = self.stack.tcp_guest(flow);
        let detour = match (&self.intercept, guest) {
            // What is on the host is reached straight.
            (Some(intercept), Some(guest)) if !to.ip().is_loopback() => intercept.intercept(guest, to),
            _ => None,
        };
        let connected = match detour {
            None => connect(to, None),
            Some(Detour::Proxy { address, announce }) => connect(address, Some(announce)),
            Some(Detour::Tunnel { stream, request }) => {
                let greeting = Greeting::new(&request);
                return match stream.set_nonblocking(true) {
                    Ok(()) => self.tcp_add(flow, stream.into(), true, Some(greeting)),
                    Err(_) => self.stack.tcp_connect_failed(flow, ConnectError::Refused),
                };
            }
            Some(Detour::Refuse) => Err(Errno::CONNREFUSED),
        };
        match connected {
            Ok(fd) => self.tcp_add(flow, fd, true, None),
            Err(error) => self.stack.tcp_connect_failed(flow, meaning_of(error)),
        }
    }

    fn tcp_add(&mut self, flow: TcpId, fd: OwnedFd, connecting: bool, greeting: Option<Greeting>) {
        match self.poller.add(&fd, Owner::Tcp(flow), events()) {
            Ok(token) => self.tcp.insert(Connection {
                flow,
                fd,
                token,
                connecting,
                greeting: greeting.map(Box::new),
                readable: false,
                writable: false,
                hung_up: false,
                urgent: false,
                // An accepted socket has what its listener was given.
                nagle: if connecting { Nagle::Idle } else { Nagle::Off },
                finished: false,
                listed: false,
                read_bytes: READ_BYTES_MIN,
            }),
            Err(_) if connecting => self.stack.tcp_connect_failed(flow, ConnectError::Refused),
            Err(_) => self.stack.tcp_aborted(self.now(), flow),
        }
    }

    /// A connection came to a forwarded port.
    pub(super) fn tcp_accepted(&mut self, fd: OwnedFd, peer: SocketAddr, guest: SocketAddr) {
        let fd = if peer.ip().is_loopback() {
            match self.splice(fd, guest) {
                Ok(()) => return,
                Err(fd) => fd,
            }
        } else {
            fd
        };
        self.tcp_enter(fd, peer, guest);
    }

    /// A connection goes to the guest over the device.
    fn tcp_enter(&mut self, fd: OwnedFd, peer: SocketAddr, guest: SocketAddr) {
        match self.stack.tcp_open(self.now(), peer, guest) {
            Some(flow) => self.tcp_add(flow, fd, false, None),
            None => reset_on_close(&fd),
        }
    }

    /// A stream that is not TCP: the guest sees the host as its peer.
    pub(super) fn tcp_led(&mut self, stream: OwnedFd, guest: SocketAddr) {
        let local = if guest.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        self.tcp_enter(stream, SocketAddr::new(local, 0), guest);
    }

    pub(super) fn tcp_event(&mut self, flow: TcpId, events: EventFlags) {
        let Some(connection) = self.tcp.get(flow) else { return };
        let broken = events.intersects(EventFlags::ERR | EventFlags::HUP);
        connection.readable |= broken || events.intersects(EventFlags::IN | EventFlags::RDHUP);
        connection.hung_up |= broken || events.intersects(EventFlags::RDHUP);
        connection.writable |= broken || events.intersects(EventFlags::OUT);
        connection.urgent |= events.intersects(EventFlags::ERR | EventFlags::PRI);
        if connection.connecting {
            if !connection.writable {
                return;
            }
            // Writable and no error: connected.
            let outcome = if broken { net::sockopt::socket_error(&connection.fd) } else { Ok(Ok(())) };
            match outcome {
                Ok(Ok(())) => {
                    match connection.greeting.as_mut().map(|greeting| greeting.progress(&connection.fd)) {
                        Some(Ok(false)) => return,
                        Some(Err(error)) => {
                            self.tcp_forget(flow);
                            return self.stack.tcp_connect_failed(flow, meaning_of(error));
                        }
                        // What follows the greeting may be there already.
                        Some(Ok(true)) => connection.readable = true,
                        None => {}
                    }
                    connection.greeting = None;
                    connection.connecting = false;
                }
                Ok(Err(error)) | Err(error) => {
                    self.tcp_forget(flow);
                    return self.stack.tcp_connect_failed(flow, meaning_of(error));
                }
            }
            self.stack.tcp_connected(flow);
        }
        self.tcp_write(flow);
        self.tcp_read(flow);
    }

    /// Goes on with the sockets that had more to read after their turn.
    pub(super) fn tcp_resume(&mut self) {
        for _ in 0..self.tcp.ready.len() {
            let Some(flow) = self.tcp.ready.pop_front() else { return };
            if let Some(connection) = self.tcp.get(flow) {
                connection.listed = false;
                self.tcp_read(flow);
            }
        }
    }

    /// Reads once from the socket to the flow's queue, if there is something and room for it. What is left has its
    /// turn when the frames of this one are on their way: data moves while it is in the cache.
    pub(super) fn tcp_read(&mut self, flow: TcpId) {
        let Some(connection) = self.tcp.get(flow) else { return };
        if !connection.readable || connection.connecting || connection.finished {
            return;
        }
        let frame = self.stack.tcp_frame_bytes(flow);
        let room = self.stack.tcp_room(flow).min(connection.read_bytes);
        let want = if room > frame { room - room % frame } else { room };
        if want == 0 {
            return;
        }
        let (first, second) = self.stack.tcp_buffer(flow, want);
        let asked = first.len() + second.len();
        match rustix::io::readv(&connection.fd, &mut [IoSliceMut::new(first), IoSliceMut::new(second)]) {
            Ok(0) => {
                connection.finished = true;
                return self.stack.tcp_finished(flow);
            }
            Ok(count) => {
                self.stack.tcp_filled(flow, count);
                let drained = count < asked;
                // The FIN was there before the read, which stopped at it: it goes with the data.
                connection.finished = drained && connection.hung_up && !connection.urgent;
                if connection.finished {
                    return self.stack.tcp_finished(flow);
                }
                connection.readable = !drained || connection.hung_up;
                let next = if drained { connection.read_bytes / 2 } else { connection.read_bytes * 4 };
                connection.read_bytes = next.clamp(READ_BYTES_MIN, READ_BYTES_MAX);
            }
            Err(Errno::AGAIN) => connection.readable = false,
            Err(Errno::INTR) => {}
            Err(_) => return self.tcp_break(flow),
        }
        if connection.readable && !connection.listed {
            connection.listed = true;
            self.tcp.ready.push_back(flow);
        }
    }

    /// Writes what the guest sent to the socket, as much as it takes.
    pub(super) fn tcp_write(&mut self, flow: TcpId) {
        loop {
            let Some(connection) = self.tcp.get(flow) else { return };
            let (first, second) = self.stack.tcp_received(flow);
            if first.is_empty() || !connection.writable || connection.connecting {
                return;
            }
            match connection.send(&[IoSlice::new(first), IoSlice::new(second)]) {
                Ok(count) => {
                    let now = self.now();
                    self.stack.tcp_consumed(now, flow, count);
                }
                Err(Errno::AGAIN) => connection.writable = false,
                Err(Errno::INTR) => {}
                Err(_) => return self.tcp_break(flow),
            }
        }
    }

    /// The connection broke: the guest gets a reset.
    fn tcp_break(&mut self, flow: TcpId) {
        self.tcp_forget(flow);
        self.stack.tcp_aborted(self.now(), flow);
    }

    /// Lets the kernel ask the peer whether it is there, as the guest does.
    pub(super) fn tcp_keepalive(&mut self, flow: TcpId) {
        if let Some(connection) = self.tcp.get(flow) {
            // Where one of them fails, the system's own times hold.
            let _ = net::sockopt::set_socket_keepalive(&connection.fd, true);
            let _ = net::sockopt::set_tcp_keepidle(&connection.fd, KEEPALIVE);
            let _ = net::sockopt::set_tcp_keepintvl(&connection.fd, KEEPALIVE);
        }
    }

    pub(super) fn tcp_shutdown(&mut self, flow: TcpId) {
        if let Some(connection) = self.tcp.get(flow) {
            // It fails only when the connection is gone, which the next event tells.
            let _ = net::shutdown(&connection.fd, Shutdown::Write);
        }
    }

    pub(super) fn tcp_close(&mut self, flow: TcpId, reset: bool) {
        if let Some(connection) = self.tcp_forget(flow)
            && reset
        {
            reset_on_close(&connection.fd);
        }
    }

    fn tcp_forget(&mut self, flow: TcpId) -> Option<Connection> {
        let connection = self.tcp.remove(flow)?;
        self.poller.forget(connection.token);
        Some(connection)
    }
}

/// Begins a connection; a proxy is told its own address before.
fn connect(to: SocketAddr, announce: Option<Box<dyn FnOnce(SocketAddr) + Send>>) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = net::socket_with(family, SocketType::STREAM, flags, None)?;
    if let Some(announce) = announce {
        net::bind(&fd, &SocketAddr::new(to.ip(), 0))?;
        announce(net::getsockname(&fd)?.try_into()?);
    }
    match net::connect(&fd, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(fd),
        Err(error) => Err(error),
    }
}

/// Makes closing the socket reset the connection.
pub(super) fn reset_on_close(fd: &OwnedFd) {
    // If it fails, the peer sees an end instead of a reset.
    let _ = net::sockopt::set_socket_linger(fd, Some(std::time::Duration::ZERO));
}

pub(super) fn meaning_of(error: Errno) -> ConnectError {
    match error {
        Errno::NETUNREACH | Errno::NETDOWN | Errno::AFNOSUPPORT => ConnectError::NetUnreachable,
        Errno::HOSTUNREACH | Errno::HOSTDOWN | Errno::ADDRNOTAVAIL => ConnectError::HostUnreachable,
        Errno::ACCESS | Errno::PERM => ConnectError::Prohibited,
        Errno::TIMEDOUT => ConnectError::TimedOut,
        _ => ConnectError::Refused,
    }
}
