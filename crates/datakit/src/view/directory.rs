//! Directories whose entries are known beforehand.

use std::sync::Arc;

use p9p::Errno;
use p9p::filesystem::{Answer, OpenFile, OpenFlags};
use p9p::stat::SetAttributes;
use p9p_fuse::Caching;

use super::attached::Attached;
use super::item::{self, Change, FIXED_DIRECTORY, Found, Item, ItemStat, Kind};
use super::listing::{Names, OpenDirectory};

/// Finds entries that are not listed.
type Hidden = Box<dyn Fn(&[u8]) -> Answer<Found> + Send + Sync>;

struct Entry {
    name: &'static str,
    kind: Kind,
    item: Arc<dyn Item>,
    number: Option<u64>,
}

/// A directory of named items.
pub(crate) struct Fixed {
    attached: Arc<Attached>,
    entries: Vec<Entry>,
    hidden: Option<Hidden>,
    caching: Caching,
}

impl Fixed {
    pub fn new(attached: &Arc<Attached>) -> Self {
        Self { attached: Arc::clone(attached), entries: Vec::new(), hidden: None, caching: FIXED_DIRECTORY }
    }

    pub fn directory(mut self, name: &'static str, item: impl Item) -> Self {
        let item = Arc::new(item);
        self.entries.push(Entry { name, kind: Kind::Directory, item, number: None });
        self
    }

    /// A directory that has a number of its own.
    pub fn numbered_directory(mut self, name: &'static str, item: impl Item, number: u64) -> Self {
        let item = Arc::new(item);
        self.entries.push(Entry { name, kind: Kind::Directory, item, number: Some(number) });
        self
    }

    pub fn file(self, name: &'static str, item: impl Item) -> Self {
        self.shared(name, Kind::File, Arc::new(item))
    }

    pub fn shared(mut self, name: &'static str, kind: Kind, item: Arc<dyn Item>) -> Self {
        self.entries.push(Entry { name, kind, item, number: None });
        self
    }

    /// Entries that can be walked to and are not listed.
    pub fn hidden(mut self, find: impl Fn(&[u8]) -> Answer<Found> + Send + Sync + 'static) -> Self {
        self.hidden = Some(Box::new(find));
        self
    }

    /// Its entries lead elsewhere tomorrow.
    pub fn live(mut self) -> Self {
        self.caching = item::LIVE_DIRECTORY;
        self
    }
}

impl Item for Fixed {
    fn stat(&self) -> Answer<ItemStat> {
        let subdirectories = self.entries.iter().filter(|entry| entry.kind == Kind::Directory).count();
        Ok(ItemStat { nlink: 2 + subdirectories as u64, ..ItemStat::directory() })
    }

    fn caching(&self) -> Caching {
        self.caching
    }

    fn find(&self, name: &[u8]) -> Answer<Found> {
        match self.entries.iter().find(|entry| entry.name.as_bytes() == name) {
            Some(entry) => Ok(Found { item: Arc::clone(&entry.item), number: entry.number }),
            None => self.hidden.as_ref().map_or_else(item::no_entry, |find| find(name)),
        }
    }

    fn open(&self, _flags: OpenFlags, number: u64) -> Answer<Arc<dyn OpenFile>> {
        let name = |entry: &Entry| {
            let name = entry.name.as_bytes();
            let number = entry.number.unwrap_or_else(|| self.attached.entry_number(number, name));
            (name.to_vec(), entry.kind, number)
        };
        Ok(OpenDirectory::open(Names(self.entries.iter().map(name).collect()), number))
    }

    fn change(&self, change: &Change<'_>) -> Answer<()> {
        let exists = |name: &[u8]| self.entries.iter().any(|entry| entry.name.as_bytes() == name);
        match change {
            Change::MakeDirectory { name }
            | Change::MakeSymlink { name, .. }
            | Change::MakeFile { name, exclusive: true, .. }
                if exists(name) =>
            {
                Err(Errno::EEXIST.with_text("Already exists"))
            }
            // open(2) with O_CREAT of what is there.
            Change::MakeFile { name, .. } if exists(name) => Ok(()),
            Change::Remove { name, .. } if !exists(name) => item::no_entry(),
            Change::Remove { .. } | Change::Rename { .. } => item::not_permitted(),
            _ => item::read_only_directory(),
        }
    }

    fn set(&self, _change: &SetAttributes) -> Answer<()> {
        item::read_only_directory()
    }

    fn target(&self) -> Answer<Vec<u8>> {
        Err(Errno::EINVAL)
    }
}

/// A directory whose entries are made when they are looked for, and never listed.
pub(crate) struct Lookup {
    find: Hidden,
    entries: Caching,
}

impl Lookup {
    pub fn new(find: impl Fn(&[u8]) -> Answer<Found> + Send + Sync + 'static) -> Self {
        Self { find: Box::new(find), entries: FIXED_DIRECTORY }
    }
}

impl Item for Lookup {
    fn stat(&self) -> Answer<ItemStat> {
        Ok(ItemStat::directory())
    }

    fn caching(&self) -> Caching {
        self.entries
    }

    fn find(&self, name: &[u8]) -> Answer<Found> {
        (self.find)(name)
    }

    fn open(&self, _flags: OpenFlags, number: u64) -> Answer<Arc<dyn OpenFile>> {
        Ok(OpenDirectory::open(Names(Vec::new()), number))
    }

    fn change(&self, change: &Change<'_>) -> Answer<()> {
        match change {
            Change::Remove { .. } | Change::Rename { .. } => item::not_permitted(),
            _ => item::read_only_directory(),
        }
    }

    fn set(&self, _change: &SetAttributes) -> Answer<()> {
        item::read_only_directory()
    }

    fn target(&self) -> Answer<Vec<u8>> {
        Err(Errno::EINVAL)
    }
}
