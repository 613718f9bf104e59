//! Packs beside `gix`: which there are, and large blobs that one holds whole, to be read as they are decompressed.
//!
//! A blob that is a delta of another must be put together in memory: those are not found here. Git makes no deltas of
//! blobs beyond `core.bigFileThreshold`, 512 MiB unless told otherwise.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use crate::inflate::{FileFrom, inflate};
use crate::reader::Restart;
use crate::{HashKind, ObjectId, ReadError};

/// The packs that some `objects` directories list.
///
/// Packs of single batches are left out: what is in one stays there until a larger one has it, and that is listed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PackList(BTreeSet<(OsString, Option<(SystemTime, u64)>)>);

impl PackList {
    pub fn read(objects: &[PathBuf]) -> PackList {
        let folders = objects.iter().filter_map(|folder| fs::read_dir(folder.join("pack")).ok());
        let entry = |entry: fs::DirEntry| {
            let name = entry.file_name();
            if name == "multi-pack-index" {
                // Another gets the same name.
                use std::os::unix::fs::MetadataExt;
                let found = entry.metadata().ok();
                return Some((name, found.and_then(|found| Some((found.modified().ok()?, found.ino())))));
            }
            let bytes = name.as_encoded_bytes();
            (bytes.ends_with(b".idx") && !bytes.starts_with(SMALL_PACK)).then_some((name, None))
        };
        PackList(folders.flatten().flatten().filter_map(entry).collect())
    }
}

/// How the names of packs of single batches begin.
const SMALL_PACK: &[u8] = b"pack-dk0-";

/// Longest header of an entry in a pack, in bytes: type and size, and the base of a delta.
const HEADER_BYTES_MAX: usize = 64;

/// An entry of a pack, which stays readable when the pack is deleted.
pub(crate) struct Packed {
    file: Arc<File>,
    /// Where its zlib stream begins.
    offset: u64,
}

impl Packed {
    /// Looks for a whole blob of this size in the packs of some `objects` directories.
    pub fn find(objects: &[PathBuf], hash: HashKind, id: ObjectId, size: u64) -> Option<Packed> {
        let packs =
            objects.iter().filter_map(|folder| fs::read_dir(folder.join("pack")).ok()).flatten().flatten();
        let indexes =
            packs.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "idx"));
        indexes.into_iter().find_map(|path| {
            let index = gix::odb::pack::index::File::at(&path, hash).ok()?;
            let offset = index.pack_offset_at_index(index.lookup(id)?);
            let file = File::open(path.with_extension("pack")).ok()?;
            let mut header = [0; HEADER_BYTES_MAX];
            let n = std::os::unix::fs::FileExt::read_at(&file, &mut header, offset).ok()?;
            let entry = gix::odb::pack::data::Entry::from_bytes(&header[..n], offset, hash).ok()?;
            let is_it =
                entry.header == gix::odb::pack::data::entry::Header::Blob && entry.decompressed_size == size;
            is_it.then(|| Packed { file: Arc::new(file), offset: entry.data_offset })
        })
    }
}

impl Restart for Packed {
    fn restart(&self) -> Result<Box<dyn Read + Send>, ReadError> {
        Ok(Box::new(inflate(FileFrom { file: self.file.clone(), offset: self.offset })))
    }
}
