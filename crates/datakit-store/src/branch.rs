//! Branches: refs below `refs/heads`.

use datakit_git::{ObjectId, ReadError, WriteError};

use crate::commit::{Move, MoveError};
use crate::name::{BranchName, HEADS};
use crate::store::Store;

/// Why a branch did not move.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum BranchError {
    #[error("the branch {name} does not exist")]
    Missing { name: BranchName },
    #[error("the branch {name} exists already")]
    Exists { name: BranchName },
    #[error("not-fast-forward: {name} is at {head}, which is not an ancestor of {commit}")]
    NotFastForward { name: BranchName, head: ObjectId, commit: ObjectId },
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("the refs cannot be read: {0}")]
    Refs(std::sync::Arc<std::io::Error>),
    #[error("the branch {name} was moved by others {tries} times while we tried; try again")]
    Busy { name: BranchName, tries: usize },
}

impl Store {
    /// All branches and their heads, sorted by name.
    ///
    /// # Errors
    /// When the refs cannot be read.
    pub fn branches(&self) -> Result<Vec<(BranchName, ObjectId)>, BranchError> {
        let refs = self.backend().refs(HEADS).map_err(|error| BranchError::Refs(error.into()))?;
        Ok(refs.into_iter().filter_map(|(name, id)| Some((BranchName::of_ref(name)?, id))).collect())
    }

    /// The commit at the head of a branch; `None` when the branch does not exist.
    ///
    /// # Errors
    /// When the ref cannot be read.
    pub fn head(&self, branch: &BranchName) -> Result<Option<ObjectId>, BranchError> {
        self.backend().try_find_ref(branch.as_ref_name()).map_err(|error| BranchError::Refs(error.into()))
    }

    /// Makes a branch at a commit.
    ///
    /// # Errors
    /// `Exists`; `Read` when the commit is missing.
    pub fn create_branch(&self, branch: &BranchName, commit: ObjectId) -> Result<(), BranchError> {
        self.commit_of(commit)?;
        self.move_branch(branch, Move::Create(commit)).map(drop)
    }

    /// Deletes a branch. Its commits stay until git collects them.
    ///
    /// # Errors
    /// `Missing`.
    pub fn delete_branch(&self, branch: &BranchName) -> Result<(), BranchError> {
        self.move_branch(branch, Move::Delete).map(drop)
    }

    /// Gives a branch another name: the new one is made, then the old one deleted if it has not moved meanwhile.
    ///
    /// # Errors
    /// `Missing` and `Exists`. When the old one moved meanwhile, it stays, and the new one goes again: `Busy`.
    pub fn rename_branch(&self, from: &BranchName, to: &BranchName) -> Result<(), BranchError> {
        let head = self.head(from)?.ok_or_else(|| BranchError::Missing { name: from.clone() })?;
        self.create_branch(to, head)?;
        match self.move_branch(from, Move::DeleteAt(head)) {
            Ok(_) => Ok(()),
            Err(error) => {
                self.move_branch(to, Move::DeleteAt(head)).ok();
                Err(error)
            }
        }
    }

    /// Moves a branch forward to a commit of which its head is an ancestor; being there already is success. A branch
    /// that does not exist is made.
    ///
    /// # Errors
    /// `Read` when the commit is missing or is none; `NotFastForward`.
    pub fn fast_forward(&self, branch: &BranchName, commit: ObjectId) -> Result<(), BranchError> {
        self.commit_of(commit)?;
        self.move_branch(branch, Move::FastForward(commit)).map(drop)
    }

    fn move_branch(&self, branch: &BranchName, how: Move) -> Result<Option<ObjectId>, BranchError> {
        match self.committer().submit(branch, how) {
            Ok(head) => Ok(head),
            Err(MoveError::Branch(error)) => Err(error),
            Err(MoveError::Conflicts(_)) => Err(BranchError::Busy { name: branch.clone(), tries: 1 }),
        }
    }
}
