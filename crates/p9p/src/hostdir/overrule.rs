//! Root in the client may do what a file's own permissions forbid its owner, as root may anywhere.
//!
//! With [`Ownership::Mapped`] the client's root stands for the user who runs the server. Root opens a file of mode 0444
//! for writing (git makes its objects so, and a Linux client that caches opens them a second time) and removes what is
//! in a directory of mode 0555; the host refuses both to the user. The user could change the mode, though, so that is
//! what happens here: the missing bits of the owner are added, the call is repeated, the old mode comes back. No rights
//! are used that the user does not have; what others own stays refused. A server that is killed in between leaves the
//! bits that it added.

use std::sync::PoisonError;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, chmodat};
use rustix::path::DecInt;

use super::Share;
use super::identity::stat;
use super::node::Client;
use super::ownership::Ownership;
use crate::errno::Errno;
use crate::filesystem::Answer;

/// What a call needs from a file's owner.
pub(super) const READ_WRITE: u32 = 0o600;
/// What listing a directory needs.
pub(super) const LIST: u32 = 0o500;
/// What going through a directory needs.
pub(super) const SEARCH: u32 = 0o100;
/// What making and removing entries of a directory needs.
pub(super) const CHANGE: u32 = 0o300;

impl Share {
    /// Makes `call`, which needs `bits` of the owner of the file behind `fd`, and repeats it with them if it fails
    /// without them.
    pub(super) fn with_rights<T>(
        &self,
        client: Client,
        fd: &OwnedFd,
        bits: u32,
        call: impl Fn() -> Answer<T>,
    ) -> Answer<T> {
        match call() {
            Err(Errno::EACCES) if self.stands_for_the_user(client) => self.overrule(fd, bits, call),
            other => other,
        }
    }

    fn stands_for_the_user(&self, client: Client) -> bool {
        let mapped =
            matches!(self.ownership, Ownership::Mapped { host_uid, .. } if host_uid == self.effective.0);
        // Linux attaches without a number where one attach is for all its users (access=any); it holds them to the
        // modes itself then.
        let root = matches!(client.uid, 0 | u32::MAX);
        mapped && root && !self.privileged && !self.read_only
    }

    fn overrule<T>(&self, fd: &OwnedFd, bits: u32, call: impl Fn() -> Answer<T>) -> Answer<T> {
        // Two at once would take each other's intermediate mode for the file's own.
        let _modes = self.modes.lock().unwrap_or_else(PoisonError::into_inner);
        let stat = stat(fd)?;
        let mode = u32::from(stat.stx_mode) & 0o7777;
        if stat.stx_uid != self.effective.0 || mode & bits == bits {
            // Not ours to change, or it was something else that refused. It may have gone meanwhile.
            return call();
        }
        self.change_mode(fd, mode | bits)?;
        let result = call();
        let restored = self.change_mode(fd, mode);
        result.and_then(|value| restored.map(|()| value))
    }

    /// chmod(2) of exactly this file. The caller holds [`Share::modes`].
    pub(super) fn change_mode(&self, fd: &OwnedFd, mode: u32) -> Answer<()> {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        Ok(chmodat(&self.proc_fds, DecInt::from_fd(fd), mode, AtFlags::empty())?)
    }
}
