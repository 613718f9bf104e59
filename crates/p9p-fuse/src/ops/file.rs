//! Open files: reading, writing, closing.

use std::sync::Arc;
use std::task::{Poll, Waker};

use p9p::Errno;
use p9p::filesystem::{Node, OpenFlags};

use super::reply_entry;
use crate::abi::{FSYNC_FDATASYNC, RELEASE_FLOCK_UNLOCK, fopen, op};
use crate::caching::Content;
use crate::locks;
use crate::reply::Reply;
use crate::session::{IO_BYTES_MAX, Outcome, Request, Session};

/// Flags of open(2) that are a service's business and the same on all Linux machines; the kernel deals with the rest.
const PASSED: u32 = 0o3
    | OpenFlags::TRUNC.0
    | OpenFlags::APPEND.0
    | OpenFlags::NONBLOCK.0
    | OpenFlags::EXCL.0
    | OpenFlags::SYNC.0
    | OpenFlags::DSYNC.0;

fn service_flags(session: &Session, flags: u32) -> OpenFlags {
    let mut flags = flags & PASSED;
    if session.features.writeback {
        // The kernel reads what it completes pages with, and finds the end of the file itself.
        flags &= !OpenFlags::APPEND.0;
        if flags & 0o3 == OpenFlags::WRONLY.0 {
            flags = flags & !0o3 | OpenFlags::RDWR.0;
        }
    }
    OpenFlags(flags)
}

fn open_flags(session: &Session, node: &dyn Node) -> u32 {
    let flags = match (session.policy)(node).content {
        Content::Keep => fopen::KEEP_CACHE,
        Content::Open => 0,
        Content::Direct => fopen::DIRECT_IO,
        Content::Stream => fopen::DIRECT_IO | fopen::NONSEEKABLE,
    };
    if session.features.server_locks { flags } else { flags | fopen::NOFLUSH }
}

pub(super) fn open(session: &Session, mut request: Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
    let flags = request.body.u32()?;
    let node = session.inodes.node(request.header.node)?;
    let file = node.open(service_flags(session, flags))?;
    reply.open_out(session.handles.insert(file), open_flags(session, &*node));
    Ok(())
}

pub(super) fn create(session: &Session, mut request: Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
    let (flags, mode) = (request.body.u32()?, request.body.u32()?);
    request.body.skip(8)?;
    let name = request.body.name()?;
    let parent = session.inodes.node(request.header.node)?;
    let created = parent.create(name, service_flags(session, flags), mode, request.header.gid)?;
    let flags = open_flags(session, &*created.node);
    reply_entry(session, reply, created.node, request.header.node, name)?;
    reply.open_out(session.handles.insert(created.file), flags);
    Ok(())
}

pub(super) fn read(session: &Arc<Session>, mut request: Request<'_>, reply: &mut Reply) -> Outcome {
    let mut parse = || {
        let handle = session.handles.get(request.body.u64()?)?;
        Ok::<_, Errno>((handle, request.body.u64()?, request.body.u32()? as usize))
    };
    let (handle, offset, size) = match parse() {
        Ok((handle, offset, size)) => (handle, offset, size.min(IO_BYTES_MAX)),
        Err(errno) => return Outcome::Reply(Err(errno)),
    };
    let mut pending = false;
    let filled = reply.fill(size, |room| {
        // Most are ready, and a waker costs an allocation: who parks asks again with one.
        match handle.file.poll_read(offset, room, &request.cancel, Waker::noop()) {
            Poll::Ready(answer) => answer,
            Poll::Pending => {
                pending = true;
                Ok(0)
            }
        }
    });
    if pending {
        return session.park(request.header.unique, request.cancel, handle, offset, size);
    }
    Outcome::Reply(filled)
}

/// All of it, or what was written before it failed: the kernel takes a short count for the end.
pub(super) fn write(session: &Session, mut request: Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
    let handle = session.handles.get(request.body.u64()?)?;
    let (offset, size) = (request.body.u64()?, request.body.u32()?);
    request.body.skip(20)?;
    let bytes = request.body.bytes(size as usize)?;
    let mut done = 0;
    while done < bytes.len() {
        match handle.file.write(offset.saturating_add(done as u64), &bytes[done..], &request.cancel) {
            Ok(0) => break,
            Ok(count) => done += count.min(bytes.len() - done),
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    reply.u32(u32::try_from(done).map_err(|_| Errno::EIO)?);
    reply.u32(0);
    Ok(())
}

/// Comes with every close(2): the moment at which fcntl(2)'s locks are given back.
pub(super) fn flush(session: &Session, mut request: Request<'_>) -> Result<(), Errno> {
    if !session.features.server_locks {
        return Err(Errno::ENOSYS);
    }
    let handle = session.handles.get(request.body.u64()?)?;
    request.body.skip(8)?;
    locks::release(&handle, request.body.u64()?, false);
    Ok(())
}

pub(super) fn release(session: &Session, mut request: Request<'_>) -> Result<(), Errno> {
    let number = request.body.u64()?;
    request.body.skip(4)?;
    let flags = request.body.u32()?;
    let owner = request.body.u64()?;
    if let Some(handle) = session.handles.remove(number)
        && flags & RELEASE_FLOCK_UNLOCK != 0
    {
        locks::release(&handle, owner, true);
    }
    Ok(())
}

/// A directory that cannot be synced has nothing to sync.
pub(super) fn fsync(session: &Session, mut request: Request<'_>) -> Result<(), Errno> {
    let node = session.inodes.node(request.header.node)?;
    let handle = session.handles.get(request.body.u64()?)?;
    let data_only = request.body.u32()? & FSYNC_FDATASYNC != 0;
    match node.sync(&*handle.file, data_only) {
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) if request.header.opcode == op::FSYNCDIR => Ok(()),
        result => result,
    }
}
