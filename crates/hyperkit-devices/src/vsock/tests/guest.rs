//! The guest's side of the protocol, as Linux plays it, driven by hand.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::super::packet::{HEADER_BYTES, Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, STREAM, op};
use super::super::*;
use crate::testing::{Driver, until};

pub(super) const CID: u32 = 5;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Ports from here on refuse.
pub(super) const REFUSED_PORT: u32 = 9000;

/// Hands the host's end of each connection to the test.
pub(super) struct Host(Mutex<Sender<(u32, UnixStream)>>);

impl VsockBackend for Host {
    fn connect(&self, port: u32) -> std::io::Result<UnixStream> {
        if port >= REFUSED_PORT {
            return Err(std::io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = UnixStream::pair()?;
        self.0.lock().unwrap().send((port, ours)).unwrap();
        Ok(theirs)
    }
}

/// A guest's socket, named by (guest port, host port).
pub(super) type Name = (u32, u32);

/// A guest's socket.
#[derive(Debug, Default)]
pub(super) struct Socket {
    pub(super) open: bool,
    pub(super) reset: bool,
    /// Shutdown flags that the host sent.
    pub(super) peer_shutdown: u32,
    /// Received and not read.
    pub(super) received: Vec<u8>,
    pub(super) window: u32,
    forwarded: u32,
    announced: u32,
    sent: u32,
    pub(super) peer_window: u32,
    peer_forwarded: u32,
    pub(super) n_credit_requests: u32,
}

impl Socket {
    /// Bytes that may be sent now.
    pub(super) fn credit(&self) -> usize {
        (self.peer_window - (self.sent - self.peer_forwarded)) as usize
    }

    /// No byte will come any more.
    pub(super) fn at_end(&self) -> bool {
        self.received.is_empty() && (self.peer_shutdown & SHUTDOWN_SEND != 0 || self.reset)
    }
}

pub(super) struct Guest {
    pub(super) driver: Driver<Vsock>,
    pub(super) handle: VsockHandle,
    pub(super) accepted: Receiver<(u32, UnixStream)>,
    pub(super) sockets: HashMap<Name, Socket>,
    /// Buffers that are offered for receiving, and the length of each.
    pub(super) n_buffers: usize,
    pub(super) buffer_bytes: u32,
    /// Window of new sockets.
    pub(super) window: u32,
    /// Guest ports that accept connections.
    pub(super) listening: Vec<u32>,
    /// RST packets for sockets that are not there.
    pub(super) stray_resets: Vec<Header>,
}

/// A device and what a test needs of its host.
pub(super) fn device() -> (Vsock, VsockHandle, Receiver<(u32, UnixStream)>) {
    let (sender, accepted) = channel();
    let (device, handle) = Vsock::new(CID, Arc::new(Host(Mutex::new(sender))));
    (device, handle, accepted)
}

impl Guest {
    pub(super) fn new() -> Guest {
        let (device, handle, accepted) = device();
        Guest {
            driver: Driver::new(device),
            handle,
            accepted,
            sockets: HashMap::new(),
            n_buffers: 64,
            buffer_bytes: 4096,
            window: 256 << 10,
            listening: Vec::new(),
            stray_resets: Vec::new(),
        }
    }

    /// Header of a packet from socket `name`, without credit.
    pub(super) fn header(name: Name, op: u16) -> Header {
        Header {
            src_cid: u64::from(CID),
            dst_cid: HOST_CID,
            src_port: name.0,
            dst_port: name.1,
            kind: STREAM,
            op,
            ..Header::default()
        }
    }

    /// Sends a packet as it is, when the queue has room.
    pub(super) fn send_raw(&mut self, header: &Header, payload: &[u8]) {
        until("the transmit queue has room", || {
            self.poll();
            self.driver.rings[TRANSMIT].n_pending() < 40
        });
        let parts: &[&[u8]] = if payload.is_empty() { &[&header.emit()] } else { &[&header.emit(), payload] };
        self.driver.send(TRANSMIT as u16, parts, &[]);
    }

    /// Sends a packet of a socket, with its credit.
    pub(super) fn send(&mut self, name: Name, op: u16, flags: u32, payload: &[u8]) {
        let socket = self.sockets.get_mut(&name).unwrap();
        socket.sent += payload.len() as u32;
        socket.announced = socket.forwarded;
        let header = Header {
            len: payload.len() as u32,
            flags,
            buf_alloc: socket.window,
            fwd_cnt: socket.forwarded,
            ..Guest::header(name, op)
        };
        self.send_raw(&header, payload);
    }

    /// Starts to connect.
    pub(super) fn request(&mut self, name: Name) {
        let window = self.window;
        self.sockets.insert(name, Socket { window, ..Socket::default() });
        self.send(name, op::REQUEST, 0, &[]);
    }

    /// Connects, and returns the host's end.
    pub(super) fn connect(&mut self, name: Name) -> UnixStream {
        self.request(name);
        self.poll_until("the host accepts", |guest| guest.sockets[&name].open);
        let (port, stream) = self.accepted.recv().unwrap();
        assert_eq!(port, name.1);
        stream
    }

    /// Sends as much of `bytes` as there is credit for, in one packet, and returns how much.
    pub(super) fn write(&mut self, name: Name, bytes: &[u8]) -> usize {
        let len = bytes.len().min(self.sockets[&name].credit()).min(64 << 10);
        if len > 0 {
            self.send(name, op::RW, 0, &bytes[..len]);
        }
        len
    }

    /// Sends all of `bytes`, waiting for credit.
    pub(super) fn write_all(&mut self, name: Name, bytes: &[u8]) {
        let mut done = 0;
        until("everything is sent", || {
            self.poll();
            done += self.write(name, &bytes[done..]);
            done == bytes.len()
        });
    }

    /// Reads up to `max` bytes; tells the host like Linux when little of the window is left.
    pub(super) fn read(&mut self, name: Name, max: usize) -> Vec<u8> {
        let socket = self.sockets.get_mut(&name).unwrap();
        let len = max.min(socket.received.len());
        let bytes = socket.received.drain(..len).collect();
        socket.forwarded += len as u32;
        let unannounced = socket.forwarded - socket.announced;
        if unannounced > socket.window / 2 && !socket.reset {
            self.send(name, op::CREDIT_UPDATE, 0, &[]);
        }
        bytes
    }

    pub(super) fn shutdown(&mut self, name: Name, flags: u32) {
        self.send(name, op::SHUTDOWN, flags, &[]);
    }

    /// What closing the socket does, or the end of its process.
    pub(super) fn close(&mut self, name: Name) {
        self.shutdown(name, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
    }

    /// Offers buffers and takes what came.
    pub(super) fn poll(&mut self) {
        while self.driver.rings[TRANSMIT].take_used().is_some() {}
        while let Some(used) = self.driver.rings[RECEIVE].take_used() {
            let (header, payload) = used.bytes.split_first_chunk::<HEADER_BYTES>().unwrap();
            let header = Header::parse(header);
            assert_eq!(header.len as usize, payload.len());
            self.on_packet(&header, payload);
        }
        while self.driver.rings[RECEIVE].n_pending() < self.n_buffers {
            self.driver.send(RECEIVE as u16, &[], &[HEADER_BYTES as u32, self.buffer_bytes]);
        }
    }

    pub(super) fn poll_until(&mut self, what: &str, mut done: impl FnMut(&mut Guest) -> bool) {
        until(what, || {
            self.poll();
            done(self)
        });
    }

    fn on_packet(&mut self, header: &Header, payload: &[u8]) {
        assert_eq!(header.dst_cid, u64::from(CID));
        let name = (header.dst_port, header.src_port);
        if header.op == op::REQUEST {
            return self.on_request(name, header);
        }
        let Some(socket) = self.sockets.get_mut(&name).filter(|socket| !socket.reset) else {
            assert_eq!(header.op, op::RST, "{header:?} for a socket that is not there");
            return self.stray_resets.push(*header);
        };
        assert_eq!((header.src_cid, header.kind), (HOST_CID, STREAM));
        if header.op == op::RST {
            socket.reset = true;
            return;
        }
        socket.peer_window = header.buf_alloc;
        socket.peer_forwarded = header.fwd_cnt;
        assert_eq!(header.op == op::RESPONSE, !std::mem::replace(&mut socket.open, true), "{header:?}");
        match header.op {
            op::RESPONSE | op::CREDIT_UPDATE => {}
            op::RW => {
                assert_eq!(socket.peer_shutdown & SHUTDOWN_SEND, 0, "bytes after the end");
                socket.received.extend(payload);
                assert!(socket.received.len() <= socket.window as usize, "more than there was credit for");
            }
            op::SHUTDOWN => {
                assert_ne!(header.flags & !socket.peer_shutdown, 0, "nothing new");
                socket.peer_shutdown |= header.flags;
            }
            op::CREDIT_REQUEST => {
                socket.n_credit_requests += 1;
                self.send(name, op::CREDIT_UPDATE, 0, &[]);
            }
            other => panic!("operation {other}"),
        }
    }

    fn on_request(&mut self, name: Name, header: &Header) {
        if !self.listening.contains(&name.0) {
            return self.send_raw(&Guest::header(name, op::RST), &[]);
        }
        let (peer_window, window) = (header.buf_alloc, self.window);
        self.sockets.insert(name, Socket { open: true, window, peer_window, ..Socket::default() });
        self.send(name, op::RESPONSE, 0, &[]);
    }
}
