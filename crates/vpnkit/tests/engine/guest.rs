//! A guest in this process: smoltcp on the other end of a [`MemoryLink`].

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant as GuestInstant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr, Ipv4Address};
use vpnkit::{Frame, Machine, MemoryLink, Offload, Take};

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Frames on their way between the card and the engine.
struct Cable {
    inbox: Mutex<VecDeque<Vec<u8>>>,
    arrived: Condvar,
    outbox: Mutex<VecDeque<Vec<u8>>>,
    /// Frames that there is room for in the inbox.
    room: usize,
}

impl Machine for Cable {
    fn transmit(&self, take: &mut Take<'_>) -> bool {
        let frames = std::mem::take(&mut *self.outbox.lock().unwrap());
        for frame in &frames {
            take(Offload::NONE, Frame::Whole(frame));
        }
        !frames.is_empty()
    }

    fn receive(&self, offload: Offload, parts: &[IoSlice<'_>]) -> bool {
        assert_eq!(offload, Offload::NONE);
        let mut queue = self.inbox.lock().unwrap();
        if queue.len() >= self.room {
            return false;
        }
        queue.push_back(parts.iter().flat_map(|part| part.iter().copied()).collect());
        self.arrived.notify_one();
        true
    }

    fn offload(&self) -> bool {
        false
    }
}

/// The network card.
pub struct Card {
    cable: Arc<Cable>,
    link: Arc<MemoryLink>,
}

pub struct Received(Vec<u8>);
pub struct Sending<'a>(&'a Card);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        self.0.cable.outbox.lock().unwrap().push_back(frame);
        self.0.link.ready();
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _now: GuestInstant) -> Option<(Received, Sending<'_>)> {
        let frame = self.cable.inbox.lock().unwrap().pop_front()?;
        self.link.ready();
        Some((Received(frame), Sending(self)))
    }

    fn transmit(&mut self, _now: GuestInstant) -> Option<Sending<'_>> {
        Some(Sending(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

pub struct Guest {
    card: Card,
    pub interface: Interface,
    pub sockets: SocketSet<'static>,
    started: Instant,
}

impl Guest {
    /// Plugs a guest in that has room for `frames` at a time.
    pub fn new(link: Arc<MemoryLink>, frames: usize) -> Self {
        let cable = Arc::new(Cable {
            inbox: Mutex::default(),
            arrived: Condvar::new(),
            outbox: Mutex::default(),
            room: frames,
        });
        link.connect(cable.clone());
        let mut card = Card { cable, link };
        let mut config = Config::new(EthernetAddress([2, 0, 0, 0, 0, 9]).into());
        config.random_seed = 4711;
        let mut interface = Interface::new(config, &mut card, GuestInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::v4(192, 168, 65, 3), 24)).unwrap();
        });
        interface.routes_mut().add_default_ipv4_route(Ipv4Address::new(192, 168, 65, 1)).unwrap();
        Self { card, interface, sockets: SocketSet::new(Vec::new()), started: Instant::now() }
    }

    /// Runs the guest until `done` returns something; fails when that takes too long.
    pub fn run<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            let now = GuestInstant::from_micros(self.started.elapsed().as_micros() as i64);
            self.interface.poll(now, &mut self.card, &mut self.sockets);
            if let Some(result) = done(self) {
                self.interface.poll(now, &mut self.card, &mut self.sockets);
                return result;
            }
            assert!(began.elapsed() < PATIENCE, "{what} takes too long");
            let cable = &self.card.cable;
            let queue = cable.inbox.lock().unwrap();
            if queue.is_empty() {
                drop(cable.arrived.wait_timeout(queue, Duration::from_millis(2)).unwrap());
            }
        }
    }

    pub fn tcp_socket(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 65535]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    pub fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Begins to connect to a port of the host.
    pub fn connect(&mut self, to: [u8; 4], port: u16, local: u16) -> SocketHandle {
        let handle = self.tcp_socket();
        let to = (IpAddress::v4(to[0], to[1], to[2], to[3]), port);
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        socket.connect(self.interface.context(), to, local).unwrap();
        handle
    }

    /// Sends `bytes`, ends this side, and returns everything that comes until the other side ends too.
    pub fn exchange(&mut self, handle: SocketHandle, bytes: &[u8]) -> Vec<u8> {
        let (mut sent, mut received, mut closed) = (0, Vec::new(), false);
        self.run("the exchange", |guest| {
            let socket = guest.tcp(handle);
            while socket.can_recv() {
                socket
                    .recv(|data| {
                        received.extend_from_slice(data);
                        (data.len(), ())
                    })
                    .unwrap();
            }
            while socket.can_send() && sent < bytes.len() {
                sent += socket.send_slice(&bytes[sent..]).unwrap();
            }
            if socket.may_send() && sent == bytes.len() && !closed {
                socket.close();
                closed = true;
            }
            let over = closed && !socket.may_recv() && !socket.can_recv();
            over.then_some(())
        });
        received
    }

    pub fn udp_socket(&mut self, port: u16) -> SocketHandle {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 65536]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).unwrap();
        self.sockets.add(socket)
    }

    /// Sends a datagram and returns the next one that comes, with its sender's address and port.
    pub fn ask(
        &mut self,
        handle: SocketHandle,
        to: ([u8; 4], u16),
        bytes: &[u8],
    ) -> (Vec<u8>, IpAddress, u16) {
        self.send(handle, to, bytes);
        self.receive(handle)
    }

    pub fn send(&mut self, handle: SocketHandle, (to, port): ([u8; 4], u16), bytes: &[u8]) {
        let to = (IpAddress::v4(to[0], to[1], to[2], to[3]), port);
        self.sockets.get_mut::<udp::Socket>(handle).send_slice(bytes, to).unwrap();
    }

    pub fn receive(&mut self, handle: SocketHandle) -> (Vec<u8>, IpAddress, u16) {
        self.run("a datagram", |guest| {
            let socket = guest.sockets.get_mut::<udp::Socket>(handle);
            let (data, from) = socket.recv().ok()?;
            Some((data.to_vec(), from.endpoint.addr, from.endpoint.port))
        })
    }
}
