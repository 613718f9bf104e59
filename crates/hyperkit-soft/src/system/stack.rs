//! The stack as far transfers and event delivery use it.

use crate::cpu::{CodeSize, Cpu, seg};
use crate::system::descriptor::rights;
use crate::trap::{Fault, Trap, vector};

/// Values on their way to a stack, written all at once.
#[derive(Debug)]
pub struct Frame {
    bytes: [u8; 320],
    start: usize,
}

impl Frame {
    /// Nothing yet.
    pub fn empty() -> Frame {
        Frame { bytes: [0; 320], start: 320 }
    }

    /// Adds a value of `size` bytes below the others.
    pub fn push(&mut self, size: u64, value: u64) {
        let size = size as usize;
        self.start -= size;
        self.bytes[self.start..self.start + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }

    /// Bytes pushed.
    pub fn size(&self) -> u64 {
        self.bytes().len() as u64
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl Cpu {
    /// Which bits of RSP the stack uses.
    pub fn stack_bits(&self) -> u64 {
        if self.code_size == CodeSize::Bits64 {
            u64::MAX
        } else if self.segments[seg::SS].rights & rights::BIG != 0 {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    /// Writes RSP, ESP or SP.
    pub fn put_stack_pointer(&mut self, value: u64, mask: u64) {
        let keep = if mask == 0xffff { !mask } else { 0 };
        self.regs[4] = self.regs[4] & keep | value & mask;
    }

    /// Linear address of an offset in the stack segment.
    fn stack_address(&self, base: u64, offset: u64, mask: u64) -> u64 {
        let linear = base.wrapping_add(offset & mask);
        if mask == u64::MAX { linear } else { linear & 0xffff_ffff }
    }

    /// The value number `index` from the top of the stack, each of `size` bytes.
    pub fn peek(&mut self, size: u64, index: u64) -> Result<u64, Trap> {
        let mask = self.stack_bits();
        let offset = self.regs[4].wrapping_add(index * size);
        let linear = self.stack_address(self.seg_base[seg::SS], offset, mask);
        self.load_sized(linear, size).map_err(|trap| self.on_stack(linear, trap))
    }

    /// Pushes one value of `size` bytes onto the current stack.
    pub fn push_sized(&mut self, size: u64, value: u64) -> Result<(), Trap> {
        let mut frame = Frame::empty();
        frame.push(size, value);
        let mask = self.stack_bits();
        let pointer = self.write_frame(&frame, self.seg_base[seg::SS], self.regs[4], mask)?;
        self.put_stack_pointer(pointer, mask);
        Ok(())
    }

    /// Writes a frame below `pointer`; returns the new stack pointer. All is written or nothing.
    pub fn write_frame(&mut self, frame: &Frame, base: u64, pointer: u64, mask: u64) -> Result<u64, Trap> {
        let bytes = frame.bytes();
        let pointer = pointer.wrapping_sub(bytes.len() as u64) & mask;
        let linear = self.stack_address(base, pointer, mask);
        self.write_linear(linear, bytes).map_err(|trap| self.on_stack(linear, trap))?;
        Ok(pointer)
    }

    /// #SS for a frame of `bytes` bytes below `pointer` that does not fit a segment outside 64-bit mode.
    pub fn check_stack(
        &mut self,
        stack: &hyperkit_hv::state::x86_64::Segment,
        pointer: u64,
        bytes: u64,
    ) -> Result<(), Trap> {
        let big = stack.rights & rights::BIG != 0;
        let mask = if big { 0xffff_ffff } else { 0xffff };
        let first = pointer.wrapping_sub(bytes) & mask;
        let last = pointer.wrapping_sub(1) & mask;
        let limit = u64::from(stack.limit);
        let expands_down = stack.rights & (rights::CODE | rights::CONFORMING) == rights::CONFORMING;
        let fits = if expands_down { first > limit && last <= mask } else { last <= limit };
        if fits && first <= last {
            return Ok(());
        }
        Err(self.raise(Fault { vector: vector::SS, error: Some(0), after: false }))
    }
}
