//! The same by paths, for callers that have no nodes.

use datakit_git::ObjectId;

use super::flush::{Purpose, flush};
use super::{NodeId, NodeKind, Stat, Transaction, TransactionError};
use crate::name::{FileName, TreePath};

impl Transaction {
    /// Reads a whole file.
    ///
    /// # Errors
    /// `NotFound`, `IsDirectory`.
    pub fn read_file(&self, path: &TreePath) -> Result<Vec<u8>, TransactionError> {
        let node = self.walk(path)?;
        let size = self.stat(node)?.size;
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        let n = self.read(node, 0, &mut bytes)?;
        bytes.truncate(n);
        Ok(bytes)
    }

    /// Replaces the content of a file; makes it, and the directories above it, where they are missing.
    ///
    /// # Errors
    /// `IsDirectory`, `NotDirectory`.
    pub fn write_file(&self, path: &TreePath, bytes: &[u8]) -> Result<(), TransactionError> {
        let (directory, name) = self.place(path)?;
        let node = match self.look_up(directory, name) {
            Ok(node) => {
                self.truncate(node, 0)?;
                node
            }
            Err(TransactionError::NotFound { .. }) => self.create(directory, name, false)?,
            Err(error) => return Err(error),
        };
        self.write(node, 0, bytes)
    }

    /// Makes a directory and those above it; one that exists is success.
    ///
    /// # Errors
    /// `NotDirectory`.
    pub fn make_directories(&self, path: &TreePath) -> Result<NodeId, TransactionError> {
        let mut at = Self::ROOT;
        for name in path.components() {
            at = match self.look_up(at, name) {
                Ok(node) => node,
                Err(TransactionError::NotFound { .. }) => self.make_directory(at, name)?,
                Err(error) => return Err(error),
            };
        }
        Ok(at)
    }

    /// Removes whatever a path is, with all that is in it.
    ///
    /// # Errors
    /// `NotFound`; the root cannot be removed.
    pub fn remove_path(&self, path: &TreePath) -> Result<(), TransactionError> {
        let (directory, name) =
            path.split_last().ok_or(TransactionError::IsDirectory { name: "/".into() })?;
        self.remove_all(self.walk(&directory)?, name)
    }

    /// What a path is; `None` when there is nothing.
    ///
    /// # Errors
    /// When the tree cannot be read.
    pub fn stat_path(&self, path: &TreePath) -> Result<Option<Stat>, TransactionError> {
        match self.walk(path).and_then(|node| self.stat(node)) {
            Ok(stat) => Ok(Some(stat)),
            Err(TransactionError::NotFound { .. } | TransactionError::NotDirectory { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The names in the directory of a path.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`.
    pub fn list_path(&self, path: &TreePath) -> Result<Vec<(FileName, NodeKind)>, TransactionError> {
        self.list(self.walk(path)?)
    }

    /// The tree as it is now, as an object id. Nothing is written.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn tree_id(&self) -> Result<ObjectId, TransactionError> {
        let mut state = self.open_state()?;
        flush(&mut state.overlay, &mut self.inner.store.fresh(), Purpose::Look)
    }

    fn place<'a>(&self, path: &'a TreePath) -> Result<(NodeId, &'a FileName), TransactionError> {
        let (directory, _) = path.split_last().ok_or(TransactionError::IsDirectory { name: "/".into() })?;
        let name = path.components().last().ok_or(TransactionError::IsDirectory { name: "/".into() })?;
        Ok((self.make_directories(&directory)?, name))
    }
}
