//! Where flows live: a slab whose keys never come back, and the hash that finds them.
//!
//! The hash is keyed by the caller's seed: the stack draws no randomness itself.

use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;

/// Names an entry of a table. A key of an entry that is gone finds nothing, ever (until 2³² reuses of one slot).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    /// A small number, unique among live entries: fit for indexing a vector.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

/// A slab of entries.
#[derive(Debug)]
pub(crate) struct Table<T> {
    slots: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
    /// Entries that were looked at, for tests of what looks at how many.
    #[cfg(test)]
    visits: std::cell::Cell<usize>,
}

impl<T> Table<T> {
    pub fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            #[cfg(test)]
            visits: std::cell::Cell::default(),
        }
    }

    /// Entries that were looked at so far.
    #[cfg(test)]
    pub fn visits(&self) -> usize {
        self.visits.get()
    }

    /// Notes that `entries` are looked at.
    fn visit(&self, entries: usize) {
        #[cfg(test)]
        self.visits.set(self.visits.get() + entries);
        #[cfg(not(test))]
        let _ = entries;
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn insert(&mut self, entry: T) -> Key {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.1 = Some(entry);
            return Key { index, generation: slot.0 };
        }
        self.slots.push((0, Some(entry)));
        Key { index: (self.slots.len() - 1) as u32, generation: 0 }
    }

    pub fn get(&self, key: Key) -> Option<&T> {
        self.visit(1);
        let slot = self.slots.get(key.index as usize)?;
        if slot.0 == key.generation { slot.1.as_ref() } else { None }
    }

    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.visit(1);
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.0 == key.generation { slot.1.as_mut() } else { None }
    }

    pub fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.0 != key.generation {
            return None;
        }
        let entry = slot.1.take()?;
        slot.0 = slot.0.wrapping_add(1);
        self.free.push(key.index);
        Some(entry)
    }

    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.visit(self.len());
        self.slots.iter().enumerate().filter_map(|(index, (generation, entry))| {
            let key = Key { index: index as u32, generation: *generation };
            entry.as_ref().map(|entry| (key, entry))
        })
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Key, &mut T)> {
        self.visit(self.len());
        self.slots.iter_mut().enumerate().filter_map(|(index, (generation, entry))| {
            let key = Key { index: index as u32, generation: *generation };
            entry.as_mut().map(|entry| (key, entry))
        })
    }
}

/// Both ends of a flow, as the guest sees them; addresses are of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlowKey {
    pub guest: SocketAddr,
    pub remote: SocketAddr,
}

fn hash_end<H: Hasher>(end: SocketAddr, state: &mut H) {
    match end {
        SocketAddr::V4(v4) => state.write_u64(u64::from(v4.ip().to_bits()) << 16 | u64::from(v4.port())),
        SocketAddr::V6(v6) => {
            let bits = v6.ip().to_bits();
            state.write_u64((bits >> 64) as u64);
            state.write_u64(bits as u64);
            state.write_u64(u64::from(v6.port()));
        }
    }
}

impl std::hash::Hash for FlowKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_end(self.guest, state);
        hash_end(self.remote, state);
    }
}

/// Makes hashers that a guest cannot predict.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seeded(pub u64);

impl BuildHasher for Seeded {
    type Hasher = Folded;
    fn build_hasher(&self) -> Folded {
        Folded(self.0)
    }
}

/// Multiplies and folds, a word at a time.
#[derive(Debug)]
pub(crate) struct Folded(u64);

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut wide = [0; 8];
            wide[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(wide));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15_u128;
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_removed_entry_finds_nothing() {
        let mut table = Table::new();
        let first = table.insert('a');
        assert_eq!(table.remove(first), Some('a'));
        let second = table.insert('b');
        assert_eq!(second.index(), first.index());
        assert_eq!((table.get(first), table.get(second)), (None, Some(&'b')));
        assert_eq!(table.remove(first), None);
        assert_eq!(table.len(), 1);
    }
}
