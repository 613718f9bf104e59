//! Open directories.

use std::sync::Arc;

use p9p::Errno;
use p9p::filesystem::{Answer, Entries, OpenFile};
use p9p::qid::{Qid, QidKind};
use p9p::stat::DirectoryEntry;

use super::item::Kind;

/// One entry, as a directory lists it.
pub(crate) struct Listed<'a> {
    pub name: &'a [u8],
    pub kind: Kind,
    pub number: u64,
}

/// A directory's entries as of when it was opened, by their position.
pub(crate) trait Listing: Send + Sync {
    /// Calls `with` with the entry at `index`; `None` is the end.
    fn entry(&self, index: usize, with: &mut dyn FnMut(Listed<'_>) -> bool) -> Option<bool>;
}

/// Names, kinds and numbers, in a vector.
pub(crate) struct Names(pub Vec<(Vec<u8>, Kind, u64)>);

impl Listing for Names {
    fn entry(&self, index: usize, with: &mut dyn FnMut(Listed<'_>) -> bool) -> Option<bool> {
        let (name, kind, number) = self.0.get(index)?;
        Some(with(Listed { name, kind: *kind, number: *number }))
    }
}

/// An open directory: `.`, `..` and what the listing has.
pub(crate) struct OpenDirectory {
    listing: Box<dyn Listing>,
    number: u64,
}

impl OpenDirectory {
    pub fn open(listing: impl Listing + 'static, number: u64) -> Arc<dyn OpenFile> {
        Arc::new(Self { listing: Box::new(listing), number })
    }
}

impl OpenFile for OpenDirectory {
    fn read_directory(&self, offset: u64, entries: &mut Entries<'_>) -> Answer<()> {
        let mut position = offset;
        loop {
            let next = position + 1;
            let mut add = |listed: Listed<'_>| {
                let kind = match listed.kind {
                    Kind::Directory => QidKind::DIRECTORY,
                    Kind::Symlink => QidKind::SYMLINK,
                    Kind::File | Kind::Executable => QidKind::FILE,
                };
                entries.add(&DirectoryEntry {
                    qid: Qid { kind, version: 0, path: listed.number },
                    offset: next,
                    kind: listed.kind.entry_type(),
                    name: listed.name,
                })
            };
            let own = |name| Listed { name, kind: Kind::Directory, number: self.number };
            let added = match position {
                0 => Some(add(own(b"."))),
                1 => Some(add(own(b".."))),
                index => {
                    let index = usize::try_from(index - 2).map_err(|_| Errno::EINVAL)?;
                    self.listing.entry(index, &mut add)
                }
            };
            match added {
                None => return Ok(()),
                Some(false) if entries.count() == 0 => return Err(Errno::EINVAL),
                Some(false) => return Ok(()),
                Some(true) => position = next,
            }
        }
    }
}
