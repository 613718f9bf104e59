//! From a request of the kernel to calls of the service.

mod attributes;
mod directory;
mod file;
mod names;
mod xattr;

use std::sync::Arc;
use std::time::Duration;

use p9p::Errno;
use p9p::filesystem::Node;
use p9p::stat::{Attributes, getattr};

use crate::abi::{Body, Header, op};
use crate::locks;
use crate::reply::Reply;
use crate::session::{Outcome, Request, Session};

/// Answers one request.
pub(crate) fn answer(session: &Arc<Session>, request: Request<'_>, reply: &mut Reply) -> Outcome {
    match request.header.opcode {
        op::READ => file::read(session, request, reply),
        op::LOOKUP => names::lookup(session, request, reply).into(),
        op::GETATTR => attributes::getattr(session, request, reply).into(),
        op::SETATTR => attributes::setattr(session, request, reply).into(),
        op::READLINK => names::read_link(session, &request, reply).into(),
        op::SYMLINK => names::symlink(session, request, reply).into(),
        op::MKNOD => names::mknod(session, request, reply).into(),
        op::MKDIR => names::mkdir(session, request, reply).into(),
        op::UNLINK => names::unlink(session, request, false).into(),
        op::RMDIR => names::unlink(session, request, true).into(),
        op::RENAME => names::rename(session, request, false).into(),
        op::RENAME2 => names::rename(session, request, true).into(),
        op::LINK => names::link(session, request, reply).into(),
        op::OPEN => file::open(session, request, reply).into(),
        op::CREATE => file::create(session, request, reply).into(),
        op::WRITE => file::write(session, request, reply).into(),
        op::STATFS => attributes::statfs(session, &request, reply).into(),
        op::RELEASE => file::release(session, request).into(),
        op::FLUSH => file::flush(session, request).into(),
        op::FSYNC | op::FSYNCDIR => file::fsync(session, request).into(),
        op::OPENDIR => directory::open(session, &request, reply).into(),
        op::READDIR => directory::read(session, request, reply, false).into(),
        op::READDIRPLUS => directory::read(session, request, reply, true).into(),
        op::RELEASEDIR => directory::release(session, request).into(),
        op::SETXATTR | op::GETXATTR | op::LISTXATTR | op::REMOVEXATTR if session.features.xattrs => {
            xattr::answer(session, request, reply).into()
        }
        op::GETLK if session.features.server_locks => locks::getlk(session, request, reply).into(),
        op::SETLK if session.features.server_locks => locks::setlk(session, request, false),
        op::SETLKW if session.features.server_locks => locks::setlk(session, request, true),
        op::DESTROY => Outcome::Reply(Ok(())),
        // Among them ACCESS: the kernel then takes it as granted, and the operation itself says.
        _ => Outcome::Reply(Err(Errno::ENOSYS)),
    }
}

/// Takes back what the kernel was told of.
pub(crate) fn forget(session: &Session, header: &Header, mut body: Body<'_>) {
    let mut forget_all = || {
        if header.opcode == op::FORGET {
            session.inodes.forget(header.node, body.u64()?);
            return Ok::<(), Errno>(());
        }
        let count = body.u32()?;
        body.skip(4)?;
        for _ in 0..count {
            session.inodes.forget(body.u64()?, body.u64()?);
        }
        Ok(())
    };
    // A short message forgets what it names.
    let _ = forget_all();
}

/// What stat(2) tells.
fn attributes_of(node: &dyn Node) -> Result<Attributes, Errno> {
    node.attributes(getattr::BASIC)
}

/// Tells the kernel of `node` as `name` of `parent`.
fn reply_entry(
    session: &Session,
    reply: &mut Reply,
    node: Arc<dyn Node>,
    parent: u64,
    name: &[u8],
) -> Result<(), Errno> {
    let attributes = attributes_of(&*node)?;
    let caching = (session.policy)(&*node);
    let id = session.inodes.remember(node, parent, name);
    reply.entry(id, &attributes, caching.entry_ttl, caching.attr_ttl);
    if session.inodes.is_crowded() {
        session.invalidator.reclaim();
    }
    Ok(())
}

/// Tells the kernel that there is no such name, for a while.
fn reply_missing(reply: &mut Reply, ttl: Duration) {
    reply.entry(0, &Attributes::default(), ttl, Duration::ZERO);
}
