//! The numbers and headers of the kernel's protocol, and a checked cursor over a request's bytes; no I/O.
//!
//! Everything is in the host's byte order. Spec: `include/uapi/linux/fuse.h`.

use p9p::Errno;

/// The version that we speak.
pub const MAJOR: u32 = 7;
/// Newest minor version whose messages we know.
pub const MINOR: u32 = 41;
/// Oldest minor version that we accept, of Linux 5.4.
pub const MINOR_MIN: u32 = 31;

/// Bytes of `fuse_out_header`.
pub const OUT_HEADER_BYTES: usize = 16;
/// The root's node id.
pub const ROOT: u64 = 1;

macro_rules! constants {
    ($type:ty; $($name:ident = $value:expr,)*) => { $(pub const $name: $type = $value;)* };
}

/// Operations (`fuse_opcode`).
pub mod op {
    constants! { u32;
        LOOKUP = 1, FORGET = 2, GETATTR = 3, SETATTR = 4, READLINK = 5, SYMLINK = 6, MKNOD = 8, MKDIR = 9, UNLINK = 10,
        RMDIR = 11, RENAME = 12, LINK = 13, OPEN = 14, READ = 15, WRITE = 16, STATFS = 17, RELEASE = 18, FSYNC = 20,
        SETXATTR = 21, GETXATTR = 22, LISTXATTR = 23, REMOVEXATTR = 24, FLUSH = 25, INIT = 26, OPENDIR = 27,
        READDIR = 28, RELEASEDIR = 29, FSYNCDIR = 30, GETLK = 31, SETLK = 32, SETLKW = 33, CREATE = 35,
        INTERRUPT = 36, DESTROY = 38, BATCH_FORGET = 42, READDIRPLUS = 44, RENAME2 = 45,
    }
}

/// What both sides can do (`FUSE_INIT` flags).
pub mod init {
    constants! { u32;
        ASYNC_READ = 1, POSIX_LOCKS = 1 << 1, ATOMIC_O_TRUNC = 1 << 3, BIG_WRITES = 1 << 5, FLOCK_LOCKS = 1 << 10,
        AUTO_INVAL_DATA = 1 << 12, DO_READDIRPLUS = 1 << 13, READDIRPLUS_AUTO = 1 << 14, ASYNC_DIO = 1 << 15,
        WRITEBACK_CACHE = 1 << 16, PARALLEL_DIROPS = 1 << 18, MAX_PAGES = 1 << 22,
    }
}

/// How a file is open (`FOPEN_*`).
pub mod fopen {
    constants! { u32;
        DIRECT_IO = 1, KEEP_CACHE = 2, NONSEEKABLE = 4, CACHE_DIR = 8, NOFLUSH = 32,
    }
}

/// What a SETATTR changes (`FATTR_*`).
pub mod fattr {
    constants! { u32;
        MODE = 1, UID = 2, GID = 4, SIZE = 8, ATIME = 16, MTIME = 32, FH = 64, ATIME_NOW = 128, MTIME_NOW = 256,
        CTIME = 1024,
    }
}

/// Messages that the kernel did not ask for (`fuse_notify_code`).
pub mod notify {
    constants! { i32;
        INVAL_INODE = 2, INVAL_ENTRY = 3,
    }
}

/// In `fsync_flags`: content only.
pub const FSYNC_FDATASYNC: u32 = 1;
/// In `release_flags`: what flock(2) took through this handle is given back.
pub const RELEASE_FLOCK_UNLOCK: u32 = 2;
/// In `lk_flags`: a lock of flock(2).
pub const LK_FLOCK: u32 = 1;
/// In the flags of RENAME2: the new name must not be there.
pub const RENAME_NOREPLACE: u32 = 1;

/// What precedes every request (`fuse_in_header`).
#[derive(Debug, Clone, Copy)]
pub struct Header {
    pub opcode: u32,
    /// The request's name, in its reply and in an INTERRUPT.
    pub unique: u64,
    pub node: u64,
    pub gid: u32,
}

/// A cursor over a request's body: reads past the end are EINVAL, as the kernel sends whole structures.
#[derive(Debug, Clone)]
pub struct Body<'a> {
    rest: &'a [u8],
}

impl<'a> Body<'a> {
    pub fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (array, rest) = self.rest.split_first_chunk::<N>().ok_or(Errno::EINVAL)?;
        self.rest = rest;
        Ok(*array)
    }

    pub fn u32(&mut self) -> Result<u32, Errno> {
        self.array().map(u32::from_ne_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Errno> {
        self.array().map(u64::from_ne_bytes)
    }

    pub fn skip(&mut self, count: usize) -> Result<(), Errno> {
        self.bytes(count).map(drop)
    }

    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Errno> {
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or(Errno::EINVAL)?;
        self.rest = rest;
        Ok(bytes)
    }

    /// A name with its NUL, which is left out.
    pub fn name(&mut self) -> Result<&'a [u8], Errno> {
        let end = self.rest.iter().position(|byte| *byte == 0).ok_or(Errno::EINVAL)?;
        let name = self.bytes(end)?;
        self.skip(1)?;
        Ok(name)
    }
}

/// Splits a message from the kernel; `None` when it is not one.
pub fn parse(message: &[u8]) -> Option<(Header, Body<'_>)> {
    let mut body = Body::new(message);
    let len = body.u32().ok()?;
    let header = Header {
        opcode: body.u32().ok()?,
        unique: body.u64().ok()?,
        node: body.u64().ok()?,
        gid: {
            let _uid = body.u32().ok()?;
            body.u32().ok()?
        },
    };
    // The asking process, and padding.
    body.skip(8).ok()?;
    (len as usize == message.len()).then_some((header, body))
}
