//! Objects as values: blobs are bytes, trees and commits are parsed once and keep what they were parsed from.
//!
//! Spec: gitformat-pack(5), git-hash-object(1), "Git Objects" in gitcore-tutorial(7).

use std::cmp::Ordering;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use gix::bstr::{BStr, BString, ByteSlice};

pub use gix::ObjectId;
pub use gix::hash::Kind as HashKind;
pub use gix::objs::Kind as ObjectKind;

/// An object: its kind and its content, without git's header. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Object {
    /// Blob, tree, commit or tag.
    pub kind: ObjectKind,
    /// The content.
    pub bytes: Arc<[u8]>,
}

/// The id that git gives to an object of this kind and content.
pub fn hash(hash: HashKind, kind: ObjectKind, bytes: &[u8]) -> ObjectId {
    gix::objs::compute_hash(hash, kind, bytes).unwrap_or_else(|_| collision(hash))
}

/// The id of an object that is the first `size` bytes of a file.
///
/// # Errors
/// When it cannot be read, is shorter, or carries a known attack on SHA-1.
pub fn hash_file(hash: HashKind, kind: ObjectKind, file: &File, size: u64) -> io::Result<ObjectId> {
    let mut hasher = gix::hash::hasher(hash);
    hasher.update(format!("{kind} {size}\0").as_bytes());
    let (mut at, mut chunk) = (0, vec![0; HASHED_AT_ONCE]);
    while at < size {
        let count = usize::try_from(size - at).unwrap_or(HASHED_AT_ONCE).min(HASHED_AT_ONCE);
        file.read_exact_at(&mut chunk[..count], at)?;
        hasher.update(&chunk[..count]);
        at += count as u64;
    }
    hasher.try_finalize().map_err(|error| io::Error::other(error.to_string()))
}

/// Bytes of a file that are read and hashed at a time.
const HASHED_AT_ONCE: usize = 128 << 10;

/// The id for content that carries a known attack on SHA-1: an id that no object has, so that it can neither be
/// read nor be confused with the object that it imitates.
fn collision(hash: HashKind) -> ObjectId {
    hash.null()
}

/// Text that is not an object id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid-hash \"{text}\": {hex_len} hexadecimal digits are an object id here")]
pub struct IdError {
    /// What was given, at most 100 bytes of it.
    pub text: String,
    /// How many digits an id has in this repository.
    pub hex_len: usize,
}

/// Reads an object id in hexadecimal, as long as this kind of hash is.
///
/// # Errors
/// [`IdError`] on anything else.
pub fn parse_id(kind: HashKind, text: &[u8]) -> Result<ObjectId, IdError> {
    let wrong = || IdError {
        text: String::from_utf8_lossy(&text[..text.len().min(100)]).into_owned(),
        hex_len: kind.len_in_hex(),
    };
    if text.len() != kind.len_in_hex() {
        return Err(wrong());
    }
    ObjectId::from_hex(text).map_err(|_| wrong())
}

/// What an entry of a tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// A directory.
    Tree,
    /// An ordinary file.
    File,
    /// A file with the executable bit.
    Executable,
    /// A symbolic link; the blob is its target.
    Link,
    /// A commit of another repository.
    Submodule,
}

impl Mode {
    /// As git writes it into trees.
    pub const fn octal(self) -> &'static str {
        match self {
            Mode::Tree => "40000",
            Mode::File => "100644",
            Mode::Executable => "100755",
            Mode::Link => "120000",
            Mode::Submodule => "160000",
        }
    }

    /// Whether the entry is a blob: a file, executable or not, or a link.
    pub const fn is_blob(self) -> bool {
        matches!(self, Mode::File | Mode::Executable | Mode::Link)
    }

    fn of(mode: gix::objs::tree::EntryMode) -> Mode {
        use gix::objs::tree::EntryKind;
        match mode.kind() {
            EntryKind::Tree => Mode::Tree,
            EntryKind::Blob => Mode::File,
            EntryKind::BlobExecutable => Mode::Executable,
            EntryKind::Link => Mode::Link,
            EntryKind::Commit => Mode::Submodule,
        }
    }
}

/// One entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The name: one component, no slash.
    pub name: BString,
    /// What it is.
    pub mode: Mode,
    /// The object.
    pub id: ObjectId,
}

impl Entry {
    /// Which of two entries comes first in a tree.
    pub fn cmp_place(&self, other: &Entry) -> Ordering {
        compare(&self.name, self.mode, &other.name, other.mode)
    }
}

/// A directory: entries in git's order, each name once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree {
    /// The entries; git's order is by name, a directory's as if it ended in a slash.
    pub entries: Vec<Entry>,
}

impl Tree {
    /// Makes a tree of entries in any order.
    pub fn new(mut entries: Vec<Entry>) -> Tree {
        entries.sort_by(|a, b| compare(&a.name, a.mode, &b.name, b.mode));
        Tree { entries }
    }

    /// Reads a tree object.
    ///
    /// # Errors
    /// A line that says what is wrong with it.
    pub fn parse(kind: HashKind, bytes: &[u8]) -> Result<Tree, String> {
        let tree = gix::objs::TreeRef::from_bytes(bytes, kind).map_err(|error| error.to_string())?;
        let mut entries: Vec<Entry> = Vec::with_capacity(tree.entries.len());
        for entry in tree.entries {
            let name = entry.filename;
            if name.is_empty() || name == "." || name == ".." || name.find_byteset(b"/\0").is_some() {
                return Err(format!("the tree has an entry with the name \"{name}\""));
            }
            let new = Entry { name: name.into(), mode: Mode::of(entry.mode), id: entry.oid.to_owned() };
            if entries.last().is_some_and(|last| {
                compare(&last.name, last.mode, &new.name, new.mode) != Ordering::Less || last.name == new.name
            }) {
                return Err(format!("the tree's entry \"{name}\" is out of order"));
            }
            entries.push(new);
        }
        Ok(Tree { entries })
    }

    /// As git stores it.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.entries.len() * 48);
        for entry in &self.entries {
            out.extend_from_slice(entry.mode.octal().as_bytes());
            out.push(b' ');
            out.extend_from_slice(&entry.name);
            out.push(0);
            out.extend_from_slice(entry.id.as_slice());
        }
        out
    }

    /// The entry of this name, if there is one.
    pub fn try_find(&self, name: &[u8]) -> Option<&Entry> {
        let at =
            |mode| self.entries.binary_search_by(|entry| compare(&entry.name, entry.mode, name, mode)).ok();
        at(Mode::File).or_else(|| at(Mode::Tree)).map(|n| &self.entries[n])
    }
}

/// Git's order of tree entries.
fn compare(a: &[u8], a_mode: Mode, b: &[u8], b_mode: Mode) -> Ordering {
    gix::objs::tree::name_order(a, a_mode == Mode::Tree, b, b_mode == Mode::Tree)
}

/// Who, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// A name, without `<`, `>` and line ends.
    pub name: BString,
    /// An address, likewise.
    pub email: BString,
    /// Seconds since 1970.
    pub seconds: i64,
    /// Offset of the local time in seconds, east positive.
    pub offset_seconds: i32,
}

impl Signature {
    fn encode(&self, out: &mut Vec<u8>) {
        let clean = |text: &BString| -> Vec<u8> {
            let kept: Vec<u8> = text.iter().copied().filter(|byte| !b"<>\n\0".contains(byte)).collect();
            kept.trim().to_vec()
        };
        out.extend_from_slice(&clean(&self.name));
        out.extend_from_slice(b" <");
        out.extend_from_slice(&clean(&self.email));
        let minutes = self.offset_seconds / 60;
        let sign = if minutes < 0 { '-' } else { '+' };
        let (hours, rest) = (minutes.abs() / 60, minutes.abs() % 60);
        out.extend_from_slice(format!("> {} {sign}{hours:02}{rest:02}", self.seconds).as_bytes());
    }

    fn parse(line: &BStr) -> Signature {
        let read = gix::actor::SignatureRef::from_bytes(line).ok();
        let time = read.as_ref().and_then(|read| read.time().ok());
        Signature {
            name: read.as_ref().map_or_else(|| line.into(), |read| read.name.into()),
            email: read.as_ref().map_or_else(BString::default, |read| read.email.into()),
            seconds: time.map_or(0, |time| time.seconds),
            offset_seconds: time.map_or(0, |time| time.offset),
        }
    }
}

/// A commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Its directory.
    pub tree: ObjectId,
    /// What it was made from, the branch it was made on first.
    pub parents: Vec<ObjectId>,
    /// Who wrote it.
    pub author: Signature,
    /// Who committed it.
    pub committer: Signature,
    /// The message, as it is: usually ends with a line end.
    pub message: BString,
}

impl Commit {
    /// Reads a commit object.
    ///
    /// # Errors
    /// A line that says what is wrong with it.
    pub fn parse(kind: HashKind, bytes: &[u8]) -> Result<Commit, String> {
        let commit = gix::objs::CommitRef::from_bytes(bytes, kind).map_err(|error| error.to_string())?;
        Ok(Commit {
            tree: commit.tree(),
            parents: commit.parents().collect(),
            author: Signature::parse(commit.author),
            committer: Signature::parse(commit.committer),
            message: commit.message.into(),
        })
    }

    /// As git stores it.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.message.len());
        out.extend_from_slice(format!("tree {}\n", self.tree).as_bytes());
        for parent in &self.parents {
            out.extend_from_slice(format!("parent {parent}\n").as_bytes());
        }
        out.extend_from_slice(b"author ");
        self.author.encode(&mut out);
        out.extend_from_slice(b"\ncommitter ");
        self.committer.encode(&mut out);
        out.extend_from_slice(b"\n\n");
        out.extend(self.message.iter().filter(|byte| **byte != 0));
        out
    }
}
