//! Operations on names: finding, making, moving and removing them.

use std::sync::Arc;

use p9p::Errno;
use p9p::filesystem::{Node, NodeSpec};

use super::{reply_entry, reply_missing};
use crate::abi::RENAME_NOREPLACE;
use crate::reply::Reply;
use crate::session::{Request, Session};

/// Longest name, in bytes, as Linux has it.
const NAME_BYTES_MAX: usize = 255;

/// The entry `name` of `parent`, to the kernel.
fn found(session: &Session, reply: &mut Reply, parent: &dyn Node, id: u64, name: &[u8]) -> Result<(), Errno> {
    let node = parent.walk(name)?;
    reply_entry(session, reply, node, id, name)
}

pub(super) fn lookup(session: &Session, mut request: Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
    let name = request.body.name()?;
    if name.len() > NAME_BYTES_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    let id = request.header.node;
    let parent = session.inodes.node(id)?;
    match found(session, reply, &*parent, id, name) {
        Err(Errno::ENOENT) => {
            let ttl = (session.policy)(&*parent).negative_ttl;
            if ttl.is_zero() {
                return Err(Errno::ENOENT);
            }
            reply.clear();
            reply_missing(reply, ttl);
            Ok(())
        }
        result => result,
    }
}

pub(super) fn read_link(session: &Session, request: &Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
    reply.extend(&session.inodes.node(request.header.node)?.read_link()?);
    Ok(())
}

pub(super) fn symlink(session: &Session, mut request: Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
    let (name, target) = (request.body.name()?, request.body.name()?);
    let id = request.header.node;
    let parent = session.inodes.node(id)?;
    parent.make_symlink(name, target, request.header.gid)?;
    found(session, reply, &*parent, id, name)
}

pub(super) fn mknod(session: &Session, mut request: Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
    let (mode, device) = (request.body.u32()?, request.body.u32()?);
    request.body.skip(8)?;
    let name = request.body.name()?;
    let id = request.header.node;
    let parent = session.inodes.node(id)?;
    // Linux's new_encode_dev.
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xf_ff00));
    parent.make_node(name, &NodeSpec { mode, major, minor, gid: request.header.gid })?;
    found(session, reply, &*parent, id, name)
}

pub(super) fn mkdir(session: &Session, mut request: Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
    let mode = request.body.u32()?;
    request.body.skip(4)?;
    let name = request.body.name()?;
    let id = request.header.node;
    let parent = session.inodes.node(id)?;
    parent.make_directory(name, mode, request.header.gid)?;
    found(session, reply, &*parent, id, name)
}

pub(super) fn link(session: &Session, mut request: Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
    let target = session.inodes.node(request.body.u64()?)?;
    let name = request.body.name()?;
    let id = request.header.node;
    let parent = session.inodes.node(id)?;
    parent.link(&*target, name)?;
    found(session, reply, &*parent, id, name)
}

pub(super) fn unlink(session: &Session, mut request: Request<'_>, is_directory: bool) -> Result<(), Errno> {
    session.inodes.node(request.header.node)?.unlink(request.body.name()?, is_directory)
}

/// RENAME_EXCHANGE and RENAME_WHITEOUT are EINVAL, as 9P has no words for them. So is RENAME_NOREPLACE where the service
/// cannot promise it; who asked, as mv(1) does, then looks for itself.
pub(super) fn rename(session: &Session, mut request: Request<'_>, has_flags: bool) -> Result<(), Errno> {
    let new_directory = session.inodes.node(request.body.u64()?)?;
    let mut flags = 0;
    if has_flags {
        flags = request.body.u32()?;
        request.body.skip(4)?;
    }
    let (old_name, new_name) = (request.body.name()?, request.body.name()?);
    let old_directory: Arc<dyn Node> = session.inodes.node(request.header.node)?;
    match flags {
        0 => old_directory.rename_entry(old_name, &*new_directory, new_name),
        RENAME_NOREPLACE => old_directory.rename_to_new_entry(old_name, &*new_directory, new_name),
        _ => Err(Errno::EINVAL),
    }
}
