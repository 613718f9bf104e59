//! Transactions: a private, writable tree on top of a commit.
//!
//! Files and directories are nodes with a number that stays theirs when they are renamed, and that stays readable after
//! they are removed, for as long as somebody retains them. Directories are read when they are entered; files when they
//! are changed. Nothing is in the repository before the commit.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gix::bstr::BString;

use datakit_git::{Batch, Commit, ObjectId, ReadError};

use crate::commit::{CommitError, Move, MoveError, Plan};
use crate::diff::{Change, diff};
use crate::history::base_tree;
use crate::merge::{Conflict, MergeDriver, Sides, merge};
use crate::name::BranchName;
use crate::store::{Limits, Store};

mod content;
mod flush;
mod nodes;
mod overlay;
mod paths;

use self::flush::{Purpose, flush};
use self::overlay::Overlay;
pub use self::overlay::{NodeId, NodeKind, Stat};

/// Why an operation on a transaction failed.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum TransactionError {
    #[error("the transaction is closed")]
    Closed,
    #[error("there is no {name}")]
    NotFound { name: BString },
    #[error("{name} exists already")]
    Exists { name: BString },
    #[error("{name} is not a directory")]
    NotDirectory { name: BString },
    #[error("{name} is a directory")]
    IsDirectory { name: BString },
    #[error("{name} is not empty")]
    NotEmpty { name: BString },
    #[error("{name} is not a symbolic link")]
    NotLink { name: BString },
    #[error("a directory cannot be moved into itself")]
    IntoItself,
    #[error("the node {0:?} does not exist")]
    NoNode(NodeId),
    #[error("a commit of another repository cannot be opened")]
    Submodule,
    #[error("{limit} transactions are open, which is the limit")]
    TooMany { limit: usize },
    #[error("the open transactions hold {limit} bytes, which is the limit")]
    TooLarge { limit: u64 },
    #[error("a path would have more than 1000 components")]
    TooDeep,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("{action}: {source}")]
    Io { action: &'static str, source: Arc<std::io::Error> },
}

/// What all open transactions use together.
pub(crate) struct Accounts {
    pub limits: Limits,
    pub spill_folder: PathBuf,
    open: AtomicUsize,
    bytes: AtomicU64,
}

impl Accounts {
    pub fn new(limits: Limits, spill_folder: PathBuf) -> Accounts {
        Accounts { limits, spill_folder, open: AtomicUsize::new(0), bytes: AtomicU64::new(0) }
    }

    fn open(&self) -> Result<(), TransactionError> {
        let limit = self.limits.transactions;
        if self.open.fetch_add(1, Ordering::Relaxed) >= limit {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(TransactionError::TooMany { limit });
        }
        Ok(())
    }

    /// Accounts for a content that grows or shrinks.
    fn resize(&self, old: u64, new: u64) -> Result<(), TransactionError> {
        if new <= old {
            self.bytes.fetch_sub(old - new, Ordering::Relaxed);
            return Ok(());
        }
        let limit = self.limits.transaction_bytes;
        let before = self.bytes.fetch_add(new - old, Ordering::Relaxed);
        if before.saturating_add(new - old) > limit {
            self.bytes.fetch_sub(new - old, Ordering::Relaxed);
            return Err(TransactionError::TooLarge { limit });
        }
        Ok(())
    }
}

/// The trees of a merge under way; an absent one is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergeTrees {
    /// The best common ancestor's.
    pub base: Option<ObjectId>,
    /// What the transaction held before.
    pub ours: Option<ObjectId>,
    /// The merged commit's.
    pub theirs: Option<ObjectId>,
}

/// A private, writable tree on top of a commit of a branch.
///
/// A clone is another handle of the same transaction. When the last handle goes, so does the transaction.
#[derive(Clone)]
pub struct Transaction {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    branch: BranchName,
    head: Option<ObjectId>,
    state: Mutex<State>,
}

struct State {
    is_open: bool,
    overlay: Overlay,
    message: BString,
    parents: Vec<ObjectId>,
    driver: Option<MergeDriver>,
    trees: Option<MergeTrees>,
    conflicts: Vec<Conflict>,
}

impl std::fmt::Debug for Transaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transaction").field("branch", &self.inner.branch).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.close(&self.store);
    }
}

impl State {
    fn close(&mut self, store: &Store) {
        if std::mem::replace(&mut self.is_open, false) {
            self.overlay.clear();
            store.accounts().open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Store {
    /// Opens a transaction on the head of a branch, which need not exist.
    ///
    /// # Errors
    /// `TooMany`; `Read` when the head cannot be read.
    pub fn begin(&self, branch: &BranchName) -> Result<Transaction, TransactionError> {
        let head = self.head(branch).map_err(|error| TransactionError::Io {
            action: "the head of the branch cannot be read",
            source: Arc::new(std::io::Error::other(error)),
        })?;
        self.begin_at(branch, head)
    }

    /// Opens a transaction for a branch on a commit of the caller's choice.
    ///
    /// # Errors
    /// As [`Store::begin`].
    pub fn begin_at(
        &self,
        branch: &BranchName,
        base: Option<ObjectId>,
    ) -> Result<Transaction, TransactionError> {
        let tree = base.map(|base| self.commit_of(base)).transpose()?.map(|commit| commit.tree);
        self.accounts().open()?;
        let state = State {
            is_open: true,
            overlay: Overlay::new(self.clone(), tree),
            message: "(no commit message)\n".into(),
            parents: base.into_iter().collect(),
            driver: None,
            trees: None,
            conflicts: Vec::new(),
        };
        let inner =
            Inner { store: self.clone(), branch: branch.clone(), head: base, state: Mutex::new(state) };
        Ok(Transaction { inner: Arc::new(inner) })
    }
}

impl Transaction {
    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_state(&self) -> Result<MutexGuard<'_, State>, TransactionError> {
        let state = self.state();
        if state.is_open { Ok(state) } else { Err(TransactionError::Closed) }
    }

    /// The branch that it is for.
    pub fn branch(&self) -> &BranchName {
        &self.inner.branch
    }

    /// The commit that it began on.
    pub fn head(&self) -> Option<ObjectId> {
        self.inner.head
    }

    /// Whether it is neither committed nor closed.
    pub fn is_open(&self) -> bool {
        self.state().is_open
    }

    /// Ends it; everything in it is forgotten.
    pub fn close(&self) {
        self.state().close(&self.inner.store);
    }

    /// The message of the commit to be.
    pub fn message(&self) -> BString {
        self.state().message.clone()
    }

    /// Sets the message.
    pub fn set_message(&self, message: impl Into<BString>) {
        self.state().message = message.into();
    }

    /// The parents of the commit to be.
    pub fn parents(&self) -> Vec<ObjectId> {
        self.state().parents.clone()
    }

    /// Sets the parents. One more parent without a merge is a merge that takes our side of everything.
    pub fn set_parents(&self, parents: Vec<ObjectId>) {
        self.state().parents = parents;
    }

    /// How files that both sides changed are merged when no gitattributes speak of them.
    pub fn merge_driver(&self) -> Option<MergeDriver> {
        self.state().driver
    }

    /// Sets that; `None` is DataKit's way: never inside a file.
    pub fn set_merge_driver(&self, driver: Option<MergeDriver>) {
        self.state().driver = driver;
    }

    /// Merges a commit into the tree and adds it to the parents. Returns the conflicts, whose paths now hold a text that
    /// says so; they are resolved by writing, creating or removing the path.
    ///
    /// # Errors
    /// `Read` when the commit or something it needs is missing; then nothing changed.
    pub fn merge(&self, commit: ObjectId) -> Result<Vec<Conflict>, TransactionError> {
        let store = &self.inner.store;
        let theirs = store.commit_of(commit)?.tree;
        let mut state = self.open_state()?;
        let mut fresh = store.fresh();
        let ours = flush(&mut state.overlay, &mut fresh, Purpose::Write)?;
        let driver = state.driver.unwrap_or_default();
        let mut base = None;
        for parent in &state.parents {
            if base.is_none() {
                base = base_tree(&mut fresh, *parent, commit, driver)?;
            }
        }
        let sides = Sides { base, ours: Some(ours), theirs: Some(theirs) };
        let merged = merge(&mut fresh, sides, driver)?;
        // So that both sides can be read while conflicts are resolved. No ref reaches them yet.
        let written = store.backend().write(&Batch { objects: fresh.new.clone(), edits: Vec::new() });
        written.map_err(|error| TransactionError::Io {
            action: "the trees of the merge cannot be written",
            source: Arc::new(std::io::Error::other(error)),
        })?;
        state.overlay.adopt(&fresh, merged.tree)?;
        state.trees = Some(MergeTrees { base, ours: Some(ours), theirs: Some(theirs) });
        state.conflicts.extend(merged.conflicts.iter().cloned());
        state.conflicts.sort();
        state.conflicts.dedup();
        if !state.parents.contains(&commit) {
            state.parents.push(commit);
        }
        Ok(state.conflicts.clone())
    }

    /// The trees of the last merge, once there was one.
    pub fn merge_trees(&self) -> Option<MergeTrees> {
        self.state().trees
    }

    /// Conflicts that are not resolved yet, sorted by path.
    pub fn conflicts(&self) -> Vec<Conflict> {
        self.state().conflicts.clone()
    }

    /// What differs between a commit and the tree as it is now.
    ///
    /// # Errors
    /// `Read`.
    pub fn diff(&self, commit: ObjectId) -> Result<Vec<Change>, TransactionError> {
        let store = &self.inner.store;
        let old = store.commit_of(commit)?.tree;
        let mut state = self.open_state()?;
        let mut fresh = store.fresh();
        let new = flush(&mut state.overlay, &mut fresh, Purpose::Look)?;
        drop(state);
        Ok(diff(&fresh, Some(old), Some(new))?)
    }

    /// Makes the commit and adds it to the branch: by fast-forward where the branch has not moved, by a merge otherwise.
    /// Blocks until the commit is as durable as the store was opened for. Returns the new head, which is the commit or
    /// the merge of it. Afterwards the transaction is closed.
    ///
    /// # Errors
    /// [`CommitError`]; the transaction stays open.
    pub fn commit(&self) -> Result<ObjectId, CommitError> {
        let store = &self.inner.store;
        let mut state = self.open_state()?;
        if !state.conflicts.is_empty() {
            return Err(CommitError::Unresolved { conflicts: state.conflicts.clone() });
        }
        for parent in &state.parents {
            store.commit_of(*parent).map_err(|source| CommitError::Parent { parent: *parent, source })?;
        }
        let mut fresh = store.fresh();
        let tree = flush(&mut state.overlay, &mut fresh, Purpose::Write)?;
        let signature = store.committer().signature();
        let mut message = state.message.clone();
        if !message.is_empty() && !message.ends_with(b"\n") {
            message.push(b'\n');
        }
        let commit = fresh.add_commit(Commit {
            tree,
            parents: state.parents.clone(),
            author: signature.clone(),
            committer: signature,
            message,
        });
        let plan = Plan { objects: fresh, commit, driver: state.driver.unwrap_or_default() };
        match store.committer().submit(&self.inner.branch, Move::Commit(plan)) {
            Ok(head) => {
                state.close(store);
                Ok(head.unwrap_or(commit))
            }
            Err(MoveError::Conflicts(conflicts)) => Err(CommitError::Conflicts { conflicts }),
            Err(MoveError::Branch(error)) => Err(error.into()),
        }
    }

    /// Takes a path off the list of conflicts.
    fn resolve(state: &mut State, path: &[u8]) {
        state.conflicts.retain(|conflict| {
            let rest = conflict.path.strip_prefix(path);
            !rest.is_some_and(|rest| path.is_empty() || rest.is_empty() || rest.starts_with(b"/"))
        });
    }
}
