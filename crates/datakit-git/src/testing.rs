//! What reads files, for those who feed it nonsense: `fuzz/`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::journal::{framed, records};
use crate::pack::index_of;
use crate::refs::parse_packed;
use crate::{HashKind, ObjectId};

/// Reads a journal, and one whose only record has this payload. Returns how many records there are. What is read is
/// written as it was.
pub fn journal(hash: HashKind, bytes: &[u8]) -> usize {
    let found = records(hash, bytes);
    let one = records(hash, &framed(bytes));
    one.iter().for_each(|record| assert_eq!(record.encode(), bytes));
    found.len() + one.len()
}

/// Reads `packed-refs`; returns how many refs there are.
pub fn packed_refs(hash: HashKind, text: &[u8]) -> usize {
    parse_packed(hash, text).len()
}

/// An index for a pack that ends in `trailer`, of objects at these offsets.
///
/// # Errors
/// When there are too many objects.
pub fn index(hash: HashKind, objects: &[(ObjectId, u32)], trailer: ObjectId) -> io::Result<Vec<u8>> {
    index_of(hash, objects, trailer)
}

/// Makes one pack of some, into a file that is replaced; its index.
///
/// # Errors
/// When a pack cannot be read, or the file not be written.
pub fn concatenate(hash: HashKind, packs: &[PathBuf], into: &Path) -> io::Result<Vec<u8>> {
    Ok(crate::concatenate::concatenate(hash, packs, &mut File::create(into)?)?.0)
}
