//! The nodes of the tree of ports, and the files opened from them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use p9p::Errno;
use p9p::filesystem::{Answer, Cancel, Entries, Node, OpenFile, OpenFlags, XattrFlags};
use p9p::qid::{Qid, QidKind};
use p9p::stat::{Attributes, DirectoryEntry, SetAttributes, getattr};

use super::{Entry, README, Shared, not_found, not_permitted};

/// Where in the tree a node is.
#[derive(Clone)]
pub(super) enum Place {
    Root,
    Readme,
    Entry(Arc<Entry>),
    Ctl(Arc<Entry>),
}

impl Place {
    fn is_directory(&self) -> bool {
        match self {
            Self::Root => true,
            Self::Entry(entry) => !entry.is_exposed(),
            Self::Readme | Self::Ctl(_) => false,
        }
    }

    fn qid(&self) -> Qid {
        let (path, version) = match self {
            Self::Root => (0, 0),
            Self::Readme => (1, 0),
            // The directory that becomes a file is another one.
            Self::Entry(entry) if entry.is_exposed() => (4 * entry.number + 4, 0),
            Self::Entry(entry) => (4 * entry.number + 5, 0),
            Self::Ctl(entry) => (4 * entry.number + 6, 0),
        };
        let kind = if self.is_directory() { QidKind::DIRECTORY } else { QidKind::FILE };
        Qid { kind, version, path }
    }

    /// What a file says.
    fn text(&self) -> String {
        match self {
            Self::Root => String::new(),
            Self::Readme => README.to_owned(),
            Self::Entry(entry) => entry.specification(),
            Self::Ctl(entry) => entry.answer(),
        }
    }

    fn permissions(&self) -> u32 {
        match self {
            Self::Root => 0o777,
            Self::Readme => 0o444,
            Self::Entry(entry) if entry.is_exposed() => 0o444,
            Self::Entry(_) => 0o555,
            Self::Ctl(_) => 0o666,
        }
    }
}

/// A file of any kind.
pub(super) struct PortNode {
    shared: Arc<Shared>,
    place: Place,
    /// As of when it was walked to.
    qid: Qid,
}

impl PortNode {
    pub fn at(shared: &Arc<Shared>, place: Place) -> Arc<dyn Node> {
        let qid = place.qid();
        Arc::new(Self { shared: Arc::clone(shared), place, qid })
    }

    fn children(&self) -> Vec<(Vec<u8>, Qid)> {
        let mut children = vec![(b".".to_vec(), self.place.qid()), (b"..".to_vec(), Place::Root.qid())];
        match &self.place {
            Place::Root => {
                children.push((b"README".to_vec(), Place::Readme.qid()));
                let entries = self.shared.entries();
                let entries = entries.by_name.values();
                children
                    .extend(entries.map(|entry| (entry.name.clone(), Place::Entry(Arc::clone(entry)).qid())));
            }
            Place::Entry(entry) => children.push((b"ctl".to_vec(), Place::Ctl(Arc::clone(entry)).qid())),
            Place::Readme | Place::Ctl(_) => {}
        }
        children
    }

    fn find(&self, name: &[u8]) -> Answer<Place> {
        match (&self.place, name) {
            (place, b".") => Ok(place.clone()),
            (Place::Root | Place::Entry(_), b"..") => Ok(Place::Root),
            (Place::Root, b"README") => Ok(Place::Readme),
            (Place::Root, name) => Ok(Place::Entry(self.shared.find(name)?)),
            // Also where the entry is a file by now: who made it may still want to remove `ctl`.
            (Place::Entry(entry), b"ctl") => Ok(Place::Ctl(Arc::clone(entry))),
            (Place::Entry(_), _) => not_found(),
            (Place::Readme | Place::Ctl(_), _) => Err(Errno::ENOTDIR),
        }
    }
}

impl Node for PortNode {
    fn qid(&self) -> Qid {
        self.qid
    }

    fn walk(&self, name: &[u8]) -> Answer<Arc<dyn Node>> {
        Ok(Self::at(&self.shared, self.find(name)?))
    }

    fn attributes(&self, _mask: u64) -> Answer<Attributes> {
        let is_directory = self.place.is_directory();
        let kind = if is_directory { 0o040_000 } else { 0o100_000 };
        Ok(Attributes {
            valid: getattr::BASIC,
            qid: self.place.qid(),
            mode: kind | self.place.permissions(),
            nlink: 1,
            size: self.place.text().len() as u64,
            block_size: 4096,
            ..Attributes::default()
        })
    }

    /// `echo SPEC > ctl` truncates, and kernels set times: both are nothing here.
    fn set_attributes(&self, _change: &SetAttributes, _open: Option<&dyn OpenFile>) -> Answer<()> {
        if matches!(self.place, Place::Ctl(_)) { Ok(()) } else { not_permitted() }
    }

    fn open(&self, flags: OpenFlags) -> Answer<Arc<dyn OpenFile>> {
        if flags.mutates() && !matches!(self.place, Place::Ctl(_)) {
            return not_permitted();
        }
        let children = if self.place.is_directory() { self.children() } else { Vec::new() };
        Ok(Arc::new(OpenPort {
            shared: Arc::clone(&self.shared),
            place: self.place.clone(),
            children,
            asked: AtomicBool::new(false),
        }))
    }

    fn make_directory(&self, name: &[u8], _mode: u32, _gid: u32) -> Answer<Qid> {
        match self.place {
            Place::Root => Ok(Place::Entry(self.shared.make(name)?).qid()),
            _ => not_permitted(),
        }
    }

    fn unlink(&self, name: &[u8], _is_directory: bool) -> Answer<()> {
        match self.find(name)? {
            Place::Entry(entry) | Place::Ctl(entry) => {
                self.shared.remove(&entry);
                Ok(())
            }
            Place::Root | Place::Readme => not_permitted(),
        }
    }

    fn remove(&self) -> Answer<()> {
        match &self.place {
            Place::Entry(entry) | Place::Ctl(entry) => {
                self.shared.remove(entry);
                Ok(())
            }
            Place::Root | Place::Readme => not_permitted(),
        }
    }

    fn refusal(&self) -> Errno {
        super::refusal()
    }

    fn set_xattr(&self, _name: &[u8], _value: Option<&[u8]>, _flags: XattrFlags) -> Answer<()> {
        Err(Errno::EOPNOTSUPP)
    }
}

/// An open file or directory.
struct OpenPort {
    shared: Arc<Shared>,
    place: Place,
    children: Vec<(Vec<u8>, Qid)>,
    /// Whether this is the file on which the port was asked for.
    asked: AtomicBool,
}

impl OpenFile for OpenPort {
    fn read(&self, offset: u64, buffer: &mut [u8], _cancel: &Cancel) -> Answer<usize> {
        let text = self.place.text();
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
        let count = buffer.len().min(text.len() - start);
        buffer[..count].copy_from_slice(&text.as_bytes()[start..start + count]);
        Ok(count)
    }

    fn write(&self, _offset: u64, bytes: &[u8], _cancel: &Cancel) -> Answer<usize> {
        let Place::Ctl(entry) = &self.place else { return Err(Errno::EBADF) };
        self.shared.ask(entry, bytes)?;
        self.asked.store(true, Ordering::Release);
        Ok(bytes.len())
    }

    fn read_directory(&self, offset: u64, entries: &mut Entries<'_>) -> Answer<()> {
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, (name, qid)) in self.children.iter().enumerate().skip(skipped) {
            let kind = if qid.kind.is_directory() { 4 } else { 8 };
            if !entries.add(&DirectoryEntry { qid: *qid, offset: index as u64 + 1, kind, name }) {
                break;
            }
        }
        Ok(())
    }
}

impl Drop for OpenPort {
    fn drop(&mut self) {
        if let Place::Ctl(entry) = &self.place
            && self.asked.load(Ordering::Acquire)
        {
            self.shared.remove(entry);
        }
    }
}
