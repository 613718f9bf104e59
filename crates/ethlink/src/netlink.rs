//! Sets up network devices through rtnetlink(7), a few messages written by hand.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;

use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice};

// Message types and flags of linux/netlink.h and linux/rtnetlink.h.
const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const F_REQUEST: u16 = 1;
const F_ACK: u16 = 4;
const F_REPLACE: u16 = 0x100;
const F_CREATE: u16 = 0x400;

const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
const IFLA_TXQLEN: u16 = 13;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const IFF_UP: u32 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Use the address at once: nobody else can have it.
const IFA_F_NODAD: u8 = 2;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;

/// Bytes of a message's header.
const HEADER_BYTES: usize = 16;
/// Bytes of the longest message that is sent or whose answer is read.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Where a device is in the Internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addressing {
    /// Its address.
    pub address: IpAddr,
    /// Bits of the network in it.
    pub prefix: u8,
    /// Where everything else is reached; without, a router tells.
    pub gateway: Option<IpAddr>,
}

/// A connection to the kernel, for the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens a connection.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let fd = net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Returns the number of a device.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn index_of(&self, name: &str) -> io::Result<u32> {
        // Any socket will do: the ioctl looks at its namespace only.
        Ok(netdevice::name_to_index(&self.fd, name)?)
    }

    /// Sets how many packets may wait for the device.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_queue(&mut self, index: u32, packets: u32) -> io::Result<()> {
        self.change_link(index, 0, &[(IFLA_TXQLEN, &packets.to_ne_bytes())])
    }

    /// Sets the largest packet, in bytes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_mtu(&mut self, index: u32, bytes: u32) -> io::Result<()> {
        self.change_link(index, 0, &[(IFLA_MTU, &bytes.to_ne_bytes())])
    }

    /// Sets the hardware address.
    ///
    /// # Errors
    /// When the kernel refuses: it must be a unicast address.
    pub fn set_mac(&mut self, index: u32, mac: [u8; 6]) -> io::Result<()> {
        self.change_link(index, 0, &[(IFLA_ADDRESS, &mac)])
    }

    /// Brings a device up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_up(&mut self, index: u32) -> io::Result<()> {
        self.change_link(index, IFF_UP, &[])
    }

    /// Gives a device its address, unless it has it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_address(&mut self, index: u32, addressing: &Addressing) -> io::Result<()> {
        let (family, flags) =
            if addressing.address.is_ipv4() { (AF_INET, 0) } else { (AF_INET6, IFA_F_NODAD) };
        let mut body = vec![family, addressing.prefix, flags, 0];
        body.extend_from_slice(&index.to_ne_bytes());
        match addressing.address {
            IpAddr::V4(address) => {
                let host_bits = u32::MAX.checked_shr(addressing.prefix.into()).unwrap_or(0);
                let broadcast = address | Ipv4Addr::from_bits(host_bits);
                add(&mut body, IFA_LOCAL, &address.octets());
                add(&mut body, IFA_ADDRESS, &address.octets());
                add(&mut body, IFA_BROADCAST, &broadcast.octets());
            }
            IpAddr::V6(address) => {
                add(&mut body, IFA_LOCAL, &address.octets());
                add(&mut body, IFA_ADDRESS, &address.octets());
            }
        }
        self.request(RTM_NEWADDR, F_CREATE | F_REPLACE, &body)
    }

    /// Makes a gateway the default.
    ///
    /// # Errors
    /// When the kernel refuses: the device must be up and the gateway on its network.
    pub fn add_default_route(&mut self, index: u32, gateway: IpAddr) -> io::Result<()> {
        let family = if gateway.is_ipv4() { AF_INET } else { AF_INET6 };
        let mut body = vec![family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0, 0, 0, 0];
        match gateway {
            IpAddr::V4(gateway) => add(&mut body, RTA_GATEWAY, &gateway.octets()),
            IpAddr::V6(gateway) => add(&mut body, RTA_GATEWAY, &gateway.octets()),
        }
        add(&mut body, RTA_OIF, &index.to_ne_bytes());
        self.request(RTM_NEWROUTE, F_CREATE | F_REPLACE, &body)
    }

    fn change_link(&mut self, index: u32, flags: u32, attributes: &[(u16, &[u8])]) -> io::Result<()> {
        // struct ifinfomsg: family, padding, type; then index, flags, and which flags change.
        let mut body = vec![0; 4];
        for word in [index, flags, flags] {
            body.extend_from_slice(&word.to_ne_bytes());
        }
        for (kind, value) in attributes {
            add(&mut body, *kind, value);
        }
        self.request(RTM_NEWLINK, 0, &body)
    }

    /// Sends a request and waits for its acknowledgement.
    fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let mut message = Vec::with_capacity(HEADER_BYTES + body.len());
        message.extend_from_slice(&((HEADER_BYTES + body.len()) as u32).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(flags | F_REQUEST | F_ACK).to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&0u32.to_ne_bytes());
        message.extend_from_slice(body);
        // Without an address a message goes to the kernel: netlink(7).
        net::send(&self.fd, &message, SendFlags::empty())?;
        let mut answer = [0; MESSAGE_BYTES_MAX];
        let (count, _) = net::recv(&self.fd, &mut answer[..], RecvFlags::empty())?;
        acknowledgement(answer.get(..count).unwrap_or(&[]), self.sequence)
    }
}

/// Reads an acknowledgement: an error message whose error is zero.
fn acknowledgement(answer: &[u8], sequence: u32) -> io::Result<()> {
    let odd = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is no acknowledgement");
    let word = |at: usize| {
        let bytes = answer.get(at..at + 4).ok_or_else(odd)?;
        Ok::<u32, io::Error>(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    let kind = (word(4)?.to_ne_bytes()[0], word(4)?.to_ne_bytes()[1]);
    if u16::from_ne_bytes([kind.0, kind.1]) != NLMSG_ERROR || word(8)? != sequence {
        return Err(odd());
    }
    match word(HEADER_BYTES)?.cast_signed() {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// Appends an attribute, padded to a multiple of four.
fn add(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_to_words() {
        let mut body = Vec::new();
        add(&mut body, IFLA_ADDRESS, &[1, 2, 3, 4, 5, 6]);
        assert_eq!(body.len(), 12);
        assert_eq!(u16::from_ne_bytes([body[0], body[1]]), 10);
    }

    #[test]
    fn the_kernels_refusal_is_an_error_of_the_system() {
        let mut netlink = Netlink::open().unwrap();
        // Device 0 does not exist, so that this fails for root too.
        let error = netlink.set_mtu(0x7fff_ffff, 1500).unwrap_err();
        assert!(error.raw_os_error().is_some(), "{error}");
    }

    #[test]
    fn answers_of_any_length_are_no_panic() {
        let whole = [[0u8; 16], [0; 16]].concat();
        for length in 0..whole.len() {
            assert!(acknowledgement(&whole[..length], 1).is_err());
        }
    }
}
