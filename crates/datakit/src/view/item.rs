//! What a published file is, whatever protocol asks for it.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use p9p::Errno;
use p9p::filesystem::{Answer, OpenFile, OpenFlags};
use p9p::stat::SetAttributes;
use p9p_fuse::{Caching, Content};

/// Kinds of files, each with the permissions that it is shown with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
    Executable,
    Symlink,
}

impl Kind {
    /// As stat(2).
    pub fn mode(self) -> u32 {
        match self {
            Self::Directory => 0o040_775,
            Self::File => 0o100_664,
            Self::Executable => 0o100_775,
            Self::Symlink => 0o120_777,
        }
    }

    /// Linux's `d_type`.
    pub fn entry_type(self) -> u8 {
        match self {
            Self::Directory => 4,
            Self::File | Self::Executable => 8,
            Self::Symlink => 10,
        }
    }
}

/// What is told about a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ItemStat {
    pub kind: Kind,
    pub size: u64,
    /// 1 is a directory that does not count its subdirectories.
    pub nlink: u64,
    /// Last change of content, in nanoseconds since 1970.
    pub mtime_ns: u64,
    /// Changes when the content does.
    pub version: u32,
}

impl ItemStat {
    pub fn directory() -> Self {
        Self { kind: Kind::Directory, size: 0, nlink: 1, mtime_ns: 0, version: 0 }
    }

    pub fn file(size: usize) -> Self {
        Self { kind: Kind::File, size: size as u64, nlink: 1, mtime_ns: 0, version: 0 }
    }
}

/// A change of the entries of a directory. A `Rename` without `replaces` is EEXIST where the new name is there.
pub(crate) enum Change<'a> {
    MakeDirectory { name: &'a [u8] },
    MakeFile { name: &'a [u8], executable: bool, exclusive: bool },
    MakeSymlink { name: &'a [u8], target: &'a [u8] },
    Link,
    Remove { name: &'a [u8], is_directory: Option<bool> },
    Rename { name: &'a [u8], directory: &'a dyn Item, new_name: &'a [u8], replaces: bool },
}

/// What a name leads to.
pub(crate) struct Found {
    pub item: Arc<dyn Item>,
    /// The file's number, for those that keep theirs when they are renamed; others are numbered by their path.
    pub number: Option<u64>,
}

impl Found {
    pub fn new(item: impl Item) -> Answer<Self> {
        Ok(Self { item: Arc::new(item), number: None })
    }
}

/// A file of any kind.
pub(crate) trait Item: Any + Send + Sync {
    fn stat(&self) -> Answer<ItemStat>;

    /// What the kernel of a FUSE mount may keep of it.
    fn caching(&self) -> Caching;

    /// The entry `name` of a directory; never `.` or `..`.
    fn find(&self, name: &[u8]) -> Answer<Found>;

    /// Opens it; for a directory, see [`Listing`](super::listing::Listing). `number` is its own.
    fn open(&self, flags: OpenFlags, number: u64) -> Answer<Arc<dyn OpenFile>>;

    /// Changes the entries of a directory.
    fn change(&self, change: &Change<'_>) -> Answer<()>;

    /// Changes size or mode; times and owners are the caller's to ignore.
    fn set(&self, change: &SetAttributes) -> Answer<()>;

    /// Takes note of a time of change, now if there is none. Most files have no place for it.
    fn touch(&self, mtime_ns: Option<u64>) {
        let _ = mtime_ns;
    }

    /// Whether what it shows was committed, or is of what was. Its fsync then waits for all commits before it.
    fn is_published(&self) -> bool {
        true
    }

    /// Where a symbolic link points.
    fn target(&self) -> Answer<Vec<u8>>;
}

/// What is asked of a file that is no directory.
pub(crate) fn not_a_directory<T>() -> Answer<T> {
    Err(Errno::ENOTDIR.with_text("Is not a directory"))
}

pub(crate) fn no_entry<T>() -> Answer<T> {
    Err(Errno::ENOENT.with_text("No such file or directory"))
}

pub(crate) fn not_permitted<T>() -> Answer<T> {
    Err(Errno::EPERM.with_text("Operation not permitted"))
}

pub(crate) fn read_only_directory<T>() -> Answer<T> {
    Err(Errno::EROFS.with_text("Directory is read-only"))
}

pub(crate) fn read_only_file<T>() -> Answer<T> {
    Err(Errno::EROFS.with_text("Read-only file"))
}

/// Directories whose entries come and go by themselves or by our own mkdir: nothing is kept of them.
pub(crate) const LIVE_DIRECTORY: Caching = Caching { content: Content::Open, ..Caching::LIVE };

/// Names that never change what they lead to, in directories that do not change either.
pub(crate) const FIXED_DIRECTORY: Caching = Caching {
    entry_ttl: Duration::from_secs(3600),
    negative_ttl: Duration::ZERO,
    attr_ttl: Duration::from_secs(1),
    content: Content::Open,
};
