//! Linux calls that rustix does not have: the error queue of datagram sockets.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use vpnkit_stack::{DatagramError, Hops};
use vpnkit_wire::{icmp, icmpv6};

/// Bytes of control messages that an error can come with.
const CONTROL_BYTES: usize = 256;

/// Asks for ICMP errors on a datagram socket: `IP_RECVERR` of ip(7), `IPV6_RECVERR` of ipv6(7).
pub fn set_recverr(fd: BorrowedFd<'_>, is_ipv6: bool) -> io::Result<()> {
    let (level, option) =
        if is_ipv6 { (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) } else { (libc::IPPROTO_IP, libc::IP_RECVERR) };
    set_int(fd, level, option, 1)
}

/// Says how far datagrams of the socket may go, and whether they may be fragmented: `IP_TTL` and `IP_MTU_DISCOVER` of
/// ip(7), and what ipv6(7) has for them.
pub fn set_hops(fd: BorrowedFd<'_>, is_ipv6: bool, hops: Hops) -> io::Result<()> {
    let ttl = libc::c_int::from(hops.ttl);
    if is_ipv6 {
        // Routers never fragment IPv6; without "do" this host does, as narrow as it knows the path to be.
        let discover = if hops.dont_fragment { libc::IPV6_PMTUDISC_DO } else { libc::IPV6_PMTUDISC_WANT };
        set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, discover)?;
        set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, ttl)
    } else {
        let discover = if hops.dont_fragment { libc::IP_PMTUDISC_DO } else { libc::IP_PMTUDISC_DONT };
        set_int(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, discover)?;
        set_int(fd, libc::IPPROTO_IP, libc::IP_TTL, ttl)
    }
}

fn set_int(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: `fd` is open for the call, `value` is a live c_int and its size is passed.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An entry of a socket's error queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedError {
    /// Where the datagram was going.
    pub to: SocketAddr,
    /// What it came to, if an ICMP message says so.
    pub error: Option<DatagramError>,
    /// The start of the datagram's payload.
    pub payload: Vec<u8>,
}

/// Takes the next entry of the error queue of a socket, or `None` when it is empty: `MSG_ERRQUEUE` of recv(2).
pub fn receive_error(fd: BorrowedFd<'_>) -> Option<QueuedError> {
    #[repr(align(8))]
    struct Control([u8; CONTROL_BYTES]);
    let mut control = Control([0; CONTROL_BYTES]);
    let mut payload = [0u8; 64];
    let mut vector = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
    // SAFETY: both are plain C structures for which zero is a valid value.
    let (mut to, mut message): (libc::sockaddr_in6, libc::msghdr) = unsafe { (mem::zeroed(), mem::zeroed()) };
    // `sockaddr_in6` is the larger one, and aligned for both.
    message.msg_name = (&raw mut to).cast();
    message.msg_namelen = mem::size_of::<libc::sockaddr_in6>() as libc::socklen_t;
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
    let to = address_of(&to)?;
    Some(QueuedError { to, error, payload: payload[..count.min(payload.len())].to_vec() })
}

/// Reads a socket address of either family from the room of the larger one.
fn address_of(address: &libc::sockaddr_in6) -> Option<SocketAddr> {
    match libc::c_int::from(address.sin6_family) {
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            Some(SocketAddr::new(ip.into(), u16::from_be(address.sin6_port)))
        }
        libc::AF_INET => {
            // SAFETY: a `sockaddr_in` is smaller, any bytes are one, and `sockaddr_in6` is aligned for it.
            let v4 = unsafe { (&raw const *address).cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from_bits(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddr::new(ip.into(), u16::from_be(v4.sin_port)))
        }
        _ => None,
    }
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
        let what = (found.cmsg_level, found.cmsg_type);
        let errors = [(libc::IPPROTO_IP, libc::IP_RECVERR), (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)];
        if errors.contains(&what) {
            // SAFETY: as above; the data follows the header.
            let data = unsafe { libc::CMSG_DATA(header) };
            // SAFETY: the kernel wrote a whole `sock_extended_err`, then the offender's address (ip(7)); the length
            // is checked for the first before it is read, which an unaligned read may.
            let error = (found.cmsg_len as usize >= need)
                .then(|| unsafe { data.cast::<libc::sock_extended_err>().read_unaligned() })?;
            let length = (found.cmsg_len as usize).saturating_sub(data as usize - header as usize);
            // SAFETY: `length` bytes of data follow the header, inside of the control buffer.
            let bytes = unsafe { std::slice::from_raw_parts(data, length) };
            let is_ipv6 = found.cmsg_level == libc::IPPROTO_IPV6;
            return meaning_of(&error, bytes.get(need..).and_then(offender), is_ipv6);
        }
        // SAFETY: `header` came from the same message.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}

/// What an error of the queue says, if it came by ICMP or from this host's own knowledge of the path.
fn meaning_of(error: &libc::sock_extended_err, from: Option<IpAddr>, is_ipv6: bool) -> Option<DatagramError> {
    if error.ee_origin == libc::SO_EE_ORIGIN_LOCAL && error.ee_errno == libc::EMSGSIZE as u32 {
        let (kind, code) =
            if is_ipv6 { (icmpv6::TOO_BIG, 0) } else { (icmp::UNREACHABLE, icmp::CODE_TOO_BIG) };
        return Some(DatagramError { kind, code, mtu: error.ee_info.min(0xffff) as u16, from: None });
    }
    if ![libc::SO_EE_ORIGIN_ICMP, libc::SO_EE_ORIGIN_ICMP6].contains(&error.ee_origin) {
        return None;
    }
    let too_big = error.ee_errno == libc::EMSGSIZE as u32;
    let mtu = if too_big { error.ee_info.min(0xffff) as u16 } else { 0 };
    Some(DatagramError { kind: error.ee_type, code: error.ee_code, mtu, from })
}

/// The address that follows an error: who sent the ICMP message.
fn offender(address: &[u8]) -> Option<IpAddr> {
    let family = u16::from_ne_bytes([*address.first()?, *address.get(1)?]);
    match libc::c_int::from(family) {
        // `sockaddr_in`: family, port, address.
        libc::AF_INET => Some(Ipv4Addr::from(<[u8; 4]>::try_from(address.get(4..8)?).ok()?).into()),
        // `sockaddr_in6`: family, port, flow information, address.
        libc::AF_INET6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(address.get(8..24)?).ok()?).into()),
        _ => None,
    }
}
