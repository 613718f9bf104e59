//! What the translations of one processor share: the code memory, sites, links, tables.

use super::asm::{Asm, displacement};
use super::frame::SHARES;
use super::helpers::{BUDGET, Site};
use super::lookup::JumpTable;
use super::places::Places;
use super::stubs::{self, Stubs};
use crate::decode::blocks::{Key, SPACES};
use crate::decode::lines::ByAddress;
use crate::jit::Tiers;
use crate::jit::buffer::CodeBuffer;

/// Sites from which on everything is translated anew.
const SITES_MAX: usize = 1 << 21;

/// A branch inside a page that can be made to lead from one translation to another, whose block lies on that page alone.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// Address of the branch's displacement.
    pub at: usize,
    /// Physical address of the page.
    pub page: u64,
    /// Where the last block of the trace that branches begins in the page.
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
    /// The last two where they look whether the budget is used up. Every loop goes through one of these, or through one in
    /// the table.
    pub polling: [usize; 2],
}

/// A translated trace.
#[derive(Debug)]
pub struct Translation {
    /// The blocks in it, the one that it is entered at first.
    blocks: Vec<Key>,
    /// Where it is entered.
    pub entries: Entries,
    /// Links that lead here.
    incoming: Vec<u32>,
    /// Its own links.
    links: Vec<u32>,
}

/// What the host offers that makes translations shorter.
#[derive(Debug, Clone, Copy, Default)]
pub struct Features {
    /// BMI2.
    pub rorx: bool,
    /// WRGSBASE outside the kernel: the GS base, which nobody else in the process uses, is the TLB's address while
    /// translated code runs.
    pub gs_base: bool,
}

impl Features {
    /// What this host has and translations may use.
    fn usable(tiers: Tiers) -> Features {
        /// Bit of the second word of hardware capabilities (Linux, arch/x86/include/uapi/asm/hwcap2.h).
        const HWCAP2_FSGSBASE: u64 = 1 << 1;
        // SAFETY: asks for a number.
        let capabilities = unsafe { libc::getauxval(libc::AT_HWCAP2) };
        Features {
            rorx: tiers.bmi2 && is_x86_feature_detected!("bmi2"),
            gs_base: tiers.fsgsbase && capabilities & HWCAP2_FSGSBASE != 0,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct State {
    buffer: CodeBuffer,
    /// What the host offers.
    pub features: Features,
    /// Addresses of shared code.
    pub stubs: Stubs,
    /// Bytes of code that are kept when all translations go.
    shared: usize,
    sites: Vec<Site>,
    links: Vec<Link>,
    /// By the first block.
    translations: ByAddress<Key, Translation>,
    /// By other blocks: the first ones of the traces that they are in.
    within: ByAddress<Key, Vec<Key>>,
    /// For each address space, at privilege level 3.
    user_tables: [Option<JumpTable>; SPACES],
    /// For the other levels, of the current address space: nearly all of it is global.
    supervisor_table: JumpTable,
    /// Which address space is current.
    space: usize,
    /// Counts how often everything was dropped; never 0.
    pub generation: u32,
    /// The share that the last block belongs to.
    share: u8,
    /// Instructions granted to translated code since `retired` was last brought up to date.
    granted: i64,
}

impl State {
    /// Fresh memory with the shared code in it; `None` where memory may not be executed.
    pub fn new(tiers: Tiers) -> Option<State> {
        let mut buffer = CodeBuffer::new(tiers.code_bytes).ok()?;
        let mut asm = Asm::new(buffer.next());
        let features = Features::usable(tiers);
        let stubs = stubs::make(&mut asm, features);
        buffer.put(&asm.out)?;
        let miss = stubs.miss as *const u8;
        Some(State {
            shared: buffer.used(),
            buffer,
            features,
            stubs,
            sites: Vec::new(),
            links: Vec::new(),
            translations: ByAddress::default(),
            within: ByAddress::default(),
            user_tables: [const { None }; SPACES],
            supervisor_table: JumpTable::new(miss),
            space: 0,
            generation: 1,
            share: 0,
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

    /// At this site registers are in their usual places.
    pub fn in_usual_places(&mut self, number: u32) {
        self.sites[number as usize].places = Places::default();
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

    /// Takes in the code of a trace of these blocks, made for [`State::next`].
    pub fn insert(&mut self, blocks: Vec<Key>, code: &[u8], entries: Entries, links: Vec<u32>) -> bool {
        let [key, others @ ..] = blocks.as_slice() else { return false };
        let key = *key;
        self.drop_trace(key);
        if self.buffer.put(code).is_none() {
            return false;
        }
        for other in others {
            self.within.entry(*other).or_default().push(key);
        }
        self.translations.insert(key, Translation { blocks, entries, incoming: Vec::new(), links });
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
        if link.target.is_some() {
            return;
        }
        // Only what leads back can be part of a loop.
        let Entries { frame, host, polling, .. } = target.entries;
        let [frame, host] = if link.offset <= link.block { polling } else { [frame, host] };
        let entry = if link.flags_in_host { host } else { frame };
        target.incoming.push(number);
        self.links[number as usize].target = Some(key);
        self.aim(link.at, entry);
    }

    fn aim(&mut self, at: usize, target: usize) {
        let at = at as *const u8;
        self.buffer.patch(at, &displacement(at, target as *const u8));
    }

    /// Drops the translations that a block is in. Those of which it is not the first block are given.
    pub fn remove(&mut self, key: Key) -> Vec<Key> {
        self.drop_trace(key);
        let others = self.within.remove(&key).unwrap_or_default();
        for other in &others {
            self.drop_trace(*other);
        }
        others
    }

    /// Drops a translation: nothing leads into it any more. It may be running; its code stays.
    fn drop_trace(&mut self, key: Key) {
        let Some(dead) = self.translations.remove(&key) else { return };
        for other in &dead.blocks[1..] {
            if let Some(firsts) = self.within.get_mut(other) {
                firsts.retain(|first| *first != key);
                if firsts.is_empty() {
                    self.within.remove(other);
                }
            }
        }
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
        self.within.clear();
        self.tables().for_each(JumpTable::clear);
        self.generation = self.generation.wrapping_add(1).max(1);
    }

    /// The table for a privilege, in the current address space.
    pub fn table(&mut self, user: bool) -> &mut JumpTable {
        let miss = self.stubs.miss as *const u8;
        if user {
            self.user_tables[self.space].get_or_insert_with(|| JumpTable::new(miss))
        } else {
            &mut self.supervisor_table
        }
    }

    fn tables(&mut self) -> impl Iterator<Item = &mut JumpTable> {
        self.user_tables.iter_mut().flatten().chain([&mut self.supervisor_table])
    }

    /// Translations of addresses of an address space changed, but for global ones.
    pub fn space_changed(&mut self, space: usize) {
        if let Some(table) = &mut self.user_tables[space] {
            table.clear_local();
        }
        if space == self.space {
            self.supervisor_table.clear_local();
        }
    }

    /// Another address space is entered.
    pub fn enter_space(&mut self, space: usize) {
        if space != self.space {
            self.supervisor_table.clear_local();
        }
        self.space = space;
    }

    /// Global translations of addresses changed.
    pub fn global_changed(&mut self) {
        self.tables().for_each(JumpTable::clear_global);
    }

    /// The share that the next block belongs to.
    pub fn next_share(&mut self) -> u8 {
        self.share = (self.share + 1) % SHARES as u8;
        self.share
    }

    /// Translated code is entered, with whole budgets.
    pub fn begin(&mut self) {
        self.granted += SHARES as i64 * BUDGET;
    }

    /// Instructions used of full budgets of which so many are left.
    pub fn used(left: i64) -> i64 {
        SHARES as i64 * BUDGET - left
    }

    /// Fills the budgets of translated code up. What was used of them.
    pub fn refill(&mut self, budgets: &mut [i64; SHARES]) -> i64 {
        let used = State::used(budgets.iter().sum());
        self.granted += used;
        *budgets = [BUDGET; SHARES];
        used
    }

    /// Instructions executed since the last call, `budget` being what is left of those granted.
    pub fn settle(&mut self, budget: i64) -> u64 {
        let executed = self.granted - budget;
        self.granted = 0;
        executed as u64
    }
}
