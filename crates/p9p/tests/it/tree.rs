//! What a user does with files, compared with what the host then sees.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use p9p::filesystem::OpenFlags;
use p9p::message::{Reply, Request};
use p9p::stat::{SetAttributes, Time, setattr};
use p9p::{Errno, FIDS_MAX};

use crate::share::{Share, errno};

#[test]
fn a_written_file_is_on_the_host_and_reads_back() {
    let mut share = Share::new();
    let file = share.root_copy();
    let content: Vec<u8> = (0..1_500_000u32).map(|i| (i * 7 % 251) as u8).collect();
    share.client.create(file, b"data", OpenFlags::RDWR | OpenFlags::EXCL, 0o640).unwrap();
    share.client.write_all(file, 0, &content).unwrap();
    share.client.fsync(file).unwrap();
    assert_eq!(fs::read(share.host("data")).unwrap(), content);
    assert_eq!(share.client.read_to_end(file).unwrap(), content);
    assert_eq!(fs::metadata(share.host("data")).unwrap().permissions().mode() & 0o7777, 0o640);
}

#[test]
fn a_tree_made_through_9p_looks_the_same_on_the_host() {
    let mut share = Share::new();
    share.client.mkdir(share.root, b"src", 0o777).unwrap();
    let src = share.fid("src");
    share.client.mkdir(src, b"deep", 0o700).unwrap();
    share.client.symlink(src, b"link", b"/etc/passwd").unwrap();
    share.client.mknod(src, b"pipe", 0o010_644).unwrap();
    share.client.mknod(src, b"empty", 0o100_600).unwrap();
    let empty = share.fid("src/empty");
    share.client.link(src, empty, b"again").unwrap();

    let host = share.host("src");
    assert_eq!(fs::metadata(&host).unwrap().mode() & 0o7777, 0o777, "the umask is the client's affair");
    assert_eq!(fs::metadata(host.join("deep")).unwrap().mode(), 0o040_700);
    assert_eq!(fs::read_link(host.join("link")).unwrap().to_str(), Some("/etc/passwd"));
    assert_eq!(fs::metadata(host.join("pipe")).unwrap().mode(), 0o010_644);
    assert_eq!(fs::metadata(host.join("again")).unwrap().nlink(), 2);
}

#[test]
fn attributes_are_those_of_the_host() {
    let mut share = Share::new();
    fs::write(share.host("f"), b"12345").unwrap();
    let fid = share.fid("f");
    let theirs = share.client.getattr(fid).unwrap();
    let ours = fs::metadata(share.host("f")).unwrap();
    assert_eq!((theirs.mode, theirs.size, theirs.nlink), (ours.mode(), 5, 1));
    assert_eq!(
        (theirs.mtime.seconds, theirs.mtime.nanoseconds),
        (ours.mtime() as u64, ours.mtime_nsec() as u64)
    );
    assert_eq!(theirs.blocks, ours.blocks());
    assert_eq!((theirs.uid, theirs.gid), (0, 0), "the user of the server is root to the client");
    assert_eq!(theirs.qid.path, ours.ino());
}

#[test]
fn attributes_change_as_asked() {
    let mut share = Share::new();
    fs::write(share.host("f"), b"12345").unwrap();
    let fid = share.fid("f");
    let mtime = Time { seconds: 1_000_000_000, nanoseconds: 7 };
    let valid = setattr::MODE | setattr::SIZE | setattr::MTIME | setattr::MTIME_SET;
    let change = SetAttributes { valid, mode: 0o4711, size: 3, mtime, ..Default::default() };
    share.client.setattr(fid, change).unwrap();
    let host = fs::metadata(share.host("f")).unwrap();
    assert_eq!((host.mode() & 0o7777, host.len()), (0o4711, 3));
    assert_eq!((host.mtime(), host.mtime_nsec()), (1_000_000_000, 7));
}

#[test]
fn times_before_1970_survive() {
    let mut share = Share::new();
    fs::write(share.host("f"), b"").unwrap();
    let fid = share.fid("f");
    let mtime = Time { seconds: (-86_400i64) as u64, nanoseconds: 0 };
    let change = SetAttributes { valid: setattr::MTIME | setattr::MTIME_SET, mtime, ..Default::default() };
    share.client.setattr(fid, change).unwrap();
    assert_eq!(fs::metadata(share.host("f")).unwrap().mtime(), -86_400);
    assert_eq!(share.client.getattr(fid).unwrap().mtime, mtime);
}

#[test]
fn a_removed_file_stays_usable_through_its_fids() {
    let mut share = Share::new();
    let open = share.root_copy();
    share.client.create(open, b"f", OpenFlags::RDWR, 0o600).unwrap();
    let walked = share.fid("f");
    share.client.unlink(share.root, b"f").unwrap();
    share.client.write_all(open, 0, b"still here").unwrap();
    assert_eq!(share.client.getattr(walked).unwrap().nlink, 0);
    share
        .client
        .setattr(open, SetAttributes { valid: setattr::SIZE, size: 5, ..Default::default() })
        .unwrap();
    assert_eq!(share.client.read_to_end(open).unwrap(), b"still");
    share.client.open(walked, OpenFlags::RDONLY).unwrap();
    assert_eq!(share.client.read_to_end(walked).unwrap(), b"still");
}

#[test]
fn size_changes_through_an_open_fid_although_the_mode_forbids_opening() {
    let mut share = Share::new();
    let open = share.root_copy();
    share.client.create(open, b"f", OpenFlags::WRONLY, 0o000).unwrap();
    share
        .client
        .setattr(open, SetAttributes { valid: setattr::SIZE, size: 9, ..Default::default() })
        .unwrap();
    assert_eq!(fs::metadata(share.host("f")).unwrap().len(), 9);
}

#[test]
fn fids_follow_a_renamed_directory() {
    let mut share = Share::new();
    fs::create_dir_all(share.host("a/b")).unwrap();
    fs::create_dir(share.host("other")).unwrap();
    fs::write(share.host("a/b/f"), b"x").unwrap();
    let (b, f, other) = (share.fid("a/b"), share.fid("a/b/f"), share.fid("other"));
    share.client.rename(share.root, b"a", other, b"moved").unwrap();
    let again = share.client.walk(b, &[b"f"]).unwrap();
    assert_eq!(share.client.getattr(again).unwrap().qid.path, share.client.getattr(f).unwrap().qid.path);
    share.client.remove(f).unwrap();
    assert!(!share.host("other/moved/b/f").exists());
}

#[test]
fn a_fid_is_renamed_from_wherever_it_is_now() {
    let mut share = Share::new();
    fs::create_dir_all(share.host("a/b")).unwrap();
    fs::write(share.host("a/b/f"), b"x").unwrap();
    let f = share.fid("a/b/f");
    fs::rename(share.host("a"), share.host("elsewhere")).unwrap();
    let request = Request::Rename { fid: f, directory: share.root, name: b"top" };
    share.client.call(&request, |reply| matches!(reply, Reply::Rename {}).then_some(())).unwrap();
    assert_eq!(fs::read(share.host("top")).unwrap(), b"x");
    assert!(!share.host("elsewhere/b/f").exists());
    fs::remove_file(share.host("top")).unwrap();
    let request = Request::Rename { fid: f, directory: share.root, name: b"again" };
    assert_eq!(errno(share.client.call(&request, |_| Some(()))), Errno::ENOENT);
}

#[test]
fn a_privileged_server_gives_new_files_to_their_makers() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: only root may give files away");
        return;
    }
    let mut share = Share::new();
    fs::set_permissions(&share.path, fs::Permissions::from_mode(0o777)).unwrap();
    let theirs = share.client.attach(b"", 1234, b"").unwrap();
    let request = Request::Mkdir { fid: theirs, name: b"d", mode: 0o2750, gid: 4321 };
    share.client.call(&request, |reply| matches!(reply, Reply::Mkdir { .. }).then_some(())).unwrap();
    share.client.symlink(theirs, b"l", b"/etc").unwrap();
    share.client.create(theirs, b"f", OpenFlags::RDWR, 0o4755).unwrap();
    let owner = |name: &str| {
        let host = fs::symlink_metadata(share.host(name)).unwrap();
        (host.uid(), host.gid(), host.mode() & 0o7777)
    };
    assert_eq!(owner("f"), (1234, 0, 0o4755));
    assert_eq!((owner("l").0, owner("l").1), (1234, 0));
    assert_eq!((owner("d").0, owner("d").1, owner("d").2 & 0o777), (1234, 4321, 0o750));
}

#[test]
fn totals_are_those_of_the_host() {
    let mut share = Share::new();
    let totals = share.client.statfs(share.root).unwrap();
    let host = rustix::fs::statvfs(&share.path).unwrap();
    assert_eq!((totals.blocks, totals.files), (host.f_blocks, host.f_files));
    assert_eq!((totals.kind, totals.name_bytes_max), (0x0102_1997, 255));
}

#[test]
fn a_server_that_has_no_descriptors_left_says_so_and_goes_on() {
    const FEW: &str = "P9P_TEST_FEW_DESCRIPTORS";
    if std::env::var_os(FEW).is_some() {
        return with_few_descriptors();
    }
    let tests = std::env::current_exe().unwrap();
    let this = "tree::a_server_that_has_no_descriptors_left_says_so_and_goes_on";
    let ran = Command::new("sh")
        .args(["-c", "ulimit -n 100 && exec \"$0\" --exact \"$1\""])
        .arg(&tests)
        .arg(this)
        .env(FEW, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && said.contains("1 passed"), "{said}");
}

fn with_few_descriptors() {
    let mut share = Share::new();
    fs::write(share.host("f"), b"x").unwrap();
    // What is only known takes none.
    let first = share.client.walk(share.root, &[b"f"]).unwrap();
    let known: Vec<_> = (0..200).map(|_| share.client.walk(share.root, &[b"f"]).unwrap()).collect();
    let mut opened = |fid: &_| share.client.open(*fid, OpenFlags::RDONLY);
    let (open, refused) = known.split_at(known.iter().take_while(|fid| opened(fid).is_ok()).count());
    assert_eq!(errno(share.client.open(refused[0], OpenFlags::RDONLY)), Errno::EMFILE);
    assert_eq!(errno(share.client.open(first, OpenFlags::RDONLY)), Errno::EMFILE);
    share.client.clunk(open[0]).unwrap();
    share.client.open(first, OpenFlags::RDONLY).unwrap();
    assert_eq!(share.client.read_to_end(first).unwrap(), b"x");
}

#[test]
fn appending_goes_to_the_end_whatever_the_offset() {
    let mut share = Share::new();
    fs::write(share.host("log"), b"one\n").unwrap();
    let fid = share.fid("log");
    share.client.open(fid, OpenFlags::WRONLY | OpenFlags::APPEND).unwrap();
    share.client.write_all(fid, 0, b"two\n").unwrap();
    assert_eq!(fs::read(share.host("log")).unwrap(), b"one\ntwo\n");
}

#[test]
fn a_walk_that_stops_on_the_way_makes_no_fid() {
    let mut share = Share::new();
    fs::create_dir(share.host("a")).unwrap();
    assert_eq!(errno(share.client.walk(share.root, &[b"nothing"])), Errno::ENOENT);
    let before = share.session.fid_count();
    assert_eq!(errno(share.client.walk(share.root, &[b"a", b"b", b"c"])), Errno::ENOENT);
    assert_eq!(share.session.fid_count(), before);
}

#[test]
fn calls_fail_with_the_errno_of_the_system_call() {
    let mut share = Share::new();
    fs::create_dir_all(share.host("d/full")).unwrap();
    fs::write(share.host("f"), b"").unwrap();
    symlink("f", share.host("l")).unwrap();
    let (d, f, l) = (share.fid("d"), share.fid("f"), share.fid("l"));
    let (root, client) = (share.root, &mut share.client);
    assert_eq!(errno(client.mkdir(root, b"d", 0o755)), Errno::EEXIST);
    assert_eq!(errno(client.rmdir(root, b"d")), Errno::ENOTEMPTY);
    assert_eq!(errno(client.rmdir(root, b"f")), Errno::ENOTDIR);
    assert_eq!(errno(client.unlink(root, b"d")), Errno::EISDIR);
    assert_eq!(errno(client.unlink(root, b"nothing")), Errno::ENOENT);
    assert_eq!(errno(client.walk(f, &[b"x"])), Errno::ENOTDIR);
    assert_eq!(errno(client.open(l, OpenFlags::RDONLY)), Errno::ELOOP);
    assert_eq!(errno(client.open(d, OpenFlags::WRONLY)), Errno::EISDIR);
    assert_eq!(errno(client.open(f, OpenFlags::DIRECTORY)), Errno::ENOTDIR);
    assert_eq!(errno(client.read(f, 0, 1)), Errno::EBADF);
    assert_eq!(errno(client.mkdir(root, &[b'n'; 256], 0o755)), Errno::ENAMETOOLONG);
    assert_eq!(errno(client.rename(root, b"d", d, b"inside")), Errno::EINVAL);
    assert_eq!(errno(client.mknod(root, b"sda", 0o060_600)), Errno::EPERM);
    assert_eq!(errno(client.readlink(f)), Errno::EINVAL);
}

#[test]
fn create_without_excl_opens_what_is_there() {
    let mut share = Share::new();
    fs::write(share.host("f"), b"old").unwrap();
    let (first, second) = (share.root_copy(), share.root_copy());
    share.client.create(first, b"f", OpenFlags::RDONLY, 0o600).unwrap();
    assert_eq!(share.client.read_to_end(first).unwrap(), b"old");
    assert_eq!(errno(share.client.create(second, b"f", OpenFlags::EXCL, 0o600)), Errno::EEXIST);
}

#[test]
fn fids_beyond_the_quota_are_refused_and_the_rest_goes_on() {
    let mut share = Share::new();
    let refused = (0..=FIDS_MAX).find_map(|_| share.client.walk(share.root, &[]).err()).unwrap();
    assert_eq!(refused.errno(), Some(Errno::EMFILE));
    assert_eq!(share.session.fid_count(), FIDS_MAX);
    share.client.getattr(share.root).unwrap();
}

#[test]
fn a_read_only_share_refuses_every_change() {
    let mut share = Share::with(true);
    fs::write(share.host("f"), b"x").unwrap();
    let f = share.fid("f");
    let (root, client) = (share.root, &mut share.client);
    assert_eq!(errno(client.mkdir(root, b"d", 0o755)), Errno::EROFS);
    assert_eq!(errno(client.symlink(root, b"l", b"x")), Errno::EROFS);
    assert_eq!(errno(client.mknod(root, b"n", 0o100_600)), Errno::EROFS);
    assert_eq!(errno(client.link(root, f, b"g")), Errno::EROFS);
    assert_eq!(errno(client.unlink(root, b"f")), Errno::EROFS);
    assert_eq!(errno(client.rename(root, b"f", root, b"g")), Errno::EROFS);
    assert_eq!(
        errno(client.setattr(f, SetAttributes { valid: setattr::MODE, ..Default::default() })),
        Errno::EROFS
    );
    assert_eq!(errno(client.set_xattr(f, b"user.a", b"b", 0)), Errno::EROFS);
    assert_eq!(errno(client.open(f, OpenFlags::RDWR)), Errno::EROFS);
    assert_eq!(errno(client.open(f, OpenFlags::TRUNC)), Errno::EROFS);
    assert_eq!(errno(client.create(root, b"n", OpenFlags::RDWR, 0o600)), Errno::EROFS);
    client.open(f, OpenFlags::RDONLY).unwrap();
    assert_eq!(client.read_to_end(f).unwrap(), b"x");
    assert_eq!(errno(client.remove(f)), Errno::EROFS);
}
