//! A server and its clients, with which `cargo xtask bench net` measures a network by what programs see of it.
//!
//!     traffic serve ADDRESS
//!     traffic rr|crr|dns ADDRESS SECONDS
//!
//! `rr`: one connection, requests of 64 bytes one after the other; prints the median time of an answer in microseconds.
//! `crr`: 32 at a time, each connects, asks with 64 bytes, reads 1024 and the end; prints how many a second.
//! `dns`: 16 sockets, each with a query under way, no name twice; prints answers a second. The name server is at port 53
//! of ADDRESS, the others at [`PORT`] and the one after it.
#![allow(clippy::print_stdout, reason = "that is what it is for")]

use std::collections::HashMap;
use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Where requests over one connection go; the next port answers and closes.
const PORT: u16 = 7000;
const REQUEST_BYTES: usize = 64;
const ANSWER_BYTES: usize = 1024;
/// Connections at a time.
const CONNECTIONS: usize = 32;
/// Queries under way.
const QUERIES: usize = 16;
/// How long an answer may take before the measurement is a failure.
const PATIENCE: Duration = Duration::from_secs(3);
/// Events taken in one round.
const EVENTS_MAX: usize = 128;

type Done<T> = Result<T, Box<dyn Error>>;

fn main() -> Done<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let figure = match words[..] {
        ["serve", address] => return Server::new(address.parse()?)?.run(),
        ["rr", address, seconds] => requests(SocketAddr::new(address.parse()?, PORT), span(seconds)?)?,
        ["crr", address, seconds] => {
            Connections::new(SocketAddr::new(address.parse()?, PORT + 1))?.run(span(seconds)?)?
        }
        ["dns", address, seconds] => queries(SocketAddr::new(address.parse()?, 53), span(seconds)?)?,
        _ => return Err("usage: traffic serve ADDRESS | rr|crr|dns ADDRESS SECONDS".into()),
    };
    println!("{figure:.1}");
    Ok(())
}

fn span(seconds: &str) -> Done<Duration> {
    Ok(Duration::try_from_secs_f64(seconds.parse()?)?)
}

/// What is ready of a set of descriptors.
struct Ready {
    epoll: OwnedFd,
    events: Vec<(u64, EventFlags)>,
}

impl Ready {
    fn new() -> Done<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, events: Vec::new() })
    }

    fn add(&self, fd: impl AsFd, number: usize, events: EventFlags) -> Done<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(number as u64), events)?)
    }

    fn wait(&mut self, most: Option<Duration>) -> Done<&[(u64, EventFlags)]> {
        let most =
            most.map(|most| Timespec { tv_sec: most.as_secs() as i64, tv_nsec: most.subsec_nanos().into() });
        let mut buffer = [const { MaybeUninit::<Event>::uninit() }; EVENTS_MAX];
        let (events, _) = epoll::wait(&self.epoll, &mut buffer[..], most.as_ref())?;
        self.events.clear();
        self.events.extend(events.iter().map(|event| (event.data.u64(), event.flags)));
        Ok(&self.events)
    }
}

/// A connection to the server.
struct Served {
    stream: TcpStream,
    /// Whether it is closed after one answer.
    once: bool,
}

/// Answers all three kinds of clients, on one thread.
struct Server {
    ready: Ready,
    names: UdpSocket,
    listeners: [TcpListener; 2],
    served: HashMap<u64, Served>,
    next: u64,
}

const NAMES: u64 = 0;
const LISTENERS: std::ops::RangeInclusive<u64> = 1..=2;

impl Server {
    fn new(address: IpAddr) -> Done<Self> {
        let ready = Ready::new()?;
        let names = UdpSocket::bind((address, 53))?;
        let listeners = [TcpListener::bind((address, PORT))?, TcpListener::bind((address, PORT + 1))?];
        // std's is 128, which 32 connections at a time do not fill, but a burst of resets might.
        for listener in &listeners {
            rustix::net::listen(listener, 4096)?;
            listener.set_nonblocking(true)?;
        }
        names.set_nonblocking(true)?;
        ready.add(&names, NAMES as usize, EventFlags::IN)?;
        ready.add(&listeners[0], 1, EventFlags::IN)?;
        ready.add(&listeners[1], 2, EventFlags::IN)?;
        Ok(Self { ready, names, listeners, served: HashMap::new(), next: 3 })
    }

    fn run(mut self) -> Done<()> {
        loop {
            for (number, _) in self.ready.wait(None)?.to_vec() {
                match number {
                    NAMES => self.answer_names(),
                    number if LISTENERS.contains(&number) => self.accept(number as usize - 1)?,
                    number => self.answer(number),
                }
            }
        }
    }

    fn accept(&mut self, which: usize) -> Done<()> {
        while let Ok((stream, _)) = self.listeners[which].accept() {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            self.ready.add(&stream, self.next as usize, EventFlags::IN)?;
            self.served.insert(self.next, Served { stream, once: which == 1 });
            self.next += 1;
        }
        Ok(())
    }

    fn answer(&mut self, number: u64) {
        let Some(Served { stream, once }) = self.served.get_mut(&number) else { return };
        let mut buffer = [0; 4096];
        let goes_on = match stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                let answer = if *once { &[0; ANSWER_BYTES][..] } else { &buffer[..count] };
                // An answer that finds no room is a client that does not read: it is closed.
                stream.write_all(answer).is_ok() && !*once
            }
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        };
        if !goes_on {
            self.served.remove(&number);
        }
    }

    fn answer_names(&mut self) {
        let mut message = [0; 512];
        while let Ok((count, from)) = self.names.recv_from(&mut message[..400]) {
            if count < 12 {
                continue;
            }
            // An answer, authoritative, of one record after the question: RFC 1035 §4.1.
            message[2..12].copy_from_slice(&[0x84, 0, 0, 1, 0, 1, 0, 0, 0, 0]);
            let record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, 7];
            message[count..count + record.len()].copy_from_slice(&record);
            // Who is gone does not want it any more.
            let _ = self.names.send_to(&message[..count + record.len()], from);
        }
    }
}

/// Requests one after the other; returns the median time of an answer, in microseconds.
fn requests(server: SocketAddr, span: Duration) -> Done<f64> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut times = Vec::new();
    let mut buffer = [0; REQUEST_BYTES];
    let (began, mut last) = (Instant::now(), Instant::now());
    while began.elapsed() < span {
        stream.write_all(&buffer)?;
        stream.read_exact(&mut buffer)?;
        let now = Instant::now();
        times.push(now - last);
        last = now;
    }
    times.sort_unstable();
    Ok(times.get(times.len() / 2).ok_or("no answer")?.as_secs_f64() * 1e6)
}

/// A client's connection that has not its whole answer.
struct Asking {
    fd: OwnedFd,
    asked: bool,
    received: usize,
}

/// Many short connections, some at a time.
struct Connections {
    ready: Ready,
    server: SocketAddr,
    slots: Vec<Option<Asking>>,
    done: u32,
}

impl Connections {
    fn new(server: SocketAddr) -> Done<Self> {
        let slots = (0..CONNECTIONS).map(|_| None).collect();
        Ok(Self { ready: Ready::new()?, server, slots, done: 0 })
    }

    /// Returns how many were made and answered in a second.
    fn run(mut self, span: Duration) -> Done<f64> {
        for slot in 0..CONNECTIONS {
            self.connect(slot)?;
        }
        let began = Instant::now();
        while began.elapsed() < span {
            let events = self.ready.wait(Some(PATIENCE))?.to_vec();
            if events.is_empty() {
                return Err("no answer".into());
            }
            for (slot, flags) in events {
                if self.go_on(slot as usize, flags)? {
                    self.done += 1;
                    self.connect(slot as usize)?;
                }
            }
        }
        Ok(f64::from(self.done) / began.elapsed().as_secs_f64())
    }

    fn connect(&mut self, slot: usize) -> Done<()> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let family = if self.server.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        rustix::net::sockopt::set_tcp_nodelay(&fd, true)?;
        match rustix::net::connect(&fd, &self.server) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        self.ready.add(&fd, slot, EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET)?;
        self.slots[slot] = Some(Asking { fd, asked: false, received: 0 });
        Ok(())
    }

    /// Asks, or reads; returns whether the answer and the end were there.
    fn go_on(&mut self, slot: usize, flags: EventFlags) -> Done<bool> {
        let Some(asking) = self.slots[slot].as_mut() else { return Ok(false) };
        if !asking.asked && flags.intersects(EventFlags::OUT | EventFlags::ERR | EventFlags::HUP) {
            rustix::io::write(&asking.fd, &[0; REQUEST_BYTES])?;
            asking.asked = true;
        }
        let mut buffer = [0; 2 * ANSWER_BYTES];
        while flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::ERR | EventFlags::HUP) {
            match rustix::io::read(&asking.fd, &mut buffer) {
                Ok(0) if asking.received == ANSWER_BYTES => return Ok(true),
                Ok(0) => return Err(format!("an answer of {} bytes", asking.received).into()),
                Ok(count) => asking.received += count,
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }
}

/// Queries, several under way; returns how many were answered in a second.
fn queries(server: SocketAddr, span: Duration) -> Done<f64> {
    let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let mut ready = Ready::new()?;
    let mut sockets = Vec::new();
    let mut sent = 0u32;
    for number in 0..QUERIES {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(server)?;
        socket.set_nonblocking(true)?;
        ready.add(&socket, number, EventFlags::IN)?;
        socket.send(&query(sent))?;
        sockets.push((socket, sent));
        sent += 1;
    }
    let (mut answers, began) = (0u32, Instant::now());
    let mut message = [0; 512];
    while began.elapsed() < span {
        let events = ready.wait(Some(PATIENCE))?;
        if events.is_empty() {
            return Err("no answer".into());
        }
        for (number, _) in events {
            let (socket, asked) = &mut sockets[*number as usize];
            let count = socket.recv(&mut message)?;
            if count < 12 || message[..2] != (*asked as u16).to_be_bytes() || message[7] != 1 {
                return Err("an answer that is none".into());
            }
            answers += 1;
            *asked = sent;
            socket.send(&query(sent))?;
            sent += 1;
        }
    }
    Ok(f64::from(answers) / began.elapsed().as_secs_f64())
}

/// Asks for the address of a name that was not asked for before: RFC 1035 §4.1.
fn query(number: u32) -> Vec<u8> {
    let mut message = (number as u16).to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    let label = format!("q{}-{number}", std::process::id());
    for label in [&label, "bench", "test"] {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}
