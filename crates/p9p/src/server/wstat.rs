//! stat(5), "wstat": several fields changed by one message, all of them or none.
//!
//! A service changes attributes one call at a time, so that what was changed already is changed back when a later step
//! fails; the steps that cannot be taken back come after those that show whether they will be allowed.

use super::classic::{S_IFDIR, dm, number, permissions_of};
use super::dispatch::Operation;
use crate::errno::Errno;
use crate::fid::Trail;
use crate::filesystem::{Answer, Node, OpenFile};
use crate::message::{Dialect, Fid, Reply};
use crate::stat::{Attributes, SetAttributes, Stat, Time, getattr, setattr};

/// What a Twstat changes: "don't touch" is `None`.
struct Change<'a> {
    name: Option<&'a [u8]>,
    length: Option<u64>,
    /// As in the message.
    mode: Option<u32>,
    permissions: u32,
    uid: Option<u32>,
    gid: Option<u32>,
    atime_s: Option<u32>,
    mtime_s: Option<u32>,
}

/// A number, unless it is all ones.
fn touched(number: u32) -> Option<u32> {
    (number != u32::MAX).then_some(number)
}

/// A user or group: .u's number or the decimal number that is its name here.
fn owner(name: &[u8], numeric: u32) -> Answer<Option<u32>> {
    match touched(numeric) {
        Some(numeric) => Ok(Some(numeric)),
        None if name.is_empty() => Ok(None),
        None => number(name).map(Some).ok_or(Errno::EINVAL.with_text("users and groups are numbers here")),
    }
}

impl<'a> Change<'a> {
    fn of(stat: &Stat<'a>, trail: &Trail, dialect: Dialect) -> Answer<Self> {
        if stat.name.contains(&b'/') {
            return Err(Errno::EINVAL);
        }
        Ok(Self {
            name: Some(stat.name).filter(|name| !name.is_empty() && **name != *trail.name),
            length: (stat.length != u64::MAX).then_some(stat.length),
            mode: touched(stat.mode),
            permissions: permissions_of(stat.mode, dialect),
            uid: owner(stat.user, stat.numeric_user)?,
            gid: owner(stat.group, stat.numeric_group)?,
            atime_s: touched(stat.atime_s),
            mtime_s: touched(stat.mtime_s),
        })
    }

    /// Refuses what no service could do.
    fn check(&self, before: &Attributes) -> Answer<()> {
        let is_directory = before.mode & 0o170_000 == S_IFDIR;
        if self.mode.is_some_and(|mode| (mode & dm::DIRECTORY != 0) != is_directory) {
            return Err(Errno::EINVAL.with_text("a file does not become a directory, nor a directory a file"));
        }
        if is_directory && self.length.is_some_and(|length| length != 0) {
            return Err(Errno::EISDIR);
        }
        Ok(())
    }

    /// The calls that it takes, in their order: those that only an owner may do are tried before the length, which
    /// cannot be taken back; the times come last, as all else changes them.
    fn steps(&self, before: &Attributes) -> Vec<SetAttributes> {
        let mut steps = Vec::new();
        let is_directory = before.mode & 0o170_000 == S_IFDIR;
        let length = self.length.filter(|_| !is_directory);
        let times = self.atime_s.is_some() || self.mtime_s.is_some();
        let mode = |mode| SetAttributes { valid: setattr::MODE, mode, ..SetAttributes::default() };
        if length.is_some() && (self.mode.is_some() || times) {
            steps.push(mode(before.mode & 0o7777));
        }
        let mut owner = SetAttributes::default();
        if let Some(uid) = self.uid {
            (owner.valid, owner.uid) = (owner.valid | setattr::UID, uid);
        }
        if let Some(gid) = self.gid {
            (owner.valid, owner.gid) = (owner.valid | setattr::GID, gid);
        }
        steps.extend(Some(owner).filter(|owner| owner.valid != 0));
        steps.extend(length.map(|size| SetAttributes { valid: setattr::SIZE, size, ..Default::default() }));
        steps.extend(self.mode.map(|_| mode(self.permissions)));
        let mut stamp = SetAttributes::default();
        if let Some(seconds) = self.atime_s {
            stamp.valid |= setattr::ATIME | setattr::ATIME_SET;
            stamp.atime = Time { seconds: seconds.into(), nanoseconds: 0 };
        }
        if let Some(seconds) = self.mtime_s {
            stamp.valid |= setattr::MTIME | setattr::MTIME_SET;
            stamp.mtime = Time { seconds: seconds.into(), nanoseconds: 0 };
        }
        steps.extend(Some(stamp).filter(|stamp| stamp.valid != 0));
        steps
    }
}

/// The step that undoes `step`, given what was there before.
fn undo(step: &SetAttributes, before: &Attributes) -> SetAttributes {
    let Attributes { mode, uid, gid, size, atime, mtime, .. } = *before;
    SetAttributes { valid: step.valid, mode: mode & 0o7777, uid, gid, size, atime, mtime }
}

/// Takes all steps, or none.
fn take(
    node: &dyn Node,
    file: Option<&dyn OpenFile>,
    steps: &[SetAttributes],
    before: &Attributes,
) -> Answer<()> {
    for (done, step) in steps.iter().enumerate() {
        let Err(errno) = node.set_attributes(step, file) else { continue };
        let text = errno.take_text();
        for step in steps[..done].iter().rev() {
            // As well as can be: the file may have changed hands meanwhile.
            let _undone = node.set_attributes(&undo(step, before), file);
        }
        return Err(text.map_or(errno, |text| errno.with_text(text)));
    }
    Ok(())
}

impl Operation<'_> {
    /// Twstat.
    pub fn change_stat(&self, fid: Fid, stat: &Stat<'_>) -> Answer<Reply<'static>> {
        let dialect = self.epoch.dialect;
        let fids = &self.epoch.fids;
        let (node, file) = fids.node_and_file(fid)?;
        let trail = fids.trail(fid)?;
        let change = Change::of(stat, &trail, dialect)?;
        let before = node.attributes(getattr::BASIC)?;
        change.check(&before)?;
        let steps = change.steps(&before);
        let Some(name) = change.name else {
            if steps.is_empty() {
                // "The server may interpret it as a request to guarantee that the contents are on stable storage."
                file.as_ref().map_or(Ok(()), |file| node.sync(&**file, false))?;
            }
            take(&*node, file.as_deref(), &steps, &before)?;
            return Ok(Reply::Wstat {});
        };
        let Some(parent) = &trail.parent else {
            return Err(Errno::EPERM.with_text("the root cannot be renamed"));
        };
        // Unix replaces a file by a rename, and its clients count on it; that cannot be taken back, though.
        let may_replace = steps.is_empty() && dialect == Dialect::Unix;
        if !may_replace && parent.node.walk(name).is_ok() {
            return Err(Errno::EEXIST);
        }
        node.rename(&*parent.node, name)?;
        if let Err(errno) = take(&*node, file.as_deref(), &steps, &before) {
            let text = errno.take_text();
            let _undone = node.rename(&*parent.node, &trail.name);
            return Err(text.map_or(errno, |text| errno.with_text(text)));
        }
        fids.rename(fid, name);
        Ok(Reply::Wstat {})
    }
}
