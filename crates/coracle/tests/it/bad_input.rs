//! What a person can get wrong: one clear line, exit code 2, nothing left behind.

use std::fs;
use std::net::TcpListener;

use crate::coracle;

/// Asserts one line on stderr that has all of `words`, exit code 2, and no output.
fn check(arguments: &[&str], words: &[&str]) {
    let done = coracle(arguments).done();
    assert_eq!(done.code, Some(2), "{arguments:?}: {}", done.stderr);
    assert_eq!(done.stderr.lines().count(), 1, "{arguments:?}: {}", done.stderr);
    assert!(done.stdout.is_empty(), "{arguments:?}: {}", done.text());
    for word in words {
        assert!(done.stderr.contains(word), "{arguments:?}: `{word}` is not in: {}", done.stderr);
    }
}

#[test]
fn flags_and_values() {
    check(&["run", "--no-such-flag", "--", "true"], &["--no-such-flag"]);
    check(&["no-such-command"], &["no-such-command"]);
    check(&[], &["coracle run"]);
    check(&["run"], &["coracle run -- COMMAND"]);
    check(&["run", "--memory", "0", "--", "true"], &["--memory", "96M"]);
    check(&["run", "--memory", "1T", "--", "true"], &["--memory", "MiB"]);
    check(&["run", "--memory", "lots", "--", "true"], &["lots", "512M"]);
    check(&["run", "--cpus", "0", "--", "true"], &["--cpus"]);
    check(&["run", "--cpus", "99", "--engine", "soft", "--", "true"], &["99 vCPUs", "at most"]);
    check(
        &["run", "--cpus", "2", "--engine", "soft:lockstep", "--", "true"],
        &["2 vCPUs", "soft:lockstep", "at most 1"],
    );
    check(&["run", "--timeout", "never", "--", "true"], &["never", "30s"]);
    check(&["run", "-p", "http:80", "--", "true"], &["http"]);
    check(&["run", "-v", "nowhere", "--", "true"], &["nowhere"]);
    check(&["run", "-e", "=x", "--", "true"], &["=x"]);
    check(&["run", "--disk", "/no/such/disk", "--", "true"], &["--disk", "/no/such/disk"]);
    check(&["run", "--disk", ":ro", "--", "true"], &[":ro", "data.img"]);
    check(&["run", "--stats", "/no/such/folder/stats", "--", "true"], &["--stats", "/no/such/folder"]);
    check(&["run", "--engine", "fast", "--", "true"], &["fast", "soft"]);
}

#[test]
fn a_share_that_does_not_exist() {
    check(&["run", "-v", "/no/such/folder:/s", "--", "true"], &["/no/such/folder", "No such file"]);
}

#[test]
fn a_port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    check(&["run", "-p", &format!("{port}:80"), "--", "true"], &[&port.to_string(), "in use"]);
}

#[test]
fn a_package_that_does_not_exist() {
    let done = coracle(&["run", "--package", "no-such-package", "--", "true"]).done();
    assert_eq!(done.code, Some(2), "{}", done.stderr);
    let last = done.stderr.lines().last().unwrap();
    assert!(last.contains("no-such-package is in none of the suites"), "{last}");
}

#[test]
fn no_mirror_and_nothing_cached() {
    let cache = tempfile::tempdir().unwrap();
    for (flags, words) in [
        (&["--mirror", "http://127.0.0.1:1/debian"][..], ["127.0.0.1:1", "refused"]),
        (&["--offline"], ["offline", "not in the cache"]),
    ] {
        let mut run = coracle(&["image", "build"]);
        run.command().args(flags).env("XDG_CACHE_HOME", cache.path());
        let done = run.done();
        assert_eq!(done.code, Some(125), "{}", done.stderr);
        let last = done.stderr.lines().last().unwrap();
        assert!(words.iter().all(|word| last.contains(word)), "{last}");
    }
}

#[test]
fn a_full_disk() {
    let place = tempfile::tempdir().unwrap();
    // A small file system of our own, in a mount namespace that goes with the process.
    let script = format!(
        "mount -t tmpfs -o size=12m none {0} && XDG_CACHE_HOME={0} exec {1} image build",
        place.path().display(),
        env!("CARGO_BIN_EXE_coracle")
    );
    let turn = coracle(&[]);
    let output = std::process::Command::new("unshare").args(["-rm", "sh", "-c", &script]).output().unwrap();
    drop(turn);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("unshare:") || said.contains("mount:") {
        println!("SKIP: no namespaces for this user: {said}");
        return;
    }
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.lines().last().unwrap().contains("no space left"), "{said}");
}

#[test]
fn a_kernel_that_is_missing_or_is_no_kernel() {
    check(&["run", "--kernel", "/no/such/kernel", "--", "true"], &["/no/such/kernel", "No such file"]);
    let folder = tempfile::tempdir().unwrap();
    let jpeg = folder.path().join("kernel");
    fs::write(&jpeg, [&[0xff, 0xd8, 0xff, 0xe0, 0, 16][..], b"JFIF\0", &[7; 5000]].concat()).unwrap();
    let path = jpeg.display().to_string();
    check(&["run", "--kernel", &path, "--initrd", &path], &["JPEG"]);
    let empty = folder.path().join("empty");
    fs::write(&empty, "").unwrap();
    let path = empty.display().to_string();
    check(&["run", "--kernel", &path, "--initrd", &path], &["empty"]);
}
