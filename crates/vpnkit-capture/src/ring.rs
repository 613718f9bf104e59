//! The last frames, in bounded memory: what there is to look at after something went wrong.

use std::collections::VecDeque;

use crate::frame::Captured;

/// Frames, oldest first, of at most so many bytes together.
#[derive(Debug)]
pub struct Ring {
    bytes_max: usize,
    bytes: usize,
    frames: VecDeque<Captured>,
    lost: u64,
}

impl Ring {
    /// A ring of `bytes_max` bytes; 0 keeps nothing.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, frames: VecDeque::new(), lost: 0 }
    }

    /// Takes a frame in; the oldest ones make room for it.
    pub fn push(&mut self, frame: Captured) {
        let size = frame.size();
        if size > self.bytes_max {
            self.lost += 1;
            return;
        }
        while self.bytes + size > self.bytes_max {
            let Some(oldest) = self.frames.pop_front() else { break };
            self.bytes -= oldest.size();
            self.lost += 1;
        }
        self.bytes += size;
        self.frames.push_back(frame);
    }

    /// The frames, oldest first.
    pub fn frames(&self) -> impl Iterator<Item = &Captured> {
        self.frames.iter()
    }

    /// Takes all frames out.
    pub fn drain(&mut self) -> impl Iterator<Item = Captured> + '_ {
        self.bytes = 0;
        self.frames.drain(..)
    }

    /// Frames that had to go, or never fitted.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Memory that the frames take, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}
