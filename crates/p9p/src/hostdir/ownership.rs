//! Whose files are whose: numeric ids of the host against those of the client.

use crate::errno::Errno;

/// How owners on the host appear to the client, and the other way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// The host user and the client's root are one: `host_uid` appears as 0 and 0 as `host_uid`, likewise the group;
    /// all other ids are the same on both sides. What root in a guest finds in its user's folder is then its own,
    /// and what it makes belongs to the user on the host.
    ///
    /// A server without privilege cannot give files away. Where the client asks for that on a file of this user
    /// (`tar` run by root does), the request is granted and the owner stays: an error would fail every unpacking.
    Mapped {
        /// Appears as uid 0.
        host_uid: u32,
        /// Appears as gid 0.
        host_gid: u32,
    },
    /// Ids are the same on both sides, and what the host refuses is refused.
    Unmapped,
}

impl Ownership {
    /// The user who runs this process appears as root.
    pub fn of_this_process() -> Self {
        Self::Mapped {
            host_uid: rustix::process::geteuid().as_raw(),
            host_gid: rustix::process::getegid().as_raw(),
        }
    }

    /// A uid of one side on the other.
    pub fn map_uid(self, uid: u32) -> u32 {
        match self {
            Self::Mapped { host_uid, .. } => swap(uid, host_uid),
            Self::Unmapped => uid,
        }
    }

    /// A gid of one side on the other.
    pub fn map_gid(self, gid: u32) -> u32 {
        match self {
            Self::Mapped { host_gid, .. } => swap(gid, host_gid),
            Self::Unmapped => gid,
        }
    }

    /// Whether a change of owner that failed like this is to be passed over, on a file of this user.
    pub(super) fn forgives(self, errno: Errno) -> bool {
        // EINVAL: an id that the user namespace does not have.
        matches!(self, Self::Mapped { .. }) && matches!(errno, Errno::EPERM | Errno::EINVAL)
    }
}

fn swap(id: u32, host: u32) -> u32 {
    match id {
        0 => host,
        id if id == host => 0,
        id => id,
    }
}

/// The umask, read without changing it; the usual one where it cannot be read.
pub(super) fn umask_of_this_process() -> u32 {
    const USUAL: u32 = 0o022;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(USUAL)
}
