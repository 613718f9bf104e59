//! Extended attributes: those of the user, and no others.

use std::fs;

use p9p::message::Request;
use p9p::{Errno, client::ClientError};

use crate::share::{Share, errno};

/// `XATTR_REPLACE` of setxattr(2).
const REPLACE: u32 = 2;

/// A share with a file, or `None` where the host's file system has no such attributes.
fn share_with_file() -> Option<Share> {
    let mut share = Share::new();
    fs::write(share.host("f"), b"").unwrap();
    let fid = share.fid("f");
    match share.client.set_xattr(fid, b"user.probe", b"1", 0) {
        Err(ClientError::Refused(Errno::EOPNOTSUPP)) => {
            println!("SKIP: no user.* attributes on the file system of the temporary directory");
            None
        }
        other => {
            other.unwrap();
            Some(share)
        }
    }
}

#[test]
fn values_are_set_read_listed_and_removed() {
    let Some(mut share) = share_with_file() else { return };
    let fid = share.fid("f");
    let value: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
    share.client.set_xattr(fid, b"user.long", &value, 0).unwrap();
    share.client.set_xattr(fid, b"user.empty", b"", 0).unwrap();
    assert_eq!(share.client.xattr(fid, b"user.long").unwrap(), value);
    assert_eq!(share.client.xattr(fid, b"user.empty").unwrap(), b"");
    let list = share.client.xattr(fid, b"").unwrap();
    let mut names: Vec<_> = list.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    assert_eq!(names, [&b"user.empty"[..], b"user.long", b"user.probe"]);
    share.client.set_xattr(fid, b"user.long", b"", REPLACE).unwrap();
    assert_eq!(errno(share.client.xattr(fid, b"user.long")), Errno::ENODATA);
}

#[test]
fn attributes_of_the_system_are_not_supported() {
    let Some(mut share) = share_with_file() else { return };
    let fid = share.fid("f");
    for name in [&b"security.capability"[..], b"trusted.x", b"system.posix_acl_access"] {
        assert_eq!(errno(share.client.xattr(fid, name)), Errno::EOPNOTSUPP);
        assert_eq!(errno(share.client.set_xattr(fid, name, b"x", 0)), Errno::EOPNOTSUPP);
    }
}

#[test]
fn a_value_that_is_too_long_or_incomplete_is_refused() {
    let Some(mut share) = share_with_file() else { return };
    let fid = share.fid("f");
    let huge = Request::Xattrcreate { fid, name: b"user.a", size: u64::MAX, flags: 0 };
    assert_eq!(errno(share.client.call(&huge, |_| Some(()))), Errno::E2BIG);
    let short = Request::Xattrcreate { fid, name: b"user.a", size: 10, flags: 0 };
    share.client.call(&short, |_| Some(())).unwrap();
    assert_eq!(errno(share.client.write(fid, 0, &[0; 11])), Errno::EINVAL);
    share.client.write_all(fid, 0, b"12345").unwrap();
    assert_eq!(errno(share.client.clunk(fid)), Errno::EINVAL);
    let fid = share.fid("f");
    assert_eq!(errno(share.client.xattr(fid, b"user.a")), Errno::ENODATA);
}

#[test]
fn attributes_held_by_fids_are_limited() {
    let Some(mut share) = share_with_file() else { return };
    let fid = share.fid("f");
    let refused = (0..100_000).find_map(|_| {
        let new_fid = share.client.fresh_fid();
        share.client.call(&Request::Xattrwalk { fid, new_fid, name: b"" }, |_| Some(())).err()
    });
    assert_eq!(refused.unwrap().errno(), Some(Errno::EMFILE));
    assert!(share.session.fid_count() < 1000);
}
