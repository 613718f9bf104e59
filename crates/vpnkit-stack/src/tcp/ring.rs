//! A byte queue that takes memory only while it holds bytes.
//!
//! Thousands of idle flows cost nothing: an empty ring can give its memory back, and one in use grows by doubling.

use crate::volatile::Data;

/// First allocation, in bytes.
const CAPACITY_MIN: usize = 512;

/// The queue. Its limit is the caller's business; it grows to whatever is put in.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    bytes: Vec<u8>,
    head: usize,
    len: usize,
}

impl Ring {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory that it holds.
    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Makes room for `total` bytes from the head on.
    pub fn reserve(&mut self, total: usize) {
        if total <= self.bytes.len() {
            return;
        }
        let capacity = total.max(CAPACITY_MIN).next_power_of_two();
        let mut bytes = Vec::with_capacity(capacity);
        // Bytes beyond `len` may hold data that arrived early (`write_at`): the whole old ring is kept, unrolled.
        bytes.extend_from_slice(&self.bytes[self.head..]);
        bytes.extend_from_slice(&self.bytes[..self.head]);
        bytes.resize(capacity, 0);
        self.bytes = bytes;
        self.head = 0;
    }

    /// Writes `data` at `offset` bytes from the head, where it becomes visible only after [`Ring::extend`].
    pub fn write_at<'d>(&mut self, offset: usize, data: impl Into<Data<'d>>) {
        let data = data.into();
        if data.is_empty() {
            return;
        }
        self.reserve(offset + data.len());
        let capacity = self.bytes.len();
        let start = (self.head + offset) % capacity;
        let first = data.len().min(capacity - start);
        data.copy(&mut self.bytes[start..start + first]);
        data.after(first).copy(&mut self.bytes[..data.len() - first]);
    }

    /// Makes `count` more bytes part of the queue.
    pub fn extend(&mut self, count: usize) {
        debug_assert!(self.len + count <= self.bytes.len());
        self.len += count;
    }

    /// Appends `data`.
    pub fn push<'d>(&mut self, data: impl Into<Data<'d>>) {
        let data = data.into();
        self.write_at(self.len, data);
        self.len += data.len();
    }

    /// Room for `want` bytes behind the queue, in order; made part of it by [`Ring::extend`].
    pub fn room(&mut self, want: usize) -> (&mut [u8], &mut [u8]) {
        if want == 0 {
            return (&mut [], &mut []);
        }
        self.reserve(self.len + want);
        let capacity = self.bytes.len();
        let start = (self.head + self.len) % capacity;
        let first = want.min(capacity - start);
        let (low, high) = self.bytes.split_at_mut(start);
        (&mut high[..first], &mut low[..want - first])
    }

    /// Up to `count` bytes from `offset` on, in order.
    pub fn slices(&self, offset: usize, count: usize) -> (&[u8], &[u8]) {
        let count = count.min(self.len.saturating_sub(offset));
        if count == 0 {
            return (&[], &[]);
        }
        let capacity = self.bytes.len();
        let start = (self.head + offset) % capacity;
        let first = count.min(capacity - start);
        (&self.bytes[start..start + first], &self.bytes[..count - first])
    }

    /// Removes `count` bytes from the head.
    pub fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.len);
        self.len -= count;
        if !self.bytes.is_empty() {
            self.head = (self.head + count) % self.bytes.len();
        }
    }

    /// Gives the memory back. Only for a ring that is empty and has nothing written ahead.
    pub fn release(&mut self) {
        debug_assert!(self.len == 0);
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in_across_wraps_and_growth() {
        let mut ring = Ring::default();
        let (mut next_in, mut next_out) = (0u32, 0u32);
        for round in 0..400usize {
            let count = (round * 331) % 5000;
            let data: Vec<u8> = (0..count)
                .map(|_| {
                    next_in += 1;
                    next_in as u8
                })
                .collect();
            if round % 2 == 0 {
                ring.push(&data);
            } else {
                let (first, second) = ring.room(count);
                let middle = first.len();
                first.copy_from_slice(&data[..middle]);
                second.copy_from_slice(&data[middle..]);
                ring.extend(count);
            }
            let take = ring.len() * 2 / 3;
            let (first, second) = ring.slices(0, take);
            for byte in first.iter().chain(second) {
                next_out += 1;
                assert_eq!(*byte, next_out as u8);
            }
            ring.consume(take);
        }
        assert!(next_out > 100_000);
    }

    #[test]
    fn what_is_written_ahead_survives_growth() {
        let mut ring = Ring::default();
        ring.push(&[1; 4000]);
        ring.consume(3900);
        ring.write_at(200, &[7; 50]);
        ring.write_at(9000, &[8; 50]);
        ring.write_at(100, &[6; 100]);
        ring.extend(150);
        let (first, second) = ring.slices(200, 50);
        assert!([first, second].concat().iter().all(|byte| *byte == 7));
    }
}
