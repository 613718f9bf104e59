//! The server's name for a file: what tells one file, and one version of it, from another.

use crate::wire::{Field, Reader, WireError, Writer};

/// What a qid's type byte says; the same bits as the top byte of a 9P2000 mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QidKind(pub u8);

impl QidKind {
    /// A directory.
    pub const DIRECTORY: Self = Self(0x80);
    /// Writes go to the end, whatever their offset.
    pub const APPEND_ONLY: Self = Self(0x40);
    /// One fid at a time may have it open.
    pub const EXCLUSIVE: Self = Self(0x20);
    /// What `Tauth` made.
    pub const AUTH: Self = Self(0x08);
    /// Not backed up.
    pub const TEMPORARY: Self = Self(0x04);
    /// A symbolic link (.u, .L).
    pub const SYMLINK: Self = Self(0x02);
    /// Anything else.
    pub const FILE: Self = Self(0x00);

    /// Whether it is a directory.
    pub fn is_directory(self) -> bool {
        self.0 & Self::DIRECTORY.0 != 0
    }
}

/// `type[1] version[4] path[8]`. Two files of one server are the same file exactly if their paths are.
///
/// Spec: intro(5), "qid".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Qid {
    /// Directory, symlink, and so on.
    pub kind: QidKind,
    /// Changes when the file's content does.
    pub version: u32,
    /// Unique among the files of a server.
    pub path: u64,
}

impl Field<'_> for Qid {
    fn parse(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            kind: QidKind(u8::parse(reader)?),
            version: u32::parse(reader)?,
            path: u64::parse(reader)?,
        })
    }
    fn emit(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        self.kind.0.emit(writer)?;
        self.version.emit(writer)?;
        self.path.emit(writer)
    }
}
