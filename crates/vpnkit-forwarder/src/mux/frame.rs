//! The frames of the multiplexer, and datagrams within them. Bytes and values; no state.
//!
//! All integers are little-endian. A frame is u16 length of the header (itself included), u8 command, u32 stream and what
//! the command has; a Data frame's payload follows the header. Spec: moby/vpnkit, `go/pkg/libproxy/frame.go`,
//! `src/forwarder/frame.ml` (`Udp` for datagrams).

use std::net::{IpAddr, SocketAddr};

/// What each side says first, before a u16 length and as many bytes that nobody uses.
pub const MAGIC: &[u8] = b"https://github.com/moby/vpnkit multiplexer protocol\n";
/// Most payload of a Data frame, in bytes: no peer lets us send more, nor do we.
pub const PAYLOAD_BYTES_MAX: usize = 65_536;
/// Most bytes of a frame, and of a greeting: a header's length is a u16.
pub(super) const FRAME_BYTES_MAX: usize = u16::MAX as usize + PAYLOAD_BYTES_MAX;
/// Bytes of a header before what its command has.
const HEADER_BYTES: usize = 7;
/// Longest path of a Unix socket that is forwarded to (`sun_path` and no more).
const PATH_BYTES_MAX: usize = 108;

/// Names a stream within a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

/// Where a stream leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A TCP port.
    Tcp(SocketAddr),
    /// A UDP port; what is sent are datagrams, see [`Datagram`].
    Udp(SocketAddr),
    /// A Unix socket.
    Unix(Vec<u8>),
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    Open {
        /// Which; chosen by the sender.
        id: StreamId,
        /// Where to.
        destination: Destination,
    },
    /// Nothing will be sent or read any more. Each side says it once; then the number is free.
    Close(StreamId),
    /// Nothing will be sent any more.
    Shutdown(StreamId),
    /// Bytes of the stream.
    Data {
        /// Of which.
        id: StreamId,
        /// At most [`PAYLOAD_BYTES_MAX`].
        payload: Vec<u8>,
    },
    /// How many bytes may be sent since the stream was opened.
    Window {
        /// On which.
        id: StreamId,
        /// Bytes since its opening.
        sequence: u64,
    },
}

/// Why bytes are no frame. The connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum FrameError {
    #[error("the peer does not speak the multiplexer's protocol")]
    Magic,
    #[error("a frame has the unknown command {0}")]
    Command(u8),
    #[error("a frame's header of {0} bytes is too short for its command")]
    Short(usize),
    #[error("a connection of its own was asked for, which no implementation has")]
    Dedicated,
    #[error("a stream is to lead to the unknown protocol {0}")]
    Protocol(u8),
    #[error("an address has {0} bytes")]
    Address(usize),
    #[error("a path has {0} bytes")]
    Path(usize),
    #[error("a payload has {0} bytes")]
    Payload(usize),
    #[error("a datagram's lengths contradict one another")]
    Datagram,
}

/// Takes bytes from the front of a header.
struct Fields<'a>(&'a [u8], usize);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(FrameError::Short(self.1))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8, FrameError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, FrameError> {
        self.array().map(u16::from_le_bytes)
    }

    fn ip(&mut self) -> Result<Option<IpAddr>, FrameError> {
        match self.u16()? {
            0 => Ok(None),
            4 => Ok(Some(self.array::<4>()?.into())),
            // Go writes IPv4 addresses in sixteen bytes as well.
            16 => Ok(Some(IpAddr::from(self.array::<16>()?).to_canonical())),
            other => Err(FrameError::Address(other.into())),
        }
    }

    fn destination(&mut self) -> Result<Destination, FrameError> {
        let protocol = self.u8()?;
        match protocol {
            1 | 2 => {
                let ip = self.ip()?.ok_or(FrameError::Address(0))?;
                let address = SocketAddr::new(ip, self.u16()?);
                Ok(if protocol == 1 { Destination::Tcp(address) } else { Destination::Udp(address) })
            }
            3 => {
                let length = usize::from(self.u16()?);
                if length > PATH_BYTES_MAX {
                    return Err(FrameError::Path(length));
                }
                Ok(Destination::Unix(self.take(length)?.to_vec()))
            }
            other => Err(FrameError::Protocol(other)),
        }
    }
}

fn emit_ip(ip: IpAddr, out: &mut Vec<u8>) {
    match ip {
        IpAddr::V4(ip) => {
            out.extend(4u16.to_le_bytes());
            out.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            out.extend(16u16.to_le_bytes());
            out.extend(ip.octets());
        }
    }
}

impl Destination {
    fn emit(&self, out: &mut Vec<u8>) {
        match self {
            Self::Tcp(address) | Self::Udp(address) => {
                out.push(if matches!(self, Self::Tcp(_)) { 1 } else { 2 });
                emit_ip(address.ip(), out);
                out.extend(address.port().to_le_bytes());
            }
            Self::Unix(path) => {
                let path = &path[..path.len().min(PATH_BYTES_MAX)];
                out.push(3);
                out.extend((path.len() as u16).to_le_bytes());
                out.extend(path);
            }
        }
    }
}

impl Frame {
    /// The frame at the front of `bytes` and how many of them it takes; `None` when it is not all there yet.
    ///
    /// What a header has beyond what its command needs is skipped.
    ///
    /// # Errors
    /// When it can never become one.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, FrameError> {
        let Some(length) = bytes.first_chunk().map(|length| usize::from(u16::from_le_bytes(*length))) else {
            return Ok(None);
        };
        if length < HEADER_BYTES {
            return Err(FrameError::Short(length));
        }
        let Some(header) = bytes.get(..length) else { return Ok(None) };
        let mut fields = Fields(&header[2..], length);
        let (command, id) = (fields.u8()?, StreamId(u32::from_le_bytes(fields.array()?)));
        let frame = match command {
            1 => match fields.u8()? {
                2 => Self::Open { id, destination: fields.destination()? },
                _ => return Err(FrameError::Dedicated),
            },
            2 => Self::Close(id),
            3 => Self::Shutdown(id),
            4 => {
                let count = u32::from_le_bytes(fields.array()?) as usize;
                if count > PAYLOAD_BYTES_MAX {
                    return Err(FrameError::Payload(count));
                }
                let Some(payload) = bytes.get(length..length + count) else { return Ok(None) };
                return Ok(Some((Self::Data { id, payload: payload.to_vec() }, length + count)));
            }
            5 => Self::Window { id, sequence: u64::from_le_bytes(fields.array()?) },
            other => return Err(FrameError::Command(other)),
        };
        Ok(Some((frame, length)))
    }

    /// Appends the frame.
    pub fn emit(&self, out: &mut Vec<u8>) {
        match self {
            Self::Open { id, destination } => {
                let mut rest = vec![2];
                destination.emit(&mut rest);
                header(1, *id, &rest, out);
            }
            Self::Close(id) => header(2, *id, &[], out),
            Self::Shutdown(id) => header(3, *id, &[], out),
            Self::Data { id, payload } => emit_data(*id, payload, out),
            Self::Window { id, sequence } => header(5, *id, &sequence.to_le_bytes(), out),
        }
    }
}

/// Appends a Data frame of at most [`PAYLOAD_BYTES_MAX`].
pub fn emit_data(id: StreamId, payload: &[u8], out: &mut Vec<u8>) {
    debug_assert!(payload.len() <= PAYLOAD_BYTES_MAX);
    header(4, id, &(payload.len() as u32).to_le_bytes(), out);
    out.extend(payload);
}

fn header(command: u8, id: StreamId, rest: &[u8], out: &mut Vec<u8>) {
    out.extend(((HEADER_BYTES + rest.len()) as u16).to_le_bytes());
    out.push(command);
    out.extend(id.0.to_le_bytes());
    out.extend(rest);
}

/// A datagram as it goes through a stream: u16 length of all, u16 and address, u16 port, u16 and zone, u16 and payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// From where, towards the guest; to where, towards the host. None of no length.
    pub peer: Option<SocketAddr>,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Datagram {
    /// The datagram at the front of `bytes` and how many of them it takes; `None` when it is not all there yet.
    ///
    /// # Errors
    /// When its lengths contradict one another.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, FrameError> {
        let Some(length) = bytes.first_chunk().map(|length| usize::from(u16::from_le_bytes(*length))) else {
            return Ok(None);
        };
        let Some(whole) = bytes.get(..length) else { return Ok(None) };
        let mut fields = Fields(whole.get(2..).ok_or(FrameError::Datagram)?, length);
        let (ip, port) = (fields.ip()?, fields.u16()?);
        let zone = usize::from(fields.u16()?);
        fields.take(zone)?;
        let count = usize::from(fields.u16()?);
        let payload = fields.take(count)?.to_vec();
        if !fields.0.is_empty() {
            return Err(FrameError::Datagram);
        }
        Ok(Some((Self { peer: ip.map(|ip| SocketAddr::new(ip, port)), payload }, length)))
    }

    /// Appends it; returns whether it was short enough.
    pub fn emit(&self, out: &mut Vec<u8>) -> bool {
        let mut body = Vec::with_capacity(self.payload.len() + 32);
        match self.peer {
            Some(peer) => {
                emit_ip(peer.ip(), &mut body);
                body.extend(peer.port().to_le_bytes());
            }
            None => body.extend([0; 4]),
        }
        body.extend([0; 2]);
        let (Ok(count), Ok(length)) =
            (u16::try_from(self.payload.len()), u16::try_from(2 + body.len() + 2 + self.payload.len()))
        else {
            return false;
        };
        out.extend(length.to_le_bytes());
        out.extend(body);
        out.extend(count.to_le_bytes());
        out.extend(&self.payload);
        true
    }
}
