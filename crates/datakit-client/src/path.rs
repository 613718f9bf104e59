//! Paths as callers write them: names with `/` between them, checked before they are walked.

use crate::error::Error;

/// Longest name, as on Linux.
const NAME_BYTES_MAX: usize = 255;

/// The names of `path`; slashes at its ends do not count.
pub fn names(path: &str) -> Result<Vec<&str>, Error> {
    let trimmed = path.trim_matches('/');
    if trimmed.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<_> = trimmed.split('/').collect();
    let is_name = |name: &&str| {
        !name.is_empty()
            && *name != "."
            && *name != ".."
            && name.len() <= NAME_BYTES_MAX
            && !name.contains('\0')
    };
    if names.iter().all(is_name) { Ok(names) } else { Err(Error::Path { path: path.to_owned() }) }
}

/// A path that is checked, below `root`.
pub fn below(root: &str, path: &str) -> Result<String, Error> {
    let mut whole = root.to_owned();
    for name in names(path)? {
        whole.push('/');
        whole.push_str(name);
    }
    Ok(whole)
}

/// A single name, checked.
pub fn name(text: &str) -> Result<&str, Error> {
    match names(text)?.as_slice() {
        [name] if *name == text => Ok(text),
        _ => Err(Error::Path { path: text.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_checked() {
        assert_eq!(below("rw", "/a/b/").unwrap(), "rw/a/b");
        assert_eq!(below("rw", "").unwrap(), "rw");
        for wrong in ["a//b", "..", "a/../b", "./a", "a\0b", &"x".repeat(256)] {
            assert!(below("rw", wrong).is_err(), "{wrong:?}");
        }
        assert!(name("a/b").is_err());
        assert!(name("").is_err());
    }
}
