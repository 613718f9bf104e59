//! The content of a file in a transaction: as it is in the repository, in memory, or spilled to disk.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use datakit_git::{Backend, BlobReader, Content as Written, HashKind, ObjectId, ObjectKind};

use super::TransactionError;
use crate::store::Store;

/// Bytes copied at a time.
const CHUNK: usize = 128 << 10;

/// What a file holds.
pub(super) enum Content {
    /// A blob, unchanged; open once it was read.
    Blob { id: ObjectId, size: Option<u64>, reader: Option<BlobReader> },
    /// In memory.
    Memory(Vec<u8>),
    /// In a file without a name.
    Spilled { file: Arc<File>, size: u64 },
}

fn failed(action: &'static str) -> impl Fn(io::Error) -> TransactionError {
    move |source| TransactionError::Io { action, source: Arc::new(source) }
}

impl Content {
    pub fn size(&mut self, store: &Store) -> Result<u64, TransactionError> {
        match self {
            Content::Blob { size: Some(size), .. } | Content::Spilled { size, .. } => Ok(*size),
            Content::Blob { id, size, .. } => {
                let (_, found) = store.object_header(*id)?;
                Ok(*size.insert(found))
            }
            Content::Memory(bytes) => Ok(bytes.len() as u64),
        }
    }

    pub fn read(&mut self, store: &Store, offset: u64, buffer: &mut [u8]) -> Result<usize, TransactionError> {
        match self {
            Content::Blob { id, reader, .. } => {
                let reader = match reader {
                    Some(reader) => reader,
                    None => reader.insert(store.open_blob(*id)?),
                };
                reader.read_at(offset, buffer).map_err(failed("a file cannot be read"))
            }
            Content::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                let n = buffer.len().min(bytes.len() - start);
                buffer[..n].copy_from_slice(&bytes[start..start + n]);
                Ok(n)
            }
            Content::Spilled { file, size } => {
                let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
                let n = buffer.len().min(left);
                file.read_exact_at(&mut buffer[..n], offset)
                    .map_err(failed("a spilled file cannot be read"))?;
                Ok(n)
            }
        }
    }

    pub fn write(&mut self, store: &Store, offset: u64, bytes: &[u8]) -> Result<(), TransactionError> {
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= i64::MAX as u64);
        let end = end.ok_or(TransactionError::TooLarge { limit: i64::MAX as u64 })?;
        let size = self.size(store)?;
        self.own(store, end.max(size), size)?;
        match self {
            Content::Memory(held) => {
                let (start, end) = (position(offset)?, position(end)?);
                if held.len() < end {
                    held.resize(end, 0);
                }
                held[start..end].copy_from_slice(bytes);
            }
            Content::Spilled { file, size } => {
                file.write_all_at(bytes, offset).map_err(failed("a file cannot be spilled to disk"))?;
                *size = end.max(*size);
            }
            Content::Blob { .. } => {}
        }
        Ok(())
    }

    pub fn truncate(&mut self, store: &Store, bytes: u64) -> Result<(), TransactionError> {
        if bytes > i64::MAX as u64 {
            return Err(TransactionError::TooLarge { limit: i64::MAX as u64 });
        }
        let keep = self.size(store)?.min(bytes);
        self.own(store, bytes, keep)?;
        match self {
            Content::Memory(held) => held.resize(position(bytes)?, 0),
            Content::Spilled { file, size } => {
                file.set_len(bytes).map_err(failed("a file cannot be spilled to disk"))?;
                *size = bytes;
            }
            Content::Blob { .. } => {}
        }
        Ok(())
    }

    /// Makes the content ours to change, with room for `room` bytes, of which the first `keep` are copied.
    fn own(&mut self, store: &Store, room: u64, keep: u64) -> Result<(), TransactionError> {
        let accounts = store.accounts();
        let spill = room > accounts.limits.spill_bytes as u64;
        let held = self.held();
        accounts.resize(held, room.max(held))?;
        let result = self.convert(store, spill, keep);
        // Capacity is not length: account for what is there from now on.
        accounts.resize(room.max(held), if result.is_ok() { room } else { held })?;
        result
    }

    fn convert(&mut self, store: &Store, spill: bool, keep: u64) -> Result<(), TransactionError> {
        match self {
            Content::Spilled { .. } => return Ok(()),
            Content::Memory(_) if !spill => return Ok(()),
            Content::Memory(bytes) => {
                let file = unnamed(&store.accounts().spill_folder)
                    .map_err(failed("a file cannot be spilled to disk"))?;
                file.write_all_at(bytes, 0).map_err(failed("a file cannot be spilled to disk"))?;
                *self = Content::Spilled { size: bytes.len() as u64, file: Arc::new(file) };
                return Ok(());
            }
            Content::Blob { .. } => {}
        }
        if !spill {
            let mut bytes = vec![0; position(keep)?];
            let n = self.read(store, 0, &mut bytes)?;
            bytes.truncate(n);
            *self = Content::Memory(bytes);
            return Ok(());
        }
        let file =
            unnamed(&store.accounts().spill_folder).map_err(failed("a file cannot be spilled to disk"))?;
        let (mut at, mut chunk) = (0u64, vec![0; CHUNK]);
        while at < keep {
            let want = usize::try_from(keep - at).unwrap_or(CHUNK).min(CHUNK);
            let n = self.read(store, at, &mut chunk[..want])?;
            if n == 0 {
                break;
            }
            file.write_all_at(&chunk[..n], at).map_err(failed("a file cannot be spilled to disk"))?;
            at += n as u64;
        }
        *self = Content::Spilled { file: Arc::new(file), size: at };
        Ok(())
    }

    /// Bytes that are accounted for.
    pub fn held(&self) -> u64 {
        match self {
            Content::Blob { .. } => 0,
            Content::Memory(bytes) => bytes.len() as u64,
            Content::Spilled { size, .. } => *size,
        }
    }

    /// The id as a blob.
    pub fn id(&self, hash: HashKind) -> Result<ObjectId, TransactionError> {
        match self {
            Content::Blob { id, .. } => Ok(*id),
            Content::Memory(bytes) => Ok(datakit_git::hash(hash, ObjectKind::Blob, bytes)),
            Content::Spilled { file, size } => datakit_git::hash_file(hash, ObjectKind::Blob, file, *size)
                .map_err(failed("a spilled file cannot be read")),
        }
    }

    /// The id as a blob, and what is to be written when it is new: a large one is on its way already.
    pub fn blob(&self, backend: &dyn Backend) -> Result<(ObjectId, Option<Written>), TransactionError> {
        match self {
            Content::Blob { id, .. } => Ok((*id, None)),
            Content::Memory(bytes) => {
                Ok((self.id(backend.hash())?, Some(Written::Bytes(bytes.as_slice().into()))))
            }
            Content::Spilled { file, size } => {
                let prepared = backend.prepare(file, *size);
                let (id, written) = prepared
                    .map_err(|error| failed("a large file cannot be written")(io::Error::other(error)))?;
                Ok((id, Some(written)))
            }
        }
    }
}

fn position(n: u64) -> Result<usize, TransactionError> {
    usize::try_from(n).map_err(|_| TransactionError::TooLarge { limit: usize::MAX as u64 })
}

/// A file that nobody else can open and that goes with its last handle.
fn unnamed(folder: &Path) -> io::Result<File> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    let path = folder.join(format!("datakit-spill-{}-{n}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
