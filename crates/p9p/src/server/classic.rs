//! What 9P2000 and 9P2000.u have in place of Linux's calls: opens with Plan 9's modes, creation of everything by one
//! message, directories read as stats. `wstat` is in its own file.
//!
//! Names are the server's affair here: a fid remembers the way it came (`Trail`), so that stat(5) has a name, `..` leads
//! back, and a rename knows its directory. Users and groups are decimal numbers in 9P2000's strings. A symbolic link is
//! one in .u; 9P2000 has none, and sees a file whose content is the target.
//!
//! Spec: open(5), read(5), stat(5), walk(5); the bits of .u as Linux's `include/net/9p/9p.h`.

use std::sync::{Arc, Mutex, PoisonError};

use super::dispatch::{Operation, refused};
use crate::errno::Errno;
use crate::fid::{Entry, Listing, State, Trail};
use crate::filesystem::{Answer, Cancel, Entries, Node, NodeSpec, OpenFile, OpenFlags};
use crate::message::{Dialect, Extension, Fid, Reply};
use crate::qid::{Qid, QidKind};
use crate::stat::{Attributes, DirectoryEntry, Stat, Time, getattr};
use crate::wire::{Field, Reader, Writer};

/// Bits of a Topen's mode beside the access mode in the lowest two.
mod mode {
    pub const ACCESS: u8 = 3;
    pub const EXEC: u8 = 3;
    pub const TRUNC: u8 = 0x10;
    pub const REMOVE_ON_CLOSE: u8 = 0x40;
    /// Only .u.
    pub const APPEND: u8 = 0x80;
}

/// Bits of a file's mode beside the permissions in the lowest nine.
pub(super) mod dm {
    pub const DIRECTORY: u32 = 0x8000_0000;
    pub const APPEND: u32 = 0x4000_0000;
    pub const EXCLUSIVE: u32 = 0x2000_0000;
    pub const SYMLINK: u32 = 0x0200_0000;
    pub const LINK: u32 = 0x0100_0000;
    pub const DEVICE: u32 = 0x0080_0000;
    pub const NAMED_PIPE: u32 = 0x0020_0000;
    pub const SOCKET: u32 = 0x0010_0000;
    pub const SETUID: u32 = 0x0008_0000;
    pub const SETGID: u32 = 0x0004_0000;
    pub const STICKY: u32 = 0x0001_0000;
}

/// Type bits of `st_mode`.
const S_IFMT: u32 = 0o170_000;
const S_IFSOCK: u32 = 0o140_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFBLK: u32 = 0o060_000;
pub(super) const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFIFO: u32 = 0o010_000;

/// Bytes for one call of the service's directory listing.
const LISTING_BYTES: usize = 32 << 10;

/// What stands before the number of a file's names in its extension.
pub(crate) const HARD_LINKS: &str = "HARDLINKCOUNT ";

/// No group: the service's default.
const NO_GROUP: u32 = u32::MAX;

/// One name further on the way; `..` leads back, and stays at the root.
pub(super) fn step(trail: &Arc<Trail>, name: &[u8]) -> Answer<Arc<Trail>> {
    if name == b".." {
        return Ok(Arc::clone(trail.parent.as_ref().unwrap_or(trail)));
    }
    let node = trail.node.walk(name)?;
    if name == b"." {
        return Ok(Arc::clone(trail));
    }
    Ok(Arc::new(Trail { parent: Some(Arc::clone(trail)), node, name: name.into() }))
}

/// The qid as a dialect has it.
pub(super) fn qid_for(mut qid: Qid, dialect: Dialect) -> Qid {
    if dialect == Dialect::Plan9 {
        qid.kind.0 &= !QidKind::SYMLINK.0;
    }
    qid
}

/// A file and all that its stat says.
pub(super) struct Described<'t> {
    name: &'t [u8],
    qid: Qid,
    attributes: Attributes,
    extension: Vec<u8>,
    uid: String,
    gid: String,
    dialect: Dialect,
}

impl<'t> Described<'t> {
    /// Looks at what a trail leads to.
    pub fn of(trail: &'t Trail, dialect: Dialect) -> Answer<Self> {
        let attributes = trail.node.attributes(getattr::BASIC)?;
        let extension = match attributes.mode & S_IFMT {
            _ if dialect != Dialect::Unix => Vec::new(),
            S_IFLNK => trail.node.read_link()?,
            kind @ (S_IFBLK | S_IFCHR) => {
                let letter = if kind == S_IFBLK { 'b' } else { 'c' };
                let (major, minor) = device_numbers(attributes.rdev);
                format!("{letter} {major} {minor}").into_bytes()
            }
            // .u has no field for it; Linux takes it from here (fs/9p/vfs_inode.c, v9fs_stat2inode).
            kind if kind != S_IFDIR && attributes.nlink > 1 => {
                format!("{HARD_LINKS}{}", attributes.nlink).into_bytes()
            }
            _ => Vec::new(),
        };
        Ok(Self {
            name: &trail.name,
            qid: qid_for(attributes.qid, dialect),
            uid: attributes.uid.to_string(),
            gid: attributes.gid.to_string(),
            attributes,
            extension,
            dialect,
        })
    }

    /// The stat.
    pub fn stat(&self) -> Stat<'_> {
        let Attributes { mode, uid, gid, size, atime, mtime, .. } = self.attributes;
        Stat {
            kind: 0,
            device: 0,
            qid: self.qid,
            mode: mode_of(mode, self.qid.kind, self.dialect),
            atime_s: seconds(atime),
            mtime_s: seconds(mtime),
            length: if mode & S_IFMT == S_IFDIR { 0 } else { size },
            name: self.name,
            user: self.uid.as_bytes(),
            group: self.gid.as_bytes(),
            last_writer: self.uid.as_bytes(),
            extension: &self.extension,
            numeric_user: uid,
            numeric_group: gid,
            numeric_last_writer: uid,
        }
    }
}

/// Major and minor number out of Linux's `new_encode_dev`.
fn device_numbers(rdev: u64) -> (u64, u64) {
    ((rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00))
}

/// The years before 1970 and after 2106 are not to be had.
fn seconds(time: Time) -> u32 {
    u32::try_from(time.seconds.cast_signed().max(0)).unwrap_or(u32::MAX)
}

/// `st_mode` as stat(5) has it. The top byte is the qid's, whose bits are the same.
fn mode_of(mode: u32, kind: QidKind, dialect: Dialect) -> u32 {
    let permissions = mode & 0o777 | u32::from(kind.0) << 24;
    if dialect != Dialect::Unix {
        return permissions;
    }
    let special = match mode & S_IFMT {
        S_IFBLK | S_IFCHR => dm::DEVICE,
        S_IFIFO => dm::NAMED_PIPE,
        S_IFSOCK => dm::SOCKET,
        S_IFLNK => dm::SYMLINK,
        _ => 0,
    };
    let bits = [(0o4000, dm::SETUID), (0o2000, dm::SETGID), (0o1000, dm::STICKY)];
    permissions | special | bits.iter().filter(|(bit, _)| mode & bit != 0).fold(0, |sum, (_, dm)| sum | dm)
}

/// The bits of chmod(2) in a mode of stat(5).
pub(super) fn permissions_of(mode: u32, dialect: Dialect) -> u32 {
    let bits = [(0o4000, dm::SETUID), (0o2000, dm::SETGID), (0o1000, dm::STICKY)];
    let extra = if dialect == Dialect::Unix {
        bits.iter().filter(|(_, dm)| mode & dm != 0).fold(0, |sum, (bit, _)| sum | bit)
    } else {
        0
    };
    mode & 0o777 | extra
}

/// Reads a directory as stats; see read(5): an offset is 0 or where the last read ended.
pub(super) fn read_directory(
    file: &dyn OpenFile,
    listing: &Mutex<Listing>,
    trail: &Arc<Trail>,
    offset: u64,
    mut writer: Writer<'_>,
) -> Answer<usize> {
    let mut listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
    match offset {
        0 => *listing = Listing::default(),
        offset if offset == listing.bytes => {}
        _ => {
            return Err(
                Errno::EINVAL.with_text("a directory is read from its start or where the last read ended")
            );
        }
    }
    let mut buffer = vec![0; LISTING_BYTES.min(writer.room().max(512))];
    loop {
        let mut entries = Entries::new(Writer::new(&mut buffer, Dialect::Linux));
        file.read_directory(listing.cookie, &mut entries)?;
        let bytes = entries.len();
        let mut reader = Reader::new(&buffer[..bytes], Dialect::Linux);
        let mut is_full = false;
        for _ in 0..entries_in(&buffer[..bytes]) {
            let entry = DirectoryEntry::parse(&mut reader).map_err(refused)?;
            if !emit_entry(&entry, trail, &mut writer)? {
                is_full = true;
                break;
            }
            listing.cookie = entry.offset;
        }
        if is_full && writer.is_empty() {
            return Err(Errno::EMSGSIZE.with_text("the read is too short for the next entry"));
        }
        if is_full || bytes == 0 {
            listing.bytes = offset + writer.len() as u64;
            return Ok(writer.len());
        }
    }
}

fn entries_in(bytes: &[u8]) -> usize {
    let mut reader = Reader::new(bytes, Dialect::Linux);
    std::iter::from_fn(|| DirectoryEntry::parse(&mut reader).ok()).count()
}

/// Writes an entry's stat; `false` where it does not fit. One that is gone meanwhile is left out.
fn emit_entry(entry: &DirectoryEntry<'_>, trail: &Arc<Trail>, writer: &mut Writer<'_>) -> Answer<bool> {
    if matches!(entry.name, b"." | b"..") {
        return Ok(true);
    }
    let described = match step(trail, entry.name) {
        Ok(file) => Described::of(&file, writer.dialect()).map(|found| emit_stat(&found.stat(), writer)),
        Err(errno) => Err(errno),
    };
    match described {
        Err(Errno::ENOENT) => Ok(true),
        other => other,
    }
}

/// All of it or nothing.
fn emit_stat(stat: &Stat<'_>, writer: &mut Writer<'_>) -> bool {
    let mut bytes = [0; 2048];
    let mut whole = Writer::new(&mut bytes, writer.dialect());
    if stat.emit(&mut whole).is_ok() {
        let len = whole.len();
        return writer.bytes(&bytes[..len]).is_ok();
    }
    // A link with a target of up to PATH_MAX.
    let mut bytes = vec![0; 1 << 16];
    let mut whole = Writer::new(&mut bytes, writer.dialect());
    let fits = stat.emit(&mut whole).is_ok();
    let len = whole.len();
    fits && writer.bytes(&bytes[..len]).is_ok()
}

/// What a Tcreate says.
pub(super) struct NewFile<'a> {
    pub name: &'a [u8],
    pub permissions: u32,
    pub mode: u8,
    pub extension: Extension<'a>,
}

/// Topen's mode as open(2)'s flags.
fn flags_of(mode: u8, dialect: Dialect) -> OpenFlags {
    let mut flags = match mode & mode::ACCESS {
        mode::EXEC => OpenFlags::RDONLY,
        access => OpenFlags(access.into()),
    };
    if mode & mode::TRUNC != 0 {
        flags = flags | OpenFlags::TRUNC;
    }
    if mode & mode::APPEND != 0 && dialect == Dialect::Unix {
        flags = flags | OpenFlags::APPEND;
    }
    flags
}

impl Operation<'_> {
    /// open(5).
    pub fn open_classic(&self, fid: Fid, mode: u8) -> Answer<Reply<'static>> {
        let fids = &self.epoch.fids;
        let node = fids.closed_node(fid)?;
        let trail = fids.trail(fid)?;
        let flags = flags_of(mode, self.epoch.dialect);
        let qid = node.qid();
        let state = if qid.kind.is_directory() {
            if flags.mutates() || mode & mode::REMOVE_ON_CLOSE != 0 {
                return Err(Errno::EISDIR);
            }
            State::Directory(node.open(OpenFlags::DIRECTORY)?, Arc::default())
        } else if qid.kind == QidKind::SYMLINK && !flags.mutates() {
            State::Open(Arc::new(LinkTarget(node.read_link()?)))
        } else {
            State::Open(node.open(flags)?)
        };
        let mut entry = Entry::new(Arc::clone(&node), state, Some(trail));
        entry.remove_on_clunk = mode & mode::REMOVE_ON_CLOSE != 0;
        fids.transform(fid, &node, entry)?;
        Ok(Reply::Open { qid: self.qid(&*node), iounit: self.iounit() })
    }

    /// open(5), "create"; in .u also of links, devices, FIFOs and sockets.
    pub fn create_classic(&self, fid: Fid, new: &NewFile<'_>) -> Answer<Reply<'static>> {
        let fids = &self.epoch.fids;
        let parent = fids.closed_node(fid)?;
        let trail = fids.trail(fid)?;
        if matches!(new.name, b"." | b"..") {
            return Err(Errno::EINVAL);
        }
        let (node, state) = self.make(&*parent, new)?;
        let named = Trail { parent: Some(trail), node: Arc::clone(&node), name: new.name.into() };
        let mut entry = Entry::new(Arc::clone(&node), state, Some(Arc::new(named)));
        entry.remove_on_clunk = new.mode & mode::REMOVE_ON_CLOSE != 0;
        fids.transform(fid, &parent, entry)?;
        Ok(Reply::Create { qid: self.qid(&*node), iounit: self.iounit() })
    }

    fn make(&self, parent: &dyn Node, new: &NewFile<'_>) -> Answer<(Arc<dyn Node>, State)> {
        let dialect = self.epoch.dialect;
        let permissions = inherited(parent, new.permissions, dialect)?;
        let special = dm::SYMLINK | dm::LINK | dm::DEVICE | dm::NAMED_PIPE | dm::SOCKET;
        if new.permissions & dm::DIRECTORY != 0 {
            if flags_of(new.mode, dialect).mutates() {
                return Err(Errno::EISDIR);
            }
            parent.make_directory(new.name, permissions, NO_GROUP)?;
            let node = parent.walk(new.name)?;
            let file = node.open(OpenFlags::DIRECTORY)?;
            return Ok((node, State::Directory(file, Arc::default())));
        }
        if new.permissions & special != 0 && dialect == Dialect::Unix {
            self.make_special(parent, new, permissions)?;
            return Ok((parent.walk(new.name)?, State::Special));
        }
        if new.permissions & (special | dm::APPEND | dm::EXCLUSIVE) != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let flags = flags_of(new.mode, dialect) | OpenFlags::CREAT | OpenFlags::EXCL;
        let created = parent.create(new.name, flags, permissions, NO_GROUP)?;
        Ok((created.node, State::Open(created.file)))
    }

    fn make_special(&self, parent: &dyn Node, new: &NewFile<'_>, permissions: u32) -> Answer<()> {
        let text = new.extension.0;
        let made = match new.permissions {
            kind if kind & dm::SYMLINK != 0 => parent.make_symlink(new.name, text, NO_GROUP),
            kind if kind & dm::LINK != 0 => {
                let target = self.epoch.fids.node(Fid(number(text).ok_or(Errno::EINVAL)?))?;
                return parent.link(&*target, new.name);
            }
            kind => {
                let (kind, major, minor) = match kind {
                    kind if kind & dm::NAMED_PIPE != 0 => (S_IFIFO, 0, 0),
                    kind if kind & dm::SOCKET != 0 => (S_IFSOCK, 0, 0),
                    _ => device(text).ok_or(Errno::EINVAL)?,
                };
                let spec = NodeSpec { mode: kind | permissions, major, minor, gid: NO_GROUP };
                parent.make_node(new.name, &spec)
            }
        };
        made.map(|_| ())
    }
}

/// open(5): who creates in a directory gets at most its permissions. Only 9P2000; Unix has the umask.
fn inherited(parent: &dyn Node, permissions: u32, dialect: Dialect) -> Answer<u32> {
    let wanted = permissions_of(permissions, dialect);
    if dialect == Dialect::Unix {
        return Ok(wanted);
    }
    let limited = if permissions & dm::DIRECTORY != 0 { 0o777 } else { 0o666 };
    Ok(wanted & (!limited | parent.attributes(getattr::MODE)?.mode & limited))
}

/// A decimal number, and white space after it.
pub(super) fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.trim_end().parse().ok()
}

/// `b 8 1` or `c 1 3`: type bits of the mode, major and minor number.
fn device(text: &[u8]) -> Option<(u32, u32, u32)> {
    let mut words = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
    let kind = match words.next()? {
        "b" => S_IFBLK,
        "c" => S_IFCHR,
        _ => return None,
    };
    Some((kind, words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// The target of a symbolic link as a file, for clients that have no links.
struct LinkTarget(Vec<u8>);

impl OpenFile for LinkTarget {
    fn read(&self, offset: u64, buffer: &mut [u8], _cancel: &Cancel) -> Answer<usize> {
        Ok(super::dispatch::copy_from(&self.0, offset, buffer))
    }
}
