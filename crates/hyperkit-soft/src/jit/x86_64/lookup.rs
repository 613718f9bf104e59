//! Where indirect jumps, returns and jumps to other pages lead: a table by linear address, with two entries for each
//! value of its hash.
//!
//! An entry holds as long as the translation of its address does. There is a table for privilege level 3 in each address
//! space that is kept, and one for the other levels.

/// Entries, a power of two.
const ENTRIES: usize = 32768;

/// Pairs of entries. An address is in the pair that its hash says; the entry that its hash says is the one filled last.
const PAIRS: usize = ENTRIES / 2;

/// log2 of the size of an entry.
const ENTRY_SHIFT: u8 = 4;

/// What the low half of an address is multiplied with; the highest bits of the low half of the product say which entry it
/// has. (2^32 divided by the golden ratio: what is near one another, as the addresses are that the calls of one function
/// return to, comes to lie far apart.)
pub const FACTOR: u32 = 0x9e37_79b1;

/// How far the product is moved to be the offset of an entry, with bits below that [`OFFSET_MASK`] takes away.
pub const SHIFT: u8 = (32 - ENTRIES.trailing_zeros()) as u8 - ENTRY_SHIFT;

/// See [`SHIFT`].
pub const OFFSET_MASK: i32 = ((ENTRIES - 1) << ENTRY_SHIFT) as i32;

/// What an entry's address differs in from that of the other one of its pair.
pub const OTHER: i32 = 1 << ENTRY_SHIFT;

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

/// Two entries, in one cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(32))]
struct Pair([Entry; 2]);

/// Of no code.
const NOWHERE: u64 = 1 << 63;

/// See the module.
#[derive(Debug)]
pub struct JumpTable {
    pairs: Box<[Pair]>,
    /// Pairs that may hold something entered through translations that are not global, and through global ones, one bit
    /// each.
    filled: [Box<[u64; PAIRS / 64]>; 2],
    none: Entry,
}

/// Which entry an address has first; the generated code computes the same.
fn slot(linear: u64) -> usize {
    ((linear as u32).wrapping_mul(FACTOR) >> (SHIFT + ENTRY_SHIFT)) as usize
}

impl JumpTable {
    /// An empty table; `miss` is the code for addresses that are not in it.
    pub fn new(miss: *const u8) -> JumpTable {
        let none = Entry { linear: NOWHERE, code: miss };
        let filled = || Box::new([0; PAIRS / 64]);
        JumpTable {
            pairs: vec![Pair([none; 2]); PAIRS].into_boxed_slice(),
            filled: [filled(), filled()],
            none,
        }
    }

    /// The first entry, for generated code.
    pub fn address(&self) -> usize {
        self.pairs.as_ptr() as usize
    }

    /// Enters the code for an address.
    pub fn insert(&mut self, linear: u64, code: *const u8, global: bool) {
        let slot = slot(linear);
        let (number, way) = (slot / 2, slot % 2);
        let pair = &mut self.pairs[number].0;
        let before = pair[way];
        if (before.linear, before.code) == (linear, code) {
            return;
        }
        if before.linear != linear && before.linear != NOWHERE {
            pair[way ^ 1] = before;
        } else if pair[way ^ 1].linear == linear {
            pair[way ^ 1] = self.none;
        }
        pair[way] = Entry { linear, code };
        self.filled[usize::from(global)][number / 64] |= 1 << (number % 64);
    }

    /// Forgets all entries.
    pub fn clear(&mut self) {
        self.pairs.fill(Pair([self.none; 2]));
        self.filled.iter_mut().for_each(|filled| filled.fill(0));
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

    /// Forgets the pairs that hold something of a kind, whole.
    fn clear_some(&mut self, which: usize) {
        for (number, word) in self.filled[which].iter_mut().enumerate() {
            let mut bits = std::mem::take(word);
            while bits != 0 {
                self.pairs[number * 64 + bits.trailing_zeros() as usize] = Pair([self.none; 2]);
                bits &= bits - 1;
            }
        }
    }
}

const _: () = assert!(size_of::<Entry>() == 1 << ENTRY_SHIFT && size_of::<Pair>() == 2 * size_of::<Entry>());

#[cfg(test)]
mod tests {
    use super::*;

    fn find(table: &JumpTable, linear: u64) -> Option<*const u8> {
        let slot = slot(linear);
        let pair = &table.pairs[slot / 2].0;
        [slot % 2, (slot % 2) ^ 1]
            .into_iter()
            .map(|way| pair[way])
            .find(|entry| entry.linear == linear)
            .map(|entry| entry.code)
    }

    /// Addresses with one slot.
    fn alike(n: u64) -> u64 {
        0x5_1234 | n << 32
    }

    #[test]
    fn two_addresses_with_one_slot_are_kept_and_the_third_replaces_the_older() {
        let code = |n: usize| std::ptr::without_provenance::<u8>(n);
        let mut table = JumpTable::new(code(1));
        assert_eq!(slot(alike(0)), slot(alike(1)));
        table.insert(alike(0), code(10), false);
        table.insert(alike(1), code(11), false);
        assert_eq!((find(&table, alike(0)), find(&table, alike(1))), (Some(code(10)), Some(code(11))));
        table.insert(alike(0), code(20), false);
        assert_eq!((find(&table, alike(0)), find(&table, alike(1))), (Some(code(20)), Some(code(11))));
        table.insert(alike(2), code(12), false);
        assert_eq!((find(&table, alike(0)), find(&table, alike(1))), (Some(code(20)), None));
        assert_eq!(find(&table, alike(2)), Some(code(12)));
    }

    #[test]
    fn what_moved_to_the_other_entry_is_forgotten_too() {
        let code = std::ptr::without_provenance::<u8>(9);
        let mut table = JumpTable::new(code);
        table.insert(alike(0), code, false);
        table.insert(alike(1), code, true);
        table.insert(0x5_0000, code, true);
        table.clear_local();
        assert_eq!(find(&table, alike(0)), None);
        assert_eq!(find(&table, 0x5_0000), Some(code));
        table.clear_global();
        assert_eq!((find(&table, alike(1)), find(&table, 0x5_0000)), (None, None));
    }
}
