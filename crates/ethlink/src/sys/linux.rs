//! Linux calls that rustix does not have: making TAP devices, asking who owns a namespace, many packets in one call.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// `TUNSETOFFLOAD` flags: `TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6`.
const OFFLOADS: libc::c_ulong = 1 | 2 | 4;
/// `NS_GET_USERNS` of ioctl_ns(2): `_IO(0xb7, 1)`.
const NS_GET_USERNS: libc::c_ulong = 0xb701;

/// Opens the TAP device `name`, nonblocking, made if there is none. With `header_bytes` it has a `virtio_net_hdr` of so
/// many, and checksum and TCP segmentation offload. Spec: Documentation/networking/tuntap.rst.
pub fn open_tap(name: &str, header_bytes: Option<usize>) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the path is a C string literal.
    let raw = unsafe { libc::open(c"/dev/net/tun".as_ptr(), flags) };
    check(raw)?;
    // SAFETY: `raw` was just opened and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: a plain C structure for which zero is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // The last byte stays zero: the kernel takes names of up to 15 bytes.
    let room = request.ifr_name.len() - 1;
    for (to, byte) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = byte as libc::c_char;
    }
    let header = if header_bytes.is_some() { libc::IFF_VNET_HDR } else { 0 };
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | header) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which is live.
    check(unsafe { libc::ioctl(raw, libc::TUNSETIFF as _, &raw mut request) })?;
    let Some(header_bytes) = header_bytes else { return Ok(fd) };
    let size = header_bytes as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one c_int, which is live.
    check(unsafe { libc::ioctl(raw, libc::TUNSETVNETHDRSZ as _, &raw const size) })?;
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(raw, libc::TUNSETOFFLOAD as _, OFFLOADS) })?;
    Ok(fd)
}

/// Returns the user namespace that owns a namespace: ioctl_ns(2).
pub fn owner_of_namespace(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: NS_GET_USERNS takes no argument; `namespace` is open for the call.
    let raw = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS as _) };
    check(raw)?;
    // SAFETY: the ioctl returned a new descriptor, which belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Takes over a descriptor that this process was started with, by its number.
///
/// # Errors
/// When it is not open, or one of the first three.
pub fn take_fd(number: i32) -> io::Result<OwnedFd> {
    if number < 3 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: F_GETFD only asks; any number will do.
    check(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    // SAFETY: a new descriptor is made for the same file: it belongs to nobody else, whoever has `number`.
    let raw = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    check(raw)?;
    // SAFETY: `raw` was just made.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Packets that one call takes or gives at most.
const PACKETS_MAX: usize = 32;

/// Receives packets that wait, each into its own `each` bytes of `buffer`, and notes their lengths; returns how many
/// there were. A packet that is longer is cut. Never blocks. See recvmmsg(2).
pub fn receive_packets(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
    each: usize,
    lengths: &mut [usize],
) -> Result<usize, Errno> {
    let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; PACKETS_MAX];
    // SAFETY: a plain C structure for which zero is a valid value.
    let mut headers: [libc::mmsghdr; PACKETS_MAX] = unsafe { mem::zeroed() };
    let mut count = 0;
    for ((room, vector), header) in
        buffer.chunks_exact_mut(each).zip(&mut vectors).zip(&mut headers).take(lengths.len())
    {
        *vector = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
        header.msg_hdr.msg_iov = vector;
        header.msg_hdr.msg_iovlen = 1;
        count += 1;
    }
    let flags = libc::MSG_DONTWAIT;
    // SAFETY: the first `count` headers point at one vector each, and these at pieces of `buffer` that do not overlap;
    // all of them live until the call returns. No names and no control messages are asked for.
    let result = unsafe {
        libc::recvmmsg(fd.as_raw_fd(), headers.as_mut_ptr(), count as _, flags as _, std::ptr::null_mut())
    };
    let received = usize::try_from(result).map_err(|_| last_errno())?;
    for (length, header) in lengths.iter_mut().zip(&headers).take(received) {
        *length = header.msg_len as usize;
    }
    Ok(received)
}

/// Sends packets that lie end to end in `bytes`, with these lengths; returns how many were sent. Never blocks. See
/// sendmmsg(2).
pub fn send_packets<'l>(
    fd: BorrowedFd<'_>,
    bytes: &[u8],
    lengths: impl Iterator<Item = &'l usize>,
) -> Result<usize, Errno> {
    let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; PACKETS_MAX];
    // SAFETY: a plain C structure for which zero is a valid value.
    let mut headers: [libc::mmsghdr; PACKETS_MAX] = unsafe { mem::zeroed() };
    let (mut count, mut rest) = (0, bytes);
    for ((length, vector), header) in lengths.zip(&mut vectors).zip(&mut headers) {
        let Some((packet, after)) = rest.split_at_checked(*length) else { break };
        *vector = libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() };
        header.msg_hdr.msg_iov = vector;
        header.msg_hdr.msg_iovlen = 1;
        (count, rest) = (count + 1, after);
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the first `count` headers point at one vector each, and these at pieces of `bytes`, which the call only
    // reads; all of them live until it returns.
    let result = unsafe { libc::sendmmsg(fd.as_raw_fd(), headers.as_mut_ptr(), count as _, flags as _) };
    usize::try_from(result).map_err(|_| last_errno())
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
