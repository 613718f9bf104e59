//! Linux calls that rustix does not have: making TAP devices, and asking who owns a namespace.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `TUNSETOFFLOAD` flags: `TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6`.
const OFFLOADS: libc::c_ulong = 1 | 2 | 4;
/// `NS_GET_USERNS` of ioctl_ns(2): `_IO(0xb7, 1)`.
const NS_GET_USERNS: libc::c_ulong = 0xb701;

/// Opens the TAP device `name`, nonblocking, made if there is none, with a `virtio_net_hdr` of `header_bytes` and
/// checksum and TCP segmentation offload. Spec: Documentation/networking/tuntap.rst.
pub fn open_tap(name: &str, header_bytes: usize) -> io::Result<OwnedFd> {
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
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which is live.
    check(unsafe { libc::ioctl(raw, libc::TUNSETIFF as _, &raw mut request) })?;
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

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
