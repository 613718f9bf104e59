//! The thread of a tunnel: waits for its sockets and moves bytes between them and the connection.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use vpnkit::Forward;

use super::flow::{ClientFlow, Goes, UdpFlow};
use super::{GREETING, Order};
use crate::mux::{Destination, Event, Multiplexer, Side, StreamId};

/// Output that waits for the connection before clients are no longer read.
const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// Clients of one forward that are taken before others have their turn.
const ACCEPTS_AT_ONCE: usize = 64;
/// Bytes that are read of the connection at a time.
const READ_BYTES: usize = 256 << 10;
/// How long a listening socket rests when the process has no descriptors left.
const REST: Duration = Duration::from_millis(20);

/// The connection to the machine.
struct Link {
    socket: UnixStream,
    mux: Multiplexer,
    /// Of the greeting to the hypervisor, what is not sent yet.
    greeting: &'static [u8],
}

/// A UDP forward with its stream, once there is one.
struct Udp {
    forward: Forward,
    flow: UdpFlow,
    stream: Option<StreamId>,
}

/// All sockets of a tunnel.
pub(super) struct Runner {
    connect: super::Connect,
    wake: Arc<OwnedFd>,
    orders: Receiver<Order>,
    link: Option<Link>,
    listeners: Vec<(Forward, TcpListener)>,
    udp: Vec<Udp>,
    flows: HashMap<StreamId, ClientFlow>,
    buffer: Vec<u8>,
}

/// What a descriptor that was waited for belongs to.
enum Waited {
    Wake,
    Link,
    Listener(usize),
    Udp(usize),
    Flow(StreamId),
}

impl Runner {
    pub fn new(
        connect: super::Connect,
        wake: Arc<OwnedFd>,
        orders: Receiver<Order>,
    ) -> std::io::Result<Self> {
        Ok(Self {
            connect,
            wake,
            orders,
            link: None,
            listeners: Vec::new(),
            udp: Vec::new(),
            flows: HashMap::new(),
            buffer: Vec::new(),
        })
    }

    /// Until it is told to stop.
    pub fn run(&mut self) {
        loop {
            for (waited, flags) in self.wait() {
                match waited {
                    Waited::Wake => {
                        if !self.obey() {
                            return;
                        }
                    }
                    Waited::Link => self.on_link(flags),
                    Waited::Listener(index) => self.accept(index),
                    Waited::Udp(index) => self.on_udp(index),
                    Waited::Flow(id) => self.on_flow(id, flags),
                }
            }
            self.flush();
        }
    }

    /// Waits for what can go on.
    fn wait(&self) -> Vec<(Waited, PollFlags)> {
        let mut what = vec![Waited::Wake];
        let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
        let congested = self.link.as_ref().is_some_and(|link| link.mux.output().len() > OUTPUT_BYTES_MAX);
        if let Some(link) = &self.link {
            let writes = !link.greeting.is_empty() || !link.mux.output().is_empty();
            let flags = if writes { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            what.push(Waited::Link);
            fds.push(PollFd::new(&link.socket, flags));
        }
        if !congested {
            for (index, (_, listener)) in self.listeners.iter().enumerate() {
                what.push(Waited::Listener(index));
                fds.push(PollFd::new(listener, PollFlags::IN));
            }
            for (index, udp) in self.udp.iter().enumerate() {
                what.push(Waited::Udp(index));
                fds.push(PollFd::new(&udp.flow.socket, PollFlags::IN));
            }
        }
        if let Some(link) = &self.link {
            for (id, flow) in &self.flows {
                let (reads, writes) = flow.wants(&link.mux, *id);
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::IN, reads && !congested);
                flags.set(PollFlags::OUT, writes);
                if !flags.is_empty() {
                    what.push(Waited::Flow(*id));
                    fds.push(PollFd::from_borrowed_fd(flow.socket.as_fd(), flags));
                }
            }
        }
        // EINTR: nothing is ready, and we wait again.
        let _ = poll(&mut fds, None);
        let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        what.into_iter().zip(ready).filter(|(_, flags)| !flags.is_empty()).collect()
    }

    /// Does what was asked for; `false` is that it shall stop.
    fn obey(&mut self) -> bool {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        loop {
            match self.orders.try_recv() {
                Ok(Order::Tcp(forward, listener)) => self.listeners.push((forward, listener)),
                Ok(Order::Udp(forward, socket)) => {
                    self.udp.push(Udp { forward, flow: UdpFlow::new(socket), stream: None });
                }
                Ok(Order::Path(socket, path)) => self.open(socket, Destination::Unix(path)),
                Ok(Order::End(forward, done)) => {
                    self.end(&forward);
                    let _ = done.send(());
                }
                Err(TryRecvError::Empty) => return true,
                Ok(Order::Stop) | Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Connections of clients that are under way go on.
    fn end(&mut self, forward: &Forward) {
        let is_it = |other: &Forward| (other.protocol, other.bind) == (forward.protocol, forward.bind);
        self.listeners.retain(|(other, _)| !is_it(other));
        for udp in self.udp.extract_if(.., |udp| is_it(&udp.forward)) {
            if let (Some(id), Some(link)) = (udp.stream, &mut self.link) {
                link.mux.close(id);
            }
        }
    }

    /// The connection, made if there is none.
    fn connected(&mut self) -> Option<&mut Link> {
        if self.link.is_none() {
            let socket = (self.connect)().ok()?;
            socket.set_nonblocking(true).ok()?;
            self.link = Some(Link { socket, mux: Multiplexer::new(Side::Host), greeting: GREETING });
        }
        self.link.as_mut()
    }

    /// A client for whom there is no connection is let go at once, as if nobody listened.
    fn accept(&mut self, index: usize) {
        for _ in 0..ACCEPTS_AT_ONCE {
            let Some((forward, listener)) = self.listeners.get(index) else { return };
            let guest = forward.guest;
            let socket = match listener.accept() {
                Ok((socket, _)) => socket,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) =>
                {
                    return;
                }
                Err(_) => return std::thread::sleep(REST),
            };
            if socket.set_nonblocking(true).and_then(|()| socket.set_nodelay(true)).is_err() {
                continue;
            }
            self.open(socket.into(), Destination::Tcp(guest));
        }
    }

    /// Begins a client's stream; without a connection the client sees the end, as if nobody listened.
    fn open(&mut self, socket: OwnedFd, destination: Destination) {
        let Some(link) = self.connected() else { return };
        if let Some(id) = link.mux.open(destination) {
            self.flows.insert(id, ClientFlow::new(socket));
        }
    }

    fn on_udp(&mut self, index: usize) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let any = self.udp.get_mut(index).is_some_and(|udp| udp.flow.on_readable(&mut buffer));
        self.buffer = buffer;
        if any && self.connected().is_some() {
            self.send_datagrams(index);
        }
    }

    fn send_datagrams(&mut self, index: usize) {
        let (Some(link), Some(udp)) = (&mut self.link, self.udp.get_mut(index)) else { return };
        if udp.stream.is_none() {
            udp.stream = link.mux.open(Destination::Udp(udp.forward.guest));
        }
        if let Some(id) = udp.stream {
            udp.flow.send(&mut link.mux, id);
        }
    }

    fn on_flow(&mut self, id: StreamId, flags: PollFlags) {
        let (Some(link), Some(flow)) = (&mut self.link, self.flows.get_mut(&id)) else { return };
        let mut goes = Goes::On;
        if flags.contains(PollFlags::OUT) {
            goes = flow.on_writable(&mut link.mux, id);
        }
        if goes == Goes::On && flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            goes = flow.on_readable(&mut link.mux, id, &mut self.buffer);
        }
        if goes == Goes::Over {
            self.close(id);
        }
    }

    fn close(&mut self, id: StreamId) {
        self.flows.remove(&id);
        if let Some(link) = &mut self.link {
            link.mux.close(id);
        }
    }

    fn on_link(&mut self, flags: PollFlags) {
        if !flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            return;
        }
        let Some(link) = &mut self.link else { return };
        self.buffer.resize(READ_BYTES, 0);
        let mut events = Vec::new();
        let alive = match link.socket.read(&mut self.buffer) {
            Ok(0) => false,
            Ok(count) => link.mux.receive(&self.buffer[..count], &mut events).is_ok(),
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        };
        for event in events {
            self.on_event(event);
        }
        if !alive {
            self.disconnect();
        }
    }

    fn on_event(&mut self, event: Event) {
        let Some(link) = &mut self.link else { return };
        let (Event::Opened(id, _)
        | Event::Data(id, _)
        | Event::Writable(id)
        | Event::Shutdown(id)
        | Event::Closed(id)) = event;
        if let Some(index) = self.udp.iter().position(|udp| udp.stream == Some(id)) {
            return self.on_udp_event(index, id, event);
        }
        let goes = match (event, self.flows.get_mut(&id)) {
            (Event::Data(_, bytes), Some(flow)) => flow.on_data(&mut link.mux, id, &bytes),
            (Event::Shutdown(_), Some(flow)) => flow.on_end(&mut link.mux, id),
            (Event::Writable(_), _) => Goes::On,
            // The host has nothing that the machine could want to reach this way.
            (Event::Opened(..) | Event::Closed(_), _) | (_, None) => Goes::Over,
        };
        if goes == Goes::Over {
            self.close(id);
        }
    }

    fn on_udp_event(&mut self, index: usize, id: StreamId, event: Event) {
        let (Some(link), Some(udp)) = (&mut self.link, self.udp.get_mut(index)) else { return };
        let goes = match event {
            Event::Data(_, bytes) => udp.flow.on_data(&mut link.mux, id, &bytes),
            Event::Writable(_) => {
                udp.flow.send(&mut link.mux, id);
                Goes::On
            }
            Event::Opened(..) | Event::Shutdown(_) | Event::Closed(_) => Goes::Over,
        };
        if goes == Goes::Over {
            link.mux.close(id);
            udp.stream = None;
            udp.flow.reset();
        }
    }

    /// Forgets the connection and resets who used it.
    fn disconnect(&mut self) {
        self.link = None;
        self.flows.clear();
        for udp in &mut self.udp {
            udp.stream = None;
            udp.flow.reset();
        }
    }

    /// Sends what waits for the connection, as much as it takes.
    fn flush(&mut self) {
        let Some(link) = &mut self.link else { return };
        loop {
            let (bytes, of_greeting) = match (link.greeting, link.mux.output()) {
                ([], []) => return,
                ([], output) => (output, false),
                (greeting, _) => (greeting, true),
            };
            match link.socket.write(bytes) {
                Ok(count) if of_greeting => link.greeting = &link.greeting[count..],
                Ok(count) => link.mux.sent(count),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    return;
                }
                Err(_) => return self.disconnect(),
            }
        }
    }
}
