//! Every operation by its name, on a mounted host directory; the host's own view is the oracle.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

use p9p_fuse::MountOptions;
use rustix::fs::{CWD, FileType, FlockOperation, Mode, RenameFlags, XattrFlags, mknodat, renameat_with};
use rustix::io::Errno;

use crate::Mounted;

fn check(test: impl FnOnce(&Path, &Path)) {
    if let Some(mounted) = Mounted::hostdir(MountOptions::default()) {
        test(mounted.path(), mounted.host.path());
    }
}

fn errno<T>(result: std::io::Result<T>) -> i32 {
    result.err().and_then(|error| error.raw_os_error()).unwrap_or(0)
}

#[test]
fn what_is_written_is_on_the_host_and_what_is_on_the_host_is_read() {
    check(|mount, host| {
        fs::write(mount.join("a"), b"from the mount").unwrap();
        assert_eq!(fs::read(host.join("a")).unwrap(), b"from the mount");
        fs::write(host.join("b"), b"from the host").unwrap();
        assert_eq!(fs::read(mount.join("b")).unwrap(), b"from the host");
    });
}

#[test]
fn offsets_append_and_truncate() {
    check(|mount, host| {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(mount.join("f"))
            .unwrap();
        file.write_all(b"0123456789").unwrap();
        file.write_all_at(b"XY", 4).unwrap();
        file.seek(SeekFrom::Start(2)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "23XY6789");
        file.set_len(3).unwrap();
        OpenOptions::new().append(true).open(mount.join("f")).unwrap().write_all(b"end").unwrap();
        assert_eq!(fs::read(host.join("f")).unwrap(), b"012end");
        File::create(mount.join("f")).unwrap();
        assert_eq!(fs::metadata(host.join("f")).unwrap().len(), 0);
        file.sync_all().unwrap();
        file.sync_data().unwrap();
    });
}

/// A read of the kernel may be longer than a message, and a short answer is the end of the file to it.
#[test]
fn a_large_file_of_a_server_with_short_messages_is_read_whole() {
    let host = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..5_000_001_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(host.path().join("f"), &bytes).unwrap();
    let service = std::sync::Arc::new(p9p::HostDir::new(host.path(), false).unwrap());
    let server = p9p::net::Server::start(service, p9p::net::ServerOptions::default()).unwrap();
    for msize in [8 << 10, 64 << 10, 1 << 20] {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        server.serve(theirs.into()).unwrap();
        let options = p9p::connection::ConnectOptions { msize, ..Default::default() };
        let connection = p9p::connection::Connection::over(p9p::net::Socket::from(ours), &options).unwrap();
        let place = tempfile::tempdir().unwrap();
        let remote = p9p::remote::Remote::new(connection, None);
        let Some(mount) = crate::mount(&remote, place.path(), MountOptions::default()) else { return };
        assert!(fs::read(mount.path().join("f")).unwrap() == bytes, "{msize}");
        fs::write(mount.path().join("g"), &bytes).unwrap();
        assert!(fs::read(host.path().join("g")).unwrap() == bytes, "{msize}");
    }
}

/// As readdir(3) and stat(2) see it, through a server in between as well: the kernel reads such directories with their
/// files' attributes.
#[test]
fn a_directory_of_many_is_listed_with_what_is_in_it() {
    let host = tempfile::tempdir().unwrap();
    for n in 0..2500_usize {
        fs::write(host.path().join(format!("a name that is not short {n}")), vec![b'x'; n % 97]).unwrap();
    }
    fs::create_dir(host.path().join("d")).unwrap();
    symlink("d", host.path().join("l")).unwrap();
    let service = std::sync::Arc::new(p9p::HostDir::new(host.path(), false).unwrap());
    let server = p9p::net::Server::start(service, p9p::net::ServerOptions::default()).unwrap();
    for dialect in p9p::message::Dialect::ALL {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        server.serve(theirs.into()).unwrap();
        let options = p9p::connection::ConnectOptions { dialects: vec![dialect], ..Default::default() };
        let connection = p9p::connection::Connection::over(p9p::net::Socket::from(ours), &options).unwrap();
        let place = tempfile::tempdir().unwrap();
        let remote = p9p::remote::Remote::new(connection, None);
        let Some(mount) = crate::mount(&remote, place.path(), MountOptions::default()) else { return };
        let listed: Vec<_> = fs::read_dir(mount.path()).unwrap().map(Result::unwrap).collect();
        assert_eq!(listed.len(), 2502, "{dialect:?}");
        for entry in listed {
            let (seen, real) = (
                entry.metadata().unwrap(),
                fs::symlink_metadata(host.path().join(entry.file_name())).unwrap(),
            );
            assert_eq!(seen.is_dir(), real.is_dir(), "{entry:?}");
            if real.is_file() {
                assert_eq!(seen.len(), real.len(), "{dialect:?}: {entry:?}");
            }
        }
    }
}

#[test]
fn a_large_file_passes_unharmed() {
    check(|mount, host| {
        let bytes: Vec<u8> =
            (0..9_000_001_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        fs::write(mount.join("large"), &bytes).unwrap();
        assert!(fs::read(host.join("large")).unwrap() == bytes);
        assert!(fs::read(mount.join("large")).unwrap() == bytes);
    });
}

#[test]
fn a_hole_of_5_gib_has_its_size_and_its_end() {
    check(|mount, _| {
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).open(mount.join("hole")).unwrap();
        file.write_all_at(b"end", 5 << 30).unwrap();
        assert_eq!(file.metadata().unwrap().len(), (5 << 30) + 3);
        let mut end = [0; 3];
        file.read_exact_at(&mut end, 5 << 30).unwrap();
        assert_eq!(&end, b"end");
    });
}

#[test]
fn create_new_refuses_what_is_there() {
    check(|mount, _| {
        let create = || OpenOptions::new().write(true).create_new(true).mode(0o640).open(mount.join("f"));
        create().unwrap();
        assert_eq!(errno(create()), Errno::EXIST.raw_os_error());
        assert_eq!(fs::metadata(mount.join("f")).unwrap().mode() & 0o777, 0o640);
    });
}

#[test]
fn directories_are_made_listed_and_removed() {
    check(|mount, host| {
        fs::create_dir(mount.join("d")).unwrap();
        for number in 0..3000 {
            File::create(host.join("d").join(format!("entry-{number}"))).unwrap();
        }
        let mut names: Vec<_> =
            fs::read_dir(mount.join("d")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 3000);
        assert_eq!(errno(fs::remove_dir(mount.join("d"))), Errno::NOTEMPTY.raw_os_error());
        fs::remove_dir_all(mount.join("d")).unwrap();
        assert!(!host.join("d").exists());
        assert_eq!(errno(fs::remove_dir(mount.join("d"))), Errno::NOENT.raw_os_error());
        fs::write(mount.join("f"), b"").unwrap();
        assert_eq!(errno(fs::remove_dir(mount.join("f"))), Errno::NOTDIR.raw_os_error());
        assert_eq!(errno(fs::create_dir(mount.join("f/d"))), Errno::NOTDIR.raw_os_error());
    });
}

#[test]
fn link_counts_and_inode_numbers_are_the_hosts() {
    check(|mount, host| {
        fs::create_dir_all(mount.join("d/sub")).unwrap();
        fs::write(mount.join("f"), b"x").unwrap();
        fs::hard_link(mount.join("f"), mount.join("d/g")).unwrap();
        for path in ["d", "d/sub", "f", "d/g"] {
            let (ours, hosts) =
                (fs::metadata(mount.join(path)).unwrap(), fs::metadata(host.join(path)).unwrap());
            assert_eq!(ours.nlink(), hosts.nlink(), "{path}");
        }
        let (one, other) = (fs::metadata(mount.join("f")).unwrap(), fs::metadata(mount.join("d/g")).unwrap());
        assert_eq!(one.ino(), other.ino());
        fs::write(mount.join("d/g"), b"through the other name").unwrap();
        assert_eq!(fs::read(mount.join("f")).unwrap(), b"through the other name");
        fs::remove_file(mount.join("f")).unwrap();
        assert_eq!(fs::metadata(mount.join("d/g")).unwrap().nlink(), 1);
    });
}

#[test]
fn symbolic_links_fifos_and_sockets() {
    check(|mount, host| {
        symlink("d/../target", mount.join("link")).unwrap();
        assert_eq!(fs::read_link(mount.join("link")).unwrap(), Path::new("d/../target"));
        assert_eq!(fs::read_link(host.join("link")).unwrap(), Path::new("d/../target"));
        mknodat(CWD, mount.join("fifo"), FileType::Fifo, Mode::from(0o600), 0).unwrap();
        assert!(fs::metadata(host.join("fifo")).unwrap().file_type().is_fifo());
        assert!(fs::metadata(mount.join("fifo")).unwrap().file_type().is_fifo());
        let _socket = std::os::unix::net::UnixListener::bind(mount.join("socket")).unwrap();
        assert!(fs::metadata(host.join("socket")).unwrap().file_type().is_socket());
        assert_eq!(errno(fs::read_link(mount.join("fifo"))), Errno::INVAL.raw_os_error());
    });
}

#[test]
fn renames_within_and_across_directories_and_over_what_is_there() {
    check(|mount, host| {
        fs::create_dir(mount.join("a")).unwrap();
        fs::create_dir(mount.join("b")).unwrap();
        fs::write(mount.join("a/f"), b"one").unwrap();
        fs::rename(mount.join("a/f"), mount.join("a/g")).unwrap();
        fs::rename(mount.join("a/g"), mount.join("b/g")).unwrap();
        fs::write(mount.join("h"), b"two").unwrap();
        fs::rename(mount.join("h"), mount.join("b/g")).unwrap();
        assert_eq!(fs::read(host.join("b/g")).unwrap(), b"two");
        fs::rename(mount.join("b"), mount.join("a/b")).unwrap();
        assert_eq!(fs::read(mount.join("a/b/g")).unwrap(), b"two");
        assert_eq!(errno(fs::rename(mount.join("a"), mount.join("a/b/c"))), Errno::INVAL.raw_os_error());
        fs::write(mount.join("x"), b"x").unwrap();
        fs::write(mount.join("y"), b"y").unwrap();
        let with = |flags| renameat_with(CWD, mount.join("x"), CWD, mount.join("y"), flags);
        assert_eq!(with(RenameFlags::NOREPLACE), Err(Errno::EXIST));
        assert_eq!(with(RenameFlags::EXCHANGE), Err(Errno::INVAL));
        renameat_with(CWD, mount.join("x"), CWD, mount.join("z"), RenameFlags::NOREPLACE).unwrap();
        assert_eq!(fs::read(host.join("z")).unwrap(), b"x");
    });
}

#[test]
fn a_rename_that_must_not_replace_never_does_whoever_comes_in_between() {
    const ROUNDS: usize = 2000;
    check(|mount, host| {
        let together = std::sync::Barrier::new(2);
        let mut both = 0;
        std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                let mut made = Vec::new();
                for round in 0..ROUNDS {
                    together.wait();
                    // About as long as the other's request takes to arrive.
                    (0..round % 64 * 32).for_each(|_| std::hint::spin_loop());
                    made.push(File::create_new(host.join(format!("new-{round}"))).is_ok());
                }
                made
            });
            let moved: Vec<bool> = (0..ROUNDS)
                .map(|round| {
                    let old = mount.join(format!("old-{round}"));
                    fs::write(&old, b"moved").unwrap();
                    let new = mount.join(format!("new-{round}"));
                    together.wait();
                    renameat_with(CWD, &old, CWD, &new, RenameFlags::NOREPLACE).is_ok()
                })
                .collect();
            for (made, moved) in made.join().unwrap().into_iter().zip(moved) {
                both += usize::from(made && moved);
                assert!(made || moved, "somebody was first");
            }
        });
        assert_eq!(both, 0, "files made by somebody else were replaced, of {ROUNDS}");
    });
}

#[test]
fn an_unlinked_open_file_lives_on() {
    check(|mount, host| {
        let mut file =
            OpenOptions::new().read(true).write(true).create_new(true).open(mount.join("f")).unwrap();
        file.write_all(b"before").unwrap();
        fs::remove_file(mount.join("f")).unwrap();
        assert!(!host.join("f").exists());
        file.write_all(b" and after").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "before and after");
        assert_eq!(file.metadata().unwrap().nlink(), 0);
    });
}

#[test]
fn modes_owners_and_times() {
    check(|mount, host| {
        let path = mount.join("f");
        fs::write(&path, b"x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o754)).unwrap();
        let file = File::open(&path).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_234_567_890, 987_654_321);
        file.set_times(fs::FileTimes::new().set_modified(time).set_accessed(time)).unwrap();
        let metadata = fs::metadata(host.join("f")).unwrap();
        assert_eq!(metadata.mode() & 0o7777, 0o754);
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (1_234_567_890, 987_654_321));
        assert_eq!(fs::metadata(&path).unwrap().mtime_nsec(), 987_654_321);
        std::os::unix::fs::chown(&path, None, None).unwrap();
        assert!(rustix::fs::statvfs(mount).unwrap().f_blocks > 0);
    });
}

#[test]
fn extended_attributes() {
    check(|mount, host| {
        let path = mount.join("f");
        fs::write(&path, b"x").unwrap();
        let set = |value: &[u8], flags| rustix::fs::setxattr(&path, "user.colour", value, flags);
        if set(b"blue", XattrFlags::empty()) == Err(Errno::OPNOTSUPP) {
            eprintln!("SKIP: the temporary directory has no extended attributes");
            return;
        }
        let mut value = [0; 64];
        let length = rustix::fs::getxattr(host.join("f"), "user.colour", &mut value).unwrap();
        assert_eq!(&value[..length], b"blue");
        assert_eq!(set(b"red", XattrFlags::CREATE), Err(Errno::EXIST));
        set(b"red", XattrFlags::REPLACE).unwrap();
        let length = rustix::fs::getxattr(&path, "user.colour", &mut value).unwrap();
        assert_eq!(&value[..length], b"red");
        assert_eq!(rustix::fs::getxattr(&path, "user.colour", &mut [0; 1][..]), Err(Errno::RANGE));
        let length = rustix::fs::listxattr(&path, &mut value).unwrap();
        assert!(String::from_utf8_lossy(&value[..length]).contains("user.colour\0"));
        rustix::fs::removexattr(&path, "user.colour").unwrap();
        assert_eq!(rustix::fs::getxattr(&path, "user.colour", &mut value), Err(Errno::NODATA));
    });
}

#[test]
fn locks_exclude_one_another_whether_the_kernel_or_the_service_keeps_them() {
    for server_locks in [false, true] {
        let Some(mounted) = Mounted::hostdir(MountOptions { server_locks, ..MountOptions::default() }) else {
            return;
        };
        let path = mounted.path().join("f");
        fs::write(&path, b"x").unwrap();
        let open = || OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let (one, other) = (open(), open());
        rustix::fs::flock(&one, FlockOperation::LockExclusive).unwrap();
        assert_eq!(rustix::fs::flock(&other, FlockOperation::NonBlockingLockShared), Err(Errno::AGAIN));
        let waiting = std::thread::spawn(move || {
            rustix::fs::flock(&other, FlockOperation::LockExclusive).unwrap();
            other
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!waiting.is_finished());
        drop(one);
        let other = waiting.join().unwrap();
        // fcntl(2)'s are another kind, between processes; to a 9P service they are one.
        rustix::fs::flock(&other, FlockOperation::Unlock).unwrap();
        rustix::fs::fcntl_lock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
        let python = "import fcntl,sys\nf=open(sys.argv[1],'r+')\ntry:\n fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB)\n print('got')\nexcept OSError: print('held')";
        let ask = || {
            let output = std::process::Command::new("python3").args(["-c", python]).arg(&path).output();
            output.map(|output| String::from_utf8(output.stdout).unwrap())
        };
        let Ok(answer) = ask() else {
            eprintln!("SKIP: python3 is not installed");
            return;
        };
        assert_eq!(answer, "held\n", "server_locks: {server_locks}");
        drop(other);
        assert_eq!(ask().unwrap(), "got\n", "server_locks: {server_locks}");
    }
}

#[test]
fn names_of_255_bytes_and_not_of_256() {
    check(|mount, _| {
        let longest = "n".repeat(255);
        fs::write(mount.join(&longest), b"x").unwrap();
        assert_eq!(fs::read(mount.join(&longest)).unwrap(), b"x");
        let longer = "n".repeat(256);
        assert_eq!(errno(fs::write(mount.join(longer), b"x")), Errno::NAMETOOLONG.raw_os_error());
        let mut deep = mount.to_path_buf();
        for _ in 0..100 {
            deep.push("deep");
        }
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("f"), b"deep").unwrap();
        assert_eq!(fs::read(deep.join("f")).unwrap(), b"deep");
    });
}

#[test]
fn read_only_mounts_refuse_changes() {
    let Some(mounted) = Mounted::hostdir(MountOptions { read_only: true, ..MountOptions::default() }) else {
        return;
    };
    fs::write(mounted.host.path().join("f"), b"x").unwrap();
    assert_eq!(fs::read(mounted.path().join("f")).unwrap(), b"x");
    assert_eq!(errno(fs::write(mounted.path().join("f"), b"y")), Errno::ROFS.raw_os_error());
}

#[test]
fn a_file_that_changes_on_the_host_is_read_anew() {
    check(|mount, host| {
        fs::write(host.join("f"), b"first").unwrap();
        assert_eq!(fs::read(mount.join("f")).unwrap(), b"first");
        fs::write(host.join("f"), b"second and longer").unwrap();
        // Attributes may be a second old.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        assert_eq!(fs::read(mount.join("f")).unwrap(), b"second and longer");
    });
}

#[test]
fn the_kernel_is_asked_to_forget_when_it_knows_too_much() {
    let Some(mounted) = Mounted::hostdir(MountOptions { inodes_max: 100, ..MountOptions::default() }) else {
        return;
    };
    for number in 0..2000 {
        fs::write(mounted.host.path().join(number.to_string()), b"x").unwrap();
    }
    for number in 0..2000 {
        assert_eq!(fs::metadata(mounted.path().join(number.to_string())).unwrap().len(), 1);
    }
    let mount = mounted.mount.as_ref().unwrap();
    let is_small = || mount.n_inodes() < 500;
    assert!((0..500).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        is_small()
    }));
    assert_eq!(fs::read(mounted.path().join("7")).unwrap(), b"x");
}
