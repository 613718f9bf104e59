//! TAP devices: a network device of the kernel whose other end is a descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::netlink::{Addressing, Netlink};
use crate::sys::linux;
use crate::vnet::VNET_HEADER_BYTES;

/// Frames that wait in a device until they are read. A full queue loses frames, which costs TCP more than anything
/// else: it is larger than what the windows of many busy connections hold.
pub const QUEUE_FRAMES: u32 = 10_000;
/// Bytes of a device's name: `IFNAMSIZ` less the final zero.
const NAME_BYTES_MAX: usize = 15;

/// What a device is to be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapOptions {
    /// Its name.
    pub name: String,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// Its hardware address; the kernel draws one if there is none.
    pub mac: Option<[u8; 6]>,
    /// Addresses and routes it is to have; without any, it is left for others to bring up.
    pub addressing: Vec<Addressing>,
}

/// A device; it goes when the last descriptor of it is closed.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum TapError {
    #[error("{0:?} is no name of a device: it has 1 to {NAME_BYTES_MAX} bytes, no slash and no space")]
    Name(String),
    #[error("the device {name} is in use")]
    Busy { name: String },
    #[error("/dev/net/tun is not there: load the kernel module tun, or pass the device into this container")]
    NoTun,
    #[error("/dev/net/tun may not be opened by this user: most systems let everybody (mode 0666)")]
    TunDenied,
    #[error("the device {name} cannot be made")]
    Open { name: String, source: io::Error },
    #[error("the device {name} cannot be {what}")]
    Configure { name: String, what: &'static str, source: io::Error },
}

impl Tap {
    /// Opens a device, or makes it, in the network namespace of the calling thread, with a header of
    /// [`VNET_HEADER_BYTES`] and checksums and TCP segmentation left to the other end, both ways.
    ///
    /// # Errors
    /// When the name is impossible, the device is in use, or the caller lacks `CAP_NET_ADMIN` in the namespace.
    pub fn open(name: &str) -> Result<Self, TapError> {
        Self::open_with(name, Some(VNET_HEADER_BYTES))
    }

    /// Opens a device as [`Tap::open`] does, but with whole frames of at most the device's MTU and no header: for one
    /// who moves frames to where nobody would finish them.
    ///
    /// # Errors
    /// As [`Tap::open`].
    pub fn open_plain(name: &str) -> Result<Self, TapError> {
        Self::open_with(name, None)
    }

    fn open_with(name: &str, header_bytes: Option<usize>) -> Result<Self, TapError> {
        let odd = |byte: u8| byte == b'/' || byte.is_ascii_whitespace() || byte == 0;
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.bytes().any(odd) {
            return Err(TapError::Name(name.to_owned()));
        }
        match linux::open_tap(name, header_bytes) {
            Ok(fd) => Ok(Self { fd }),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Err(TapError::NoTun),
            Err(source) if source.kind() == io::ErrorKind::ResourceBusy => {
                Err(TapError::Busy { name: name.to_owned() })
            }
            // Who lacks the capability in the namespace gets EPERM.
            Err(source) if source.raw_os_error() == Some(Errno::ACCESS.raw_os_error()) => {
                Err(TapError::TunDenied)
            }
            Err(source) => Err(TapError::Open { name: name.to_owned(), source }),
        }
    }

    /// Opens a device as [`Tap::open`] does and sets it up.
    ///
    /// # Errors
    /// As [`Tap::open`], and when the kernel refuses a setting.
    pub fn create(options: &TapOptions) -> Result<Self, TapError> {
        let tap = Self::open(&options.name)?;
        let failed = |what| {
            let name = options.name.clone();
            move |source| TapError::Configure { name, what, source }
        };
        let mut netlink = Netlink::open().map_err(failed("looked up"))?;
        let index = netlink.index_of(&options.name).map_err(failed("looked up"))?;
        netlink.set_queue(index, QUEUE_FRAMES).map_err(failed("given a longer queue"))?;
        netlink.set_mtu(index, options.mtu.into()).map_err(failed("given its MTU"))?;
        if let Some(mac) = options.mac {
            netlink.set_mac(index, mac).map_err(failed("given its hardware address"))?;
        }
        if !options.addressing.is_empty() {
            netlink.set_up(index).map_err(failed("brought up"))?;
        }
        for addressing in &options.addressing {
            // A kernel may be without IPv6; the device is of use all the same.
            let added = netlink.add_address(index, addressing);
            if addressing.address.is_ipv6() && added.is_err() {
                continue;
            }
            added.map_err(failed("given its address"))?;
            if let Some(gateway) = addressing.gateway {
                netlink.add_default_route(index, gateway).map_err(failed("given the default route"))?;
            }
        }
        if !options.addressing.is_empty() {
            let loopback = netlink.index_of("lo").map_err(failed("brought up with the loopback device"))?;
            netlink.set_up(loopback).map_err(failed("brought up with the loopback device"))?;
        }
        Ok(tap)
    }

    /// Takes over a descriptor that [`Tap::open`] made, in this process or another.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Tap> for OwnedFd {
    fn from(tap: Tap) -> OwnedFd {
        tap.fd
    }
}
