//! Where indirect jumps, returns and jumps to other pages lead: a direct-mapped table by linear address.
//!
//! An entry holds as long as the translation of its address does. There is a table for privilege level 3 and one
//! for the others in each address space that is kept.

/// Entries, a power of two.
const ENTRIES: usize = 8192;

/// Entries that are remembered one by one for the next clearing; past it all are looked at.
const REMEMBERED: usize = 4096;

/// Bits of the mixed address that say which entry it has. The lowest count: the addresses that the calls of one function
/// return to are often within a few bytes.
pub const INDEX_MASK: i32 = (ENTRIES - 1) as i32;

/// log2 of the size of an entry.
pub const ENTRY_SHIFT: u8 = 4;

/// How far the address is moved to be mixed with itself.
pub const MIX: u8 = 12;

/// A linear address and the code for it.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Entry {
    /// Not canonical if the entry is empty.
    pub linear: u64,
    /// Entry of the translation, which takes the linear address in R14; in an empty entry that of the code for
    /// addresses that are not in the table, because a guest may jump to any address.
    pub code: *const u8,
}

/// Of no code.
const NOWHERE: u64 = 1 << 63;

/// See the module.
#[derive(Debug)]
pub struct JumpTable {
    entries: Box<[Entry; ENTRIES]>,
    /// Slots filled through translations that are not global, and through global ones; `None`: too many to remember.
    filled: [Option<Vec<u16>>; 2],
    none: Entry,
}

/// Which entry an address has; the generated code computes the same.
fn slot(linear: u64) -> usize {
    (linear ^ (linear >> MIX)) as usize & INDEX_MASK as usize
}

impl JumpTable {
    /// An empty table; `miss` is the code for addresses that are not in it.
    pub fn new(miss: *const u8) -> JumpTable {
        let none = Entry { linear: NOWHERE, code: miss };
        JumpTable { entries: Box::new([none; ENTRIES]), filled: [Some(Vec::new()), Some(Vec::new())], none }
    }

    /// The first entry, for generated code.
    pub fn address(&self) -> usize {
        self.entries.as_ptr() as usize
    }

    /// Enters the code for an address.
    pub fn insert(&mut self, linear: u64, code: *const u8, global: bool) {
        let slot = slot(linear);
        if (self.entries[slot].linear, self.entries[slot].code) == (linear, code) {
            return;
        }
        self.entries[slot] = Entry { linear, code };
        let filled = &mut self.filled[usize::from(global)];
        match filled {
            Some(slots) if slots.len() < REMEMBERED => slots.push(slot as u16),
            _ => *filled = None,
        }
    }

    /// Forgets all entries.
    pub fn clear(&mut self) {
        self.entries.fill(self.none);
        self.filled = [Some(Vec::new()), Some(Vec::new())];
    }

    /// Forgets what was entered through translations that are not global.
    #[inline]
    pub fn clear_local(&mut self) {
        self.clear_some(0);
    }

    /// Forgets what was entered through global translations.
    #[inline]
    pub fn clear_global(&mut self) {
        self.clear_some(1);
    }

    fn clear_some(&mut self, which: usize) {
        let Some(slots) = &mut self.filled[which] else {
            self.clear();
            return;
        };
        for slot in slots.drain(..) {
            self.entries[usize::from(slot)] = self.none;
        }
    }
}

const _: () = assert!(size_of::<Entry>() == 1 << ENTRY_SHIFT);
