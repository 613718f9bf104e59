//! Which blocks are translated together: a hot one, and those of its page that mostly follow it.
//!
//! What lies between two branches is short. In a trace the flags, what is known of the vector registers, and the count of
//! instructions go on across the branches that mostly go one way; the other way leaves it. Short functions that are called
//! are in it too, see [`super::calls`]: a block can be in a trace several times.

use hyperkit_mem::GuestAddr;
use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, OpKind};

use super::calls::{self, Path};
use crate::cpu::{CodeSize, Cpu};
use crate::decode::blocks::{Block, Key};
use crate::op::Op;

/// Most blocks of a trace.
const PARTS_MAX: usize = 8;

/// Instructions from which on a trace is not made longer.
const INSTRUCTIONS_MAX: usize = 64;

/// How a trace goes on after the last instruction of one of its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// It ends.
    Nothing,
    /// With the next instruction.
    Next,
    /// With the target of the branch.
    Target,
    /// With what is called.
    Call,
    /// With what is returned to.
    Return {
        /// RIP after the call.
        to: u64,
        /// Whether the return address is popped and looked at: else nothing can have changed it since it was pushed.
        popped: bool,
    },
    /// It ends with a return to its begin.
    Around {
        /// As above.
        popped: bool,
    },
}

/// A block of a trace.
#[derive(Debug)]
pub struct Part {
    /// Its key.
    pub key: Key,
    /// RIP of its first byte; the translation serves it at others too.
    pub rip: u64,
    /// Its bytes, in one page.
    pub bytes: Vec<u8>,
    /// Its instructions.
    pub instructions: Vec<Instruction>,
    /// What it was decoded to.
    pub ops: Vec<Op>,
    /// What comes after it.
    pub follow: Follow,
}

/// What is known of the block that a trace could go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heat {
    /// It was never executed, or it is none for a trace.
    Cold,
    /// How often it was interpreted.
    Warm(u32),
    /// It has a translation of its own.
    Translated,
    /// It is in the trace.
    Here,
}

impl Part {
    fn decode(key: Key, rip: u64, bytes: Vec<u8>, ops: Vec<Op>) -> Option<Part> {
        let mut decoder = Decoder::with_ip(64, &bytes, rip, DecoderOptions::NONE);
        let mut instructions = Vec::with_capacity(16);
        while decoder.can_decode() {
            let instruction = decoder.decode();
            // Invalid ones are #UD; ones that are not whole mean that the bytes changed meanwhile.
            if decoder.last_error() == DecoderError::NoMoreBytes {
                return None;
            }
            instructions.push(instruction);
        }
        Some(Part { key, rip, bytes, instructions, ops, follow: Follow::Nothing })
    }

    /// RIP of what follows its last instruction.
    pub fn end(&self) -> u64 {
        self.rip.wrapping_add(self.bytes.len() as u64)
    }

    /// The same with its bytes changed, for tests that wrong translations are found.
    pub fn changed(mut self, change: fn(&mut [u8])) -> Option<Part> {
        change(&mut self.bytes);
        Part::decode(self.key, self.rip, self.bytes, Vec::new())
    }
}

impl Cpu {
    /// The trace that begins with `block`, at RIP. Empty if there is none.
    pub(super) fn trace(&self, block: &Block) -> Vec<Part> {
        let Some(head) = self.part(block, self.rip) else { return Vec::new() };
        let mut path = Path::new(head);
        // In lockstep the tiers are compared block by block.
        while self.lockstep.is_none() {
            if let Some((follow, rip)) = self.follow(&path.parts) {
                if !self.append(&mut path, rip) {
                    break;
                }
                let from = path.parts.len() - 2;
                path.parts[from].follow = follow;
            } else if !self.through(&mut path) {
                break;
            }
        }
        calls::settle(&mut path.parts);
        path.parts
    }

    /// Adds the block at `rip` to a trace. False, with nothing added, if it is none for a trace, or the trace is long enough.
    pub(super) fn append(&self, path: &mut Path, rip: u64) -> bool {
        let parts = &path.parts;
        let count: usize = parts.iter().map(|part| part.instructions.len()).sum();
        if parts.len() >= PARTS_MAX || count >= INSTRUCTIONS_MAX {
            return false;
        }
        let block = self.blocks.find(key_at(parts, rip), rip);
        // What is on two pages is entered where it is known that both are what they were.
        let block = block.filter(|block| block.second_phys.is_none() && block.heat.get() != u32::MAX);
        let Some(next) = block.and_then(|block| self.part(block, rip)) else { return false };
        path.parts.push(next);
        true
    }

    /// A block that can be in a trace.
    fn part(&self, block: &Block, rip: u64) -> Option<Part> {
        let phys = block.key().phys();
        let mut bytes = vec![0; block.bytes as usize];
        let here = bytes.len().min(4096 - (phys & 0xfff) as usize);
        let (first, second) = bytes.split_at_mut(here);
        self.copy_code(phys, first)?;
        if !second.is_empty() {
            self.copy_code(block.second_phys?, second)?;
        }
        Part::decode(block.key(), rip, bytes, block.ops().to_vec())
    }

    fn copy_code(&self, phys: u64, bytes: &mut [u8]) -> Option<()> {
        let host = self.ram.span(GuestAddr(phys), bytes.len() as u64)?;
        // SAFETY: so many bytes of RAM; nobody has a reference to guest memory.
        unsafe { std::ptr::copy_nonoverlapping(host.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
        Some(())
    }

    /// How to go on after the last of `parts`, and with the block at which RIP.
    fn follow(&self, parts: &[Part]) -> Option<(Follow, u64)> {
        let branch = parts.last()?.instructions.last()?;
        let (next, target) = (branch.next_ip(), branch.near_branch_target());
        let near = branch.op0_kind() == OpKind::NearBranch64;
        match branch.flow_control() {
            FlowControl::UnconditionalBranch if near => {
                self.is_hot(self.heat(parts, target)).then_some((Follow::Target, target))
            }
            FlowControl::ConditionalBranch if near && branch.is_jcc_short_or_near() => {
                match (self.heat(parts, next), self.heat(parts, target)) {
                    (_, Heat::Here) | (Heat::Here | Heat::Translated, _) => None,
                    (Heat::Warm(less), Heat::Warm(more)) if less >= more => {
                        self.is_hot(Heat::Warm(less)).then_some((Follow::Next, next))
                    }
                    (_, hot) if self.is_hot(hot) => Some((Follow::Target, target)),
                    (hot, _) => self.is_hot(hot).then_some((Follow::Next, next)),
                }
            }
            _ => None,
        }
    }

    pub(super) fn is_hot(&self, heat: Heat) -> bool {
        matches!(heat, Heat::Warm(times) if times * 2 >= self.blocks.jit.translate_after)
    }

    /// What is known of the block at `rip`.
    pub(super) fn heat(&self, parts: &[Part], rip: u64) -> Heat {
        let Some(first) = parts.first() else { return Heat::Cold };
        if rip & !0xfff != first.rip & !0xfff {
            return Heat::Cold;
        }
        let key = key_at(parts, rip);
        if parts.iter().any(|part| part.key == key) {
            return Heat::Here;
        }
        match self.blocks.find(key, rip) {
            Some(block) if self.blocks.jit.code_of(block).is_some() => Heat::Translated,
            // Nothing can be made of what has `u32::MAX`.
            Some(block) if block.second_phys.is_none() && block.heat.get() != u32::MAX => {
                Heat::Warm(block.heat.get())
            }
            _ => Heat::Cold,
        }
    }
}

/// The key of the block at `rip`, which is in the page of `parts`.
fn key_at(parts: &[Part], rip: u64) -> Key {
    let phys = parts.first().map_or(0, |part| part.key.phys());
    Key::new(phys & !0xfff | rip & 0xfff, CodeSize::Bits64)
}
