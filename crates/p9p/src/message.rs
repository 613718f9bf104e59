//! The messages of 9P2000, 9P2000.u and 9P2000.L: one variant per T- and R-message, bytes to value and back.
//!
//! Sans I/O and without allocation: names and payloads borrow from the message. A message is
//! `size[4] type[1] tag[2]` and its fields; the table below names them as the manuals do.
//!
//! Spec: Plan 9 manual section 5 (9P2000); the 9P2000.u extension; diod's `protocol.md` and Linux
//! `include/net/9p/9p.h` (9P2000.L).

use crate::qid::Qid;
use crate::stat::{Attributes, LockKind, LockRange, SetAttributes, Stat, StatFs, Wrapped};
use crate::wire::{Field, List, Payload, Reader, WireError, Writer};

/// Bytes of `size[4] type[1] tag[2]`.
pub const HEADER_BYTES: usize = 7;
/// Bytes before the payload of an Rread or Rreaddir, and of size, type, tag and count together.
pub const READ_HEADER_BYTES: usize = HEADER_BYTES + 4;
/// Bytes that a message needs beside a payload, at most: what `iounit` is below msize (`P9_IOHDRSZ`).
pub const IO_HEADER_BYTES: u32 = 24;
/// Most names in one Twalk (`P9_MAXWELEM`).
pub const WALK_NAMES_MAX: usize = 16;

/// The only flag of Tunlinkat: the entry is a directory (`P9_DOTL_AT_REMOVEDIR`).
pub const AT_REMOVEDIR: u32 = 0x200;

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// Plan 9's own.
    Plan9,
    /// With Unix ids, links and error numbers.
    Unix,
    /// With Linux's own system calls as messages.
    Linux,
}

impl Dialect {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Plan9, Self::Unix, Self::Linux];

    /// The name in Tversion.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plan9 => "9P2000",
            Self::Unix => "9P2000.u",
            Self::Linux => "9P2000.L",
        }
    }

    /// The dialect of that name.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|dialect| dialect.name().as_bytes() == name)
    }

    fn bit(self) -> u8 {
        match self {
            Self::Plan9 => 1,
            Self::Unix => 2,
            Self::Linux => 4,
        }
    }
}

/// Which dialects have a message.
const ALL: u8 = 7;
const CLASSIC: u8 = 3;
const LINUX: u8 = 4;

macro_rules! number_field {
    ($(#[$doc:meta])* $name:ident($integer:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub $integer);
        impl Field<'_> for $name {
            fn parse(reader: &mut Reader<'_>) -> Result<Self, WireError> {
                <$integer>::parse(reader).map(Self)
            }
            fn emit(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
                self.0.emit(writer)
            }
        }
    };
}
number_field! {
    /// The client's name for one request that is under way.
    Tag(u16)
}
number_field! {
    /// The client's name for a file.
    Fid(u32)
}

impl Tag {
    /// The tag of Tversion.
    pub const NONE: Self = Self(u16::MAX);
}

impl Fid {
    /// No fid, where one is optional.
    pub const NONE: Self = Self(u32::MAX);
}

/// A numeric user id that .u and .L add to a message of 9P2000 (`n_uname`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NumericUser(pub u32);

impl NumericUser {
    /// No number: the name counts.
    pub const NONE: Self = Self(u32::MAX);
}

impl Field<'_> for NumericUser {
    fn parse(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        if reader.dialect() == Dialect::Plan9 { Ok(Self::NONE) } else { u32::parse(reader).map(Self) }
    }
    fn emit(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        if writer.dialect() == Dialect::Plan9 { Ok(()) } else { self.0.emit(writer) }
    }
}

/// What a symlink or device is, in the Tcreate of .u; empty and absent elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extension<'a>(pub &'a [u8]);

impl<'a> Field<'a> for Extension<'a> {
    fn parse(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        if reader.dialect() == Dialect::Unix { <&[u8]>::parse(reader).map(Self) } else { Ok(Self(&[])) }
    }
    fn emit(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        if writer.dialect() == Dialect::Unix { self.0.emit(writer) } else { Ok(()) }
    }
}

/// The error number that .u adds to Rerror.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnixErrno(pub u32);

impl Field<'_> for UnixErrno {
    fn parse(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        if reader.dialect() == Dialect::Unix { u32::parse(reader).map(Self) } else { Ok(Self(0)) }
    }
    fn emit(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        if writer.dialect() == Dialect::Unix { self.0.emit(writer) } else { Ok(()) }
    }
}

/// The names of a Twalk.
pub type WalkNames<'a> = List<&'a [u8], WALK_NAMES_MAX>;
/// The qids of an Rwalk.
pub type WalkQids = List<Qid, WALK_NAMES_MAX>;

macro_rules! messages {
    ($(#[$doc:meta])* $enum:ident<'a> { $(
        $(#[$variant_doc:meta])*
        $code:literal $dialects:ident $variant:ident { $($field:ident: $type:ty),* }
    )* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[expect(missing_docs, reason = "the fields are the manual's")]
        pub enum $enum<'a> { $( $(#[$variant_doc])* $variant { $($field: $type),* }, )* }

        impl<'a> $enum<'a> {
            /// The type byte.
            pub fn code(&self) -> u8 {
                match self { $( Self::$variant { .. } => $code, )* }
            }

            /// Takes a whole message, `size[4]` included.
            ///
            /// # Errors
            /// [`WireError`] when the bytes are not exactly one message of the dialect.
            pub fn parse(bytes: &'a [u8], dialect: Dialect) -> Result<(Tag, Self), WireError> {
                let (code, tag, mut reader) = parse_header(bytes, dialect)?;
                let message = Self::parse_fields(code, &mut reader)?;
                reader.finish()?;
                Ok((tag, message))
            }

            fn parse_fields(code: u8, reader: &mut Reader<'a>) -> Result<Self, WireError> {
                let dialect = reader.dialect();
                match code {
                    $( $code if $dialects & dialect.bit() != 0 => {
                        Ok(Self::$variant { $($field: <$type as Field<'a>>::parse(reader)?),* })
                    } )*
                    _ => Err(WireError::UnknownType { code, dialect }),
                }
            }

            /// Writes the message with its `size[4]` into `buffer` and returns how many bytes it takes.
            ///
            /// # Errors
            /// [`WireError`] when it does not fit or the dialect has no such message.
            pub fn emit(&self, tag: Tag, buffer: &mut [u8], dialect: Dialect) -> Result<usize, WireError> {
                let mut writer = Writer::new(buffer, dialect);
                begin(&mut writer, self.code(), tag)?;
                match self { $(
                    Self::$variant { $($field),* } if $dialects & dialect.bit() != 0 => {
                        $( $field.emit(&mut writer)?; )*
                    }
                )*
                    _ => return Err(WireError::UnknownType { code: self.code(), dialect }),
                }
                finish(writer)
            }
        }
    };
}

messages! {
    /// What a client asks.
    Request<'a> {
        /// Asks for the file system's totals.
        8 LINUX Statfs { fid: Fid }
        /// Opens a file with the flags of Linux's open(2).
        12 LINUX Lopen { fid: Fid, flags: u32 }
        /// Creates a regular file in a directory; the fid then is the new file, open.
        14 LINUX Lcreate { fid: Fid, name: &'a [u8], flags: u32, mode: u32, gid: u32 }
        /// Makes a symbolic link.
        16 LINUX Symlink { fid: Fid, name: &'a [u8], target: &'a [u8], gid: u32 }
        /// Makes a node of any kind.
        18 LINUX Mknod { fid: Fid, name: &'a [u8], mode: u32, major: u32, minor: u32, gid: u32 }
        /// Renames what the fid is.
        20 LINUX Rename { fid: Fid, directory: Fid, name: &'a [u8] }
        /// Reads where a symbolic link points.
        22 LINUX Readlink { fid: Fid }
        /// Reads attributes; the mask says which are wanted.
        24 LINUX Getattr { fid: Fid, mask: u64 }
        /// Changes attributes.
        26 LINUX Setattr { fid: Fid, change: SetAttributes }
        /// Makes a fid on the value of an extended attribute, or on the list of their names.
        30 LINUX Xattrwalk { fid: Fid, new_fid: Fid, name: &'a [u8] }
        /// Turns the fid into one to which an extended attribute's value is written; set at the clunk.
        32 LINUX Xattrcreate { fid: Fid, name: &'a [u8], size: u64, flags: u32 }
        /// Reads directory entries from a cookie on.
        40 LINUX Readdir { fid: Fid, offset: u64, count: u32 }
        /// Brings a file to the disk.
        50 LINUX Fsync { fid: Fid, data_only: u32 }
        /// Takes or gives back a lock on a range.
        52 LINUX Lock { fid: Fid, kind: LockKind, flags: u32, range: LockRange<'a> }
        /// Asks who holds a lock.
        54 LINUX Getlock { fid: Fid, kind: LockKind, range: LockRange<'a> }
        /// Makes a hard link.
        70 LINUX Link { directory: Fid, fid: Fid, name: &'a [u8] }
        /// Makes a directory.
        72 LINUX Mkdir { fid: Fid, name: &'a [u8], mode: u32, gid: u32 }
        /// Renames an entry of one directory into an entry of another.
        74 LINUX Renameat { old_directory: Fid, old_name: &'a [u8], new_directory: Fid, new_name: &'a [u8] }
        /// Removes an entry of a directory.
        76 LINUX Unlinkat { directory: Fid, name: &'a [u8], flags: u32 }
        /// Begins a session: the size of messages and the dialect.
        100 ALL Version { msize: u32, version: &'a [u8] }
        /// Makes a fid over which the client proves who it is.
        102 ALL Auth { afid: Fid, user: &'a [u8], tree: &'a [u8], numeric_user: NumericUser }
        /// Makes a fid on the root.
        104 ALL Attach { fid: Fid, afid: Fid, user: &'a [u8], tree: &'a [u8], numeric_user: NumericUser }
        /// Gives up a request.
        108 ALL Flush { old_tag: Tag }
        /// Makes a fid from another, some names further.
        110 ALL Walk { fid: Fid, new_fid: Fid, names: WalkNames<'a> }
        /// Opens a file with Plan 9's modes.
        112 CLASSIC Open { fid: Fid, mode: u8 }
        /// Creates a file with Plan 9's permissions and modes.
        114 CLASSIC Create { fid: Fid, name: &'a [u8], permissions: u32, mode: u8, extension: Extension<'a> }
        /// Reads from an open fid.
        116 ALL Read { fid: Fid, offset: u64, count: u32 }
        /// Writes to an open fid.
        118 ALL Write { fid: Fid, offset: u64, payload: Payload<'a> }
        /// Forgets a fid.
        120 ALL Clunk { fid: Fid }
        /// Removes the file and forgets the fid, also if it could not be removed.
        122 ALL Remove { fid: Fid }
        /// Reads attributes.
        124 CLASSIC Stat { fid: Fid }
        /// Changes attributes.
        126 CLASSIC Wstat { fid: Fid, stat: Wrapped<Stat<'a>> }
    }
}

messages! {
    /// What a server answers.
    Reply<'a> {
        /// The error of a .L request.
        7 LINUX Lerror { errno: u32 }
        /// The file system's totals.
        9 LINUX Statfs { totals: StatFs }
        /// Open.
        13 LINUX Lopen { qid: Qid, iounit: u32 }
        /// Created and open.
        15 LINUX Lcreate { qid: Qid, iounit: u32 }
        /// Made.
        17 LINUX Symlink { qid: Qid }
        /// Made.
        19 LINUX Mknod { qid: Qid }
        /// Renamed.
        21 LINUX Rename {}
        /// Where the link points.
        23 LINUX Readlink { target: &'a [u8] }
        /// The attributes.
        25 LINUX Getattr { attributes: Attributes }
        /// Changed.
        27 LINUX Setattr {}
        /// The size of the value or list.
        31 LINUX Xattrwalk { size: u64 }
        /// Ready for the value.
        33 LINUX Xattrcreate {}
        /// Entries, each as [`DirectoryEntry`](crate::stat::DirectoryEntry).
        41 LINUX Readdir { payload: Payload<'a> }
        /// On the disk.
        51 LINUX Fsync {}
        /// How the lock went: [`LockStatus`](crate::stat::LockStatus).
        53 LINUX Lock { status: u8 }
        /// The lock in the way, or the kind "unlocked".
        55 LINUX Getlock { kind: LockKind, range: LockRange<'a> }
        /// Made.
        71 LINUX Link {}
        /// Made.
        73 LINUX Mkdir { qid: Qid }
        /// Renamed.
        75 LINUX Renameat {}
        /// Removed.
        77 LINUX Unlinkat {}
        /// What was agreed on; "unknown" where there is no dialect in common.
        101 ALL Version { msize: u32, version: &'a [u8] }
        /// The fid to prove oneself on.
        103 ALL Auth { qid: Qid }
        /// The root.
        105 ALL Attach { qid: Qid }
        /// The error of a 9P2000 or .u request.
        107 CLASSIC Error { text: &'a [u8], errno: UnixErrno }
        /// The old request will not be answered any more.
        109 ALL Flush {}
        /// What was passed; fewer qids than names is where it stopped.
        111 ALL Walk { qids: WalkQids }
        /// Open.
        113 CLASSIC Open { qid: Qid, iounit: u32 }
        /// Created and open.
        115 CLASSIC Create { qid: Qid, iounit: u32 }
        /// Bytes; none is the end of the file.
        117 ALL Read { payload: Payload<'a> }
        /// How many bytes were written.
        119 ALL Write { count: u32 }
        /// Forgotten.
        121 ALL Clunk {}
        /// Removed and forgotten.
        123 ALL Remove {}
        /// The attributes.
        125 CLASSIC Stat { stat: Wrapped<Stat<'a>> }
        /// Changed.
        127 CLASSIC Wstat {}
    }
}

fn parse_header(bytes: &[u8], dialect: Dialect) -> Result<(u8, Tag, Reader<'_>), WireError> {
    let mut reader = Reader::new(bytes, dialect);
    let said = u32::parse(&mut reader)?;
    if usize::try_from(said) != Ok(bytes.len()) {
        return Err(WireError::SizeMismatch { said, actual: bytes.len() });
    }
    Ok((u8::parse(&mut reader)?, Tag::parse(&mut reader)?, reader))
}

/// The tag of a message that may be malformed in all else, so that an error can be sent back.
pub fn peek_tag(bytes: &[u8]) -> Option<Tag> {
    let tag = bytes.get(5..7)?;
    Some(Tag(u16::from_le_bytes([tag[0], tag[1]])))
}

/// Begins a message by hand: a placeholder for the size, type and tag.
pub(crate) fn begin(writer: &mut Writer<'_>, code: u8, tag: Tag) -> Result<(), WireError> {
    0u32.emit(writer)?;
    code.emit(writer)?;
    tag.emit(writer)
}

/// Ends what [`begin`] began: fills in the size and returns it.
pub(crate) fn finish(mut writer: Writer<'_>) -> Result<usize, WireError> {
    let len = writer.len();
    let size = u32::try_from(len).map_err(|_| WireError::NoRoom { needed: len, room: u32::MAX as usize })?;
    writer.patch(0, &size.to_le_bytes());
    Ok(len)
}

#[cfg(test)]
mod tests;
