//! What a store stands on.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use gix::bstr::{BStr, BString, ByteSlice};

use crate::{BlobReader, HashKind, Object, ObjectId, ObjectKind, Prepared};

/// The full name of a ref: `refs/heads/main`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RefName(BString);

impl RefName {
    /// Checks a full name by git-check-ref-format(1).
    pub fn new(name: impl Into<BString>) -> Option<RefName> {
        let name = name.into();
        let starts = name.starts_with(b"refs/");
        let short = name.split_str("/").all(|part| part.len() <= 250) && name.len() <= 4000;
        (starts && short && gix::validate::reference::name(name.as_bstr()).is_ok()).then_some(RefName(name))
    }

    /// The name as bytes.
    pub fn as_bstr(&self) -> &BStr {
        self.0.as_bstr()
    }

    /// Whether one of two names is a directory of the other, so that they cannot both be files.
    pub(crate) fn clashes(&self, other: &RefName) -> bool {
        let is_below = |outer: &RefName, inner: &RefName| {
            inner.0.strip_prefix(outer.0.as_slice()).is_some_and(|rest| rest.starts_with(b"/"))
        };
        is_below(self, other) || is_below(other, self)
    }
}

impl fmt::Display for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why an object could not be read. Every message names the object.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum ReadError {
    #[error("object {id} is missing")]
    Missing { id: ObjectId },
    #[error("object {id} is corrupt: {detail}")]
    Corrupt { id: ObjectId, detail: String },
    #[error("object {id} is a {found}, not a {expected}")]
    Kind { id: ObjectId, found: ObjectKind, expected: ObjectKind },
    #[error("object {id} has {size} bytes, more than the {limit} that are read at once")]
    TooLarge { id: ObjectId, size: u64, limit: u64 },
    #[error("object {id} cannot be read: {source}")]
    Io { id: ObjectId, source: Arc<io::Error> },
}

impl ReadError {
    /// The object.
    pub fn id(&self) -> ObjectId {
        match self {
            Self::Missing { id }
            | Self::Corrupt { id, .. }
            | Self::Kind { id, .. }
            | Self::TooLarge { id, .. }
            | Self::Io { id, .. } => *id,
        }
    }
}

/// Why a batch was not written. Nothing of it was acknowledged.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum WriteError {
    #[error("{name} has moved: it is at {}, not at {}", or_none(found), or_none(expected))]
    Moved { name: RefName, expected: Option<ObjectId>, found: Option<ObjectId> },
    #[error("{name} cannot exist beside {other}")]
    NameClash { name: RefName, other: RefName },
    #[error("{name} is locked by another program: {} exists", path.display())]
    Locked { name: RefName, path: std::path::PathBuf },
    #[error("{action}: {source}")]
    Io { action: String, source: Arc<io::Error> },
}

fn or_none(id: &Option<ObjectId>) -> String {
    id.map_or_else(|| "nothing".to_owned(), |id| id.to_string())
}

/// The content of an object to be written.
#[derive(Debug, Clone)]
pub enum Content {
    /// In memory.
    Bytes(Arc<[u8]>),
    /// Large, and brought to the backend before: see [`Backend::prepare`].
    Prepared(Arc<Prepared>),
}

/// An object to be written.
#[derive(Debug, Clone)]
pub struct NewObject {
    /// Its id, which the writer trusts.
    pub id: ObjectId,
    /// Its kind.
    pub kind: ObjectKind,
    /// Its content.
    pub content: Content,
}

/// Moves, creates or deletes one ref, if it is where the caller believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefEdit {
    /// Which.
    pub name: RefName,
    /// What it must be now; `None`: it must not exist.
    pub old: Option<ObjectId>,
    /// What it is to be; `None`: it is to be deleted.
    pub new: Option<ObjectId>,
    /// The line for git's own reflog.
    pub reason: BString,
}

/// Objects, and the refs that then point to them.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The objects, in any order.
    pub objects: Vec<NewObject>,
    /// At most one edit per ref.
    pub edits: Vec<RefEdit>,
}

/// Called after others may have moved refs, from a thread of the backend, never from within [`Backend::write`]. Must
/// return soon.
pub type ChangeHook = Box<dyn Fn(Changed<'_>) + Send + Sync>;

/// What others may have moved.
#[derive(Debug, Clone, Copy)]
pub enum Changed<'a> {
    /// These refs, or they may be gone.
    Refs(&'a [RefName]),
    /// Any.
    Any,
}

/// Objects by id and refs by name. All methods may be called from many threads at once.
pub trait Backend: Send + Sync {
    /// The kind of ids here.
    fn hash(&self) -> HashKind;

    /// The repository's directory, when it has one.
    fn git_dir(&self) -> Option<&Path>;

    /// Reads a whole object.
    ///
    /// # Errors
    /// [`ReadError`]; `TooLarge` beyond the limit of the backend's options.
    fn read(&self, id: ObjectId) -> Result<Object, ReadError>;

    /// Kind and size of an object without reading all of it.
    ///
    /// # Errors
    /// [`ReadError`].
    fn header(&self, id: ObjectId) -> Result<(ObjectKind, u64), ReadError>;

    /// Opens a blob of any size for reading at offsets, in bounded memory.
    ///
    /// # Errors
    /// [`ReadError`].
    fn open_blob(&self, id: ObjectId) -> Result<BlobReader, ReadError>;

    /// All refs whose full name begins with `prefix`, sorted by name, with the objects they point to.
    ///
    /// # Errors
    /// When the refs cannot be read.
    fn refs(&self, prefix: &str) -> io::Result<Vec<(RefName, ObjectId)>>;

    /// What a ref points to now, if it exists.
    ///
    /// # Errors
    /// When it cannot be read.
    fn try_find_ref(&self, name: &RefName) -> io::Result<Option<ObjectId>>;

    /// Brings the first `size` bytes of a file, which nobody may change meanwhile, to where they will be a blob, as durable
    /// as the backend's options say. Returns its id, and what a batch is to be given to have it. Nobody finds it before,
    /// and it goes with the last handle if no batch has it.
    ///
    /// # Errors
    /// [`WriteError::Io`], also when the file changed.
    fn prepare(&self, file: &File, size: u64) -> Result<(ObjectId, Content), WriteError>;

    /// Writes all objects, then moves the refs. When it returns, the batch is as durable as the backend's options
    /// say, and visible to every reader.
    ///
    /// # Errors
    /// [`WriteError`] when a ref was not moved; objects may have been written all the same. `results` tells for each
    /// edit, in order, whether that ref moved.
    fn write(&self, batch: &Batch) -> Result<Vec<Result<(), WriteError>>, WriteError>;

    /// Waits until everything that was acknowledged is visible to other programs and on disk.
    ///
    /// # Errors
    /// [`WriteError`] that says what is in the way. It is tried again.
    fn sync(&self) -> Result<(), WriteError>;

    /// What goes wrong behind the commits at present, in one line: packs cannot be made of small ones, or what was
    /// acknowledged cannot be published. It is tried again.
    fn trouble(&self) -> Option<String>;

    /// Asks to be called after others may have moved refs.
    fn on_change(&self, hook: ChangeHook);

    /// Brings everything to disk, in the form in which it is to stay, and ends what goes on behind the calls. Dropping
    /// does the same, but is done only when nobody has a handle any more. Nothing may be written afterwards.
    fn close(&self);
}
