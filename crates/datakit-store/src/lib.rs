//! Branches, transactions, merges and watches over a git repository.
//!
//! A [`Store`] is a cheap handle that many threads share. Commits are immutable; a [`Transaction`] is a private,
//! writable tree on top of one, and becomes a commit of a branch by fast-forward or by a three-way merge, path by path.
//! Watches tell of it: [`Updates`] every move of every branch, numbered, without loss; [`Latest`] the newest value of a
//! head or of one path.
//!
//! ```
//! use datakit_store::{BranchName, Store, TreePath};
//!
//! let store = Store::memory();
//! let main = BranchName::new("main")?;
//! let transaction = store.begin(&main)?;
//! transaction.write_file(&TreePath::parse("notes/today")?, b"hello\n")?;
//! transaction.set_message("Say hello");
//! let commit = transaction.commit()?;
//! assert_eq!(store.head(&main)?, Some(commit));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod branch;
mod commit;
mod damage;
mod diff;
mod history;
mod lease;
mod merge;
mod name;
mod objects;
mod store;
mod transaction;
mod watch;

pub use datakit_git::{
    BlobReader, Commit, Durability, Entry, HashKind, IdError, Mode, Object, ObjectId, ObjectKind, OpenError,
    ReadError, Signature, Tree, WriteError,
};

pub use self::branch::BranchError;
pub use self::commit::CommitError;
pub use self::damage::Damage;
pub use self::diff::{Change, ChangeKind};
pub use self::lease::{LeaseError, LeaseName};
pub use self::merge::{Conflict, ConflictReason, MergeDriver};
pub use self::name::{BranchName, FileName, NameError, TreePath};
pub use self::store::{Limits, Options, Store};
pub use self::transaction::{MergeTrees, NodeId, NodeKind, Stat, Transaction, TransactionError};
pub use self::watch::{Canceller, Latest, Next, PathValue, ResumeError, Seq, Start, Update, Updates, Waker};
