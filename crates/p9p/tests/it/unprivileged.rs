//! A server without privilege, as it is mostly run: its user stands for the client's root.
//!
//! Started by root, the test runs itself once more as another user.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use p9p::client::{Client, Direct};
use p9p::filesystem::OpenFlags;
use p9p::stat::{SetAttributes, setattr};
use p9p::{Errno, Session};

use crate::share::{MSIZE, Share, errno, session};

/// Anybody but root: Debian's nobody.
const USER: u32 = 65_534;

#[test]
fn works_for_an_unprivileged_user() {
    if !rustix::process::geteuid().is_root() {
        as_user_all();
        return;
    }
    let tests = std::env::current_exe().unwrap();
    let ran = Command::new(&tests)
        .args(["--exact", "unprivileged::works_for_an_unprivileged_user", "--nocapture"])
        .uid(USER)
        .gid(USER)
        .current_dir("/")
        .output();
    match ran {
        Err(error) => println!("SKIP: another user cannot run {}: {error}", tests.display()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.contains("1 passed"), "{said}");
        }
    }
}

fn as_user_all() {
    files_are_roots_to_the_client_and_the_users_on_the_host();
    giving_files_away_is_granted_and_changes_nothing();
    root_opens_what_its_mode_forbids();
    root_changes_a_directory_whose_mode_forbids_it();
    other_users_of_the_client_are_held_to_the_mode();
    files_of_others_stay_out_of_reach();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn files_are_roots_to_the_client_and_the_users_on_the_host() {
    let mut share = Share::new();
    share.client.mkdir(share.root, b"d", 0o755).unwrap();
    let fid = share.fid("d");
    let attributes = share.client.getattr(fid).unwrap();
    assert_eq!((attributes.uid, attributes.gid), (0, 0));
    let host = fs::metadata(share.host("d")).unwrap();
    assert_eq!(
        (host.uid(), host.gid()),
        (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
    );
}

fn giving_files_away_is_granted_and_changes_nothing() {
    let mut share = Share::new();
    fs::write(share.host("f"), b"").unwrap();
    let fid = share.fid("f");
    let valid = setattr::UID | setattr::GID;
    share.client.setattr(fid, SetAttributes { valid, uid: 1000, gid: 1000, ..Default::default() }).unwrap();
    let attributes = share.client.getattr(fid).unwrap();
    assert_eq!((attributes.uid, attributes.gid), (0, 0));
}

fn root_opens_what_its_mode_forbids() {
    let mut share = Share::new();
    let fid = share.root_copy();
    share.client.create(fid, b"object", OpenFlags::RDWR | OpenFlags::EXCL, 0o444).unwrap();
    let again = share.fid("object");
    share.client.open(again, OpenFlags::RDWR).unwrap();
    share.client.write_all(again, 0, b"written").unwrap();
    assert_eq!(mode(&share.host("object")), 0o444);
    set_mode(&share.host("object"), 0o000);
    let third = share.fid("object");
    let size = SetAttributes { valid: setattr::SIZE, size: 3, ..Default::default() };
    share.client.setattr(third, size).unwrap();
    share.client.open(third, OpenFlags::RDONLY).unwrap();
    assert_eq!(share.client.read_to_end(third).unwrap(), b"wri");
    assert_eq!(mode(&share.host("object")), 0o000);
    let root = share.client.attach(b"nobody", u32::MAX, b"").unwrap();
    let fourth = share.client.walk(root, &[b"object"]).unwrap();
    share.client.open(fourth, OpenFlags::RDWR).unwrap();
}

fn root_changes_a_directory_whose_mode_forbids_it() {
    let mut share = Share::new();
    fs::create_dir(share.host("sealed")).unwrap();
    fs::write(share.host("sealed/old"), b"").unwrap();
    set_mode(&share.host("sealed"), 0o000);
    let sealed = share.fid("sealed");
    share.client.walk(sealed, &[b"old"]).unwrap();
    share.client.mkdir(sealed, b"new", 0o755).unwrap();
    share.client.rename(sealed, b"old", share.root, b"out").unwrap();
    let listing = share.fid("sealed");
    share.client.open(listing, OpenFlags::DIRECTORY).unwrap();
    assert_eq!(share.client.list(listing).unwrap().len(), 3);
    share.client.rmdir(sealed, b"new").unwrap();
    assert_eq!(mode(&share.host("sealed")), 0o000);
    assert!(share.host("out").exists());
}

fn other_users_of_the_client_are_held_to_the_mode() {
    let mut share = Share::new();
    fs::write(share.host("f"), b"").unwrap();
    set_mode(&share.host("f"), 0o000);
    let root = share.client.attach(b"", 1000, b"").unwrap();
    let fid = share.client.walk(root, &[b"f"]).unwrap();
    assert_eq!(errno(share.client.open(fid, OpenFlags::RDONLY)), Errno::EACCES);
}

fn files_of_others_stay_out_of_reach() {
    let whole_host: Session = session(Path::new("/"), false);
    let mut client = Client::connect(Direct::new(whole_host.into()), MSIZE).unwrap();
    let root = client.attach(b"", 0, b"").unwrap();
    let etc = client.walk(root, &[b"etc"]).unwrap();
    let passwd = client.walk(etc, &[b"passwd"]).unwrap();
    assert_eq!(errno(client.open(passwd, OpenFlags::RDWR)), Errno::EACCES);
    assert_eq!(errno(client.mkdir(etc, b"p9p-was-here", 0o755)), Errno::EACCES);
    let mode = SetAttributes { valid: setattr::MODE, mode: 0o666, ..Default::default() };
    assert_eq!(errno(client.setattr(passwd, mode)), Errno::EPERM);
    let owner = SetAttributes { valid: setattr::UID, uid: 1000, ..Default::default() };
    assert_eq!(errno(client.setattr(passwd, owner)), Errno::EPERM);
}
