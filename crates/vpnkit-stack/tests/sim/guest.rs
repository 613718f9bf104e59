//! The guest: smoltcp with one socket a flow, and a program that sends a pattern and checks what it gets.

use std::collections::VecDeque;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr, Ipv4Address};

use crate::link::Random;

/// Byte `at` of the stream with this number.
pub fn pattern(stream: u64, at: usize) -> u8 {
    let mixed = (at as u64 ^ stream << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

/// Frames in and out.
pub struct Port {
    pub received: VecDeque<Vec<u8>>,
    pub sent: Vec<Vec<u8>>,
    pub mtu: usize,
}

pub struct Received(Vec<u8>);
pub struct Sending<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        self.0.push(frame);
        result
    }
}

impl Device for Port {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received, Sending<'_>)> {
        Some((Received(self.received.pop_front()?), Sending(&mut self.sent)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities
    }
}

/// One flow as the guest's program sees it.
#[derive(Debug)]
pub struct Flow {
    pub handle: SocketHandle,
    pub stream: u64,
    pub to_send: usize,
    pub sent: usize,
    pub received: usize,
    /// Sends nothing more after this many bytes and resets the connection.
    pub reset_after: Option<usize>,
    /// Closes only after everything was received.
    pub close_last: bool,
    pub closed: bool,
    pub was_reset: bool,
    pub eof: bool,
}

pub struct Guest {
    pub port: Port,
    pub interface: Interface,
    pub sockets: SocketSet<'static>,
    pub flows: Vec<Flow>,
    pub slow: bool,
}

impl Guest {
    pub fn new(seed: u64, mtu: usize, slow: bool) -> Self {
        let mut port = Port { received: VecDeque::new(), sent: Vec::new(), mtu };
        let mut config = Config::new(EthernetAddress([2, 0, 0, 0, 0, 9]).into());
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut port, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            let own = IpCidr::new(IpAddress::v4(192, 168, 65, 3), 24);
            addresses.push(own).expect("room for one address");
        });
        let gateway = Ipv4Address::new(192, 168, 65, 1);
        interface.routes_mut().add_default_ipv4_route(gateway).expect("room for one route");
        Self { port, interface, sockets: SocketSet::new(Vec::new()), flows: Vec::new(), slow }
    }

    /// Adds a flow with a socket of this buffer size; connected by the caller.
    pub fn add_flow(&mut self, buffer: usize, flow: Flow) -> usize {
        let socket = Socket::new(SocketBuffer::new(vec![0; buffer]), SocketBuffer::new(vec![0; buffer]));
        let handle = self.sockets.add(socket);
        self.flows.push(Flow { handle, ..flow });
        self.flows.len() - 1
    }

    pub fn poll(&mut self, now: u64) {
        self.interface.poll(Instant::from_micros(now as i64), &mut self.port, &mut self.sockets);
    }

    pub fn deadline(&mut self, now: u64) -> Option<u64> {
        let at = self.interface.poll_at(Instant::from_micros(now as i64), &self.sockets)?;
        Some((at.total_micros() as u64).max(now + 1))
    }

    /// Lets the programs read and write. Errs when a byte is not what was sent.
    pub fn run_programs(&mut self, random: &mut Random) -> Result<(), String> {
        for flow in &mut self.flows {
            let socket = self.sockets.get_mut::<Socket>(flow.handle);
            read(flow, socket, self.slow, random)?;
            if socket.state() == State::Closed {
                flow.was_reset = !flow.closed;
                continue;
            }
            write(flow, socket);
        }
        Ok(())
    }
}

fn read(
    flow: &mut Flow,
    socket: &mut Socket<'static>,
    slow: bool,
    random: &mut Random,
) -> Result<(), String> {
    while socket.can_recv() && !(slow && random.percent(70)) {
        let limit = if slow { 1 + random.below(700) as usize } else { usize::MAX };
        let (stream, at) = (flow.stream + 1, flow.received);
        let taken = socket
            .recv(|bytes| {
                let count = bytes.len().min(limit);
                let wrong = (0..count).find(|index| bytes[*index] != pattern(stream, at + index));
                (count, wrong.map_or(Ok(count), |index| Err(at + index)))
            })
            .map_err(|error| error.to_string())?;
        flow.received += taken.map_err(|at| format!("the guest got a wrong byte at {at}"))?;
    }
    if !socket.may_recv() && socket.state() != State::SynSent && socket.state() != State::Listen {
        let opening = socket.state() == State::SynReceived;
        flow.eof |= !opening && !socket.can_recv();
    }
    Ok(())
}

fn write(flow: &mut Flow, socket: &mut Socket<'static>) {
    if flow.reset_after.is_some_and(|limit| flow.sent + flow.received >= limit) && socket.may_send() {
        socket.abort();
        flow.closed = true;
        flow.eof = true;
        return;
    }
    while socket.can_send() && flow.sent < flow.to_send {
        let (stream, at, left) = (flow.stream, flow.sent, flow.to_send - flow.sent);
        let count = socket.send(|room| {
            let count = room.len().min(left);
            for (index, byte) in room[..count].iter_mut().enumerate() {
                *byte = pattern(stream, at + index);
            }
            (count, count)
        });
        let Ok(count) = count else { break };
        if count == 0 {
            break;
        }
        flow.sent += count;
    }
    let may_close = !flow.close_last || flow.eof;
    if socket.may_send() && flow.sent == flow.to_send && may_close && !flow.closed {
        socket.close();
        flow.closed = true;
    }
}
