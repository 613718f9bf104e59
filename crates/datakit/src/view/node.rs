//! Every file that is published, as 9P and FUSE see it: one type, behind which an [`Item`] is.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

use p9p::Errno;
use p9p::filesystem::{Answer, Created, Node, NodeSpec, OpenFile, OpenFlags, XattrFlags};
use p9p::qid::{Qid, QidKind};
use p9p::stat::{Attributes, SetAttributes, StatFs, Time, getattr, setattr};
use p9p_fuse::Caching;

use super::attached::{Attached, write_failed};
use super::item::{Change, Found, Item, Kind};

/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// The root's number.
pub(crate) const ROOT_NUMBER: u64 = 1;

/// A published file.
pub(crate) struct ViewNode {
    attached: Arc<Attached>,
    item: Arc<dyn Item>,
    number: u64,
    kind: Kind,
    version: u32,
    /// The directory it was found in, and its name there; none is the root.
    place: Mutex<Option<Place>>,
}

type Place = (Arc<ViewNode>, Box<[u8]>);

impl ViewNode {
    pub fn root(attached: Arc<Attached>, item: Arc<dyn Item>) -> Arc<Self> {
        Arc::new(Self {
            attached,
            item,
            number: ROOT_NUMBER,
            kind: Kind::Directory,
            version: 0,
            place: Mutex::new(None),
        })
    }

    pub fn attached(&self) -> &Arc<Attached> {
        &self.attached
    }

    pub fn caching(&self) -> Caching {
        self.item.caching()
    }

    fn entry(&self, found: Found, name: &[u8]) -> Answer<Arc<Self>> {
        let stat = found.item.stat()?;
        let number = found.number.unwrap_or_else(|| self.attached.entry_number(self.number, name));
        Ok(Arc::new(Self {
            attached: Arc::clone(&self.attached),
            item: found.item,
            number,
            kind: stat.kind,
            version: stat.version,
            place: Mutex::new(Some((self.copy(), name.into()))),
        }))
    }

    fn copy(&self) -> Arc<Self> {
        Arc::new(Self {
            attached: Arc::clone(&self.attached),
            item: Arc::clone(&self.item),
            number: self.number,
            kind: self.kind,
            version: self.version,
            place: Mutex::new(self.place()),
        })
    }

    fn place(&self) -> Option<Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn find(&self, name: &[u8]) -> Answer<Arc<Self>> {
        check_name(name)?;
        self.entry(self.item.find(name)?, name)
    }

    fn move_entry(&self, name: &[u8], directory: &dyn Node, new_name: &[u8], replaces: bool) -> Answer<()> {
        check_name(name)?;
        check_name(new_name)?;
        let directory = &*Self::view(directory)?.item;
        self.item.change(&Change::Rename { name, directory, new_name, replaces })
    }

    fn view(node: &dyn Node) -> Answer<&Self> {
        (node as &dyn Any).downcast_ref::<Self>().ok_or(Errno::EXDEV)
    }

    fn made(&self, name: &[u8], change: &Change<'_>) -> Answer<Qid> {
        check_name(name)?;
        self.item.change(change)?;
        Ok(self.find(name)?.qid())
    }
}

/// ENOENT for names that cannot be, ENAMETOOLONG for those of more than 255 bytes.
fn check_name(name: &[u8]) -> Answer<()> {
    match name {
        b"" | b"." | b".." => Err(Errno::EINVAL.with_text("not a name")),
        name if name.len() > NAME_BYTES_MAX => Err(Errno::ENAMETOOLONG),
        name if name.iter().any(|byte| matches!(byte, 0 | b'/')) => {
            Err(Errno::EINVAL.with_text("not a name"))
        }
        _ => Ok(()),
    }
}

impl Node for ViewNode {
    fn qid(&self) -> Qid {
        let kind = match self.kind {
            Kind::Directory => QidKind::DIRECTORY,
            Kind::Symlink => QidKind::SYMLINK,
            Kind::File | Kind::Executable => QidKind::FILE,
        };
        Qid { kind, version: self.version, path: self.number }
    }

    fn walk(&self, name: &[u8]) -> Answer<Arc<dyn Node>> {
        match name {
            b"." => Ok(self.copy()),
            b".." => Ok(self.place().map_or_else(|| self.copy(), |(parent, _)| parent)),
            name => Ok(self.find(name)?),
        }
    }

    fn attributes(&self, _mask: u64) -> Answer<Attributes> {
        let stat = self.item.stat()?;
        let time =
            Time { seconds: stat.mtime_ns / 1_000_000_000, nanoseconds: stat.mtime_ns % 1_000_000_000 };
        Ok(Attributes {
            valid: getattr::BASIC,
            qid: Qid { version: stat.version, ..self.qid() },
            mode: stat.kind.mode(),
            uid: self.attached.uid,
            gid: self.attached.gid,
            nlink: stat.nlink,
            size: stat.size,
            block_size: 4096,
            blocks: stat.size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            ..Attributes::default()
        })
    }

    /// Owners are accepted and not kept, times for as long as a transaction lasts: git has no place for them.
    fn set_attributes(&self, change: &SetAttributes, _open: Option<&dyn OpenFile>) -> Answer<()> {
        if change.valid & (setattr::SIZE | setattr::MODE) != 0 {
            self.item.set(change)?;
        }
        if change.valid & setattr::MTIME != 0 {
            let time =
                change.mtime.seconds.saturating_mul(1_000_000_000).saturating_add(change.mtime.nanoseconds);
            self.item.touch((change.valid & setattr::MTIME_SET != 0).then_some(time));
        }
        Ok(())
    }

    fn open(&self, flags: OpenFlags) -> Answer<Arc<dyn OpenFile>> {
        match self.kind {
            Kind::Directory if flags.mutates() => Err(Errno::EISDIR.with_text("Is a directory")),
            Kind::Symlink => Err(Errno::ELOOP),
            Kind::File | Kind::Executable if flags.contains(OpenFlags::DIRECTORY) => {
                Err(Errno::ENOTDIR.with_text("Is not a directory"))
            }
            _ => self.item.open(flags, self.number),
        }
    }

    /// Any file of what is published will do, as with sync(1): there is one journal for all. Of a transaction there is
    /// nothing to keep before the commit.
    fn sync(&self, open: &dyn OpenFile, data_only: bool) -> Answer<()> {
        if self.item.is_published() {
            return self.attached.store.sync().map_err(|error| write_failed(&error));
        }
        open.sync(data_only)
    }

    fn create(&self, name: &[u8], flags: OpenFlags, mode: u32, _gid: u32) -> Answer<Created> {
        check_name(name)?;
        let exclusive = flags.contains(OpenFlags::EXCL);
        self.item.change(&Change::MakeFile { name, executable: mode & 0o100 != 0, exclusive })?;
        let node = self.find(name)?;
        let file = node.open(flags)?;
        Ok(Created { node, file })
    }

    fn read_link(&self) -> Answer<Vec<u8>> {
        self.item.target()
    }

    fn make_directory(&self, name: &[u8], _mode: u32, _gid: u32) -> Answer<Qid> {
        self.made(name, &Change::MakeDirectory { name })
    }

    fn make_symlink(&self, name: &[u8], target: &[u8], _gid: u32) -> Answer<Qid> {
        self.made(name, &Change::MakeSymlink { name, target })
    }

    /// Regular files only: git knows no others.
    fn make_node(&self, name: &[u8], spec: &NodeSpec) -> Answer<Qid> {
        if !matches!(spec.mode & 0o170_000, 0 | 0o100_000) {
            return Err(Errno::EPERM.with_text("Operation not permitted"));
        }
        self.made(name, &Change::MakeFile { name, executable: spec.mode & 0o100 != 0, exclusive: true })
    }

    fn link(&self, target: &dyn Node, name: &[u8]) -> Answer<()> {
        check_name(name)?;
        Self::view(target)?;
        self.item.change(&Change::Link)
    }

    fn rename_entry(&self, old_name: &[u8], directory: &dyn Node, new_name: &[u8]) -> Answer<()> {
        self.move_entry(old_name, directory, new_name, true)
    }

    fn rename_to_new_entry(&self, old_name: &[u8], directory: &dyn Node, new_name: &[u8]) -> Answer<()> {
        self.move_entry(old_name, directory, new_name, false)
    }

    fn rename(&self, directory: &dyn Node, name: &[u8]) -> Answer<()> {
        let (parent, old_name) = self.place().ok_or(Errno::EBUSY)?;
        parent.rename_entry(&old_name, directory, name)?;
        let place = (Self::view(directory)?.copy(), name.into());
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
        Ok(())
    }

    fn unlink(&self, name: &[u8], is_directory: bool) -> Answer<()> {
        check_name(name)?;
        self.item.change(&Change::Remove { name, is_directory: Some(is_directory) })
    }

    fn remove(&self) -> Answer<()> {
        let (parent, name) = self.place().ok_or(Errno::EBUSY)?;
        parent.item.change(&Change::Remove { name: &name, is_directory: None })
    }

    fn statfs(&self) -> Answer<StatFs> {
        Ok(StatFs {
            kind: StatFs::V9FS_MAGIC,
            block_size: 4096,
            blocks: 1 << 40,
            blocks_free: 1 << 39,
            blocks_available: 1 << 39,
            files: 1 << 40,
            files_free: 1 << 39,
            fsid: 0,
            name_bytes_max: 255,
        })
    }

    fn xattr(&self, _name: &[u8]) -> Answer<Vec<u8>> {
        Err(Errno::EOPNOTSUPP)
    }

    fn set_xattr(&self, _name: &[u8], _value: Option<&[u8]>, _flags: XattrFlags) -> Answer<()> {
        Err(Errno::EOPNOTSUPP)
    }
}
