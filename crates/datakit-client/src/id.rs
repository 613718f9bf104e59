//! Names of commits, and of what a path holds.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// The id of a commit, in hexadecimal: 40 digits, or 64 with SHA-256.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitId(String);

impl CommitId {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CommitId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if is_id(text) { Ok(Self(text.to_owned())) } else { Err(Error::CommitId { text: text.to_owned() }) }
    }
}

impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a path holds, as a watch says it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Node {
    /// Nothing is there.
    Absent,
    /// A directory and the id of its tree.
    Directory(String),
    /// A file and the id of its blob.
    File(String),
    /// An executable file.
    Executable(String),
    /// A symbolic link.
    Symlink(String),
    /// A commit of another repository, which is not here.
    Submodule(String),
}

impl Node {
    /// Reads a line of a watch: `D-`, `F-`, `X-`, `L-` or `S-` and an id, or nothing.
    pub fn parse(line: &str) -> Option<Self> {
        if line.is_empty() {
            return Some(Self::Absent);
        }
        let (kind, id) = line.split_once('-')?;
        if !is_id(id) {
            return None;
        }
        let id = id.to_owned();
        Some(match kind {
            "D" => Self::Directory(id),
            "F" => Self::File(id),
            "X" => Self::Executable(id),
            "L" => Self::Symlink(id),
            "S" => Self::Submodule(id),
            _ => return None,
        })
    }

    /// Its name below `trees/`, unless nothing is there.
    pub fn tree_name(&self) -> Option<String> {
        match self {
            Self::Absent => None,
            Self::Directory(id) => Some(format!("D-{id}")),
            Self::File(id) => Some(format!("F-{id}")),
            Self::Executable(id) => Some(format!("X-{id}")),
            Self::Symlink(id) => Some(format!("L-{id}")),
            Self::Submodule(id) => Some(format!("S-{id}")),
        }
    }
}

fn is_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_watch_are_read() {
        let id = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(Node::parse(""), Some(Node::Absent));
        assert_eq!(Node::parse(&format!("D-{id}")), Some(Node::Directory(id.to_owned())));
        assert_eq!(Node::parse(&format!("X-{id}")).unwrap().tree_name(), Some(format!("X-{id}")));
        for wrong in ["D", "D-", "Q-0123456789abcdef0123456789abcdef01234567", "F-xyz"] {
            assert_eq!(Node::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_whole_ids_are_commits() {
        assert!("0123456789abcdef0123456789abcdef01234567".parse::<CommitId>().is_ok());
        for wrong in ["", "012", "0123456789ABCDEF0123456789ABCDEF01234567", "main"] {
            assert!(wrong.parse::<CommitId>().is_err(), "{wrong}");
        }
    }
}
