//! What can be done with the nodes of a transaction: the operations of a file system.

use gix::bstr::BString;

use datakit_git::Mode;

use super::{NodeId, NodeKind, Stat, State, Transaction, TransactionError};
use crate::name::{FileName, TreePath};

/// Work on nodes.
impl Transaction {
    /// The number of the tree itself.
    pub const ROOT: NodeId = NodeId::ROOT;

    /// What a node is.
    ///
    /// # Errors
    /// [`TransactionError`].
    pub fn stat(&self, node: NodeId) -> Result<Stat, TransactionError> {
        self.open_state()?.overlay.stat(node)
    }

    /// The node of a name in a directory.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`.
    pub fn look_up(&self, directory: NodeId, name: &FileName) -> Result<NodeId, TransactionError> {
        self.open_state()?.overlay.look_up(directory, name)
    }

    /// The directory that a node is in; the root is in itself, a removed one in none.
    ///
    /// # Errors
    /// [`TransactionError`].
    pub fn parent(&self, node: NodeId) -> Result<Option<NodeId>, TransactionError> {
        self.open_state()?.overlay.parent(node)
    }

    /// The names in a directory, sorted as bytes, and what they are.
    ///
    /// # Errors
    /// `NotDirectory`.
    pub fn list(&self, directory: NodeId) -> Result<Vec<(FileName, NodeKind)>, TransactionError> {
        self.open_state()?.overlay.list(directory)
    }

    /// Reads a file from `offset` on; returns how many bytes there were, 0 at its end.
    ///
    /// # Errors
    /// `IsDirectory`; when the blob is damaged.
    pub fn read(&self, file: NodeId, offset: u64, buffer: &mut [u8]) -> Result<usize, TransactionError> {
        self.open_state()?.overlay.read(file, offset, buffer)
    }

    /// Writes into a file at `offset`, which may be beyond its end: what is between becomes zero.
    ///
    /// # Errors
    /// `IsDirectory`, `TooLarge`; when the disk is full.
    pub fn write(&self, file: NodeId, offset: u64, bytes: &[u8]) -> Result<(), TransactionError> {
        let mut state = self.open_state()?;
        state.overlay.write(file, offset, bytes)?;
        Self::touched(&mut state, file)
    }

    /// Gives a file a length.
    ///
    /// # Errors
    /// As [`Transaction::write`].
    pub fn truncate(&self, file: NodeId, bytes: u64) -> Result<(), TransactionError> {
        let mut state = self.open_state()?;
        state.overlay.truncate(file, bytes)?;
        Self::touched(&mut state, file)
    }

    fn touched(state: &mut State, node: NodeId) -> Result<(), TransactionError> {
        if !state.conflicts.is_empty()
            && let Some(path) = state.overlay.path(node)?
        {
            Self::resolve(state, &path);
        }
        Ok(())
    }

    /// Makes an empty file.
    ///
    /// # Errors
    /// `Exists`, `NotDirectory`.
    pub fn create(
        &self,
        directory: NodeId,
        name: &FileName,
        executable: bool,
    ) -> Result<NodeId, TransactionError> {
        let mode = if executable { Mode::Executable } else { Mode::File };
        self.add(directory, name, mode, b"")
    }

    /// Makes an empty directory. Git has none: it is not in the commit unless something is put into it.
    ///
    /// # Errors
    /// `Exists`, `NotDirectory`, `TooDeep`.
    pub fn make_directory(&self, directory: NodeId, name: &FileName) -> Result<NodeId, TransactionError> {
        self.add(directory, name, Mode::Tree, b"")
    }

    /// Makes a symbolic link. The target may be anything.
    ///
    /// # Errors
    /// `Exists`, `NotDirectory`.
    pub fn make_link(
        &self,
        directory: NodeId,
        name: &FileName,
        target: &[u8],
    ) -> Result<NodeId, TransactionError> {
        self.add(directory, name, Mode::Link, target)
    }

    fn add(
        &self,
        directory: NodeId,
        name: &FileName,
        mode: Mode,
        text: &[u8],
    ) -> Result<NodeId, TransactionError> {
        let mut state = self.open_state()?;
        let node = state.overlay.add(directory, name, mode, text)?;
        Self::touched(&mut state, node)?;
        Ok(node)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `NotLink`.
    pub fn link_target(&self, link: NodeId) -> Result<BString, TransactionError> {
        self.open_state()?.overlay.link_target(link)
    }

    /// Sets or clears the executable bit of a file.
    ///
    /// # Errors
    /// `IsDirectory`.
    pub fn set_executable(&self, file: NodeId, executable: bool) -> Result<(), TransactionError> {
        self.open_state()?.overlay.set_executable(file, executable)
    }

    /// Moves a name, also into another directory. What the new name was is replaced, as by rename(2): a file by a file,
    /// an empty directory by a directory.
    ///
    /// # Errors
    /// `NotFound`, `NotEmpty`, `IsDirectory`, `NotDirectory`, `IntoItself`, `TooDeep`.
    pub fn rename(&self, from: (NodeId, &FileName), to: (NodeId, &FileName)) -> Result<(), TransactionError> {
        let mut state = self.open_state()?;
        Self::move_node(&mut state, from, to)
    }

    /// As [`Transaction::rename`], of what does not replace anything.
    ///
    /// # Errors
    /// Also `Exists`.
    pub fn rename_to_new(
        &self,
        from: (NodeId, &FileName),
        to: (NodeId, &FileName),
    ) -> Result<(), TransactionError> {
        let mut state = self.open_state()?;
        match state.overlay.look_up(to.0, to.1) {
            Ok(_) => Err(TransactionError::Exists { name: to.1.as_bstr().to_owned() }),
            Err(TransactionError::NotFound { .. }) => Self::move_node(&mut state, from, to),
            Err(error) => Err(error),
        }
    }

    fn move_node(
        state: &mut State,
        from: (NodeId, &FileName),
        to: (NodeId, &FileName),
    ) -> Result<(), TransactionError> {
        let old = state.overlay.path_of(from.0, from.1)?;
        let node = state.overlay.rename(from, to)?;
        if let Some(old) = old {
            Self::resolve(state, &old);
        }
        Self::touched(state, node)
    }

    /// Removes a file, a link or an empty directory.
    ///
    /// # Errors
    /// `NotFound`, `NotEmpty`.
    pub fn remove(&self, directory: NodeId, name: &FileName) -> Result<(), TransactionError> {
        self.take_away(directory, name, false)
    }

    /// Removes whatever the name is, with all that is in it.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn remove_all(&self, directory: NodeId, name: &FileName) -> Result<(), TransactionError> {
        self.take_away(directory, name, true)
    }

    fn take_away(&self, directory: NodeId, name: &FileName, all: bool) -> Result<(), TransactionError> {
        let mut state = self.open_state()?;
        let path = state.overlay.path_of(directory, name)?;
        state.overlay.remove(directory, name, all)?;
        if let Some(path) = path {
            Self::resolve(&mut state, &path);
        }
        Ok(())
    }

    /// Keeps a node readable and writable after its name is gone, until [`Transaction::release`].
    pub fn retain(&self, node: NodeId) {
        self.state().overlay.retain(node);
    }

    /// Undoes one [`Transaction::retain`].
    pub fn release(&self, node: NodeId) {
        self.state().overlay.release(node);
    }

    /// The node of a path.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`.
    pub fn walk(&self, path: &TreePath) -> Result<NodeId, TransactionError> {
        self.open_state()?.overlay.walk(path)
    }
}
