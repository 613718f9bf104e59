//! Attributes of files, and the totals of the file system.

use p9p::Errno;
use p9p::stat::{SetAttributes, Time, setattr as p9};

use super::attributes_of;
use crate::abi::fattr;
use crate::reply::Reply;
use crate::session::{Request, Session};

pub(super) fn getattr(session: &Session, request: Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
    let node = session.inodes.node(request.header.node)?;
    let attributes = attributes_of(&*node)?;
    reply.attr_out(&attributes, (session.policy)(&*node).attr_ttl);
    Ok(())
}

pub(super) fn setattr(session: &Session, mut request: Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
    let node = session.inodes.node(request.header.node)?;
    let body = &mut request.body;
    let valid = body.u32()?;
    body.skip(4)?;
    let handle = body.u64()?;
    let size = body.u64()?;
    body.skip(8)?;
    let (atime, mtime) = (body.u64()?, body.u64()?);
    body.skip(8)?;
    let (atime_ns, mtime_ns) = (body.u32()?, body.u32()?);
    body.skip(4)?;
    let mode = body.u32()?;
    body.skip(4)?;
    let (uid, gid) = (body.u32()?, body.u32()?);
    let pairs = [
        (fattr::MODE, p9::MODE),
        (fattr::UID, p9::UID),
        (fattr::GID, p9::GID),
        (fattr::SIZE, p9::SIZE),
        (fattr::ATIME, p9::ATIME),
        (fattr::MTIME, p9::MTIME),
        (fattr::CTIME, p9::CTIME),
    ];
    let mut wanted =
        pairs.iter().filter(|(theirs, _)| valid & theirs != 0).fold(0, |all, (_, ours)| all | ours);
    if valid & (fattr::ATIME | fattr::ATIME_NOW) == fattr::ATIME {
        wanted |= p9::ATIME_SET;
    }
    if valid & (fattr::MTIME | fattr::MTIME_NOW) == fattr::MTIME {
        wanted |= p9::MTIME_SET;
    }
    let time = |seconds, nanoseconds: u32| Time { seconds, nanoseconds: nanoseconds.into() };
    let change = SetAttributes {
        valid: wanted,
        mode,
        uid,
        gid,
        size,
        atime: time(atime, atime_ns),
        mtime: time(mtime, mtime_ns),
    };
    let open = if valid & fattr::FH == 0 { None } else { Some(session.handles.get(handle)?) };
    node.set_attributes(&change, open.as_ref().map(|handle| &*handle.file))?;
    let attributes = attributes_of(&*node)?;
    reply.attr_out(&attributes, (session.policy)(&*node).attr_ttl);
    Ok(())
}

pub(super) fn statfs(session: &Session, request: &Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
    reply.statfs(&session.inodes.node(request.header.node)?.statfs()?);
    Ok(())
}
