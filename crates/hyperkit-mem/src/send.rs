//! Guest memory to a socket without a copy of ours in between.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::{GuestAddr, GuestRam};

impl GuestRam {
    /// Sends runs of memory, each a first address and a length, one after another by one sendmsg(2), which reads them
    /// where they lie. Returns how many bytes the socket took. The guest may write them meanwhile: what is sent is then
    /// some of the old and some of the new.
    ///
    /// # Errors
    /// What sendmsg(2) says; `EFAULT` when a run does not lie in one region, `EMSGSIZE` when there are more than 1024.
    pub fn send(
        &self,
        runs: impl IntoIterator<Item = (GuestAddr, u64)>,
        socket: BorrowedFd<'_>,
    ) -> io::Result<usize> {
        let mut vectors = self.vectors(runs)?;
        // SAFETY: all zero is a valid `msghdr`: no name, no vectors, no control data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = vectors.as_mut_ptr();
        message.msg_iovlen = vectors.len() as _;
        // SAFETY: `message` and its vectors live until the call is over, and so does the mapping, which `self` holds; the
        // kernel only reads it. Nobody here has a reference to it.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Where runs of memory lie in this process.
    fn vectors(&self, runs: impl IntoIterator<Item = (GuestAddr, u64)>) -> io::Result<Vec<libc::iovec>> {
        let vector = |(addr, len)| {
            let host = self.span(addr, len).ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))?;
            Ok(libc::iovec { iov_base: host.as_ptr().cast(), iov_len: len as usize })
        };
        runs.into_iter().map(vector).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    const RUNS: [(GuestAddr, u64); 3] =
        [(GuestAddr(0x5001), 3), (GuestAddr(0x3000), 4096), (GuestAddr(0xf_ffff), 1)];

    #[test]
    fn the_kernel_is_given_the_guests_own_memory() {
        let ram = GuestRam::new(1 << 20).unwrap();
        let start = ram.span(GuestAddr(0), 1 << 20).unwrap().as_ptr() as usize;
        let vectors = ram.vectors(RUNS).unwrap();
        let places: Vec<_> =
            vectors.iter().map(|vector| (vector.iov_base as usize - start, vector.iov_len)).collect();
        assert_eq!(places, RUNS.map(|(addr, len)| (addr.0 as usize, len as usize)));
    }

    #[test]
    fn runs_arrive_one_after_another() {
        let ram = GuestRam::new(1 << 20).unwrap();
        let mut expected = Vec::new();
        for (number, (addr, len)) in RUNS.into_iter().enumerate() {
            let bytes: Vec<u8> =
                (0..len).map(|at| (at as u8).wrapping_mul(7).wrapping_add(number as u8)).collect();
            ram.write(addr, &bytes).unwrap();
            expected.extend(bytes);
        }
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        assert_eq!(ram.send(RUNS, ours.as_fd()).unwrap(), expected.len());
        let mut received = vec![0; expected.len()];
        theirs.read_exact(&mut received).unwrap();
        assert!(received == expected);
    }

    #[test]
    fn a_full_socket_takes_a_part_and_then_nothing() {
        let ram = GuestRam::new(4 << 20).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let some = ram.send([(GuestAddr(0), 4 << 20)], ours.as_fd()).unwrap();
        assert!(some > 0 && some < 4 << 20, "{some} bytes");
        let error = ram.send([(GuestAddr(0), 1 << 20)], ours.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(theirs);
        let error = ram.send([(GuestAddr(0), 1)], ours.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "and no signal");
    }

    #[test]
    fn memory_that_is_not_there_is_refused_and_nothing_sent() {
        let ram = GuestRam::new(1 << 20).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let error = ram.send([RUNS[0], (GuestAddr(0xf_ffff), 2)], ours.as_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
        theirs.set_nonblocking(true).unwrap();
        assert!((&theirs).read(&mut [0]).is_err(), "something was sent");
    }
}
