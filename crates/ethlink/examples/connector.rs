//! A TAP device in a network namespace on a Unix socket: what stands between a kernel and a machine's socket.
//!
//!     connector NETNS DEVICE MTU stream|packets|datagrams OWN PEER
//!     connector NETNS DEVICE MTU device NETNS2 DEVICE2
//!
//! It moves the bytes and does nothing else, a thread for each way, as small as it can be: what it costs, every network
//! behind such a socket pays. `cargo xtask bench net` measures ours behind one, and two of them with nothing between. With two devices it is
//! the least that a network outside of the kernel can be.
//!
//! Streams and packets listen at OWN when PEER is `-`, otherwise they connect to PEER. Datagrams have both.
#![allow(clippy::exit, reason = "one way ends, the other waits")]

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use ethlink::{FRAME_BYTES_MAX, Framing, Namespace, Netlink, QUEUE_FRAMES, Tap, Unframer};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt};

/// How long the other end may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of frames that are gathered for one write to a stream.
const BURST_BYTES: usize = 256 * 1024;
/// Bytes that the kernel may keep of a socket.
const SOCKET_BYTES: usize = 4 << 20;

type Done<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Done<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [namespace, device, mtu, kind, own, peer] = &words[..] else {
        return Err("usage: connector NETNS DEVICE MTU stream|packets|datagrams OWN PEER".into());
    };
    if kind == "device" {
        let (one, other) = (open(namespace, device, mtu)?, open(own, peer, mtu)?);
        return both(|| copy_frames(&one, &other), || copy_frames(&other, &one));
    }
    let socket = match kind.as_str() {
        "stream" if peer == "-" => UnixListener::bind(own)?.accept()?.0.into(),
        "stream" => OwnedFd::from(patiently(|| UnixStream::connect(peer))?),
        "packets" if peer == "-" => accept_packets(own)?,
        "packets" => patiently(|| connect_packets(peer))?,
        "datagrams" => {
            let socket = UnixDatagram::bind(own)?;
            patiently(|| socket.connect(peer))?;
            socket.into()
        }
        _ => return Err(format!("{kind} is no kind of socket").into()),
    };
    // A refusal leaves the usual queues.
    let _ = sockopt::set_socket_send_buffer_size_force(&socket, SOCKET_BYTES);
    let _ = sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BYTES);
    let tap = open(namespace, device, mtu)?;
    if kind == "stream" {
        both(|| frame_stream(&tap, &socket), || take_stream(&socket, &tap))
    } else {
        both(|| send_packets(&tap, &socket), || receive_packets(&socket, &tap))
    }
}

/// Opens a device in a namespace, where the calling thread then is.
fn open(namespace: &str, device: &str, mtu: &str) -> Done<Tap> {
    let Ok(namespace) = namespace.parse::<Namespace>();
    namespace.enter()?;
    let tap = Tap::open_plain(device)?;
    let mut netlink = Netlink::open()?;
    let index = netlink.index_of(device)?;
    netlink.set_queue(index, QUEUE_FRAMES)?;
    netlink.set_mtu(index, mtu.parse()?)?;
    Ok(tap)
}

/// Runs both ways until one of them ends, and with it the process.
fn both(out: impl FnOnce() -> Done<()> + Send, back: impl FnOnce() -> Done<()>) -> Done<()> {
    std::thread::scope(|scope| {
        scope.spawn(|| end(out()));
        end(back());
        Ok(())
    })
}

fn end(way: Done<()>) {
    let failed = way.inspect_err(|error| eprintln!("connector: {error}")).is_err();
    std::process::exit(failed.into())
}

fn patiently<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let began = Instant::now();
    loop {
        match attempt() {
            Err(_) if began.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(20)),
            outcome => return outcome,
        }
    }
}

fn packets() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

fn accept_packets(own: &str) -> io::Result<OwnedFd> {
    let listener = packets()?;
    rustix::net::bind(&listener, &SocketAddrUnix::new(own)?)?;
    rustix::net::listen(&listener, 1)?;
    Ok(rustix::net::accept(&listener)?)
}

fn connect_packets(peer: &str) -> io::Result<OwnedFd> {
    let socket = packets()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(peer)?)?;
    Ok(socket)
}

/// Waits for frames, or room.
fn await_event(fd: impl AsFd, flags: PollFlags) -> Done<()> {
    match poll(&mut [PollFd::new(&fd, flags)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Reads a frame; `None` when none waits.
fn read_frame(tap: &Tap, buffer: &mut [u8]) -> Done<Option<usize>> {
    match rustix::io::read(tap, buffer) {
        Ok(count) => Ok(Some(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes a frame; what the device refuses is lost, as on a wire: it is down before the start.
fn write_frame(tap: &Tap, frame: &[u8]) -> Done<()> {
    while let Err(Errno::AGAIN | Errno::INTR) = rustix::io::write(tap, frame) {
        await_event(tap, PollFlags::OUT)?;
    }
    Ok(())
}

fn copy_frames(from: &Tap, to: &Tap) -> Done<()> {
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    loop {
        match read_frame(from, &mut buffer)? {
            None => await_event(from, PollFlags::IN)?,
            Some(count) => write_frame(to, &buffer[..count])?,
        }
    }
}

fn frame_stream(tap: &Tap, socket: &OwnedFd) -> Done<()> {
    let header = 4;
    let mut buffer = vec![0; BURST_BYTES + header + FRAME_BYTES_MAX];
    loop {
        let mut end = 0;
        while end < BURST_BYTES {
            let Some(count) = read_frame(tap, &mut buffer[end + header..])? else { break };
            buffer[end..end + header].copy_from_slice(&(count as u32).to_be_bytes());
            end += header + count;
        }
        if end == 0 {
            await_event(tap, PollFlags::IN)?;
        }
        let mut rest = &buffer[..end];
        while !rest.is_empty() {
            let count = rustix::net::send(socket, rest, SendFlags::NOSIGNAL)?;
            rest = &rest[count..];
        }
    }
}

fn take_stream(socket: &OwnedFd, tap: &Tap) -> Done<()> {
    let mut unframer = Unframer::new(Framing::Be32);
    loop {
        match rustix::io::read(socket, unframer.room())? {
            0 => return Ok(()),
            count => unframer.filled(count),
        }
        while let Some(frame) = unframer.next_frame()? {
            write_frame(tap, frame)?;
        }
    }
}

fn send_packets(tap: &Tap, socket: &OwnedFd) -> Done<()> {
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    loop {
        match read_frame(tap, &mut buffer)? {
            None => await_event(tap, PollFlags::IN)?,
            Some(count) => {
                rustix::net::send(socket, &buffer[..count], SendFlags::NOSIGNAL)?;
            }
        }
    }
}

fn receive_packets(socket: &OwnedFd, tap: &Tap) -> Done<()> {
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    loop {
        match rustix::io::read(socket, &mut buffer)? {
            0 => return Ok(()),
            count => write_frame(tap, &buffer[..count])?,
        }
    }
}
