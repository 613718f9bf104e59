//! A machine on a stream: frames with their lengths, after a greeting.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::SendFlags;

use super::Left;
use crate::framing::{Framing, Unframer};
use crate::greeting::{Greeting, Progress, Terms};

/// Bytes that are written in one go.
const BURST_BYTES: usize = 128 * 1024;

/// The machine.
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
    terms: Terms,
    greeting: Greeting,
    input: Unframer,
    framing: Framing,
    out: Vec<u8>,
    /// Bytes of `out` that are sent.
    sent: usize,
    /// It is to be closed when everything is sent.
    last: bool,
}

impl Stream {
    pub fn new(fd: OwnedFd, framing: Framing, greeting: Greeting, terms: Terms) -> Self {
        let input = Unframer::new(framing);
        Self { fd, terms, greeting, input, framing, out: Vec::new(), sent: 0, last: false }
    }

    pub fn receive(&mut self, take: &mut dyn FnMut(&[u8])) -> Left {
        let room = self.input.room();
        let asked = room.len();
        let left = match rustix::io::read(&self.fd, room) {
            Ok(0) => return Left::Closed,
            Ok(count) => {
                self.input.filled(count);
                if count == asked { Left::More } else { Left::Open }
            }
            Err(Errno::AGAIN | Errno::INTR) => return Left::Open,
            Err(_) => return Left::Closed,
        };
        match self.greeting.advance(&mut self.input, &self.terms, &mut self.out) {
            Progress::Wait => {}
            Progress::Refused => self.last = true,
            Progress::Ready => loop {
                match self.input.next_frame() {
                    // Frames of no bytes are what some clients send to see whether we are there.
                    Ok(Some([])) => {}
                    Ok(Some(frame)) => take(frame),
                    Ok(None) => break,
                    Err(_) => return Left::Closed,
                }
            },
        }
        left
    }

    pub fn queued_bytes(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Queues a whole frame; false before the greeting is done.
    pub fn send(&mut self, parts: &[&[u8]]) -> bool {
        if self.greeting != Greeting::Done {
            return false;
        }
        self.framing.put(&mut self.out, parts);
        if self.queued_bytes() >= BURST_BYTES {
            // An error shows again when it is read.
            let _ = self.flush();
        }
        true
    }

    pub fn flush(&mut self) -> io::Result<bool> {
        while self.sent < self.out.len() {
            match rustix::net::send(&self.fd, &self.out[self.sent..], SendFlags::NOSIGNAL) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let all = self.sent == self.out.len();
        if all {
            self.out.clear();
            self.out.shrink_to(4 * BURST_BYTES);
            self.sent = 0;
            if self.last {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        } else if self.sent > super::QUEUED_BYTES_MAX {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        Ok(all)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
