//! Large objects as loose files that hold their bytes as they are: zlib streams of stored blocks.
//!
//! Nothing is compressed when they are written, and they are read from any offset at the speed of the disk. To git they are
//! loose objects as any other; its `gc` compresses them into packs. What others wrote is not read here.
//!
//! Spec: gitformat-loose(5); RFC 1950, RFC 1951 §3.2.4.

use std::collections::hash_map::RandomState;
use std::fs::{self, File, Permissions};
use std::hash::BuildHasher;
use std::io::{self, IoSliceMut, Read};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, mpsc};

use crate::disk::Disk;
use crate::pack::{Checksum, STORED_BYTES_MAX, ZLIB, block_header};
use crate::prepared::Prepared;
use crate::{HashKind, ObjectId, ObjectKind};

/// Content of a stored block but for the last one, in bytes: as much as RFC 1951 allows.
const BLOCK: u64 = STORED_BYTES_MAX as u64;
/// What precedes it, in bytes: see [`block_header`].
const HEADER: u64 = 5;
/// Blocks written, or read, with one system call.
const AT_ONCE: u64 = 16;
/// The Adler-32 at its end, in bytes.
const TRAILER: u64 = 4;

/// What precedes the content: the zlib stream's beginning, and a block with the object's own header.
fn prefix(kind: ObjectKind, size: u64) -> (Vec<u8>, String) {
    let header = format!("{kind} {size}\0");
    let mut prefix = ZLIB.to_vec();
    prefix.extend(block_header(header.len() as u64, false));
    prefix.extend(header.as_bytes());
    (prefix, header)
}

/// The length of the block that begins at `start` of a content of `size` bytes, and whether it is the last one.
fn block_at(start: u64, size: u64) -> (u64, bool) {
    (BLOCK.min(size - start), size - start <= BLOCK)
}

/// An open object that was written so.
pub(crate) struct Stored {
    file: Arc<File>,
    /// Where the first block of content begins.
    start: u64,
    size: u64,
}

impl Stored {
    /// The blob in this file, if it has the size and was written so.
    pub fn open(file: &Arc<File>, size: u64) -> io::Result<Option<Self>> {
        let (expected, _) = prefix(ObjectKind::Blob, size);
        let start = expected.len() as u64;
        let mut found = vec![0; expected.len()];
        let length = start + size + size.div_ceil(BLOCK) * HEADER + TRAILER;
        if size == 0 || file.metadata()?.len() != length {
            return Ok(None);
        }
        file.read_exact_at(&mut found, 0)?;
        Ok((found == expected).then(|| Self { file: Arc::clone(file), start, size }))
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buffer` from `offset` on, all of which must be within the size.
    ///
    /// The checksum at the end is not looked at, nor is the hash: that would take reading all of it.
    pub fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let (mut offset, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            // From within a block to its end, then whole blocks.
            let most = AT_ONCE * BLOCK - offset % BLOCK;
            let count = usize::try_from(most).map_or(rest.len(), |most| most.min(rest.len()));
            let (piece, after) = rest.split_at_mut(count);
            self.read_blocks(offset, piece)?;
            offset += count as u64;
            rest = after;
        }
        Ok(())
    }

    /// Where a byte of the content is in the file.
    fn place(&self, offset: u64) -> u64 {
        self.start + (offset / BLOCK + 1) * HEADER + offset
    }

    /// At most [`AT_ONCE`] blocks with one system call, and their headers checked.
    fn read_blocks(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut headers = [[0; HEADER as usize]; AT_ONCE as usize];
        let (total, mut slices, mut at) = (buffer.len(), Vec::with_capacity(2 * headers.len()), offset);
        let mut rest = buffer;
        let mut unused = headers.iter_mut();
        while !rest.is_empty() {
            if at != offset
                && let Some(header) = unused.next()
            {
                slices.push(IoSliceMut::new(header));
            }
            let in_block = usize::try_from(BLOCK - at % BLOCK).unwrap_or(rest.len()).min(rest.len());
            let (piece, after) = rest.split_at_mut(in_block);
            slices.push(IoSliceMut::new(piece));
            at += in_block as u64;
            rest = after;
        }
        let n_headers = slices.len() / 2;
        let wanted = total + n_headers * HEADER as usize;
        let mut position = self.place(offset);
        let (mut left, mut slices) = (wanted, &mut slices[..]);
        while left > 0 {
            match rustix::io::preadv(&*self.file, slices, position) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    IoSliceMut::advance_slices(&mut slices, count);
                    position += count as u64;
                    left -= count.min(left);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        for (n, header) in headers.iter().take(n_headers).enumerate() {
            let start = (offset / BLOCK + 1 + n as u64) * BLOCK;
            let (length, is_last) = block_at(start, self.size);
            if *header != block_header(length, is_last) {
                let text = format!("its stored block at {start} is damaged");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
        Ok(())
    }
}

/// Writes an object of `size` bytes as the file `path`, under another name first; forced to disk if it is to be.
///
/// # Errors
/// What writing fails with, and when the content is not that of `id`: it changed meanwhile.
pub(crate) fn write(
    disk: &Disk,
    path: &Path,
    (id, kind, size): (ObjectId, ObjectKind, u64),
    content: &mut dyn Read,
    is_durable: bool,
) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    let unfinished = unfinished(folder);
    let filled = fill(disk, &unfinished, (id.kind(), kind, size), content, is_durable);
    // Held until it has its name: else it goes.
    let prepared = Prepared::new(unfinished, size);
    if filled? != id {
        return Err(changed());
    }
    prepared.name(disk, path, is_durable)
}

/// The name of a file that becomes an object; git removes those that nobody finishes.
pub(crate) fn unfinished(folder: &Path) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    // Processes in containers have the same ids.
    static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    folder.join(format!("tmp_obj_{:016x}_{n}", *PROCESS))
}

pub(crate) fn changed() -> io::Error {
    io::Error::other("its content changed while it was written")
}

/// Writes a file; returns the id of what it was filled with. The disk begins to write while it is being filled.
pub(crate) fn fill(
    disk: &Disk,
    path: &Path,
    what: (HashKind, ObjectKind, u64),
    content: &mut dyn Read,
    is_durable: bool,
) -> io::Result<ObjectId> {
    let file = disk.create(path, &[])?;
    let id = std::thread::scope(|scope| {
        let (more, written) = mpsc::channel();
        let syncing = if is_durable && what.2 > SYNCED_BYTES {
            let file = &file;
            let sync = move || {
                written.iter().try_for_each(|()| {
                    while written.try_recv().is_ok() {}
                    file.sync_data()
                })
            };
            Some(std::thread::Builder::new().name("datakit-sync".into()).spawn_scoped(scope, sync)?)
        } else {
            None
        };
        let id = fill_blocks(disk, (&file, path), what, content, &more);
        drop(more);
        // An error of the disk is told once, to whoever asks first.
        if let Some(syncing) = syncing {
            syncing.join().map_err(|_| io::Error::other("forcing to disk failed"))??;
        }
        id
    })?;
    file.set_permissions(Permissions::from_mode(0o444))?;
    if is_durable {
        disk.sync(&file, path)?;
    }
    Ok(id)
}

/// Bytes after which the disk is told to write.
const SYNCED_BYTES: u64 = 32 << 20;

fn fill_blocks(
    disk: &Disk,
    (file, path): (&File, &Path),
    (hash, kind, size): (HashKind, ObjectKind, u64),
    content: &mut dyn Read,
    more: &mpsc::Sender<()>,
) -> io::Result<ObjectId> {
    let (mut bytes, header) = prefix(kind, size);
    let mut hash = Checksum::new(hash);
    let mut adler = simd_adler32::Adler32::new();
    hash.update(header.as_bytes());
    adler.write(header.as_bytes());
    let (mut at, mut position, mut told) = (0, 0, 0);
    while at < size {
        for _ in 0..AT_ONCE {
            if at == size {
                break;
            }
            let (length, is_last) = block_at(at, size);
            bytes.extend(block_header(length, is_last));
            let start = bytes.len();
            bytes.resize(start + usize::try_from(length).map_err(io::Error::other)?, 0);
            content.read_exact(&mut bytes[start..])?;
            hash.update(&bytes[start..]);
            adler.write(&bytes[start..]);
            at += length;
        }
        if at == size {
            bytes.extend(adler.finish().to_be_bytes());
        }
        disk.write_at(file, path, &bytes, position)?;
        position += bytes.len() as u64;
        bytes.clear();
        if position - told >= SYNCED_BYTES {
            told = position;
            // Nobody listens when nothing is to be forced to disk.
            let _ = more.send(());
        }
    }
    hash.finish()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::HashKind;

    fn bytes(size: u64) -> Vec<u8> {
        (0..size).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8).collect()
    }

    fn written(folder: &Path, bytes: &[u8]) -> (ObjectId, Arc<File>) {
        let id = crate::hash(HashKind::Sha1, ObjectKind::Blob, bytes);
        let hex = id.to_string();
        let path = folder.join("objects").join(&hex[..2]).join(&hex[2..]);
        let what = (id, ObjectKind::Blob, bytes.len() as u64);
        write(&Disk::default(), &path, what, &mut &*bytes, true).unwrap();
        (id, Arc::new(File::open(path).unwrap()))
    }

    fn git(folder: &Path, arguments: &[&str]) -> Vec<u8> {
        let output = Command::new("git").arg("-C").arg(folder).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    #[test]
    fn git_reads_what_is_stored_and_so_do_we_from_any_offset() {
        let folder = tempfile::tempdir().unwrap();
        git(folder.path(), &["init", "-q", "--bare", "."]);
        for size in [1, BLOCK - 1, BLOCK, BLOCK + 1, AT_ONCE * BLOCK, AT_ONCE * BLOCK + 1, 3_000_000] {
            let bytes = bytes(size);
            let (id, file) = written(folder.path(), &bytes);
            assert!(git(folder.path(), &["cat-file", "blob", &id.to_string()]) == bytes, "{size}");
            let stored = Stored::open(&file, size).unwrap().unwrap();
            for start in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK - 7, size - 1] {
                for length in [0, 1, 2, BLOCK, BLOCK + 2, 1 << 20, 2_500_000] {
                    let Some(wanted) = bytes.get(start as usize..(start + length) as usize) else { continue };
                    let mut buffer = vec![0; wanted.len()];
                    stored.read_exact_at(start, &mut buffer).unwrap();
                    assert!(buffer == wanted, "{length} of {size} at {start}");
                }
            }
        }
        git(folder.path(), &["fsck", "--full", "--strict"]);
    }

    #[test]
    fn what_is_written_otherwise_or_damaged_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = bytes(200_000);
        let (_, file) = written(folder.path(), &bytes);
        assert!(Stored::open(&file, 199_999).unwrap().is_none());
        assert!(Stored::open(&file, 0).unwrap().is_none());
        let stored = Stored::open(&file, 200_000).unwrap().unwrap();
        let mut damaged = Vec::new();
        (&*file).read_to_end(&mut damaged).unwrap();
        damaged[stored.place(BLOCK) as usize - 1] ^= 1;
        let path = folder.path().join("damaged");
        fs::write(&path, &damaged).unwrap();
        let stored = Stored::open(&Arc::new(File::open(&path).unwrap()), 200_000).unwrap().unwrap();
        let mut buffer = vec![0; 100];
        stored.read_exact_at(0, &mut buffer).unwrap();
        let mut buffer = vec![0; 100_000];
        let error = stored.read_exact_at(0, &mut buffer).unwrap_err().to_string();
        assert!(error.contains("stored block at 65535"), "{error}");
        fs::write(&path, git_deflated(&bytes)).unwrap();
        assert!(Stored::open(&Arc::new(File::open(&path).unwrap()), 200_000).unwrap().is_none());
    }

    /// As git writes it.
    fn git_deflated(bytes: &[u8]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        git(folder.path(), &["init", "-q", "--bare", "."]);
        fs::write(folder.path().join("f"), bytes).unwrap();
        let id = String::from_utf8(git(folder.path(), &["hash-object", "-w", "f"])).unwrap();
        fs::read(folder.path().join("objects").join(&id[..2]).join(id[2..].trim())).unwrap()
    }

    #[test]
    fn content_that_is_not_the_objects_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let id = crate::hash(HashKind::Sha1, ObjectKind::Blob, b"one");
        for content in [&b"two"[..], b"on"] {
            let path = folder.path().join("aa/bb");
            let result = write(&Disk::default(), &path, (id, ObjectKind::Blob, 3), &mut &*content, false);
            assert!(result.is_err());
            assert_eq!(fs::read_dir(folder.path().join("aa")).unwrap().count(), 0);
        }
    }
}
