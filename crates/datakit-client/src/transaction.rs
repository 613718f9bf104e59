//! Transactions: changes that nobody sees before they are committed, all at once.

use std::sync::Arc;

use crate::branch::{self, Change};
use crate::error::Error;
use crate::id::CommitId;
use crate::path;
use crate::session::Session;
use crate::tree::Tree;

/// A transaction on a branch, closed when dropped unless it was committed or is leased.
#[derive(Debug)]
pub struct Transaction {
    session: Arc<Session>,
    root: String,
    branch_root: String,
    is_open: bool,
    is_leased: bool,
}

#[expect(clippy::missing_errors_doc, reason = "all fail with Error, whose variants say when")]
impl Transaction {
    pub(crate) fn begin(session: Arc<Session>, branch_root: &str, name: &str) -> Result<Self, Error> {
        let root = format!("{branch_root}/transactions/{name}");
        session.mkdir(&root)?;
        Ok(Self { session, root, branch_root: branch_root.to_owned(), is_open: true, is_leased: false })
    }

    pub(crate) fn lease(
        session: Arc<Session>,
        branch_root: &str,
        name: &str,
        seconds: u64,
    ) -> Result<Self, Error> {
        let root = format!("{branch_root}/leases/{name}");
        match session.walk(&root) {
            Ok(fid) => session.forget(fid),
            Err(Error::NotFound { .. }) => session.mkdir(&format!("{root}?ttl={seconds}"))?,
            Err(error) => return Err(error),
        }
        Ok(Self { session, root, branch_root: branch_root.to_owned(), is_open: true, is_leased: true })
    }

    fn file(&self, path: &str) -> Result<String, Error> {
        path::below(&format!("{}/rw", self.root), path)
    }

    /// The tree as it will be committed.
    pub fn tree(&self) -> Tree {
        Tree::new(Arc::clone(&self.session), format!("{}/rw", self.root))
    }

    /// Reads a file.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, Error> {
        self.session.read(&self.file(path)?)
    }

    /// Makes the content of a file `bytes`; missing directories are made.
    pub fn write(&self, path: &str, bytes: &[u8]) -> Result<(), Error> {
        let file = self.file(path)?;
        match self.session.write(&file, bytes) {
            Err(Error::NotFound { .. }) => {
                self.mkdir_parents(path)?;
                self.session.write(&file, bytes)
            }
            written => written,
        }
    }

    /// Makes a file executable, or no longer so.
    pub fn set_executable(&self, path: &str, executable: bool) -> Result<(), Error> {
        self.session.chmod(&self.file(path)?, if executable { 0o755 } else { 0o644 })
    }

    /// Makes a symbolic link; missing directories are made.
    pub fn symlink(&self, path: &str, target: &str) -> Result<(), Error> {
        self.mkdir_parents(path)?;
        self.session.symlink(&self.file(path)?, target)
    }

    /// Makes a directory and those above it. Git keeps no empty ones.
    pub fn mkdir(&self, path: &str) -> Result<(), Error> {
        let names = path::names(path)?;
        let mut directory = format!("{}/rw", self.root);
        for name in names {
            directory.push('/');
            directory.push_str(name);
            match self.session.mkdir(&directory) {
                Ok(()) | Err(Error::Exists { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn mkdir_parents(&self, path: &str) -> Result<(), Error> {
        path.trim_matches('/').rsplit_once('/').map_or(Ok(()), |(parent, _)| self.mkdir(parent))
    }

    /// Removes a file, or a directory with all that is in it.
    pub fn remove(&self, path: &str) -> Result<(), Error> {
        self.session.remove(&self.file(path)?)
    }

    /// Gives a file or directory another name.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        self.session.rename(&self.file(from)?, &self.file(to)?)
    }

    /// Sets the message of the commit.
    pub fn set_message(&self, message: &str) -> Result<(), Error> {
        self.session.write(&format!("{}/msg", self.root), message.as_bytes())
    }

    /// The message as it is now.
    pub fn message(&self) -> Result<String, Error> {
        self.session.read_text(&format!("{}/msg", self.root))
    }

    /// The commits that the commit will come from.
    pub fn parents(&self) -> Result<Vec<CommitId>, Error> {
        self.session.read_text(&format!("{}/parents", self.root))?.lines().map(str::parse).collect()
    }

    /// Sets them. One that is added is merged without taking anything of it.
    pub fn set_parents(&self, parents: &[CommitId]) -> Result<(), Error> {
        let text: String = parents.iter().map(|parent| format!("{parent}\n")).collect();
        self.session.write(&format!("{}/parents", self.root), text.as_bytes())
    }

    /// Merges a commit into the transaction. What conflicts is in [`Transaction::conflicts`].
    pub fn merge(&self, commit: &CommitId) -> Result<(), Error> {
        self.session.command(&format!("{}/merge", self.root), commit.as_str().as_bytes())
    }

    /// The paths that conflict since [`Transaction::merge`]: write or remove them before committing.
    pub fn conflicts(&self) -> Result<Vec<String>, Error> {
        match self.session.read_text(&format!("{}/conflicts", self.root)) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(Error::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// This side of a merge.
    pub fn ours(&self) -> Tree {
        Tree::new(Arc::clone(&self.session), format!("{}/ours", self.root))
    }

    /// The other side.
    pub fn theirs(&self) -> Tree {
        Tree::new(Arc::clone(&self.session), format!("{}/theirs", self.root))
    }

    /// What both came from.
    pub fn base(&self) -> Tree {
        Tree::new(Arc::clone(&self.session), format!("{}/base", self.root))
    }

    /// What changed from `commit` to now.
    pub fn diff(&self, commit: &CommitId) -> Result<Vec<Change>, Error> {
        branch::read_diff(&self.session, &format!("{}/diff/{commit}", self.root))
    }

    /// Commits, and returns the branch's head afterwards.
    ///
    /// After [`Error::Conflict`] the transaction is as it was, in [`Transaction::try_commit`]; this call closes it.
    pub fn commit(mut self) -> Result<CommitId, Error> {
        self.try_commit()
    }

    /// As [`Transaction::commit`], but the transaction stays open when it fails.
    pub fn try_commit(&mut self) -> Result<CommitId, Error> {
        let ctl = format!("{}/ctl", self.root);
        match self.session.command(&ctl, b"commit") {
            Ok(()) => {
                self.is_open = false;
                let head = self.session.read_text(&format!("{}/head", self.branch_root))?;
                head.trim_end().parse()
            }
            Err(Error::Refused { path, reason }) => Err(self.explain(path, reason)),
            Err(error) => Err(error),
        }
    }

    /// Finds out why a commit was refused: from what `ctl` has to say, and from the list of conflicts.
    fn explain(&self, path: String, reason: String) -> Error {
        let said = self.session.read_text(&format!("{}/ctl", self.root)).unwrap_or_default();
        let mut paths = self.conflicts().unwrap_or_default();
        if paths.is_empty() && !said.contains("onflict") && !reason.contains("onflict") {
            let reason = if said.trim().is_empty() { reason } else { said.trim().to_owned() };
            return Error::Refused { path, reason };
        }
        if paths.is_empty() {
            paths = parse_conflicts(&said);
        }
        Error::Conflict { paths }
    }

    /// Gives it up.
    pub fn close(mut self) -> Result<(), Error> {
        self.is_open = false;
        self.session.command(&format!("{}/ctl", self.root), b"close")
    }
}

/// The paths of `Merge conflict: a (why), b (why)`. Names with a comma and a space in them come out wrong: the list is
/// for people, as [`Transaction::conflicts`] is for programs.
fn parse_conflicts(said: &str) -> Vec<String> {
    let list = said.split_once(": ").map_or("", |(_, list)| list);
    let path = |item: &str| item.trim().rsplit_once(" (").map(|(path, _)| path.to_owned());
    list.split("), ").filter_map(path).collect()
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if self.is_open && !self.is_leased {
            // If it cannot be closed the connection is lost, and the transaction with it.
            let _ = self.session.command(&format!("{}/ctl", self.root), b"close");
        }
    }
}
