//! Many streams over one connection, each with a window: what VPNKit speaks with the forwarder in its machine.
//!
//! Bytes in, bytes and events out; no I/O, no clock. Each side may send as much of a stream as the other's windows say,
//! so what waits here is at most a window a stream. A stream ends when both sides have closed it, and a side closes once:
//! Go's implementation gives the whole connection up on a second Close, and loses its place in the bytes on Data after it.
//!
//! Spec: moby/vpnkit, `go/pkg/libproxy/multiplexed.go`.

pub mod frame;

use std::collections::HashMap;
use std::collections::hash_map::Entry;

pub use self::frame::{Datagram, Destination, Frame, FrameError, StreamId};
use self::frame::{MAGIC, PAYLOAD_BYTES_MAX};

/// Bytes of a stream that a peer may send ahead of what is consumed, as all implementations have it.
pub const WINDOW_BYTES: u64 = 65_536;
/// Streams at one time, counting those that one side has closed.
pub const STREAMS_MAX: usize = 16_384;

/// Bytes that were taken of the output before those behind them are moved to the front.
const OUTPUT_TAKEN_MAX: usize = 256 << 10;

/// Which side we are: numbers of streams go up from 0 for who connects, down from the largest for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The host, which connects.
    Host,
    /// The forwarder in the machine.
    Guest,
}

/// What happened to a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The peer opened it.
    Opened(StreamId, Destination),
    /// Bytes; [`Multiplexer::consumed`] when there is room for more.
    Data(StreamId, Vec<u8>),
    /// More may be sent.
    Writable(StreamId),
    /// The peer sends nothing more.
    Shutdown(StreamId),
    /// The peer neither sends nor reads any more; [`Multiplexer::close`] answers that.
    Closed(StreamId),
}

/// Why a connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum MuxError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("stream {0:?} is opened while it is open")]
    Reopened(StreamId),
    #[error("the peer sent more of stream {0:?} than it was allowed to")]
    Window(StreamId),
    #[error("the peer sent data of stream {0:?} after it had ended it")]
    AfterEnd(StreamId),
    #[error("more than {STREAMS_MAX} streams are open")]
    Streams,
}

/// One stream. Counts are bytes since it was opened.
#[derive(Debug, Default)]
struct Stream {
    received: u64,
    consumed: u64,
    /// What we allowed.
    read_limit: u64,
    sent: u64,
    /// What the peer allowed.
    write_limit: u64,
    shutdown_sent: bool,
    shutdown_received: bool,
    close_sent: bool,
    close_received: bool,
}

impl Stream {
    fn on_data(&mut self, id: StreamId, payload: Vec<u8>, events: &mut Vec<Event>) -> Result<(), MuxError> {
        if self.shutdown_received {
            return Err(MuxError::AfterEnd(id));
        }
        self.received += payload.len() as u64;
        if self.received > self.read_limit {
            return Err(MuxError::Window(id));
        }
        // What was under way when we closed is nobody's.
        if !self.close_sent && !payload.is_empty() {
            events.push(Event::Data(id, payload));
        }
        Ok(())
    }
}

/// One side of a connection.
#[derive(Debug)]
pub struct Multiplexer {
    side: Side,
    streams: HashMap<StreamId, Stream>,
    next: u32,
    greeted: bool,
    strays: u64,
    /// Received and not yet a whole frame.
    pending: Vec<u8>,
    out: Vec<u8>,
    /// Bytes of `out` that were taken.
    taken: usize,
}

impl Multiplexer {
    /// A new connection; its first output is the greeting.
    pub fn new(side: Side) -> Self {
        let mut out = MAGIC.to_vec();
        out.extend([0; 2]);
        let next = match side {
            Side::Host => 0,
            Side::Guest => u32::MAX,
        };
        Self {
            side,
            streams: HashMap::new(),
            next,
            greeted: false,
            strays: 0,
            pending: Vec::new(),
            out,
            taken: 0,
        }
    }

    /// Whether the peer has said what it speaks.
    pub fn is_greeted(&self) -> bool {
        self.greeted
    }

    /// Frames that came for streams that were not open. They are dropped; a peer that keeps to the protocol sends none.
    pub fn n_strays(&self) -> u64 {
        self.strays
    }

    /// Bytes for the peer that were not taken yet.
    pub fn output(&self) -> &[u8] {
        &self.out[self.taken..]
    }

    /// The first `count` bytes of the output are on their way.
    pub fn sent(&mut self, count: usize) {
        self.taken += count;
        if self.taken == self.out.len() {
            self.out.clear();
            self.taken = 0;
        } else if self.taken >= OUTPUT_TAKEN_MAX {
            self.out.drain(..self.taken);
            self.taken = 0;
        }
    }

    /// How many streams there are.
    pub fn n_streams(&self) -> usize {
        self.streams.len()
    }

    /// Takes bytes of the peer; what came of them is appended to `events`.
    ///
    /// # Errors
    /// When the peer broke the protocol: nothing that follows can be understood.
    pub fn receive(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), MuxError> {
        let mut rest = bytes;
        if !self.pending.is_empty() {
            // What waits is part of one frame: no more than the rest of that is copied to it.
            let mut front = std::mem::take(&mut self.pending);
            let before = front.len();
            let (first, _) = rest.split_at(rest.len().min(frame::FRAME_BYTES_MAX));
            front.extend(first);
            let taken = self.take_frames(&front, events)?;
            if taken == 0 {
                self.pending = front;
                return Ok(());
            }
            rest = rest.get(taken.saturating_sub(before)..).unwrap_or_default();
        }
        let taken = self.take_frames(rest, events)?;
        self.pending.extend(&rest[taken..]);
        Ok(())
    }

    /// Takes the whole frames at the front of `bytes`, after the greeting; returns how many bytes those are.
    fn take_frames(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<usize, MuxError> {
        let mut at = 0;
        if !self.greeted {
            let Some(length) = greeting_length(bytes)? else { return Ok(0) };
            (self.greeted, at) = (true, length);
        }
        while let Some((frame, length)) = Frame::parse(&bytes[at..])? {
            at += length;
            self.on_frame(frame, events)?;
        }
        Ok(at)
    }

    fn on_frame(&mut self, frame: Frame, events: &mut Vec<Event>) -> Result<(), MuxError> {
        let (Frame::Open { id, .. }
        | Frame::Close(id)
        | Frame::Shutdown(id)
        | Frame::Data { id, .. }
        | Frame::Window { id, .. }) = frame;
        if let Frame::Open { destination, .. } = frame {
            return self.on_open(id, destination, events);
        }
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.close_received) else {
            self.strays += 1;
            return Ok(());
        };
        match frame {
            Frame::Open { .. } => {}
            Frame::Close(_) => {
                stream.close_received = true;
                if stream.close_sent {
                    self.streams.remove(&id);
                } else {
                    events.push(Event::Closed(id));
                }
            }
            Frame::Shutdown(_) => {
                if !std::mem::replace(&mut stream.shutdown_received, true) && !stream.close_sent {
                    events.push(Event::Shutdown(id));
                }
            }
            Frame::Data { payload, .. } => stream.on_data(id, payload, events)?,
            // Only forwards: a peer that takes back what it allowed must have what we sent meanwhile.
            Frame::Window { sequence, .. } => {
                if sequence > stream.write_limit {
                    stream.write_limit = sequence;
                    if !stream.close_sent {
                        events.push(Event::Writable(id));
                    }
                }
            }
        }
        Ok(())
    }

    fn on_open(
        &mut self,
        id: StreamId,
        destination: Destination,
        events: &mut Vec<Event>,
    ) -> Result<(), MuxError> {
        if self.streams.len() >= STREAMS_MAX {
            return Err(MuxError::Streams);
        }
        match self.streams.entry(id) {
            Entry::Occupied(_) => return Err(MuxError::Reopened(id)),
            Entry::Vacant(vacant) => vacant.insert(Stream::default()),
        };
        self.allow(id);
        events.push(Event::Opened(id, destination));
        Ok(())
    }

    /// Opens a stream; nothing can be sent before the first [`Event::Writable`]. `None` when there are too many.
    pub fn open(&mut self, destination: Destination) -> Option<StreamId> {
        if self.streams.len() >= STREAMS_MAX {
            return None;
        }
        let id = loop {
            let id = StreamId(self.next);
            self.next = match self.side {
                Side::Host => self.next.wrapping_add(1),
                Side::Guest => self.next.wrapping_sub(1),
            };
            if !self.streams.contains_key(&id) {
                break id;
            }
        };
        self.streams.insert(id, Stream::default());
        Frame::Open { id, destination }.emit(&mut self.out);
        self.allow(id);
        Some(id)
    }

    /// Lets the peer send a window beyond what was consumed.
    fn allow(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.read_limit = stream.consumed + WINDOW_BYTES;
            Frame::Window { id, sequence: stream.read_limit }.emit(&mut self.out);
        }
    }

    /// How many bytes may be sent on a stream now.
    pub fn room(&self, id: StreamId) -> usize {
        self.streams.get(&id).map_or(0, |stream| {
            if stream.shutdown_sent || stream.close_sent || stream.close_received {
                return 0;
            }
            usize::try_from(stream.write_limit.saturating_sub(stream.sent)).unwrap_or(usize::MAX)
        })
    }

    /// Sends as much of `bytes` as there is [`Multiplexer::room`] for; returns how much that was.
    pub fn send(&mut self, id: StreamId, bytes: &[u8]) -> usize {
        let count = self.room(id).min(bytes.len());
        for part in bytes[..count].chunks(PAYLOAD_BYTES_MAX) {
            frame::emit_data(id, part, &mut self.out);
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.sent += count as u64;
        }
        count
    }

    /// Room was made for `count` bytes of the stream that had been received.
    pub fn consumed(&mut self, id: StreamId, count: usize) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.consumed = (stream.consumed + count as u64).min(stream.received);
        let ended = stream.close_sent || stream.close_received || stream.shutdown_received;
        if !ended && stream.read_limit - stream.consumed < WINDOW_BYTES / 2 {
            self.allow(id);
        }
    }

    /// Says that nothing more will be sent.
    pub fn shutdown(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.close_sent
            && !std::mem::replace(&mut stream.shutdown_sent, true)
        {
            Frame::Shutdown(id).emit(&mut self.out);
        }
    }

    /// Says that nothing more will be sent or read. There are no more events of the stream.
    pub fn close(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !std::mem::replace(&mut stream.close_sent, true)
        {
            let ended = stream.close_received;
            Frame::Close(id).emit(&mut self.out);
            if ended {
                self.streams.remove(&id);
            }
        }
    }
}

/// Bytes of the peer's greeting at the front of `bytes`, or `None` when it is not all there yet.
fn greeting_length(bytes: &[u8]) -> Result<Option<usize>, FrameError> {
    let seen = bytes.len().min(MAGIC.len());
    if bytes[..seen] != MAGIC[..seen] {
        return Err(FrameError::Magic);
    }
    let length =
        bytes.get(MAGIC.len()..).and_then(<[u8]>::first_chunk).map(|length| u16::from_le_bytes(*length));
    Ok(length.map(|length| MAGIC.len() + 2 + usize::from(length)).filter(|whole| *whole <= bytes.len()))
}
