//! Names: of branches, of files, of paths. Checked once, here.

use std::fmt;

use gix::bstr::{BStr, BString, ByteSlice};

use datakit_git::RefName;

/// Longest file name in bytes, as on Linux.
const NAME_BYTES_MAX: usize = 255;

/// Deepest path in components; deeper trees are neither read nor written.
pub(crate) const DEPTH_MAX: usize = 1000;

/// Why a name is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum NameError {
    #[error("\"{name}\" cannot be the name of a branch (git check-ref-format)")]
    Branch { name: String },
    #[error("\"{name}\" cannot be the name of a file in git")]
    File { name: String },
    #[error("a name has {bytes} bytes, more than {NAME_BYTES_MAX}")]
    TooLong { bytes: usize },
    #[error("a path has more than {DEPTH_MAX} components")]
    TooDeep,
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(&name[..name.len().min(100)]).into_owned()
}

/// The name of a branch, without `refs/heads/`. May contain slashes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BranchName(RefName);

/// Where branches are.
pub(crate) const HEADS: &str = "refs/heads/";

impl BranchName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`NameError`] when git would not have it as a branch.
    pub fn new(name: impl AsRef<[u8]>) -> Result<BranchName, NameError> {
        let name = name.as_ref();
        let wrong = || NameError::Branch { name: shown(name) };
        if name.starts_with(b"-") || name == b"HEAD" {
            return Err(wrong());
        }
        let mut full = BString::from(HEADS);
        full.extend_from_slice(name);
        RefName::new(full).map(BranchName).ok_or_else(wrong)
    }

    pub(crate) fn of_ref(name: RefName) -> Option<BranchName> {
        name.as_bstr().starts_with(HEADS.as_bytes()).then_some(BranchName(name))
    }

    /// The name as bytes.
    pub fn as_bstr(&self) -> &BStr {
        self.0.as_bstr()[HEADS.len()..].as_bstr()
    }

    /// The ref of the branch.
    pub const fn as_ref_name(&self) -> &RefName {
        &self.0
    }
}

impl fmt::Display for BranchName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bstr().fmt(f)
    }
}

/// The name of a file or directory: one component.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileName(BString);

impl FileName {
    /// Checks a name: not empty, no `/` and no NUL, not `.`, `..` or anything that git takes for `.git`.
    ///
    /// # Errors
    /// [`NameError`].
    pub fn new(name: impl AsRef<[u8]>) -> Result<FileName, NameError> {
        let name = name.as_ref();
        if name.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong { bytes: name.len() });
        }
        let options = gix::validate::path::component::Options {
            protect_windows: false,
            protect_hfs: true,
            protect_ntfs: true,
        };
        let is_plain =
            !name.is_empty() && name != b"." && name != b".." && name.find_byteset(b"/\0").is_none();
        if !is_plain || gix::validate::path::component(name.as_bstr(), None, options).is_err() {
            return Err(NameError::File { name: shown(name) });
        }
        Ok(FileName(name.into()))
    }

    /// A name as it is in a tree of the repository, which has checked what is dangerous.
    pub(crate) fn stored(name: BString) -> FileName {
        FileName(name)
    }

    /// The name as bytes.
    pub fn as_bstr(&self) -> &BStr {
        self.0.as_bstr()
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A path inside a tree; the empty one is the tree itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TreePath(Vec<FileName>);

impl TreePath {
    /// The tree itself.
    pub const ROOT: TreePath = TreePath(Vec::new());

    /// Reads `a/b/c`; slashes at the ends, and doubled ones, are nothing.
    ///
    /// # Errors
    /// [`NameError`] when a component cannot be the name of a file.
    pub fn parse(path: impl AsRef<[u8]>) -> Result<TreePath, NameError> {
        let parts = path.as_ref().split(|byte| *byte == b'/').filter(|part| !part.is_empty());
        TreePath::of(parts.map(FileName::new).collect::<Result<_, _>>()?)
    }

    /// A path of these components.
    ///
    /// # Errors
    /// [`NameError::TooDeep`].
    pub fn of(components: Vec<FileName>) -> Result<TreePath, NameError> {
        if components.len() > DEPTH_MAX { Err(NameError::TooDeep) } else { Ok(TreePath(components)) }
    }

    /// The components, outermost first.
    pub fn components(&self) -> &[FileName] {
        &self.0
    }

    /// The path of the directory and the last component; `None` for the root.
    pub fn split_last(&self) -> Option<(TreePath, &FileName)> {
        self.0.split_last().map(|(last, rest)| (TreePath(rest.to_vec()), last))
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, component) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("/")?;
            }
            component.fmt(f)?;
        }
        Ok(())
    }
}
