//! What the translations of one processor share: the code memory, sites, links, tables.

use std::collections::HashMap;

use super::asm::{Asm, displacement};
use super::helpers::{BUDGET, Site};
use super::lookup::JumpTable;
use super::stubs::{self, Stubs};
use crate::decode::blocks::{Key, SPACES};
use crate::jit::buffer::CodeBuffer;

/// Bytes of code memory.
const CODE_BYTES: usize = 64 << 20;

/// Sites from which on everything is translated anew.
const SITES_MAX: usize = 1 << 21;

/// A branch inside a page that can be made to lead from one translation to another.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// Address of the branch's displacement.
    pub at: usize,
    /// Physical address of the page.
    pub page: u64,
    /// Where the block that branches begins in the page.
    pub block: u32,
    /// Where the target is in it.
    pub offset: u32,
    /// Whether the flags are in RFLAGS when it branches, else in the frame.
    pub flags_in_host: bool,
    /// The code that it leads to while it is not linked.
    pub stub: usize,
    /// The translation that it leads to.
    pub target: Option<Key>,
}

/// Where a translation is entered.
#[derive(Debug, Clone, Copy)]
pub struct Entries {
    /// With the linear address in R14 and the flags in the frame, from anywhere.
    pub any: usize,
    /// From the same page with the flags in the frame.
    pub frame: usize,
    /// From the same page with the flags in RFLAGS.
    pub host: usize,
    /// Whether it takes its instructions from the budget, and looks whether that is used up, wherever it is entered.
    pub polls: bool,
}

/// A translated block.
#[derive(Debug)]
pub struct Translation {
    /// Where it is entered.
    pub entries: Entries,
    /// Links that lead here.
    incoming: Vec<u32>,
    /// Its own links.
    links: Vec<u32>,
}

/// See the module.
#[derive(Debug)]
pub struct State {
    buffer: CodeBuffer,
    /// Addresses of shared code.
    pub stubs: Stubs,
    /// Bytes of code that are kept when all translations go.
    shared: usize,
    sites: Vec<Site>,
    links: Vec<Link>,
    translations: HashMap<Key, Translation>,
    /// For each address space, by whether the privilege level is 3.
    tables: Vec<[JumpTable; 2]>,
    /// Which address space is current.
    space: usize,
    /// Counts how often everything was dropped; never 0.
    pub generation: u32,
    /// Instructions granted to translated code since `retired` was last brought up to date.
    granted: i64,
}

impl State {
    /// Fresh memory with the shared code in it; `None` where memory may not be executed.
    pub fn new() -> Option<State> {
        let mut buffer = CodeBuffer::new(CODE_BYTES).ok()?;
        let mut asm = Asm::new(buffer.next());
        let stubs = stubs::make(&mut asm);
        buffer.put(&asm.out)?;
        let miss = stubs.miss as *const u8;
        Some(State {
            shared: buffer.used(),
            buffer,
            stubs,
            sites: Vec::new(),
            links: Vec::new(),
            translations: HashMap::new(),
            tables: (0..SPACES).map(|_| [JumpTable::new(miss), JumpTable::new(miss)]).collect(),
            space: 0,
            generation: 1,
            granted: 0,
        })
    }

    /// Where the next translation will be.
    pub fn next(&self) -> *const u8 {
        self.buffer.next()
    }

    /// Number of a new site.
    pub fn add_site(&mut self, site: Site) -> u32 {
        self.sites.push(site);
        (self.sites.len() - 1) as u32
    }

    /// A site by its number.
    pub fn site(&self, number: u32) -> Site {
        self.sites[number as usize]
    }

    /// Sets where code goes on after a site.
    pub fn set_resume(&mut self, number: u32, address: usize) {
        self.sites[number as usize].resume = address;
    }

    /// Number of a new link.
    pub fn add_link(&mut self, link: Link) -> u32 {
        self.links.push(link);
        (self.links.len() - 1) as u32
    }

    /// A link by its number.
    pub fn link(&self, number: u32) -> Link {
        self.links[number as usize]
    }

    /// A link by its number.
    pub fn link_mut(&mut self, number: u32) -> &mut Link {
        &mut self.links[number as usize]
    }

    /// Whether there is room for another translation.
    pub fn has_room(&self) -> bool {
        self.buffer.free() > 1 << 16 && self.sites.len() < SITES_MAX
    }

    /// Takes in the code of a block, made for [`State::next`].
    pub fn insert(&mut self, key: Key, code: &[u8], entries: Entries, links: Vec<u32>) -> bool {
        self.remove(key);
        if self.buffer.put(code).is_none() {
            return false;
        }
        self.translations.insert(key, Translation { entries, incoming: Vec::new(), links });
        true
    }

    /// Entry of a translation for anybody.
    pub fn entry(&self, key: Key) -> Option<usize> {
        self.translations.get(&key).map(|translation| translation.entries.any)
    }

    /// Lets a link lead to the translation of `key`, which is the block at the link's offset in the same page.
    pub fn connect(&mut self, number: u32, key: Key) {
        let link = self.links[number as usize];
        if key.phys() != link.page + u64::from(link.offset) {
            return;
        }
        let Some(target) = self.translations.get_mut(&key) else { return };
        if link.target.is_some() || (!target.entries.polls && link.offset <= link.block) {
            return;
        }
        let entry = if link.flags_in_host { target.entries.host } else { target.entries.frame };
        target.incoming.push(number);
        self.links[number as usize].target = Some(key);
        self.aim(link.at, entry);
    }

    fn aim(&mut self, at: usize, target: usize) {
        let at = at as *const u8;
        self.buffer.patch(at, &displacement(at, target as *const u8));
    }

    /// Drops a translation: nothing leads into it any more. It may be running; its code stays.
    pub fn remove(&mut self, key: Key) {
        let Some(dead) = self.translations.remove(&key) else { return };
        // Tables may lead to this entry: `jmp miss`.
        let at = dead.entries.any;
        let mut jump = [0xe9, 0, 0, 0, 0];
        jump[1..].copy_from_slice(&displacement((at + 1) as *const u8, self.stubs.miss as *const u8));
        self.buffer.patch(at as *const u8, &jump);
        for number in dead.incoming {
            let link = self.links[number as usize];
            if link.target == Some(key) {
                self.links[number as usize].target = None;
                self.aim(link.at, link.stub);
            }
        }
        for number in dead.links {
            if let Some(target) = self.links[number as usize].target.take()
                && let Some(target) = self.translations.get_mut(&target)
            {
                target.incoming.retain(|other| *other != number);
            }
        }
    }

    /// Drops everything. No translated code runs, and none of before is entered again.
    pub fn clear(&mut self) {
        self.buffer.truncate(self.shared);
        self.sites.clear();
        self.links.clear();
        self.translations.clear();
        self.tables.iter_mut().flatten().for_each(JumpTable::clear);
        self.generation = self.generation.wrapping_add(1).max(1);
    }

    /// The table for a privilege, in the current address space.
    pub fn table(&mut self, user: bool) -> &mut JumpTable {
        &mut self.tables[self.space][usize::from(user)]
    }

    /// Translations of addresses of an address space changed, but for global ones.
    pub fn space_changed(&mut self, space: usize) {
        self.tables[space].iter_mut().for_each(JumpTable::clear_local);
    }

    /// Another address space is entered.
    pub fn enter_space(&mut self, space: usize) {
        self.space = space;
    }

    /// Global translations of addresses changed.
    pub fn global_changed(&mut self) {
        self.tables.iter_mut().flatten().for_each(JumpTable::clear_global);
    }

    /// Gives translated code a new budget.
    pub fn grant(&mut self, budget: &mut i64) {
        let more = BUDGET - *budget;
        self.granted += more;
        *budget = BUDGET;
    }

    /// Instructions executed since the last call, `budget` being what is left of those granted.
    pub fn settle(&mut self, budget: i64) -> u64 {
        let executed = self.granted - budget;
        self.granted = 0;
        executed as u64
    }
}
