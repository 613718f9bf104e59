//! The operations of a connection, each in the words of its dialect.

use super::{Call, Called, Connection, classic};
use crate::client::{ClientError, Listed};
use crate::errno::Errno;
use crate::filesystem::{Cancel, HeldLock, OpenFlags, XattrFlags};
use crate::message::{AT_REMOVEDIR, Dialect, Fid, NumericUser, Reply, Request, WALK_NAMES_MAX, WalkNames};
use crate::qid::Qid;
use crate::stat::{
    Attributes, DirectoryEntry, LockKind, LockRange, LockStatus, SetAttributes, StatFs, getattr,
};
use crate::wire::{Field, Payload, Reader};

/// What Getattr or Stat was answered with.
pub(super) fn attributes_in(reply: &Reply<'_>) -> Option<Attributes> {
    match reply {
        Reply::Getattr { attributes } => Some(*attributes),
        Reply::Stat { stat } => Some(classic::attributes(&stat.0)),
        _ => None,
    }
}

#[expect(clippy::missing_errors_doc, reason = "all fail with ClientError, as its variants say")]
impl Connection {
    /// Sends a request, waits, and takes from the reply what `expect` finds in it.
    pub fn call<T>(&self, request: &Request<'_>, expect: impl FnOnce(&Reply<'_>) -> Option<T>) -> Called<T> {
        self.start(request)?.wait()?.expect(expect)
    }

    pub(super) fn is_linux(&self) -> bool {
        self.dialect() == Dialect::Linux
    }

    /// A call that makes a fid: the number is free again where it fails.
    fn make_fid(&self, request: impl FnOnce(Fid) -> Called<()>) -> Called<Fid> {
        let fid = self.fresh_fid();
        self.keep_fid(fid, request(fid))
    }

    pub(super) fn keep_fid(&self, fid: Fid, made: Called<()>) -> Called<Fid> {
        if matches!(made, Err(ClientError::Refused(_) | ClientError::RefusedWithText { .. })) {
            self.release_fid(fid);
        }
        made.map(|()| fid)
    }

    /// Attaches to a tree of the server as a user, without a proof of who that is.
    pub fn attach(&self, user: &[u8], uid: u32, tree: &[u8]) -> Called<Fid> {
        self.attach_with(Fid::NONE, user, uid, tree)
    }

    /// Attaches to a tree of a server that wants a token first.
    pub fn attach_with_token(&self, user: &[u8], uid: u32, tree: &[u8], token: &[u8]) -> Called<Fid> {
        let numeric_user = NumericUser(uid);
        let afid = self.make_fid(|afid| {
            let request = Request::Auth { afid, user, tree, numeric_user };
            self.call(&request, |reply| matches!(reply, Reply::Auth { .. }).then_some(()))
        })?;
        let written = self.write_all(afid, 0, token);
        let attached = written.and_then(|()| self.attach_with(afid, user, uid, tree));
        self.forget(afid);
        attached
    }

    fn attach_with(&self, afid: Fid, user: &[u8], uid: u32, tree: &[u8]) -> Called<Fid> {
        self.make_fid(|fid| {
            let request = Request::Attach { fid, afid, user, tree, numeric_user: NumericUser(uid) };
            self.call(&request, |reply| matches!(reply, Reply::Attach { .. }).then_some(()))
        })
    }

    /// Walks up to 16 names from `fid` and returns the new fid and its qid, which is `None` when no name is walked.
    ///
    /// A walk that stops on the way has no error on the wire (walk(5)), so the name it stopped at is asked for alone.
    pub fn walk(&self, fid: Fid, names: &[&[u8]]) -> Called<(Fid, Option<Qid>)> {
        let names_on_wire = WalkNames::from_slice(names)?;
        let mut last = None;
        let mut stopped_at = None;
        let new_fid = self.make_fid(|new_fid| {
            let request = Request::Walk { fid, new_fid, names: names_on_wire };
            let (passed, qid) = self.call(&request, |reply| match reply {
                Reply::Walk { qids } => Some((qids.len(), qids.last().copied())),
                _ => None,
            })?;
            last = qid;
            if passed == names.len() {
                return Ok(());
            }
            stopped_at = (passed > 0).then_some(passed);
            Err(ClientError::Refused(Errno::ENOENT))
        });
        match (new_fid, stopped_at) {
            (Err(error), Some(passed)) => Err(self.why_stopped(fid, names, passed).unwrap_or(error)),
            (new_fid, _) => Ok((new_fid?, last)),
        }
    }

    /// Why a walk got no further than `passed` names, at least one; `None` when it does now.
    fn why_stopped(&self, fid: Fid, names: &[&[u8]], passed: usize) -> Option<ClientError> {
        let (passed, next) = (names.get(..passed)?, names.get(passed)?);
        let reached = match self.walk(fid, passed) {
            Ok((reached, _)) => reached,
            Err(error) => return Some(error),
        };
        let further = self.walk(reached, &[next]);
        self.forget(reached);
        match further {
            Ok((fid, _)) => {
                self.forget(fid);
                None
            }
            Err(error) => Some(error),
        }
    }

    /// Walks a path of any length, its components separated by `/`.
    pub fn walk_path(&self, fid: Fid, path: &[u8]) -> Called<Fid> {
        let names: Vec<_> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
        let (mut reached, _) = self.walk(fid, &names[..names.len().min(WALK_NAMES_MAX)])?;
        for names in names.get(WALK_NAMES_MAX..).unwrap_or(&[]).chunks(WALK_NAMES_MAX) {
            let further = self.walk(reached, names);
            self.forget(reached);
            reached = further?.0;
        }
        Ok(reached)
    }

    /// Another fid for the same file.
    pub fn copy_fid(&self, fid: Fid) -> Called<Fid> {
        Ok(self.walk(fid, &[])?.0)
    }

    /// Opens a fid.
    pub fn open_file(&self, fid: Fid, flags: OpenFlags) -> Called<Qid> {
        let request = if self.is_linux() {
            Request::Lopen { fid, flags: flags.0 }
        } else {
            Request::Open { fid, mode: classic::open_mode(flags, self.dialect()) }
        };
        self.call(&request, |reply| match reply {
            Reply::Lopen { qid, .. } | Reply::Open { qid, .. } => Some(*qid),
            _ => None,
        })
    }

    /// Creates `name` in the directory `fid`, which then is the open file. Only 9P2000.L opens one that is there.
    pub fn create_file(&self, fid: Fid, name: &[u8], flags: OpenFlags, mode: u32, gid: u32) -> Called<Qid> {
        if !self.is_linux() {
            return self.create_classic(fid, name, mode & 0o7777, flags, b"");
        }
        self.call(&Request::Lcreate { fid, name, flags: flags.0, mode, gid }, |reply| match reply {
            Reply::Lcreate { qid, .. } => Some(*qid),
            _ => None,
        })
    }

    /// Sends a read of at most one message's worth and does not wait.
    pub fn start_read(&self, fid: Fid, offset: u64, count: u32) -> Called<Call> {
        self.start(&Request::Read { fid, offset, count: count.min(self.iounit()) })
    }

    /// Reads at most one message's worth at `offset` into the front of `buffer`; none is the end.
    pub fn read(&self, fid: Fid, offset: u64, buffer: &mut [u8]) -> Called<usize> {
        let count = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
        self.start_read(fid, offset, count)?.finish_read(buffer)
    }

    /// [`Connection::read`] that ends with EINTR when `cancel` gives it up: the server is told so.
    pub fn read_or_cancel(&self, fid: Fid, offset: u64, buffer: &mut [u8], cancel: &Cancel) -> Called<usize> {
        let count = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
        let answered = self.start_read(fid, offset, count)?.wait_or_cancel(cancel)?;
        answered.expect(|reply| payload(reply, buffer))
    }

    /// Sends a write of at most one message's worth and does not wait.
    pub fn start_write(&self, fid: Fid, offset: u64, bytes: &[u8]) -> Called<Call> {
        let most = bytes.len().min(self.iounit() as usize);
        self.start(&Request::Write { fid, offset, payload: Payload(&bytes[..most]) })
    }

    /// Writes at most one message's worth at `offset` and returns how much.
    pub fn write(&self, fid: Fid, offset: u64, bytes: &[u8]) -> Called<usize> {
        self.start_write(fid, offset, bytes)?.finish_write()
    }

    /// Forgets a fid and waits for what that brings: the errors of an extended attribute's setting.
    pub fn clunk(&self, fid: Fid) -> Called<()> {
        let clunked =
            self.call(&Request::Clunk { fid }, |reply| matches!(reply, Reply::Clunk {}).then_some(()));
        self.release_fid(fid);
        clunked
    }

    /// Forgets a fid and does not wait.
    pub fn forget(&self, fid: Fid) {
        // Its number is not used again: the reply, which would free it, is not looked at.
        self.tell(&Request::Clunk { fid });
    }

    /// Removes the file and forgets the fid.
    pub fn remove(&self, fid: Fid) -> Called<()> {
        let removed =
            self.call(&Request::Remove { fid }, |reply| matches!(reply, Reply::Remove {}).then_some(()));
        self.release_fid(fid);
        removed
    }

    /// Reads attributes.
    pub fn attributes(&self, fid: Fid) -> Called<Attributes> {
        self.start_attributes(fid)?.wait()?.expect(attributes_in)
    }

    pub(super) fn start_attributes(&self, fid: Fid) -> Called<Call> {
        if !self.is_linux() {
            return self.start(&Request::Stat { fid });
        }
        self.start(&Request::Getattr { fid, mask: getattr::BASIC | getattr::BTIME })
    }

    /// Changes attributes.
    pub fn set_attributes(&self, fid: Fid, change: &SetAttributes) -> Called<()> {
        if !self.is_linux() {
            return self.set_attributes_classic(fid, change);
        }
        let request = Request::Setattr { fid, change: *change };
        self.call(&request, |reply| matches!(reply, Reply::Setattr {}).then_some(()))
    }

    /// Makes a directory.
    pub fn make_directory(&self, fid: Fid, name: &[u8], mode: u32, gid: u32) -> Called<Qid> {
        if !self.is_linux() {
            return self.make_classic(fid, name, classic::DIRECTORY | mode & 0o777, b"");
        }
        self.call(&Request::Mkdir { fid, name, mode, gid }, |reply| match reply {
            Reply::Mkdir { qid } => Some(*qid),
            _ => None,
        })
    }

    /// Makes a symbolic link. 9P2000 has none.
    pub fn make_symlink(&self, fid: Fid, name: &[u8], target: &[u8], gid: u32) -> Called<Qid> {
        if !self.is_linux() {
            return self.make_classic(fid, name, classic::SYMLINK | 0o777, target);
        }
        self.call(&Request::Symlink { fid, name, target, gid }, |reply| match reply {
            Reply::Symlink { qid } => Some(*qid),
            _ => None,
        })
    }

    /// Reads where a symbolic link points.
    pub fn read_link(&self, fid: Fid) -> Called<Vec<u8>> {
        if !self.is_linux() {
            return self.call(&Request::Stat { fid }, |reply| match reply {
                Reply::Stat { stat } => Some(stat.0.extension.to_vec()),
                _ => None,
            });
        }
        self.call(&Request::Readlink { fid }, |reply| match reply {
            Reply::Readlink { target } => Some(target.to_vec()),
            _ => None,
        })
    }

    /// Makes a file, FIFO, socket or device. 9P2000 has none but files.
    pub fn make_node(&self, fid: Fid, name: &[u8], spec: &crate::filesystem::NodeSpec) -> Called<Qid> {
        let crate::filesystem::NodeSpec { mode, major, minor, gid } = *spec;
        if !self.is_linux() {
            let (permissions, extension) = classic::special(spec)?;
            return self.make_classic(fid, name, permissions, extension.as_bytes());
        }
        self.call(&Request::Mknod { fid, name, mode, major, minor, gid }, |reply| match reply {
            Reply::Mknod { qid } => Some(*qid),
            _ => None,
        })
    }

    /// Makes `name` in `directory` another name of the file `fid`. 9P2000 cannot.
    pub fn link(&self, directory: Fid, fid: Fid, name: &[u8]) -> Called<()> {
        if !self.is_linux() {
            let text = fid.0.to_string();
            return self.make_classic(directory, name, classic::LINK, text.as_bytes()).map(|_| ());
        }
        let request = Request::Link { directory, fid, name };
        self.call(&request, |reply| matches!(reply, Reply::Link {}).then_some(()))
    }

    /// Moves an entry. Servers without Trenameat (diod is one) get a Trename; 9P2000 and .u only rename within a
    /// directory, and out of it is EXDEV, so that mv(1) copies.
    pub fn rename(&self, from: Fid, old_name: &[u8], to: Fid, new_name: &[u8]) -> Called<()> {
        if self.is_linux() {
            let request = Request::Renameat { old_directory: from, old_name, new_directory: to, new_name };
            match self.call(&request, |reply| matches!(reply, Reply::Renameat {}).then_some(())) {
                Err(error) if error.errno() == Some(Errno::EOPNOTSUPP) => {}
                result => return result,
            }
        }
        if !self.is_linux() && from != to && self.attributes(from)?.qid.path != self.attributes(to)?.qid.path
        {
            return Err(ClientError::Refused(Errno::EXDEV));
        }
        let (fid, _) = self.walk(from, &[old_name])?;
        let renamed = if self.is_linux() {
            let request = Request::Rename { fid, directory: to, name: new_name };
            self.call(&request, |reply| matches!(reply, Reply::Rename {}).then_some(()))
        } else {
            self.rename_classic(fid, new_name)
        };
        self.forget(fid);
        renamed
    }

    /// Removes an entry: a directory exactly if `is_directory`, as far as the dialect can tell.
    pub fn unlink(&self, directory: Fid, name: &[u8], is_directory: bool) -> Called<()> {
        if self.is_linux() {
            let flags = if is_directory { AT_REMOVEDIR } else { 0 };
            let request = Request::Unlinkat { directory, name, flags };
            match self.call(&request, |reply| matches!(reply, Reply::Unlinkat {}).then_some(())) {
                // diod is without it.
                Err(error) if error.errno() == Some(Errno::EOPNOTSUPP) => {}
                result => return result,
            }
        }
        let (fid, qid) = self.walk(directory, &[name])?;
        let wrong = match qid.map(|qid| qid.kind.is_directory()) {
            Some(true) if !is_directory => Some(Errno::EISDIR),
            Some(false) if is_directory => Some(Errno::ENOTDIR),
            _ => None,
        };
        match wrong {
            Some(errno) => {
                self.forget(fid);
                Err(ClientError::Refused(errno))
            }
            None => self.remove(fid),
        }
    }

    /// Brings a file to the disk.
    pub fn sync(&self, fid: Fid, data_only: bool) -> Called<()> {
        if !self.is_linux() {
            return self.touch_nothing(fid);
        }
        let request = Request::Fsync { fid, data_only: data_only.into() };
        self.call(&request, |reply| matches!(reply, Reply::Fsync {}).then_some(()))
    }

    /// Totals of the file system. Only 9P2000.L has them.
    pub fn totals(&self, fid: Fid) -> Called<StatFs> {
        self.need_linux()?;
        self.call(&Request::Statfs { fid }, |reply| match reply {
            Reply::Statfs { totals } => Some(*totals),
            _ => None,
        })
    }

    pub(super) fn need_linux(&self) -> Called<()> {
        if self.is_linux() { Ok(()) } else { Err(ClientError::Refused(Errno::EOPNOTSUPP)) }
    }

    /// Directory entries after `offset`, one message's worth, `.` and `..` among them in 9P2000.L; none is the end.
    pub fn read_directory(&self, fid: Fid, offset: u64, count: u32) -> Called<Vec<Listed>> {
        let count = count.min(self.iounit());
        if !self.is_linux() {
            return self.read_directory_classic(fid, offset, count);
        }
        let answered = self.start(&Request::Readdir { fid, offset, count })?.wait()?;
        answered.expect(|reply| match reply {
            Reply::Readdir { payload } => {
                let mut reader = Reader::new(payload.0, Dialect::Linux);
                let mut listed = Vec::new();
                while !reader.is_empty() {
                    let DirectoryEntry { qid, offset, kind, name } =
                        DirectoryEntry::parse(&mut reader).ok()?;
                    listed.push(Listed { qid, offset, kind, name: name.to_vec() });
                }
                Some(listed)
            }
            _ => None,
        })
    }

    /// The value of an extended attribute, or with no name the names of all, each with a NUL after it.
    pub fn xattr(&self, fid: Fid, name: &[u8]) -> Called<Vec<u8>> {
        self.need_linux()?;
        let mut size = 0;
        let value_fid = self.make_fid(|new_fid| {
            size = self.call(&Request::Xattrwalk { fid, new_fid, name }, |reply| match reply {
                Reply::Xattrwalk { size } => Some(*size),
                _ => None,
            })?;
            Ok(())
        })?;
        // XATTR_SIZE_MAX: a server that says more is not believed.
        let mut value = vec![0; usize::try_from(size).unwrap_or(usize::MAX).min(1 << 16)];
        let mut done = 0;
        let read = loop {
            match self.read(value_fid, done as u64, &mut value[done..]) {
                Ok(0) => break Ok(()),
                Ok(count) => done += count,
                Err(error) => break Err(error),
            }
            if done == value.len() {
                break Ok(());
            }
        };
        self.forget(value_fid);
        value.truncate(done);
        read.map(|()| value)
    }

    /// Sets an extended attribute; no value removes it.
    pub fn set_xattr(&self, fid: Fid, name: &[u8], value: Option<&[u8]>, flags: XattrFlags) -> Called<()> {
        self.need_linux()?;
        let on = self.copy_fid(fid)?;
        let flags = if value.is_none() { XattrFlags::REPLACE } else { flags };
        let value = value.unwrap_or_default();
        let request = Request::Xattrcreate { fid: on, name, size: value.len() as u64, flags: flags.0 };
        let begun = self.call(&request, |reply| matches!(reply, Reply::Xattrcreate {}).then_some(()));
        let written = begun.and_then(|()| self.write_all(on, 0, value));
        let set = self.clunk(on);
        written.and(set)
    }

    /// Takes or gives back a lock.
    pub fn lock(&self, fid: Fid, kind: LockKind, range: &LockRange<'_>) -> Called<LockStatus> {
        self.need_linux()?;
        let request = Request::Lock { fid, kind, flags: 0, range: *range };
        self.call(&request, |reply| match reply {
            Reply::Lock { status: 0 } => Some(LockStatus::Success),
            Reply::Lock { status: 1 } => Some(LockStatus::Blocked),
            Reply::Lock { status: 3 } => Some(LockStatus::Grace),
            Reply::Lock { .. } => Some(LockStatus::Error),
            _ => None,
        })
    }

    /// The first lock in the way of this one.
    pub fn conflicting_lock(
        &self,
        fid: Fid,
        kind: LockKind,
        range: &LockRange<'_>,
    ) -> Called<Option<HeldLock>> {
        self.need_linux()?;
        self.call(&Request::Getlock { fid, kind, range: *range }, |reply| match reply {
            Reply::Getlock { kind: LockKind::UNLOCK, .. } => Some(None),
            Reply::Getlock { kind, range } => Some(Some(HeldLock {
                kind: *kind,
                start: range.start,
                length: range.length,
                process: range.process,
                client: range.client.to_vec(),
            })),
            _ => None,
        })
    }
}

fn payload(reply: &Reply<'_>, buffer: &mut [u8]) -> Option<usize> {
    match reply {
        // A server that answers more than was asked for is not believed.
        Reply::Read { payload } if payload.0.len() <= buffer.len() => {
            buffer[..payload.0.len()].copy_from_slice(payload.0);
            Some(payload.0.len())
        }
        _ => None,
    }
}

#[expect(clippy::missing_errors_doc, reason = "all fail with ClientError, as its variants say")]
impl Call {
    /// Waits for a read and copies what it brought to the front of `buffer`.
    pub fn finish_read(self, buffer: &mut [u8]) -> Called<usize> {
        self.wait()?.expect(|reply| payload(reply, buffer))
    }

    /// Waits for a read and hands what it brought to `take`.
    pub fn finish_read_with<T>(self, take: impl FnOnce(&[u8]) -> T) -> Called<T> {
        self.wait()?.expect(|reply| match reply {
            Reply::Read { payload } => Some(take(payload.0)),
            _ => None,
        })
    }

    /// Waits for a write and returns how much was written.
    pub fn finish_write(self) -> Called<usize> {
        self.wait()?.expect(|reply| match reply {
            Reply::Write { count } => usize::try_from(*count).ok(),
            _ => None,
        })
    }
}
