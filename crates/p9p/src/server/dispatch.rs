//! From a parsed request to calls of the service, and their results into the reply buffer: what is common to all
//! dialects, and what only 9P2000.L has.
//!
//! Reads and directory listings are made straight in the reply buffer; everything else is a small message.

use std::sync::Arc;
use std::task::{Poll, Waker};

use super::{Epoch, SessionOptions, classic};
use crate::errno::Errno;
use crate::fid::{Entry, Sink, Source, State, Trail, XattrWrite};
use crate::filesystem::{
    Answer, Attach, Cancel, Entries, Filesystem, HeldLock, Node, NodeSpec, OpenFlags, XattrFlags,
};
use crate::message::{
    AT_REMOVEDIR, Dialect, Fid, IO_HEADER_BYTES, READ_HEADER_BYTES, Reply, Request, Tag, WalkNames, WalkQids,
    begin, finish,
};
use crate::qid::{Qid, QidKind};
use crate::stat::{Attributes, LockKind, LockRange, Wrapped};
use crate::wire::{Field, Payload, WireError, Writer};

/// Type bytes of the two replies that are not made through [`Reply`].
const RREADDIR: u8 = 41;
const RREAD: u8 = 117;

/// Writes a reply; one that does not fit is the client's msize too small for its question.
pub(super) fn emit(reply: &Reply<'_>, tag: Tag, buffer: &mut [u8], dialect: Dialect) -> Answer<usize> {
    reply.emit(tag, buffer, dialect).map_err(refused)
}

pub(super) fn refused(error: WireError) -> Errno {
    match error {
        WireError::NoRoom { .. } | WireError::StringTooLong { .. } => Errno::EMSGSIZE,
        _ => Errno::EIO,
    }
}

/// One request on its way through the service.
pub(super) struct Operation<'s> {
    pub filesystem: &'s dyn Filesystem,
    pub options: &'s SessionOptions,
    pub epoch: &'s Epoch,
    pub cancel: &'s Cancel,
    pub waker: &'s Waker,
}

impl Operation<'_> {
    /// Does it and writes the reply, unless it has to wait.
    pub fn poll_answer(&self, tag: Tag, request: &Request<'_>, buffer: &mut [u8]) -> Poll<Answer<usize>> {
        // The reply is never longer than agreed, however large the caller's buffer.
        let room = buffer.len().min(self.epoch.msize as usize);
        let buffer = &mut buffer[..room];
        match request {
            Request::Read { fid, offset, count } => self.poll_read(tag, *fid, *offset, *count, buffer),
            request => Poll::Ready(self.answer(tag, request, buffer)),
        }
    }

    fn answer(&self, tag: Tag, request: &Request<'_>, buffer: &mut [u8]) -> Answer<usize> {
        let dialect = self.epoch.dialect;
        match request {
            Request::Readdir { fid, offset, count } => {
                self.read_directory(tag, *fid, *offset, *count, buffer)
            }
            Request::Readlink { fid } => {
                let target = self.epoch.fids.node(*fid)?.read_link()?;
                emit(&Reply::Readlink { target: &target }, tag, buffer, dialect)
            }
            Request::Getlock { fid, kind, range } => {
                let held = self.epoch.fids.file(*fid)?.conflicting_lock(*kind, range)?;
                emit(&lock_reply(held.as_ref(), range), tag, buffer, dialect)
            }
            Request::Stat { fid } => {
                let trail = self.epoch.fids.trail(*fid)?;
                let file = classic::Described::of(&trail, dialect)?;
                emit(&Reply::Stat { stat: Wrapped(file.stat()) }, tag, buffer, dialect)
            }
            Request::Open { .. } | Request::Create { .. } | Request::Wstat { .. } => {
                let reply = match *request {
                    Request::Open { fid, mode } => self.open_classic(fid, mode),
                    Request::Create { fid, name, permissions, mode, extension } => {
                        self.create_classic(fid, &classic::NewFile { name, permissions, mode, extension })
                    }
                    Request::Wstat { fid, stat: Wrapped(ref stat) } => self.change_stat(fid, stat),
                    _ => Err(Errno::EOPNOTSUPP),
                };
                emit(&reply?, tag, buffer, dialect)
            }
            _ => {
                let reply = match self.name_space(request) {
                    Some(reply) => reply?,
                    None => self.fid_request(request)?,
                };
                emit(&reply, tag, buffer, dialect)
            }
        }
    }

    /// Requests that make, move or remove names; `None` when it is another.
    fn name_space(&self, request: &Request<'_>) -> Option<Answer<Reply<'static>>> {
        let fids = &self.epoch.fids;
        let reply = match *request {
            Request::Symlink { fid, name, target, gid } => fids
                .node(fid)
                .and_then(|node| node.make_symlink(name, target, gid))
                .map(|qid| Reply::Symlink { qid }),
            Request::Mknod { fid, name, mode, major, minor, gid } => fids
                .node(fid)
                .and_then(|node| node.make_node(name, &NodeSpec { mode, major, minor, gid }))
                .map(|qid| Reply::Mknod { qid }),
            Request::Mkdir { fid, name, mode, gid } => fids
                .node(fid)
                .and_then(|node| node.make_directory(name, mode, gid))
                .map(|qid| Reply::Mkdir { qid }),
            Request::Link { directory, fid, name } => self
                .two_nodes(directory, fid)
                .and_then(|(directory, target)| directory.link(&*target, name))
                .map(|()| Reply::Link {}),
            Request::Rename { fid, directory, name } => self
                .two_nodes(fid, directory)
                .and_then(|(node, directory)| node.rename(&*directory, name))
                .map(|()| Reply::Rename {}),
            Request::Renameat { old_directory, old_name, new_directory, new_name } => self
                .two_nodes(old_directory, new_directory)
                .and_then(|(old, new)| old.rename_entry(old_name, &*new, new_name))
                .map(|()| Reply::Renameat {}),
            Request::Unlinkat { flags, .. } if flags & !AT_REMOVEDIR != 0 => Err(Errno::EINVAL),
            Request::Unlinkat { directory, name, flags } => fids
                .node(directory)
                .and_then(|node| node.unlink(name, flags == AT_REMOVEDIR))
                .map(|()| Reply::Unlinkat {}),
            _ => return None,
        };
        Some(reply)
    }

    fn two_nodes(&self, first: Fid, second: Fid) -> Answer<(Arc<dyn Node>, Arc<dyn Node>)> {
        Ok((self.epoch.fids.node(first)?, self.epoch.fids.node(second)?))
    }

    /// Requests on what a fid is.
    fn fid_request(&self, request: &Request<'_>) -> Answer<Reply<'static>> {
        let fids = &self.epoch.fids;
        match *request {
            Request::Attach { fid, afid, user, tree, numeric_user } => {
                self.attach(fid, afid, &Attach { user, numeric_user: numeric_user.0, tree })
            }
            Request::Walk { fid, new_fid, ref names } => self.walk(fid, new_fid, names),
            Request::Getattr { fid, mask } => {
                let mut attributes = fids.node(fid)?.attributes(mask)?;
                attributes.block_size = self.block_size(&attributes);
                Ok(Reply::Getattr { attributes })
            }
            Request::Setattr { fid, ref change } => {
                let (node, file) = fids.node_and_file(fid)?;
                node.set_attributes(change, file.as_deref())?;
                Ok(Reply::Setattr {})
            }
            Request::Lopen { fid, flags } => self.open(fid, OpenFlags(flags)),
            Request::Lcreate { fid, name, flags, mode, gid } => {
                let node = fids.closed_node(fid)?;
                let created = node.create(name, OpenFlags(flags), mode, gid)?;
                let qid = created.node.qid();
                fids.transform(fid, &node, Entry::new(created.node, State::Open(created.file), None))?;
                Ok(Reply::Lcreate { qid, iounit: self.iounit() })
            }
            Request::Write { fid, offset, payload: Payload(bytes) } => {
                let count = match fids.sink(fid, offset, bytes)? {
                    Sink::File(file) => file.write(offset, bytes, self.cancel)?,
                    Sink::Xattr(count) => count,
                    Sink::Proof(proof) => proof.write(bytes)?,
                };
                // No message has more than msize bytes.
                Ok(Reply::Write { count: u32::try_from(count).map_err(|_| Errno::EIO)? })
            }
            Request::Clunk { fid } => self.clunk(fid),
            Request::Remove { fid } => {
                fids.remove(fid)?.node.remove()?;
                Ok(Reply::Remove {})
            }
            Request::Statfs { fid } => Ok(Reply::Statfs { totals: fids.node(fid)?.statfs()? }),
            Request::Fsync { fid, data_only } => {
                let (node, file) = fids.node_and_file(fid)?;
                node.sync(&*file.ok_or(Errno::EBADF)?, data_only != 0)?;
                Ok(Reply::Fsync {})
            }
            Request::Lock { fid, kind, ref range, .. } => {
                Ok(Reply::Lock { status: fids.file(fid)?.lock(kind, range)? as u8 })
            }
            Request::Xattrwalk { fid, new_fid, name } => self.xattr_walk(fid, new_fid, name),
            Request::Xattrcreate { fid, name, size, flags } => {
                let node = fids.closed_node(fid)?;
                let xattr = XattrWrite::new(name, size, XattrFlags(flags))?;
                let entry = Entry::new(Arc::clone(&node), State::XattrWrite(xattr), None);
                fids.transform(fid, &node, entry)?;
                Ok(Reply::Xattrcreate {})
            }
            Request::Auth { afid, user, tree, numeric_user } => {
                self.begin_proof(afid, &Attach { user, numeric_user: numeric_user.0, tree })
            }
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    /// attach(5), "auth".
    fn begin_proof(&self, afid: Fid, who: &Attach<'_>) -> Answer<Reply<'static>> {
        let Some(authenticator) = &self.options.authenticator else {
            // No proof of identity is asked for. diod, whose clients always offer one, says so with error 0
            // (libnpfs, np_auth), and they go on.
            let linux = self.epoch.dialect == Dialect::Linux;
            return Err(if linux {
                Errno(0)
            } else {
                Errno::ENOENT.with_text("no authentication is needed")
            });
        };
        self.epoch.fids.check_new(afid)?;
        self.epoch.fids.insert_proof(afid, authenticator.begin(who, &self.options.peer)?)?;
        Ok(Reply::Auth { qid: Qid { kind: QidKind::AUTH, version: 0, path: u64::from(afid.0) } })
    }

    fn attach(&self, fid: Fid, afid: Fid, attach: &Attach<'_>) -> Answer<Reply<'static>> {
        self.epoch.fids.check_new(fid)?;
        let proof = if afid == Fid::NONE { None } else { Some(self.epoch.fids.proof(afid)?) };
        if let Some(authenticator) = &self.options.authenticator {
            authenticator.admit(attach, &self.options.peer, proof.as_deref())?;
        }
        let node = self.filesystem.attach(attach)?;
        let qid = node.qid();
        let trail = (self.epoch.dialect != Dialect::Linux)
            .then(|| Arc::new(Trail { parent: None, node: Arc::clone(&node), name: b"/"[..].into() }));
        self.epoch.fids.insert(fid, Entry::closed(node, trail))?;
        Ok(Reply::Attach { qid })
    }

    /// walk(5): an error only when the first name fails; a walk that stops on the way makes no fid.
    fn walk(&self, fid: Fid, new_fid: Fid, names: &WalkNames<'_>) -> Answer<Reply<'static>> {
        let fids = &self.epoch.fids;
        let start = if fid == new_fid { fids.closed_node(fid)? } else { fids.node(fid)? };
        if fid != new_fid {
            fids.check_new(new_fid)?;
        }
        let mut node = Arc::clone(&start);
        let mut trail = if self.epoch.dialect == Dialect::Linux { None } else { Some(fids.trail(fid)?) };
        let mut qids = WalkQids::new();
        for name in names.iter() {
            let next = match &trail {
                Some(trail) => classic::step(trail, name).map(|next| (Arc::clone(&next.node), Some(next))),
                None => node.walk(name).map(|next| (next, None)),
            };
            match next {
                Ok(next) => (node, trail) = next,
                Err(errno) if qids.is_empty() => return Err(errno),
                Err(_) => return Ok(Reply::Walk { qids }),
            }
            qids.push(self.qid(&*node)).map_err(|_| Errno::EINVAL)?;
        }
        let entry = Entry::closed(node, trail);
        if fid == new_fid {
            fids.transform(fid, &start, entry)?;
        } else {
            fids.insert(new_fid, entry)?;
        }
        Ok(Reply::Walk { qids })
    }

    fn open(&self, fid: Fid, flags: OpenFlags) -> Answer<Reply<'static>> {
        let node = self.epoch.fids.closed_node(fid)?;
        let file = node.open(flags)?;
        let entry = Entry::new(Arc::clone(&node), State::Open(file), None);
        self.epoch.fids.transform(fid, &node, entry)?;
        Ok(Reply::Lopen { qid: node.qid(), iounit: self.iounit() })
    }

    fn clunk(&self, fid: Fid) -> Answer<Reply<'static>> {
        if self.epoch.fids.remove_proof(fid) {
            return Ok(Reply::Clunk {});
        }
        let entry = self.epoch.fids.remove(fid)?;
        if let Entry { node, state: State::XattrWrite(xattr), .. } = entry {
            if xattr.value.len() != xattr.size {
                return Err(Errno::EINVAL);
            }
            // A Linux client removes an attribute by setting nothing with XATTR_REPLACE (fs/9p/xattr.c).
            let removes = xattr.size == 0 && xattr.flags == XattrFlags::REPLACE;
            node.set_xattr(&xattr.name, (!removes).then_some(&xattr.value), xattr.flags)?;
        } else {
            entry.forget();
        }
        Ok(Reply::Clunk {})
    }

    fn xattr_walk(&self, fid: Fid, new_fid: Fid, name: &[u8]) -> Answer<Reply<'static>> {
        let node = self.epoch.fids.node(fid)?;
        self.epoch.fids.check_new(new_fid)?;
        let value = if name.is_empty() { node.xattr_names()? } else { node.xattr(name)? };
        let size = value.len() as u64;
        self.epoch.fids.insert(new_fid, Entry::new(node, State::XattrRead(value.into()), None))?;
        Ok(Reply::Xattrwalk { size })
    }

    fn poll_read(
        &self,
        tag: Tag,
        fid: Fid,
        offset: u64,
        count: u32,
        buffer: &mut [u8],
    ) -> Poll<Answer<usize>> {
        let dialect = self.epoch.dialect;
        let file = match self.epoch.fids.source(fid) {
            Ok(Source::File(file)) => file,
            Ok(source) => {
                return Poll::Ready(payload_reply(RREAD, tag, buffer, count, |room| match source {
                    Source::Directory(file, listing, trail) => {
                        classic::read_directory(&*file, &listing, &trail, offset, Writer::new(room, dialect))
                    }
                    Source::Xattr(value) => Ok(copy_from(&value, offset, room)),
                    Source::Proof(proof) => proof.read(room),
                    Source::File(_) => Err(Errno::EIO),
                }));
            }
            Err(errno) => return Poll::Ready(Err(errno)),
        };
        if self.cancel.is_cancelled() {
            return Poll::Ready(Err(Errno::EINTR));
        }
        let mut pending = false;
        let answered = payload_reply(RREAD, tag, buffer, count, |room| {
            match file.poll_read(offset, room, self.cancel, self.waker) {
                Poll::Ready(answer) => answer,
                Poll::Pending => {
                    pending = true;
                    Ok(0)
                }
            }
        });
        if pending {
            self.cancel.wake_on_cancel(self.waker);
            return Poll::Pending;
        }
        Poll::Ready(answered)
    }

    /// A node's qid; a dialect without symbolic links does not have their bit.
    pub fn qid(&self, node: &dyn Node) -> Qid {
        classic::qid_for(node.qid(), self.epoch.dialect)
    }

    fn read_directory(
        &self,
        tag: Tag,
        fid: Fid,
        offset: u64,
        count: u32,
        buffer: &mut [u8],
    ) -> Answer<usize> {
        let file = self.epoch.fids.file(fid)?;
        payload_reply(RREADDIR, tag, buffer, count, |room| {
            let mut entries = Entries::new(Writer::new(room, Dialect::Linux));
            file.read_directory(offset, &mut entries)?;
            Ok(entries.len())
        })
    }

    /// Most bytes of one read or write.
    pub fn iounit(&self) -> u32 {
        self.epoch.msize - IO_HEADER_BYTES
    }

    /// Programs read and write in units of `st_blksize`: each is a round trip, so it is as large as a message takes.
    fn block_size(&self, attributes: &Attributes) -> u64 {
        let own = attributes.block_size.max(1);
        (u64::from(self.iounit()) / own * own).max(own)
    }
}

/// Copies what is at `offset` and returns how much that is.
pub(super) fn copy_from(value: &[u8], offset: u64, room: &mut [u8]) -> usize {
    let rest = usize::try_from(offset).ok().and_then(|offset| value.get(offset..)).unwrap_or(&[]);
    let count = rest.len().min(room.len());
    room[..count].copy_from_slice(&rest[..count]);
    count
}

/// Makes a reply of `count[4]` and that many bytes, which `fill` writes in place.
fn payload_reply(
    code: u8,
    tag: Tag,
    buffer: &mut [u8],
    count: u32,
    fill: impl FnOnce(&mut [u8]) -> Answer<usize>,
) -> Answer<usize> {
    let mut writer = Writer::new(buffer, Dialect::Linux);
    begin(&mut writer, code, tag).map_err(refused)?;
    0u32.emit(&mut writer).map_err(refused)?;
    let room = writer.unwritten();
    let wanted = usize::try_from(count).unwrap_or(usize::MAX).min(room.len());
    let filled = fill(&mut room[..wanted])?.min(wanted);
    writer.advance(filled);
    let filled = u32::try_from(filled).map_err(|_| Errno::EIO)?;
    writer.patch(READ_HEADER_BYTES - 4, &filled.to_le_bytes());
    finish(writer).map_err(refused)
}

fn lock_reply<'l>(held: Option<&'l HeldLock>, asked: &LockRange<'l>) -> Reply<'l> {
    match held {
        Some(held) => Reply::Getlock {
            kind: held.kind,
            range: LockRange {
                start: held.start,
                length: held.length,
                process: held.process,
                client: &held.client,
            },
        },
        None => Reply::Getlock { kind: LockKind::UNLOCK, range: *asked },
    }
}
