//! Trees to read: of commits, of a branch's head, of a transaction.

use std::sync::Arc;

use crate::error::Error;
use crate::id::CommitId;
use crate::path;
use crate::session::Session;

/// What an entry of a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file, executable or not.
    File,
    /// A symbolic link.
    Symlink,
}

impl Kind {
    /// From Linux's `d_type`.
    pub(crate) fn from_dirent(kind: u8) -> Self {
        match kind {
            4 => Self::Directory,
            10 => Self::Symlink,
            _ => Self::File,
        }
    }

    /// From `st_mode`.
    pub(crate) fn from_mode(mode: u32) -> Self {
        match mode & 0o170_000 {
            0o040_000 => Self::Directory,
            0o120_000 => Self::Symlink,
            _ => Self::File,
        }
    }
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
}

/// A tree to read.
#[derive(Debug, Clone)]
pub struct Tree {
    session: Arc<Session>,
    root: String,
}

#[expect(clippy::missing_errors_doc, reason = "all fail with Error, NotFound when nothing is at the path")]
impl Tree {
    pub(crate) fn new(session: Arc<Session>, root: String) -> Self {
        Self { session, root }
    }

    /// Reads a file whole.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, Error> {
        self.session.read(&path::below(&self.root, path)?)
    }

    /// Lists a directory; `""` is the root.
    pub fn list(&self, path: &str) -> Result<Vec<Entry>, Error> {
        self.session.list(&path::below(&self.root, path)?)
    }

    /// Says what is at a path.
    pub fn kind(&self, path: &str) -> Result<Kind, Error> {
        self.session.kind(&path::below(&self.root, path)?)
    }

    /// Whether something is at a path.
    pub fn has(&self, path: &str) -> Result<bool, Error> {
        match self.kind(path) {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads where a symbolic link points.
    pub fn read_link(&self, path: &str) -> Result<String, Error> {
        self.session.read_link(&path::below(&self.root, path)?)
    }
}

/// A commit.
#[derive(Debug, Clone)]
pub struct Snapshot {
    session: Arc<Session>,
    root: String,
    id: CommitId,
}

#[expect(
    clippy::missing_errors_doc,
    reason = "all fail with Error as a broken connection or a strange answer makes them"
)]
impl Snapshot {
    pub(crate) fn new(session: Arc<Session>, id: &CommitId) -> Result<Self, Error> {
        let root = format!("snapshots/{id}");
        session.walk(&root).map(|fid| session.forget(fid))?;
        Ok(Self { session, root, id: id.clone() })
    }

    /// Its id.
    pub fn id(&self) -> &CommitId {
        &self.id
    }

    /// Its tree.
    pub fn tree(&self) -> Tree {
        Tree::new(Arc::clone(&self.session), format!("{}/ro", self.root))
    }

    /// Its message, without the newline that ends it.
    pub fn message(&self) -> Result<String, Error> {
        let text = self.session.read_text(&format!("{}/msg", self.root))?;
        Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
    }

    /// The commits it came from.
    pub fn parents(&self) -> Result<Vec<CommitId>, Error> {
        self.session.read_text(&format!("{}/parents", self.root))?.lines().map(str::parse).collect()
    }

    /// What changed from `commit` to this one.
    pub fn diff(&self, commit: &CommitId) -> Result<Vec<crate::Change>, Error> {
        crate::branch::read_diff(&self.session, &format!("{}/diff/{commit}", self.root))
    }
}
