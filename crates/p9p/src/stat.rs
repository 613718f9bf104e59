//! What is said about files: attributes of .L, the stat of 9P2000 and .u, totals, locks and directory entries.

use crate::message::Dialect;
use crate::qid::{Qid, QidKind};
use crate::wire::{Field, Reader, WireError, Writer};

macro_rules! record {
    ($(#[$doc:meta])* $name:ident $(<$life:lifetime>)? { $($(#[$field_doc:meta])* $field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct $name $(<$life>)? { $($(#[$field_doc])* pub $field: $type),* }

        record!(@field $name $(<$life>)? { $($field: $type),* });
    };
    (@field $name:ident { $($field:ident: $type:ty),* }) => {
        impl Field<'_> for $name {
            fn parse(reader: &mut Reader<'_>) -> Result<Self, WireError> {
                Ok(Self { $($field: <$type>::parse(reader)?),* })
            }
            fn emit(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
                $(self.$field.emit(writer)?;)*
                Ok(())
            }
        }
    };
    (@field $name:ident <$life:lifetime> { $($field:ident: $type:ty),* }) => {
        impl<$life> Field<$life> for $name<$life> {
            fn parse(reader: &mut Reader<$life>) -> Result<Self, WireError> {
                Ok(Self { $($field: <$type as Field<$life>>::parse(reader)?),* })
            }
            fn emit(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
                $(self.$field.emit(writer)?;)*
                Ok(())
            }
        }
    };
}

record! {
    /// A point in time since 1970; before it, `seconds` is two's complement.
    Time {
        /// Whole seconds.
        seconds: u64,
        /// The rest.
        nanoseconds: u64,
    }
}

/// Bits of `Getattr.mask` and [`Attributes::valid`] (`P9_GETATTR_*`).
pub mod getattr {
    #![expect(missing_docs, reason = "each is the field of that name")]
    pub const MODE: u64 = 0x1;
    pub const NLINK: u64 = 0x2;
    pub const UID: u64 = 0x4;
    pub const GID: u64 = 0x8;
    pub const RDEV: u64 = 0x10;
    pub const ATIME: u64 = 0x20;
    pub const MTIME: u64 = 0x40;
    pub const CTIME: u64 = 0x80;
    pub const INO: u64 = 0x100;
    pub const SIZE: u64 = 0x200;
    pub const BLOCKS: u64 = 0x400;
    pub const BTIME: u64 = 0x800;
    pub const GEN: u64 = 0x1000;
    pub const DATA_VERSION: u64 = 0x2000;
    /// Everything that stat(2) tells.
    pub const BASIC: u64 = 0x7ff;
}

record! {
    /// The answer to Tgetattr.
    Attributes {
        /// Which fields count: bits of [`getattr`].
        valid: u64,
        /// The file's identity.
        qid: Qid,
        /// Type and permissions, as stat(2).
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Hard links.
        nlink: u64,
        /// Device number of a device node, as Linux's `new_encode_dev`.
        rdev: u64,
        /// Size in bytes.
        size: u64,
        /// Preferred size of a read or write, in bytes.
        block_size: u64,
        /// Space taken, in 512-byte units.
        blocks: u64,
        /// Last read.
        atime: Time,
        /// Last change of content.
        mtime: Time,
        /// Last change of attributes.
        ctime: Time,
        /// Creation.
        btime: Time,
        /// Inode generation.
        generation: u64,
        /// Version of the content.
        data_version: u64,
    }
}

/// Bits of [`SetAttributes::valid`] (`P9_ATTR_*`).
pub mod setattr {
    #![expect(missing_docs, reason = "each is the field of that name")]
    pub const MODE: u32 = 0x1;
    pub const UID: u32 = 0x2;
    pub const GID: u32 = 0x4;
    pub const SIZE: u32 = 0x8;
    /// Without [`ATIME_SET`], to the server's present time.
    pub const ATIME: u32 = 0x10;
    /// Without [`MTIME_SET`], to the server's present time.
    pub const MTIME: u32 = 0x20;
    pub const CTIME: u32 = 0x40;
    pub const ATIME_SET: u32 = 0x80;
    pub const MTIME_SET: u32 = 0x100;
}

record! {
    /// What Tsetattr changes.
    SetAttributes {
        /// Which fields count: bits of [`setattr`].
        valid: u32,
        /// Permissions.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Size in bytes.
        size: u64,
        /// Last read.
        atime: Time,
        /// Last change of content.
        mtime: Time,
    }
}

record! {
    /// The answer to Tstatfs; the fields are statfs(2)'s.
    StatFs {
        /// Magic number of the file system's type.
        kind: u32,
        /// Unit of the block counts, in bytes.
        block_size: u32,
        /// All blocks.
        blocks: u64,
        /// Free blocks.
        blocks_free: u64,
        /// Blocks free to users.
        blocks_available: u64,
        /// All inodes.
        files: u64,
        /// Free inodes.
        files_free: u64,
        /// Identity of the file system.
        fsid: u64,
        /// Longest name, in bytes.
        name_bytes_max: u32,
    }
}

impl StatFs {
    /// The magic number that statfs(2) gives of 9P on Linux (`V9FS_MAGIC`).
    pub const V9FS_MAGIC: u32 = 0x0102_1997;
}

/// What a lock does (`P9_LOCK_TYPE_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LockKind(pub u8);

impl LockKind {
    /// Shared.
    pub const READ: Self = Self(0);
    /// Exclusive.
    pub const WRITE: Self = Self(1);
    /// None: gives back what is held.
    pub const UNLOCK: Self = Self(2);
}

impl Field<'_> for LockKind {
    fn parse(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        u8::parse(reader).map(Self)
    }
    fn emit(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        self.0.emit(writer)
    }
}

/// How a Tlock went (`P9_LOCK_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockStatus {
    /// Done.
    Success = 0,
    /// Somebody else holds it; the client asks again later.
    Blocked = 1,
    /// Not possible.
    Error = 2,
    /// The server is not ready.
    Grace = 3,
}

/// In the flags of Tlock: the client is prepared to wait.
pub const LOCK_FLAG_BLOCK: u32 = 1;

record! {
    /// The range that a lock is on, and who holds it.
    LockRange<'a> {
        /// First byte.
        start: u64,
        /// Bytes; 0 is to the end of the file however it grows.
        length: u64,
        /// Process within the client.
        process: u32,
        /// The client.
        client: &'a [u8],
    }
}

record! {
    /// One entry of an Rreaddir.
    DirectoryEntry<'a> {
        /// The file's identity.
        qid: Qid,
        /// Where to go on after this entry.
        offset: u64,
        /// Linux's `d_type`.
        kind: u8,
        /// The name.
        name: &'a [u8],
    }
}

/// The stat of 9P2000, with what .u adds (which is empty or all ones in 9P2000).
///
/// Spec: stat(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the fields are the manual's")]
pub struct Stat<'a> {
    pub kind: u16,
    pub device: u32,
    pub qid: Qid,
    pub mode: u32,
    pub atime_s: u32,
    pub mtime_s: u32,
    pub length: u64,
    pub name: &'a [u8],
    pub user: &'a [u8],
    pub group: &'a [u8],
    pub last_writer: &'a [u8],
    pub extension: &'a [u8],
    pub numeric_user: u32,
    pub numeric_group: u32,
    pub numeric_last_writer: u32,
}

impl<'a> Field<'a> for Stat<'a> {
    fn parse(outer: &mut Reader<'a>) -> Result<Self, WireError> {
        let count = u16::parse(outer)?;
        let mut reader = Reader::new(outer.bytes(count.into())?, outer.dialect());
        let reader = &mut reader;
        let mut stat = Self {
            kind: u16::parse(reader)?,
            device: u32::parse(reader)?,
            qid: Qid::parse(reader)?,
            mode: u32::parse(reader)?,
            atime_s: u32::parse(reader)?,
            mtime_s: u32::parse(reader)?,
            length: u64::parse(reader)?,
            name: <&[u8]>::parse(reader)?,
            user: <&[u8]>::parse(reader)?,
            group: <&[u8]>::parse(reader)?,
            last_writer: <&[u8]>::parse(reader)?,
            extension: &[],
            numeric_user: u32::MAX,
            numeric_group: u32::MAX,
            numeric_last_writer: u32::MAX,
        };
        if reader.dialect() == Dialect::Unix {
            stat.extension = <&[u8]>::parse(reader)?;
            stat.numeric_user = u32::parse(reader)?;
            stat.numeric_group = u32::parse(reader)?;
            stat.numeric_last_writer = u32::parse(reader)?;
        }
        reader.clone().finish()?;
        Ok(stat)
    }
    fn emit(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        with_size(writer, |writer| {
            self.kind.emit(writer)?;
            self.device.emit(writer)?;
            self.qid.emit(writer)?;
            self.mode.emit(writer)?;
            self.atime_s.emit(writer)?;
            self.mtime_s.emit(writer)?;
            self.length.emit(writer)?;
            self.name.emit(writer)?;
            self.user.emit(writer)?;
            self.group.emit(writer)?;
            self.last_writer.emit(writer)?;
            if writer.dialect() == Dialect::Unix {
                self.extension.emit(writer)?;
                self.numeric_user.emit(writer)?;
                self.numeric_group.emit(writer)?;
                self.numeric_last_writer.emit(writer)?;
            }
            Ok(())
        })
    }
}

/// A value with its size in two bytes before it: Rstat and Twstat count their stat twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrapped<T>(pub T);

impl<'a, T: Field<'a>> Field<'a> for Wrapped<T> {
    fn parse(outer: &mut Reader<'a>) -> Result<Self, WireError> {
        let count = u16::parse(outer)?;
        let mut reader = Reader::new(outer.bytes(count.into())?, outer.dialect());
        let value = T::parse(&mut reader)?;
        reader.finish()?;
        Ok(Self(value))
    }
    fn emit(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        with_size(writer, |writer| self.0.emit(writer))
    }
}

/// Writes two bytes of size and then what `body` writes.
fn with_size(
    writer: &mut Writer<'_>,
    body: impl FnOnce(&mut Writer<'_>) -> Result<(), WireError>,
) -> Result<(), WireError> {
    let start = writer.len();
    0u16.emit(writer)?;
    body(writer)?;
    let bytes = writer.len() - start - 2;
    let size = u16::try_from(bytes).map_err(|_| WireError::StringTooLong { bytes })?;
    writer.patch(start, &size.to_le_bytes());
    Ok(())
}

/// The qid type of a file with this `st_mode`.
pub fn qid_kind(mode: u32) -> QidKind {
    match mode & 0o170_000 {
        0o040_000 => QidKind::DIRECTORY,
        0o120_000 => QidKind::SYMLINK,
        _ => QidKind::FILE,
    }
}
