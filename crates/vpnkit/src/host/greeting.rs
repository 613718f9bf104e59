//! What is said at the beginning of a tunnel: a request, and whether it is accepted. Each is JSON with its length, two
//! bytes, little-endian, before it. Spec: VPNKit's `go/pkg/tunnel`.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// Bytes of the longest answer; real ones have twenty.
const ANSWER_BYTES_MAX: usize = 4096;

/// A greeting under way.
#[derive(Debug)]
pub struct Greeting {
    request: Vec<u8>,
    sent: usize,
    answer: Vec<u8>,
}

impl Greeting {
    pub fn new(request: &[u8]) -> Self {
        let length = u16::try_from(request.len()).unwrap_or(u16::MAX);
        let request = [&length.to_le_bytes()[..], &request[..usize::from(length)]].concat();
        Self { request, sent: 0, answer: Vec::new() }
    }

    /// Goes on as far as the socket lets it; returns whether the tunnel is there. Nothing after the answer is read.
    pub fn progress(&mut self, fd: &OwnedFd) -> Result<bool, Errno> {
        while self.sent < self.request.len() {
            match send(fd, &self.request[self.sent..], SendFlags::NOSIGNAL) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        loop {
            let whole = match self.answer[..] {
                [low, high, ..] => 2 + usize::from(u16::from_le_bytes([low, high])),
                _ => 2,
            };
            if whole > ANSWER_BYTES_MAX {
                return Err(Errno::CONNREFUSED);
            }
            if self.answer.len() == whole && whole > 2 {
                return if is_accepted(&self.answer[2..]) { Ok(true) } else { Err(Errno::CONNREFUSED) };
            }
            let have = self.answer.len();
            self.answer.resize(whole.max(2), 0);
            let received = recv(fd, &mut self.answer[have..], RecvFlags::empty());
            self.answer.truncate(have + received.as_ref().map_or(0, |(count, _)| *count));
            match received {
                Ok((0, _)) => return Err(Errno::CONNREFUSED),
                Ok(_) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether the answer is `{"accepted": true}`, with or without more.
fn is_accepted(json: &[u8]) -> bool {
    let dense: Vec<u8> = json.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    dense.windows(15).any(|part| part == b"\"accepted\":true")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn greet(answer: &[u8]) -> (Result<bool, Errno>, UnixStream) {
        let (here, mut there) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        let mut greeting = Greeting::new(b"{}");
        let fd = OwnedFd::from(here.try_clone().unwrap());
        assert_eq!(greeting.progress(&fd), Ok(false));
        let mut request = [0; 4];
        there.read_exact(&mut request).unwrap();
        assert_eq!(&request, b"\x02\0{}");
        there.write_all(answer).unwrap();
        drop(there);
        (greeting.progress(&fd), here)
    }

    #[test]
    fn a_tunnel_begins_right_after_the_answer() {
        let (accepted, mut here) = greet(b"\x13\0{\"accepted\": true }data");
        assert_eq!(accepted, Ok(true));
        let mut data = String::new();
        here.read_to_string(&mut data).unwrap();
        assert_eq!(data, "data");
    }

    #[test]
    fn anything_else_is_a_refusal() {
        for answer in [&b"\x12\0{\"accepted\":false}"[..], b"", b"\xff\xff", b"\x02\0{}"] {
            assert_eq!(greet(answer).0, Err(Errno::CONNREFUSED), "{answer:?}");
        }
    }
}
