//! Open directories.

use std::time::Duration;

use p9p::Errno;
use p9p::filesystem::{Entries, Node, OpenFlags};
use p9p::message::Dialect;
use p9p::qid::QidKind;
use p9p::stat::{Attributes, DirectoryEntry, getattr};
use p9p::wire::{Field, Reader};

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
    let directory = plus.then(|| session.inodes.node(request.header.node)).transpose()?;
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
        let (mut fitting, mut end) = (Vec::with_capacity(count), reply.len());
        for _ in 0..count {
            let entry = DirectoryEntry::parse(&mut reader).map_err(|_| Errno::EIO)?;
            end += per_entry + entry.name.len().next_multiple_of(8);
            if end > size {
                break;
            }
            offset = entry.offset;
            fitting.push(entry);
        }
        match &directory {
            Some(directory) => reply_looked_up(session, (&**directory, request.header.node), &fitting, reply),
            None => fitting.iter().for_each(|entry| reply_entry(entry, reply)),
        }
        if fitting.len() < count || reply.len() + per_entry + 255 > size || !plus {
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

/// Each entry behind its `fuse_entry_out`; number 0 there is that it was not looked up, and the kernel will when it wants to
/// know.
fn reply_looked_up(
    session: &Session,
    (directory, id): (&dyn Node, u64),
    entries: &[DirectoryEntry<'_>],
    reply: &mut Reply,
) {
    let is_own = |entry: &&DirectoryEntry<'_>| !matches!(entry.name, b"." | b"..");
    let names: Vec<&[u8]> = entries.iter().filter(is_own).map(|entry| entry.name).collect();
    let mut found = directory.walk_each(&names, getattr::BASIC).into_iter();
    for entry in entries {
        match is_own(&entry).then(|| found.next()).flatten() {
            Some(Ok((node, attributes))) => {
                let caching = (session.policy)(&*node);
                let number = session.inodes.remember(node, id, entry.name);
                reply.entry(number, &attributes, caching.entry_ttl, caching.attr_ttl);
            }
            _ => reply.entry(0, &Attributes::default(), Duration::ZERO, Duration::ZERO),
        }
        reply_entry(entry, reply);
    }
}
