//! A small synchronous 9P2000.L client: one request at a time, typed.
//!
//! Over any byte stream, or straight on a [`Session`] in the same process ([`Direct`]). Names are single components;
//! paths are split by [`Client::walk_path`].

use std::io::{self, Read, Write};
use std::sync::Arc;

use crate::errno::Errno;
use crate::filesystem::OpenFlags;
use crate::message::{
    AT_REMOVEDIR, Dialect, Fid, IO_HEADER_BYTES, NumericUser, Reply, Request, Tag, WALK_NAMES_MAX, WalkNames,
};
use crate::qid::Qid;
use crate::server::Session;
use crate::stat::{
    Attributes, DirectoryEntry, LockKind, LockRange, LockStatus, SetAttributes, StatFs, getattr,
};
use crate::transport::read_message;
use crate::wire::{Field, Payload, Reader, WireError};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server said no.
    #[error("{0}")]
    Refused(Errno),
    /// The stream failed.
    #[error("the connection failed")]
    Connection(#[from] io::Error),
    /// The server sent something that is not 9P, or we were asked to.
    #[error("the message is malformed")]
    Malformed(#[from] WireError),
    /// The server sent the answer to another question.
    #[error("the server answered type {code} with tag {tag}")]
    Unexpected {
        /// Type of the message.
        code: u8,
        /// Its tag.
        tag: u16,
    },
    /// There is no dialect in common.
    #[error("the server speaks none of the dialects that will do")]
    Dialect,
    /// The server said no, in words of its own (9P2000 and .u).
    #[error("{text}")]
    RefusedWithText {
        /// Which error it is.
        errno: Errno,
        /// What it said.
        text: String,
    },
    /// The server did not answer in time, and was asked not to.
    #[error("the server did not answer in time")]
    TimedOut,
    /// All tags are in use.
    #[error("too many requests are under way")]
    TooManyCalls,
}

impl ClientError {
    /// The errno that the server answered with, if that is what happened.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused(errno) | Self::RefusedWithText { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// An Rerror: the number is .u's, and 0 where there is none but the text.
    pub(crate) fn from_error(text: &[u8], number: u32) -> Self {
        let text = String::from_utf8_lossy(text).into_owned();
        let errno = if number == 0 { Errno::from_text(&text).unwrap_or(Errno::EIO) } else { Errno(number) };
        Self::RefusedWithText { errno, text }
    }
}

/// Carries a request to a server and brings the reply back.
pub trait Exchange {
    /// Sends `request` and replaces what is in `reply`.
    ///
    /// # Errors
    /// Whatever the connection fails with.
    fn exchange(&mut self, request: &[u8], reply: &mut Vec<u8>) -> io::Result<()>;
}

/// A server at the other end of a byte stream.
#[derive(Debug)]
pub struct Stream<S>(pub S);

impl<S: Read + Write> Exchange for Stream<S> {
    fn exchange(&mut self, request: &[u8], reply: &mut Vec<u8>) -> io::Result<()> {
        self.0.write_all(request)?;
        self.0.flush()?;
        if read_message(&mut self.0, crate::server::MSIZE_MAX as usize, reply)? {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

/// A session of the same process.
#[derive(Debug)]
pub struct Direct {
    session: Arc<Session>,
    /// As large as any reply; clearing it for each would cost more than most requests.
    buffer: Vec<u8>,
}

impl Direct {
    /// A way to `session`.
    pub fn new(session: Arc<Session>) -> Self {
        Self { buffer: vec![0; session.msize_max()], session }
    }
}

impl Exchange for Direct {
    fn exchange(&mut self, request: &[u8], reply: &mut Vec<u8>) -> io::Result<()> {
        let bytes = self.session.handle(request, &mut self.buffer);
        reply.clear();
        reply.extend_from_slice(&self.buffer[..bytes]);
        Ok(())
    }
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The file's identity.
    pub qid: Qid,
    /// Where to go on after it.
    pub offset: u64,
    /// Linux's `d_type`.
    pub kind: u8,
    /// Its name.
    pub name: Vec<u8>,
}

/// A client's end of a session.
pub struct Client<E> {
    exchange: E,
    msize: u32,
    next_fid: u32,
    request: Vec<u8>,
    reply: Vec<u8>,
}

type Called<T> = Result<T, ClientError>;

#[expect(clippy::missing_errors_doc, reason = "all fail with ClientError, as its variants say")]
impl<E: Exchange> Client<E> {
    /// Begins a session with messages of at most `msize` bytes.
    pub fn connect(exchange: E, msize: u32) -> Called<Self> {
        let mut client =
            Self { exchange, msize, next_fid: 0, request: vec![0; msize as usize], reply: Vec::new() };
        let name = Dialect::Linux.name().as_bytes();
        let request = Request::Version { msize, version: name };
        let agreed = client.call_with_tag(Tag::NONE, &request, |reply| match reply {
            Reply::Version { msize, version } => Some((*msize, *version == name)),
            _ => None,
        })?;
        match agreed {
            (agreed, true) if agreed <= msize && agreed > IO_HEADER_BYTES => client.msize = agreed,
            _ => return Err(ClientError::Dialect),
        }
        Ok(client)
    }

    /// What was agreed on, in bytes.
    pub fn msize(&self) -> u32 {
        self.msize
    }

    /// A fid number that was not used before.
    pub fn fresh_fid(&mut self) -> Fid {
        let fid = Fid(self.next_fid);
        self.next_fid += 1;
        fid
    }

    /// Sends any request and takes from the reply what `expect` finds in it.
    pub fn call<T>(
        &mut self,
        request: &Request<'_>,
        expect: impl FnOnce(&Reply<'_>) -> Option<T>,
    ) -> Called<T> {
        self.call_with_tag(Tag(1), request, expect)
    }

    fn call_with_tag<T>(
        &mut self,
        tag: Tag,
        request: &Request<'_>,
        expect: impl FnOnce(&Reply<'_>) -> Option<T>,
    ) -> Called<T> {
        let bytes = request.emit(tag, &mut self.request, Dialect::Linux)?;
        self.exchange.exchange(&self.request[..bytes], &mut self.reply)?;
        let (answered, reply) = Reply::parse(&self.reply, Dialect::Linux)?;
        if let Reply::Lerror { errno } = reply {
            return Err(ClientError::Refused(Errno(errno)));
        }
        let unexpected = ClientError::Unexpected { code: reply.code(), tag: answered.0 };
        if answered == tag { expect(&reply).ok_or(unexpected) } else { Err(unexpected) }
    }

    /// Attaches to a tree of the server as a user.
    pub fn attach(&mut self, user: &[u8], uid: u32, tree: &[u8]) -> Called<Fid> {
        let fid = self.fresh_fid();
        let request = Request::Attach { fid, afid: Fid::NONE, user, tree, numeric_user: NumericUser(uid) };
        self.call(&request, |reply| matches!(reply, Reply::Attach { .. }).then_some(fid))
    }

    /// Walks up to 16 names from `fid` and returns the new fid; ENOENT also when the walk stops on the way.
    pub fn walk(&mut self, fid: Fid, names: &[&[u8]]) -> Called<Fid> {
        let new_fid = self.fresh_fid();
        let request = Request::Walk { fid, new_fid, names: WalkNames::from_slice(names)? };
        let passed = self.call(&request, |reply| match reply {
            Reply::Walk { qids } => Some(qids.len()),
            _ => None,
        })?;
        if passed == names.len() { Ok(new_fid) } else { Err(ClientError::Refused(Errno::ENOENT)) }
    }

    /// Walks a path of any length, its components separated by `/`.
    pub fn walk_path(&mut self, fid: Fid, path: &[u8]) -> Called<Fid> {
        let names: Vec<_> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
        let mut reached = self.walk(fid, &names[..names.len().min(WALK_NAMES_MAX)])?;
        for names in names.get(WALK_NAMES_MAX..).unwrap_or(&[]).chunks(WALK_NAMES_MAX) {
            let further = self.walk(reached, names);
            self.clunk(reached)?;
            reached = further?;
        }
        Ok(reached)
    }

    /// Opens a fid.
    pub fn open(&mut self, fid: Fid, flags: OpenFlags) -> Called<Qid> {
        self.call(&Request::Lopen { fid, flags: flags.0 }, |reply| match reply {
            Reply::Lopen { qid, .. } => Some(*qid),
            _ => None,
        })
    }

    /// Creates `name` in the directory `fid`, which then is the open file.
    pub fn create(&mut self, fid: Fid, name: &[u8], flags: OpenFlags, mode: u32) -> Called<Qid> {
        self.call(&Request::Lcreate { fid, name, flags: flags.0, mode, gid: 0 }, |reply| match reply {
            Reply::Lcreate { qid, .. } => Some(*qid),
            _ => None,
        })
    }

    /// Reads at most one message's worth at `offset`; none is the end.
    pub fn read(&mut self, fid: Fid, offset: u64, count: u32) -> Called<Vec<u8>> {
        let count = count.min(self.msize - IO_HEADER_BYTES);
        self.call(&Request::Read { fid, offset, count }, |reply| match reply {
            Reply::Read { payload } => Some(payload.0.to_vec()),
            _ => None,
        })
    }

    /// Reads from the start to the end.
    pub fn read_to_end(&mut self, fid: Fid) -> Called<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let piece = self.read(fid, all.len() as u64, u32::MAX)?;
            if piece.is_empty() {
                return Ok(all);
            }
            all.extend_from_slice(&piece);
        }
    }

    /// Writes at most one message's worth at `offset` and returns how much.
    pub fn write(&mut self, fid: Fid, offset: u64, bytes: &[u8]) -> Called<u32> {
        let most = (self.msize - IO_HEADER_BYTES) as usize;
        let payload = Payload(&bytes[..bytes.len().min(most)]);
        self.call(&Request::Write { fid, offset, payload }, |reply| match reply {
            Reply::Write { count } => Some(*count),
            _ => None,
        })
    }

    /// Writes all of `bytes` from `offset` on.
    pub fn write_all(&mut self, fid: Fid, offset: u64, bytes: &[u8]) -> Called<()> {
        let mut done = 0;
        while done < bytes.len() {
            let count = self.write(fid, offset + done as u64, &bytes[done..])? as usize;
            if count == 0 {
                return Err(ClientError::Connection(io::ErrorKind::WriteZero.into()));
            }
            done += count;
        }
        Ok(())
    }

    /// One message's worth of directory entries after `offset`; none is the end.
    pub fn read_directory(&mut self, fid: Fid, offset: u64, count: u32) -> Called<Vec<Listed>> {
        let count = count.min(self.msize - IO_HEADER_BYTES);
        let bytes = self.call(&Request::Readdir { fid, offset, count }, |reply| match reply {
            Reply::Readdir { payload } => Some(payload.0.to_vec()),
            _ => None,
        })?;
        let mut reader = Reader::new(&bytes, Dialect::Linux);
        let mut listed = Vec::new();
        while reader.clone().finish().is_err() {
            let DirectoryEntry { qid, offset, kind, name } = DirectoryEntry::parse(&mut reader)?;
            listed.push(Listed { qid, offset, kind, name: name.to_vec() });
        }
        Ok(listed)
    }

    /// All entries of an open directory.
    pub fn list(&mut self, fid: Fid) -> Called<Vec<Listed>> {
        let mut all: Vec<Listed> = Vec::new();
        loop {
            let piece = self.read_directory(fid, all.last().map_or(0, |last| last.offset), u32::MAX)?;
            if piece.is_empty() {
                return Ok(all);
            }
            all.extend(piece);
        }
    }

    /// Reads attributes.
    pub fn getattr(&mut self, fid: Fid) -> Called<Attributes> {
        self.call(&Request::Getattr { fid, mask: getattr::BASIC | getattr::BTIME }, |reply| match reply {
            Reply::Getattr { attributes } => Some(*attributes),
            _ => None,
        })
    }

    /// Changes attributes.
    pub fn setattr(&mut self, fid: Fid, change: SetAttributes) -> Called<()> {
        self.call(&Request::Setattr { fid, change }, |reply| matches!(reply, Reply::Setattr {}).then_some(()))
    }

    /// Makes a directory.
    pub fn mkdir(&mut self, fid: Fid, name: &[u8], mode: u32) -> Called<Qid> {
        self.call(&Request::Mkdir { fid, name, mode, gid: 0 }, |reply| match reply {
            Reply::Mkdir { qid } => Some(*qid),
            _ => None,
        })
    }

    /// Makes a symbolic link.
    pub fn symlink(&mut self, fid: Fid, name: &[u8], target: &[u8]) -> Called<Qid> {
        self.call(&Request::Symlink { fid, name, target, gid: 0 }, |reply| match reply {
            Reply::Symlink { qid } => Some(*qid),
            _ => None,
        })
    }

    /// Reads where a symbolic link points.
    pub fn readlink(&mut self, fid: Fid) -> Called<Vec<u8>> {
        self.call(&Request::Readlink { fid }, |reply| match reply {
            Reply::Readlink { target } => Some(target.to_vec()),
            _ => None,
        })
    }

    /// Makes a file, FIFO or socket.
    pub fn mknod(&mut self, fid: Fid, name: &[u8], mode: u32) -> Called<Qid> {
        let request = Request::Mknod { fid, name, mode, major: 0, minor: 0, gid: 0 };
        self.call(&request, |reply| match reply {
            Reply::Mknod { qid } => Some(*qid),
            _ => None,
        })
    }

    /// Makes `name` in `directory` another name of the file `fid`.
    pub fn link(&mut self, directory: Fid, fid: Fid, name: &[u8]) -> Called<()> {
        let request = Request::Link { directory, fid, name };
        self.call(&request, |reply| matches!(reply, Reply::Link {}).then_some(()))
    }

    /// Moves an entry. Servers without Trenameat (diod is one) get a Trename.
    pub fn rename(&mut self, from: Fid, old_name: &[u8], to: Fid, new_name: &[u8]) -> Called<()> {
        let request = Request::Renameat { old_directory: from, old_name, new_directory: to, new_name };
        match self.call(&request, |reply| matches!(reply, Reply::Renameat {}).then_some(())) {
            Err(ClientError::Refused(Errno::EOPNOTSUPP)) => {}
            result => return result,
        }
        let fid = self.walk(from, &[old_name])?;
        let request = Request::Rename { fid, directory: to, name: new_name };
        let renamed = self.call(&request, |reply| matches!(reply, Reply::Rename {}).then_some(()));
        self.clunk(fid)?;
        renamed
    }

    /// Removes an entry that is not a directory.
    pub fn unlink(&mut self, directory: Fid, name: &[u8]) -> Called<()> {
        self.unlink_at(directory, name, 0)
    }

    /// Removes an empty directory.
    pub fn rmdir(&mut self, directory: Fid, name: &[u8]) -> Called<()> {
        self.unlink_at(directory, name, AT_REMOVEDIR)
    }

    /// Servers without Tunlinkat get a Tremove.
    fn unlink_at(&mut self, directory: Fid, name: &[u8], flags: u32) -> Called<()> {
        let request = Request::Unlinkat { directory, name, flags };
        match self.call(&request, |reply| matches!(reply, Reply::Unlinkat {}).then_some(())) {
            Err(ClientError::Refused(Errno::EOPNOTSUPP)) => {}
            result => return result,
        }
        let fid = self.walk(directory, &[name])?;
        self.remove(fid)
    }

    /// Removes the file and forgets the fid.
    pub fn remove(&mut self, fid: Fid) -> Called<()> {
        self.call(&Request::Remove { fid }, |reply| matches!(reply, Reply::Remove {}).then_some(()))
    }

    /// Brings a file to the disk.
    pub fn fsync(&mut self, fid: Fid) -> Called<()> {
        let request = Request::Fsync { fid, data_only: 0 };
        self.call(&request, |reply| matches!(reply, Reply::Fsync {}).then_some(()))
    }

    /// Totals of the file system.
    pub fn statfs(&mut self, fid: Fid) -> Called<StatFs> {
        self.call(&Request::Statfs { fid }, |reply| match reply {
            Reply::Statfs { totals } => Some(*totals),
            _ => None,
        })
    }

    /// Takes or gives back a lock; says whether it worked.
    pub fn lock(&mut self, fid: Fid, kind: LockKind, range: LockRange<'_>) -> Called<bool> {
        self.call(&Request::Lock { fid, kind, flags: 0, range }, |reply| match reply {
            Reply::Lock { status } => Some(*status == LockStatus::Success as u8),
            _ => None,
        })
    }

    /// The value of an extended attribute, or with an empty name the list of names.
    pub fn xattr(&mut self, fid: Fid, name: &[u8]) -> Called<Vec<u8>> {
        let new_fid = self.fresh_fid();
        self.call(&Request::Xattrwalk { fid, new_fid, name }, |reply| {
            matches!(reply, Reply::Xattrwalk { .. }).then_some(())
        })?;
        let value = self.read_to_end(new_fid);
        self.clunk(new_fid)?;
        value
    }

    /// Sets an extended attribute.
    pub fn set_xattr(&mut self, fid: Fid, name: &[u8], value: &[u8], flags: u32) -> Called<()> {
        let fid = self.walk(fid, &[])?;
        let request = Request::Xattrcreate { fid, name, size: value.len() as u64, flags };
        self.call(&request, |reply| matches!(reply, Reply::Xattrcreate {}).then_some(()))?;
        self.write_all(fid, 0, value)?;
        self.clunk(fid)
    }

    /// Forgets a fid.
    pub fn clunk(&mut self, fid: Fid) -> Called<()> {
        self.call(&Request::Clunk { fid }, |reply| matches!(reply, Reply::Clunk {}).then_some(()))
    }
}

impl<E> std::fmt::Debug for Client<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("msize", &self.msize).finish_non_exhaustive()
    }
}
