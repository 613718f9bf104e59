//! What 9P2000 and .u have in place of Linux's calls, the client's side.

use super::{Called, Connection};
use crate::client::{ClientError, Listed};
use crate::errno::Errno;
use crate::filesystem::{NodeSpec, OpenFlags};
use crate::message::{Dialect, Extension, Fid, Reply, Request};
use crate::qid::{Qid, QidKind};
use crate::server::HARD_LINKS;
use crate::stat::{Attributes, SetAttributes, Stat, Time, Wrapped, getattr, setattr};
use crate::wire::{Field, Reader};

/// Bits of a mode of stat(5), as `server/classic.rs` has them.
pub(super) const DIRECTORY: u32 = 0x8000_0000;
pub(super) const SYMLINK: u32 = 0x0200_0000;
pub(super) const LINK: u32 = 0x0100_0000;
const DEVICE: u32 = 0x0080_0000;
const NAMED_PIPE: u32 = 0x0020_0000;
const SOCKET: u32 = 0x0010_0000;
/// Those that chmod(2) has as well, and its bits.
const CHANGED_BITS: [(u32, u32); 3] = [(0o4000, 0x0008_0000), (0o2000, 0x0004_0000), (0o1000, 0x0001_0000)];

/// Linux's flags as a mode of Topen.
pub(super) fn open_mode(flags: OpenFlags, dialect: Dialect) -> u8 {
    let mut mode = (flags.0 & 3) as u8;
    if flags.contains(OpenFlags::TRUNC) {
        mode |= 0x10;
    }
    if flags.contains(OpenFlags::APPEND) && dialect == Dialect::Unix {
        mode |= 0x80;
    }
    mode
}

/// Permissions and text of what Tmknod would make.
pub(super) fn special(spec: &NodeSpec) -> Called<(u32, String)> {
    let NodeSpec { mode, major, minor, .. } = *spec;
    let permissions = mode & 0o777;
    match mode & 0o170_000 {
        0 | 0o100_000 => Ok((permissions, String::new())),
        0o010_000 => Ok((permissions | NAMED_PIPE, String::new())),
        0o140_000 => Ok((permissions | SOCKET, String::new())),
        0o060_000 => Ok((permissions | DEVICE, format!("b {major} {minor}"))),
        0o020_000 => Ok((permissions | DEVICE, format!("c {major} {minor}"))),
        _ => Err(ClientError::Refused(Errno::EINVAL)),
    }
}

/// A stat as Linux has it.
pub(super) fn attributes(stat: &Stat<'_>) -> Attributes {
    let kind = match stat.mode {
        mode if mode & DIRECTORY != 0 => 0o040_000,
        mode if mode & SYMLINK != 0 => 0o120_000,
        mode if mode & NAMED_PIPE != 0 => 0o010_000,
        mode if mode & SOCKET != 0 => 0o140_000,
        mode if mode & DEVICE != 0 && stat.extension.starts_with(b"b") => 0o060_000,
        mode if mode & DEVICE != 0 => 0o020_000,
        _ => 0o100_000,
    };
    let bits = CHANGED_BITS.iter().filter(|(_, dm)| stat.mode & dm != 0).fold(0, |sum, (bit, _)| sum | bit);
    let time = |seconds: u32| Time { seconds: seconds.into(), nanoseconds: 0 };
    let number = |name: &[u8], numeric: u32| match numeric {
        u32::MAX => std::str::from_utf8(name).ok().and_then(|name| name.parse().ok()).unwrap_or(u32::MAX),
        numeric => numeric,
    };
    let names = std::str::from_utf8(stat.extension).ok().and_then(|text| text.strip_prefix(HARD_LINKS));
    let names = names.and_then(|count| count.parse().ok());
    let length = if kind == 0o120_000 { stat.extension.len() as u64 } else { stat.length };
    Attributes {
        valid: getattr::BASIC,
        qid: stat.qid,
        mode: kind | bits | stat.mode & 0o777,
        uid: number(stat.user, stat.numeric_user),
        gid: number(stat.group, stat.numeric_group),
        nlink: names.unwrap_or(1),
        size: length,
        block_size: 4096,
        blocks: length.div_ceil(512),
        atime: time(stat.atime_s),
        mtime: time(stat.mtime_s),
        ctime: time(stat.mtime_s),
        ..Attributes::default()
    }
}

/// A stat that touches nothing.
fn untouched() -> Stat<'static> {
    Stat {
        kind: u16::MAX,
        device: u32::MAX,
        qid: Qid { kind: QidKind(u8::MAX), version: u32::MAX, path: u64::MAX },
        mode: u32::MAX,
        atime_s: u32::MAX,
        mtime_s: u32::MAX,
        length: u64::MAX,
        name: b"",
        user: b"",
        group: b"",
        last_writer: b"",
        extension: b"",
        numeric_user: u32::MAX,
        numeric_group: u32::MAX,
        numeric_last_writer: u32::MAX,
    }
}

impl Connection {
    fn write_stat(&self, fid: Fid, stat: Stat<'_>) -> Called<()> {
        let request = Request::Wstat { fid, stat: Wrapped(stat) };
        self.call(&request, |reply| matches!(reply, Reply::Wstat {}).then_some(()))
    }

    /// A wstat that changes nothing asks for a sync.
    pub(super) fn touch_nothing(&self, fid: Fid) -> Called<()> {
        self.write_stat(fid, untouched())
    }

    pub(super) fn rename_classic(&self, fid: Fid, name: &[u8]) -> Called<()> {
        self.write_stat(fid, Stat { name, ..untouched() })
    }

    pub(super) fn set_attributes_classic(&self, fid: Fid, change: &SetAttributes) -> Called<()> {
        let has = |bit| change.valid & bit != 0;
        let now = || {
            let since =
                std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            u32::try_from(since.as_secs()).unwrap_or(u32::MAX - 1)
        };
        let time = |set: bool, time: Time| {
            if set { u32::try_from(time.seconds).unwrap_or(u32::MAX - 1) } else { now() }
        };
        let mut stat = untouched();
        let (user, group);
        if has(setattr::MODE) {
            let special = CHANGED_BITS.iter().filter(|(bit, _)| change.mode & bit != 0);
            stat.mode = change.mode & 0o777 | special.fold(0, |sum, (_, dm)| sum | dm);
            if self.attributes(fid)?.qid.kind.is_directory() {
                stat.mode |= DIRECTORY;
            }
        }
        if has(setattr::SIZE) {
            stat.length = change.size;
        }
        if has(setattr::ATIME) {
            stat.atime_s = time(has(setattr::ATIME_SET), change.atime);
        }
        if has(setattr::MTIME) {
            stat.mtime_s = time(has(setattr::MTIME_SET), change.mtime);
        }
        if has(setattr::UID) {
            stat.numeric_user = change.uid;
            user = change.uid.to_string();
            stat.user = user.as_bytes();
        }
        if has(setattr::GID) {
            stat.numeric_group = change.gid;
            group = change.gid.to_string();
            stat.group = group.as_bytes();
        }
        self.write_stat(fid, stat)
    }

    pub(super) fn create_classic(
        &self,
        fid: Fid,
        name: &[u8],
        permissions: u32,
        flags: OpenFlags,
        extension: &[u8],
    ) -> Called<Qid> {
        let special = CHANGED_BITS.iter().filter(|(bit, _)| permissions & bit != 0);
        let permissions = permissions & !0o7000 | special.fold(0, |sum, (_, dm)| sum | dm);
        let mode = open_mode(flags, self.dialect());
        let request = Request::Create { fid, name, permissions, mode, extension: Extension(extension) };
        self.call(&request, |reply| match reply {
            Reply::Create { qid, .. } => Some(*qid),
            _ => None,
        })
    }

    /// Creates on a fid of its own, which is then forgotten.
    pub(super) fn make_classic(
        &self,
        directory: Fid,
        name: &[u8],
        permissions: u32,
        extension: &[u8],
    ) -> Called<Qid> {
        if permissions & !(DIRECTORY | 0o777) != 0 && self.dialect() != Dialect::Unix {
            return Err(ClientError::Refused(Errno::EOPNOTSUPP));
        }
        let fid = self.copy_fid(directory)?;
        let made = self.create_classic(fid, name, permissions, OpenFlags::RDONLY, extension);
        self.forget(fid);
        made
    }

    /// The offset of an entry is where the one after it begins, which is only known of a message's last.
    pub(super) fn read_directory_classic(&self, fid: Fid, offset: u64, count: u32) -> Called<Vec<Listed>> {
        let dialect = self.dialect();
        self.start_read(fid, offset, count)?.finish_read_with(|bytes| {
            let mut reader = Reader::new(bytes, dialect);
            let mut listed = Vec::new();
            while !reader.is_empty() {
                let stat = Stat::parse(&mut reader)?;
                let offset = offset + (bytes.len() - reader.len()) as u64;
                let kind = ((attributes(&stat).mode >> 12) & 0xf) as u8;
                listed.push(Listed { qid: stat.qid, offset, kind, name: stat.name.to_vec() });
            }
            Ok(listed)
        })?
    }
}
