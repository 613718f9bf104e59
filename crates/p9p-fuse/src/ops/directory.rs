//! Open directories.

use p9p::Errno;
use p9p::filesystem::{Entries, OpenFlags};
use p9p::message::Dialect;
use p9p::qid::QidKind;
use p9p::stat::{Attributes, DirectoryEntry};
use p9p::wire::{Field, Reader};

use super::attributes_of;
use crate::abi::fopen;
use crate::caching::Content;
use crate::reply::Reply;
use crate::session::{IO_BYTES_MAX, Request, Session};

/// Bytes of `fuse_dirent` and `fuse_entry_out`.
const DIRENT_BYTES: usize = 24;
const ENTRY_OUT_BYTES: usize = 128;

pub(super) fn open(session: &Session, request: &Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
    let node = session.inodes.node(request.header.node)?;
    let file = node.open(OpenFlags::RDONLY | OpenFlags::DIRECTORY)?;
    let flags = match (session.policy)(&*node).content {
        Content::Keep => fopen::KEEP_CACHE | fopen::CACHE_DIR,
        Content::Open | Content::Direct | Content::Stream => 0,
    };
    reply.open_out(session.handles.insert(file), flags);
    Ok(())
}

pub(super) fn release(session: &Session, mut request: Request<'_>) -> Result<(), Errno> {
    session.handles.remove(request.body.u64()?);
    Ok(())
}

/// Entries until there is no more room; with `plus`, each as if it had been looked up.
pub(super) fn read(
    session: &Session,
    mut request: Request<'_>,
    reply: &mut Reply,
    plus: bool,
) -> Result<(), Errno> {
    let handle = session.handles.get(request.body.u64()?)?;
    let (mut offset, size) = (request.body.u64()?, request.body.u32()? as usize);
    let size = size.min(IO_BYTES_MAX);
    let per_entry = DIRENT_BYTES + if plus { ENTRY_OUT_BYTES } else { 0 };
    // An entry takes as much in the service's form as in a plain one of the kernel's, and far less with attributes.
    let wanted = if plus { size / 6 } else { size };
    let mut listed = vec![0; wanted.max(512)];
    loop {
        let mut entries = Entries::over(&mut listed);
        handle.file.read_directory(offset, &mut entries)?;
        let (filled, count) = (entries.len(), entries.count());
        if count == 0 {
            return Ok(());
        }
        let mut reader = Reader::new(&listed[..filled], Dialect::Linux);
        for _ in 0..count {
            let entry = DirectoryEntry::parse(&mut reader).map_err(|_| Errno::EIO)?;
            if reply.len() + per_entry + entry.name.len().next_multiple_of(8) > size {
                return Ok(());
            }
            if plus {
                reply_looked_up(session, request.header.node, &entry, reply);
            }
            reply_entry(&entry, reply);
            offset = entry.offset;
        }
        if reply.len() + per_entry + 255 > size || !plus {
            return Ok(());
        }
    }
}

/// `fuse_dirent`.
fn reply_entry(entry: &DirectoryEntry<'_>, reply: &mut Reply) {
    let kind = match (entry.kind, entry.qid.kind) {
        (0, QidKind::DIRECTORY) => 4,
        (0, QidKind::SYMLINK) => 10,
        (kind, _) => kind.into(),
    };
    reply.u64(entry.qid.path);
    reply.u64(entry.offset);
    reply.u32(u32::try_from(entry.name.len()).unwrap_or(0));
    reply.u32(kind);
    reply.extend(entry.name);
    reply.align();
}

/// `fuse_entry_out` before an entry; number 0 is that it was not looked up, and the kernel will when it wants to know.
fn reply_looked_up(session: &Session, parent: u64, entry: &DirectoryEntry<'_>, reply: &mut Reply) {
    let zero = std::time::Duration::ZERO;
    let found = || {
        if matches!(entry.name, b"." | b"..") {
            return None;
        }
        let node = session.inodes.node(parent).ok()?.walk(entry.name).ok()?;
        let attributes = attributes_of(&*node).ok()?;
        Some((node, attributes))
    };
    let Some((node, attributes)) = found() else {
        return reply.entry(0, &Attributes::default(), zero, zero);
    };
    let caching = (session.policy)(&*node);
    let id = session.inodes.remember(node, parent, entry.name);
    reply.entry(id, &attributes, caching.entry_ttl, caching.attr_ttl);
}
