//! Mounting, unmounting, and what is left when a server dies.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use p9p::HostDir;
use p9p_fuse::{Mount, MountError, MountOptions};

use crate::{Mounted, mount};

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == path.to_str())
}

fn within_30_s(mut happens: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(30) {
        if happens() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

#[test]
fn dropping_it_unmounts() {
    let Some(mut mounted) = Mounted::hostdir(MountOptions::default()) else { return };
    let path = mounted.path().to_path_buf();
    assert!(is_mounted(&path));
    mounted.mount = None;
    assert!(!is_mounted(&path));
}

#[test]
fn umount_ends_it() {
    let Some(mounted) = Mounted::hostdir(MountOptions::default()) else { return };
    let path = mounted.path().to_path_buf();
    assert!(Command::new("umount").arg(&path).status().unwrap().success());
    assert!(mounted.mount.as_ref().unwrap().wait_timeout(Duration::from_secs(5)));
}

#[test]
fn a_mount_in_use_is_unmounted_all_the_same() {
    let Some(mut mounted) = Mounted::hostdir(MountOptions::default()) else { return };
    fs::write(mounted.path().join("f"), b"x").unwrap();
    let file = fs::File::open(mounted.path().join("f")).unwrap();
    let start = Instant::now();
    mounted.mount = None;
    assert!(start.elapsed() < Duration::from_secs(6));
    drop(file);
}

#[test]
fn a_missing_directory_and_a_file_are_refused_with_their_name() {
    let host = tempfile::tempdir().unwrap();
    let service = HostDir::new(host.path(), false).unwrap();
    let missing = Mount::new(&service, host.path().join("missing"), MountOptions::default()).unwrap_err();
    assert!(matches!(missing, MountError::Directory { .. }), "{missing}");
    assert!(missing.to_string().contains("missing: no such file"), "{missing}");
    fs::write(host.path().join("file"), b"").unwrap();
    let file = Mount::new(&service, host.path().join("file"), MountOptions::default()).unwrap_err();
    assert!(file.to_string().contains("not a directory"), "{file}");
}

/// Not a test: what the two below start as a process of its own, by the name of the variable.
#[test]
fn serve_for_another_test() {
    let Ok(place) = std::env::var("P9P_FUSE_TEST_PLACE") else { return };
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("f"), b"x").unwrap();
    let service = HostDir::new(host.path(), false).unwrap();
    let guard = std::env::var("P9P_FUSE_TEST_GUARD").is_ok();
    let mount = Mount::new(&service, place, MountOptions { guard, ..MountOptions::default() }).unwrap();
    mount.wait_timeout(Duration::from_secs(60));
}

fn serve_elsewhere(place: &Path, guard: bool, command: Command) -> std::process::Child {
    let mut command = command;
    command
        .args(["--exact", "lifecycle::serve_for_another_test", "--nocapture"])
        .env("P9P_FUSE_TEST_PLACE", place)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if guard {
        command.env("P9P_FUSE_TEST_GUARD", "1");
    }
    command.spawn().unwrap()
}

fn can_mount() -> bool {
    Mounted::hostdir(MountOptions::default()).is_some()
}

#[test]
fn a_killed_server_leaves_no_mount_behind() {
    if !can_mount() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let mut child = serve_elsewhere(place.path(), true, Command::new(std::env::current_exe().unwrap()));
    assert!(within_30_s(|| place.path().join("f").exists()));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(within_30_s(|| !is_mounted(place.path())));
}

#[test]
fn what_a_dead_server_left_is_mounted_over() {
    if !can_mount() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let mut child = serve_elsewhere(place.path(), false, Command::new(std::env::current_exe().unwrap()));
    assert!(within_30_s(|| place.path().join("f").exists()));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(within_30_s(|| fs::read_dir(place.path()).is_err()));
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("new"), b"new").unwrap();
    let service = HostDir::new(host.path(), false).unwrap();
    let again = mount(&service, place.path(), MountOptions::default()).unwrap();
    assert_eq!(fs::read(place.path().join("new")).unwrap(), b"new");
    drop(again);
    assert!(!is_mounted(place.path()));
}

#[test]
fn an_ordinary_user_mounts_through_fusermount() {
    const NOBODY: u32 = 65534;
    if !can_mount() {
        return;
    }
    if Command::new("fusermount3").arg("--version").output().is_err() || !rustix::process::geteuid().is_root()
    {
        eprintln!("SKIP: takes fusermount3, and root to become somebody else");
        return;
    }
    let (place, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for directory in [&place, &own] {
        std::os::unix::fs::chown(directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    // The test itself may be where nobody else may look.
    fs::copy(std::env::current_exe().unwrap(), own.path().join("program")).unwrap();
    // Most hosts let everybody open /dev/fuse, and some nobody but root: here it is open, in a namespace of its own.
    let script = r#"mknod "$0/fuse" c 10 229 && chmod 666 "$0/fuse" && mount --bind "$0/fuse" /dev/fuse || exit 9
        cd / && export TMPDIR="$0"
        setpriv --reuid 65534 --regid 65534 --clear-groups sh -c '
            "$0/program" --exact lifecycle::serve_for_another_test --nocapture &
            for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
                [ -e "$P9P_FUSE_TEST_PLACE/f" ] && break; sleep 0.1; done
            cat "$P9P_FUSE_TEST_PLACE/f"; kill -9 $!' "$0"
        n=0; while grep -q "$P9P_FUSE_TEST_PLACE" /proc/self/mounts; do
            n=$((n+1)); [ $n = 50 ] && { echo " still mounted"; exit; }; sleep 0.1; done; echo " gone""#;
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .arg(own.path())
        .env("P9P_FUSE_TEST_PLACE", place.path())
        .env("P9P_FUSE_TEST_GUARD", "1")
        .process_group(0)
        .output()
        .unwrap();
    if output.status.code() == Some(9) {
        eprintln!("SKIP: no device nodes can be made here");
        return;
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.ends_with("x gone\n"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_user_mounts_in_a_namespace_of_his_own() {
    if !can_mount() {
        return;
    }
    let works = Command::new("unshare").args(["-Urm", "true"]).status().is_ok_and(|status| status.success());
    // In a new user namespace, /dev/fuse must be readable for the user outside: here that is root.
    if !works {
        eprintln!("SKIP: no user namespaces here");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let script = r#""$0" --exact lifecycle::serve_for_another_test --nocapture & 
        for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
            [ -e "$P9P_FUSE_TEST_PLACE/f" ] && break; sleep 0.1; done
        cat "$P9P_FUSE_TEST_PLACE/f"; kill -9 $!"#;
    let output = Command::new("unshare")
        .args(["-Urm", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .env("P9P_FUSE_TEST_PLACE", place.path())
        .process_group(0)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.ends_with('x'), "{said}{}", String::from_utf8_lossy(&output.stderr));
}
