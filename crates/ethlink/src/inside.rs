//! Sockets in the network namespace of another process.
//!
//! Whoever has entered a namespace ([`serve`]) makes sockets there for one who has not ([`Inside`]): connections to its
//! programs need not cross the device then. A few sockets are always at hand, because nobody waits here.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::pass;

/// Sockets at hand, or asked for.
const SOCKETS: usize = 32;
/// What one is asked for with.
const ASK: u8 = b's';

#[derive(Debug, Default)]
struct Stock {
    sockets: VecDeque<OwnedFd>,
    asked: usize,
    broken: bool,
}

/// TCP sockets for IPv4 of a namespace, unbound and nonblocking.
#[derive(Debug)]
pub struct Inside {
    stream: UnixStream,
    stock: Mutex<Stock>,
}

impl Inside {
    /// Takes sockets from who calls [`serve`] at the other end of `stream`.
    ///
    /// # Errors
    /// When the stream cannot be made nonblocking.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let inside = Self { stream, stock: Mutex::default() };
        inside.ask();
        Ok(inside)
    }

    /// A socket, if one is at hand.
    pub fn take(&self) -> Option<OwnedFd> {
        self.collect();
        let socket = self.stock().sockets.pop_front();
        self.ask();
        socket
    }

    /// Takes what has come; called when [`AsFd`] is readable. Returns whether the other end is there.
    pub fn collect(&self) -> bool {
        let mut stock = self.stock();
        while !stock.broken && stock.asked > 0 {
            match pass::receive(&self.stream) {
                Ok(Some(socket)) => {
                    stock.asked -= 1;
                    stock.sockets.push_back(socket);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Ok(None) | Err(_) => stock.broken = true,
            }
        }
        !stock.broken
    }

    fn ask(&self) {
        let mut stock = self.stock();
        let want = SOCKETS.saturating_sub(stock.sockets.len() + stock.asked);
        if want == 0 || stock.broken {
            return;
        }
        match rustix::net::send(&self.stream, &[ASK; SOCKETS][..want], SendFlags::NOSIGNAL) {
            Ok(count) => stock.asked += count,
            Err(Errno::AGAIN) => {}
            Err(_) => stock.broken = true,
        }
    }

    fn stock(&self) -> std::sync::MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Inside {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Makes sockets in the namespace of the calling thread for whoever asks at the other end, until that closes.
///
/// # Errors
/// When the connection breaks.
pub fn serve(stream: impl AsFd) -> io::Result<()> {
    let mut asked = [0; SOCKETS];
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    loop {
        let (count, _) = match rustix::net::recv(&stream, &mut asked, RecvFlags::empty()) {
            Ok((0, _)) => return Ok(()),
            Ok(received) => received,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        for _ in 0..count {
            let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
            if pass::send(&stream, socket.as_fd()).is_err() {
                // Nobody takes them any more.
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn sockets_come_as_long_as_they_are_taken() {
        let (here, there) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || serve(there));
        let inside = Inside::new(here).unwrap();
        let (mut taken, began) = (0, Instant::now());
        while taken < 3 * SOCKETS {
            assert!(began.elapsed() < Duration::from_secs(20), "{taken} taken");
            match inside.take() {
                Some(socket) => {
                    assert_eq!(rustix::net::sockopt::socket_type(&socket), Ok(SocketType::STREAM));
                    taken += 1;
                }
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        drop(inside);
        server.join().unwrap().unwrap();
    }
}
