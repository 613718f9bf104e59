//! The translator for x86-64 hosts: guest code stays what it is, but for registers that are renamed and memory operands
//! that go through the TLB.

mod access;
mod asm;
mod branch;
mod calls;
mod chains;
mod classify;
mod cold;
mod divide;
mod emit;
mod encoding;
mod flags;
mod frame;
mod general;
mod helpers;
mod liveness;
mod lookup;
mod places;
mod stack;
mod state;
mod stubs;
mod system;
mod trace;
mod translate;
mod windows;

use super::{Left, Loose, Tiers};
use crate::cpu::{CodeSize, Cpu};
use crate::decode::blocks::{Block, Key};
pub use frame::Exchange;
use frame::reason;
use helpers::Site;
use state::State;

/// The translator of one processor, and what it has translated.
#[derive(Debug)]
pub struct Jit {
    state: Option<Box<State>>,
    translate_after: u32,
    /// For tests that wrong translations are found: changes the bytes that are translated.
    planted: Option<fn(&mut [u8])>,
}

impl Jit {
    /// One for these tiers.
    pub fn new(tiers: Tiers) -> Jit {
        let state = tiers.translate_after.and_then(|_| State::new(tiers)).map(Box::new);
        Jit { state, translate_after: tiers.translate_after.unwrap_or(0), planted: None }
    }

    /// Whether it translates at all.
    pub fn is_on(&self) -> bool {
        self.state.is_some()
    }

    /// Counts how often all translations went; 0 if it does not translate.
    pub fn generation(&self) -> u32 {
        self.state.as_ref().map_or(0, |state| state.generation)
    }

    /// Where the translation of a block is entered, if it has one.
    #[inline(always)]
    pub fn code_of(&self, block: &Block) -> Option<usize> {
        let (entry, generation) = block.code.get();
        (generation == self.generation() && entry != 0).then_some(entry)
    }

    /// Drops the translations that a block is in. The other blocks that are then without one are given.
    pub fn remove(&mut self, key: Key) -> Vec<Key> {
        self.state.as_mut().map_or_else(Vec::new, |state| state.remove(key))
    }

    /// Drops all translations. None runs.
    pub fn clear(&mut self) {
        if let Some(state) = &mut self.state {
            state.clear();
        }
    }

    /// Translations of addresses of an address space changed.
    pub fn space_changed(&mut self, space: usize) {
        if let Some(state) = &mut self.state {
            state.space_changed(space);
        }
    }

    /// Another address space is entered.
    #[inline]
    pub fn enter_space(&mut self, space: usize) {
        if let Some(state) = &mut self.state {
            state.enter_space(space);
        }
    }

    /// Global translations of addresses changed.
    pub fn global_changed(&mut self) {
        if let Some(state) = &mut self.state {
            state.global_changed();
        }
    }

    /// Notes that a link leads to the block with this key.
    pub fn connect(&mut self, loose: Loose, key: Key) {
        if let Some(state) = &mut self.state
            && state.generation == loose.generation
        {
            state.connect(loose.link, key);
        }
    }

    /// A site, for code that runs.
    fn site(&self, number: u32) -> Site {
        self.running().site(number)
    }

    fn running(&self) -> &State {
        self.state.as_ref().expect("its code runs")
    }

    fn refill(&mut self, budgets: &mut [i64; frame::SHARES]) -> i64 {
        self.state.as_mut().map_or(0, |state| state.refill(budgets))
    }
}

impl Cpu {
    /// Has wrong translations made from now on: of code that `change` has changed. For tests that they are found.
    #[doc(hidden)]
    pub fn plant(&mut self, change: fn(&mut [u8])) {
        self.blocks.jit.planted = Some(change);
    }

    /// Counts an execution of a block at RIP, and translates it when it is time. Where it is entered then.
    #[inline(always)]
    pub(crate) fn warm(&mut self, block: &Block) -> Option<usize> {
        let heat = block.heat.get();
        if heat < self.blocks.jit.translate_after {
            block.heat.set(heat + 1);
            return None;
        }
        if heat == u32::MAX { None } else { self.translate_block(block) }
    }

    #[inline(never)]
    fn translate_block(&mut self, block: &Block) -> Option<usize> {
        block.heat.set(u32::MAX);
        if self.code_size != CodeSize::Bits64 {
            return None;
        }
        let mut parts = self.trace(block);
        if let Some(plant) = self.blocks.jit.planted {
            parts = parts.into_iter().filter_map(|part| part.changed(plant)).collect();
        }
        // In lockstep what is entered is one block, once.
        let loops = self.lockstep.is_none();
        let state = self.blocks.jit.state.as_mut()?;
        if !state.has_room() {
            state.clear();
        }
        if !translate::translate(state, &parts, loops) {
            return None;
        }
        let entry = state.entry(block.key())?;
        block.code.set((entry, state.generation));
        block.heat.set(self.blocks.jit.translate_after);
        Some(entry)
    }

    /// Runs the translation of the block at RIP, whose linear address was found through a translation that is global
    /// or not, and what follows it.
    pub(crate) fn run_translated(&mut self, code: usize, global: bool) -> Left {
        let linear = self.rip;
        let user = self.cpl == 3;
        let flags = flags::pack(self.flags.arithmetic());
        let Some(state) = &mut self.blocks.jit.state else { return Left::Miss };
        let table = state.table(user);
        // In lockstep code is entered block by block: no way leads from one to another.
        if self.lockstep.is_none() {
            table.insert(linear, code as *const u8, global);
        }
        let jumps = table.address();
        state.begin();
        let enter = state.stubs.enter;
        self.jit = Exchange { flags, page: linear & !0xfff, budget: 0, jumps, link: 0, fault: 0 };
        // SAFETY: the address is that of the shared code's way in, which has this type.
        let enter: unsafe extern "sysv64" fn(*mut Cpu, usize) -> u32 = unsafe { std::mem::transmute(enter) };
        // SAFETY: `code` is the entry of a translation of the current generation. It accesses the processor, through the
        // pointer alone, and guest RAM where the TLB lets it.
        let left = unsafe { enter(&raw mut *self, code) };
        self.flags.set_arithmetic(flags::unpack(self.jit.flags));
        let budget = self.jit.budget;
        if let Some(state) = &mut self.blocks.jit.state {
            let executed = state.settle(budget);
            self.retired += executed;
            // What was used before the budgets were filled up is counted. The rest counts as well: a guest that leaves early
            // every time, with a system call say, would never get to its timers.
            let rest = helpers::counts(State::used(budget));
            self.blocks.countdown = self.blocks.countdown.saturating_sub(1 + rest);
        }
        match left {
            reason::FAULT => Left::Fault(self.jit.fault),
            reason::MISS => Left::Miss,
            reason::LINK => {
                let link = self.jit.link;
                let state = self.blocks.jit.running();
                let offset = u64::from(state.link(link).offset);
                let generation = state.generation;
                self.rip = self.jit.page.wrapping_add(offset);
                Left::Link(Loose { link, generation })
            }
            _ => Left::Look,
        }
    }
}
