//! System calls that have no safe wrapper. The only unsafe code of PID 1.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Context id of the host. Spec: `include/uapi/linux/vm_sockets.h`.
const HOST_CID: u32 = 2;

/// Connects to a vsock port of the host.
///
/// # Errors
/// `ENODEV` or `EAFNOSUPPORT` without a device, `ECONNRESET` when nobody listens.
pub fn connect_host(port: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let raw = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `raw` was just made and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: all of `sockaddr_vm` is integers, for which zero is a value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = HOST_CID;
    address.svm_port = port;
    let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    // SAFETY: `address` is a `sockaddr_vm` of `length` bytes that outlives the call.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

/// Sends a signal, by its number, to a process group, or with 0 to every process but PID 1.
///
/// # Errors
/// `ESRCH` when there is nobody, `EINVAL` for a number that is no signal.
pub fn kill_group(group: i32, signal: i32) -> io::Result<()> {
    let target = if group == 0 { -1 } else { -group };
    // SAFETY: no pointers are passed.
    let result = unsafe { libc::kill(target, signal) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets the command begin a session of its own; with `terminal`, its stdin becomes the controlling terminal.
pub fn begin_session(command: &mut Command, terminal: bool) {
    let begin = move || {
        rustix::process::setsid()?;
        if terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        Ok(())
    };
    // SAFETY: `begin` makes two system calls and nothing else: no allocation, no lock, as is asked between fork and exec.
    unsafe { command.pre_exec(begin) };
}

/// Configures interfaces through the classic ioctls. Spec: netdevice(7), `include/uapi/linux/sockios.h`.
pub struct Interfaces {
    socket: OwnedFd,
}

impl Interfaces {
    /// Opens the socket that the requests go through.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open() -> io::Result<Self> {
        let socket =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
        Ok(Self { socket })
    }

    /// Switches an interface on.
    ///
    /// # Errors
    /// `ENODEV` when there is none of that name.
    pub fn up(&self, name: &str) -> io::Result<()> {
        let mut request = request(name)?;
        self.ioctl(libc::SIOCGIFFLAGS, &mut request)?;
        // SAFETY: SIOCGIFFLAGS filled `ifru_flags`.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        request.ifr_ifru.ifru_flags = flags | (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        self.ioctl(libc::SIOCSIFFLAGS, &mut request)
    }

    /// Sets the largest packet.
    ///
    /// # Errors
    /// `EINVAL` when the device cannot.
    pub fn set_mtu(&self, name: &str, mtu: u16) -> io::Result<()> {
        let mut request = request(name)?;
        request.ifr_ifru.ifru_mtu = mtu.into();
        self.ioctl(libc::SIOCSIFMTU, &mut request)
    }

    /// Sets address and prefix.
    ///
    /// # Errors
    /// `ENODEV` when there is no such interface.
    pub fn set_address(&self, name: &str, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut request = request(name)?;
        request.ifr_ifru.ifru_addr = socket_address(address);
        self.ioctl(libc::SIOCSIFADDR, &mut request)?;
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
        request.ifr_ifru.ifru_netmask = socket_address(Ipv4Addr::from(mask));
        self.ioctl(libc::SIOCSIFNETMASK, &mut request)
    }

    /// Adds the default route.
    ///
    /// # Errors
    /// `ENETUNREACH` when the gateway is not on a network of ours.
    pub fn add_default_route(&self, gateway: Ipv4Addr) -> io::Result<()> {
        // SAFETY: `rtentry` is integers and a pointer to an optional name, for all of which zero is a value.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = socket_address(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        // SAFETY: SIOCADDRT reads one `rtentry`, which outlives the call.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCADDRT as _, &raw const route) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn ioctl(&self, number: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: all requests used here read or write one `ifreq`, which outlives the call.
        let result =
            unsafe { libc::ioctl(self.socket.as_raw_fd(), number as _, std::ptr::from_mut(request)) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is a name and a union of integers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// An IPv4 address as a `sockaddr`: two bytes of port, then four of address. Spec: ip(7).
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut bytes = [0; 14];
    for (to, from) in bytes[2..].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: bytes }
}
