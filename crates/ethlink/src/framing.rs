//! Frames on a byte stream: each has its length before it.

/// Bytes of the largest frame: what QEMU takes (`NET_BUFSIZE` and its vnet header).
pub const FRAME_BYTES_MAX: usize = 69_632;
/// Bytes that one read may bring.
const BUFFER_BYTES: usize = 256 * 1024;

/// How a length is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Four bytes, big-endian: QEMU's `-netdev stream`, passt, socket_vmnet.
    Be32,
    /// Two bytes, little-endian: vmnet of VPNKit, gvproxy's `/connect`.
    Le16,
}

/// A frame longer than any can be: the stream makes no sense from here on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {0} bytes is announced, at most {FRAME_BYTES_MAX} are possible")]
pub struct TooLong(pub usize);

impl Framing {
    fn header_bytes(self) -> usize {
        match self {
            Framing::Be32 => 4,
            Framing::Le16 => 2,
        }
    }

    /// Appends a frame that `parts` make together; one that the length cannot say is left out.
    pub fn put(self, out: &mut Vec<u8>, parts: &[&[u8]]) {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        match (self, u16::try_from(bytes)) {
            (Framing::Be32, _) => out.extend_from_slice(&(bytes as u32).to_be_bytes()),
            (Framing::Le16, Ok(bytes)) => out.extend_from_slice(&bytes.to_le_bytes()),
            (Framing::Le16, Err(_)) => return,
        }
        for part in parts {
            out.extend_from_slice(part);
        }
    }
}

/// Cuts a stream into frames. Holds a fixed amount of memory.
#[derive(Debug)]
pub struct Unframer {
    framing: Framing,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Unframer {
    /// A stream from its beginning.
    pub fn new(framing: Framing) -> Self {
        Self { framing, buffer: vec![0; BUFFER_BYTES], start: 0, end: 0 }
    }

    /// Where to read the next bytes to; never empty once all whole frames are taken.
    pub fn room(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }

    /// Notes that `count` bytes were read.
    pub fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
    }

    /// Returns the next whole frame.
    ///
    /// # Errors
    /// When a length is impossible.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, TooLong> {
        let header = self.framing.header_bytes();
        let waiting = &self.buffer[self.start..self.end];
        let bytes = match (self.framing, waiting) {
            (Framing::Be32, [a, b, c, d, ..]) => u32::from_be_bytes([*a, *b, *c, *d]) as usize,
            (Framing::Le16, [a, b, ..]) => usize::from(u16::from_le_bytes([*a, *b])),
            _ => return Ok(None),
        };
        if bytes > FRAME_BYTES_MAX {
            return Err(TooLong(bytes));
        }
        if waiting.len() < header + bytes {
            return Ok(None);
        }
        let from = self.start + header;
        self.start = from + bytes;
        Ok(Some(&self.buffer[from..from + bytes]))
    }

    /// Takes the first `count` bytes as they are, if they are there: for what comes before the frames.
    pub fn take(&mut self, count: usize) -> Option<&[u8]> {
        let whole = self.end - self.start >= count;
        whole.then(|| {
            self.start += count;
            &self.buffer[self.start - count..self.start]
        })
    }

    /// What was read and not taken.
    pub fn waiting(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_wherever_the_stream_is_cut() {
        for framing in [Framing::Be32, Framing::Le16] {
            let mut stream = Vec::new();
            for frame in [&b"one"[..], b"", b"three"] {
                framing.put(&mut stream, &[frame]);
            }
            for cut in 0..=stream.len() {
                let mut unframer = Unframer::new(framing);
                let mut frames = Vec::new();
                for piece in [&stream[..cut], &stream[cut..]] {
                    unframer.room()[..piece.len()].copy_from_slice(piece);
                    unframer.filled(piece.len());
                    while let Some(frame) = unframer.next_frame().unwrap() {
                        frames.push(frame.to_vec());
                    }
                }
                assert_eq!(frames, [&b"one"[..], b"", b"three"], "{framing:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn an_impossible_length_is_refused() {
        let mut unframer = Unframer::new(Framing::Be32);
        unframer.room()[..4].copy_from_slice(&70_000u32.to_be_bytes());
        unframer.filled(4);
        assert_eq!(unframer.next_frame(), Err(TooLong(70_000)));
    }

    #[test]
    fn there_is_always_room_for_the_rest_of_the_largest_frame() {
        let mut unframer = Unframer::new(Framing::Be32);
        unframer.room()[..4].copy_from_slice(&(FRAME_BYTES_MAX as u32).to_be_bytes());
        unframer.filled(4);
        assert_eq!(unframer.next_frame(), Ok(None));
        assert!(unframer.room().len() >= FRAME_BYTES_MAX);
    }
}
