//! Reads and writes git repositories: objects, refs, packs.
//!
//! [`Backend`] is what a store stands on: objects by id, refs moved by compare-and-swap, many of both in one durable
//! batch. [`Memory`] keeps everything in memory; [`Repository`] serves any ordinary repository on disk in place.
//! Objects are parsed once, into [`Tree`] and [`Commit`]; what is damaged is an error that names the object.
//!
//! This crate knows nothing of transactions, merges or watches: those are `datakit-store`.

#![forbid(unsafe_code)]

mod alive;
mod backend;
mod behind;
mod concatenate;
mod delta;
mod disk;
mod inflate;
mod intent;
mod journal;
mod memory;
mod object;
mod pack;
mod packed;
mod prepared;
mod reader;
mod refs;
pub mod remote;
mod repository;
mod stored;
mod survey;
mod sys;
#[cfg(feature = "testing")]
pub mod testing;
mod upkeep;
mod watch;
mod writer;

pub use self::backend::{
    Backend, Batch, ChangeHook, Changed, Content, NewObject, ReadError, RefEdit, RefName, WriteError,
};
pub use self::disk::{Disk, Fault, Step};
pub use self::memory::Memory;
pub use self::object::{
    Commit, Entry, HashKind, IdError, Mode, Object, ObjectId, ObjectKind, Signature, Tree, hash, hash_file,
    parse_id,
};
pub use self::prepared::Prepared;
pub use self::reader::BlobReader;
pub use self::repository::{Durability, OpenError, Options, Repository};
pub use self::survey::Survey;
