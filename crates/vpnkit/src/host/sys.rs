//! Linux calls that rustix does not have: the error queue of datagram sockets.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, BorrowedFd};

use vpnkit_stack::DatagramError;

/// Bytes of control messages that an error can come with.
const CONTROL_BYTES: usize = 256;

/// Asks for ICMP errors on a datagram socket: `IP_RECVERR` of ip(7).
pub fn set_recverr(fd: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: `fd` is open for the call, `on` is a live c_int and its size is passed.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_RECVERR,
            (&raw const on).cast(),
            mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An entry of a socket's error queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedError {
    /// Where the datagram was going.
    pub to: SocketAddrV4,
    /// What it came to, if an ICMP message says so.
    pub error: Option<DatagramError>,
    /// The start of the datagram's payload.
    pub payload: Vec<u8>,
}

/// Takes the next entry of the error queue of an IPv4 socket, or `None` when it is empty: `MSG_ERRQUEUE` of recv(2).
pub fn receive_error(fd: BorrowedFd<'_>) -> Option<QueuedError> {
    #[repr(align(8))]
    struct Control([u8; CONTROL_BYTES]);
    let mut control = Control([0; CONTROL_BYTES]);
    let mut payload = [0u8; 64];
    let mut vector = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
    // SAFETY: both are plain C structures for which zero is a valid value.
    let (mut to, mut message): (libc::sockaddr_in, libc::msghdr) = unsafe { (mem::zeroed(), mem::zeroed()) };
    message.msg_name = (&raw mut to).cast();
    message.msg_namelen = mem::size_of::<libc::sockaddr_in>() as libc::socklen_t;
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_BYTES as _;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: `message` points at `to`, `vector` (which points at `payload`) and `control`, each live, writable and
    // of the length given.
    let count = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) };
    let count = usize::try_from(count).ok()?;
    let error = find_error(&message);
    let ip = Ipv4Addr::from_bits(u32::from_be(to.sin_addr.s_addr));
    let to = SocketAddrV4::new(ip, u16::from_be(to.sin_port));
    Some(QueuedError { to, error, payload: payload[..count.min(payload.len())].to_vec() })
}

/// Looks for the ICMP error among the control messages that `recvmsg` filled in.
fn find_error(message: &libc::msghdr) -> Option<DatagramError> {
    let need = mem::size_of::<libc::sock_extended_err>();
    // SAFETY: `message` is as `recvmsg` left it: its control buffer is live for as long as the borrow.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: the CMSG macros return only pointers to whole headers inside of the control buffer, which is
        // aligned for them.
        let found = unsafe { &*header };
        if found.cmsg_level == libc::IPPROTO_IP && found.cmsg_type == libc::IP_RECVERR {
            // SAFETY: as above; the data follows the header.
            let data = unsafe { libc::CMSG_DATA(header) };
            // SAFETY: the kernel wrote a whole `sock_extended_err`, then the offender's address (ip(7)); the length
            // is checked for the first before it is read, which an unaligned read may.
            let error = (found.cmsg_len as usize >= need)
                .then(|| unsafe { data.cast::<libc::sock_extended_err>().read_unaligned() })?;
            let whole = need + mem::size_of::<libc::sockaddr_in>();
            // SAFETY: the length is checked; the bytes after the error are the offender's `sockaddr_in`.
            let offender = (found.cmsg_len as usize >= whole)
                .then(|| unsafe { data.add(need).cast::<libc::sockaddr_in>().read_unaligned() })
                .filter(|address| address.sin_family == libc::AF_INET as libc::sa_family_t)
                .map(|address| Ipv4Addr::from_bits(u32::from_be(address.sin_addr.s_addr)));
            let is_icmp = error.ee_origin == libc::SO_EE_ORIGIN_ICMP;
            let too_big = error.ee_errno == libc::EMSGSIZE as u32;
            let mtu = if too_big { error.ee_info.min(0xffff) as u16 } else { 0 };
            let error = DatagramError { kind: error.ee_type, code: error.ee_code, mtu, from: offender };
            return is_icmp.then_some(error);
        }
        // SAFETY: `header` came from the same message.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}
