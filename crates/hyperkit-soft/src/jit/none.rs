//! The translator of hosts that have none.

use super::{Left, Loose, Tiers};
use crate::cpu::Cpu;
use crate::decode::blocks::{Block, Key};

/// What translated code exchanges with the processor's state: nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct Exchange;

/// A translator that never translates.
#[derive(Debug)]
pub struct Jit;

impl Jit {
    /// One for these tiers.
    pub fn new(_tiers: Tiers) -> Jit {
        Jit
    }

    /// Whether it translates at all.
    pub fn is_on(&self) -> bool {
        false
    }

    /// Counts how often all translations went; 0 if it does not translate.
    pub fn generation(&self) -> u32 {
        0
    }

    /// Where the translation of a block is entered, if it has one.
    #[inline(always)]
    pub fn code_of(&self, _block: &Block) -> Option<usize> {
        None
    }

    /// Drops the translation of a block.
    pub fn remove(&mut self, _key: Key) -> Vec<Key> {
        Vec::new()
    }

    /// Drops all translations.
    pub fn clear(&mut self) {}

    /// Translations of addresses of an address space changed.
    pub fn space_changed(&mut self, _space: usize) {}

    /// Another address space is entered.
    pub fn enter_space(&mut self, _space: usize) {}

    /// Global translations of addresses changed.
    pub fn global_changed(&mut self) {}

    /// Notes that a link leads to the block with this key.
    pub fn connect(&mut self, _loose: Loose, _key: Key) {}
}

impl Cpu {
    /// Counts an execution of a block, and translates it when it is time. Where it is entered then.
    #[inline(always)]
    pub(crate) fn warm(&mut self, _block: &Block) -> Option<usize> {
        None
    }

    /// Runs translated code.
    pub(crate) fn run_translated(&mut self, _code: usize, _global: bool) -> Left {
        Left::Miss
    }
}
