//! Extended attributes: those of the user namespace, of files and directories.
//!
//! `security.*`, `trusted.*` and `system.*` are answered EOPNOTSUPP without asking the host: a client's kernel asks for
//! `security.capability` at every exec, and the host's labels are none of its business.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use rustix::fd::OwnedFd;
use rustix::fs::{XattrFlags as HostFlags, getxattr, listxattr, removexattr, setxattr};
use rustix::io::Errno as OsErrno;

use super::Share;
use crate::errno::Errno;
use crate::filesystem::{Answer, XattrFlags};

const NAMESPACE: &[u8] = b"user.";
/// `XATTR_SIZE_MAX` and `XATTR_LIST_MAX`.
const BYTES_MAX: usize = 65_536;
/// What is tried before asking for the size.
const BYTES_USUAL: usize = 256;

fn check_name(name: &[u8]) -> Answer<&OsStr> {
    if !name.starts_with(NAMESPACE) {
        return Err(Errno::EOPNOTSUPP);
    }
    if name.len() > 255 || name.contains(&0) {
        return Err(Errno::ERANGE);
    }
    Ok(OsStr::from_bytes(name))
}

/// Calls `read` with a small buffer and, where that does not do, with the largest.
fn read_all(mut read: impl FnMut(&mut [u8]) -> Result<usize, OsErrno>) -> Answer<Vec<u8>> {
    let mut value = vec![0; BYTES_USUAL];
    let count = match read(&mut value) {
        Err(OsErrno::RANGE) => {
            value.resize(BYTES_MAX, 0);
            read(&mut value)?
        }
        other => other?,
    };
    value.truncate(count);
    Ok(value)
}

/// The value of an attribute.
pub(super) fn value(fd: &OwnedFd, name: &[u8]) -> Answer<Vec<u8>> {
    let name = check_name(name)?;
    let path = Share::proc_path(fd);
    read_all(|buffer| getxattr(path.as_slice(), name, buffer))
}

/// The names, each with a NUL after it.
pub(super) fn names(fd: &OwnedFd) -> Answer<Vec<u8>> {
    let path = Share::proc_path(fd);
    let all = read_all(|buffer| listxattr(path.as_slice(), buffer))?;
    let names = all.split_inclusive(|byte| *byte == 0).filter(|name| name.starts_with(NAMESPACE));
    Ok(names.flatten().copied().collect())
}

/// Sets an attribute, or removes it.
pub(super) fn set(fd: &OwnedFd, name: &[u8], value: Option<&[u8]>, flags: XattrFlags) -> Answer<()> {
    let name = check_name(name)?;
    let path = Share::proc_path(fd);
    let flags = HostFlags::from_bits(flags.0).ok_or(Errno::EINVAL)?;
    match value {
        Some(value) => setxattr(path.as_slice(), name, value, flags)?,
        None => removexattr(path.as_slice(), name)?,
    }
    Ok(())
}
