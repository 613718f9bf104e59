//! Folders and files of the host, read and written by the guest with the host user's rights.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use crate::sh;

fn volume(host: &std::path::Path, rest: &str) -> String {
    format!("{}:{rest}", host.display())
}

#[test]
fn a_folder_is_read_and_written() {
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("in"), "hello").unwrap();
    let script = "cd /s && cat in && mkdir d && echo back > d/out && chmod 750 d/out && ln -s out d/link && mv in in2 && stat -c %s in2";
    let said = sh(&["-v", &volume(host.path(), "/s")], script).done().good();
    assert_eq!(said, "hello5\n");
    assert_eq!(fs::read_to_string(host.path().join("d/out")).unwrap(), "back\n");
    let meta = fs::metadata(host.path().join("d/out")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o750);
    assert_eq!(meta.uid(), fs::metadata(host.path()).unwrap().uid());
    assert_eq!(fs::read_link(host.path().join("d/link")).unwrap().to_str(), Some("out"));
    assert!(!host.path().join("in").exists());
}

#[test]
fn tar_packs_and_unpacks_a_tree_in_the_share() {
    let host = tempfile::tempdir().unwrap();
    let script = "cd /s && mkdir -p a/b && i=0; while [ $i -lt 60 ]; do echo $i > a/b/$i; i=$((i+1)); done; \
        ln -s ../b a/l && tar cf t.tar a && mkdir x && tar xf t.tar -C x && diff -r a/b x/a/b && rm -r a && ls x/a/b | wc -l";
    let said = sh(&["-v", &volume(host.path(), "/s")], script).done().good();
    assert_eq!(said.trim(), "60");
    assert_eq!(fs::read_dir(host.path().join("x/a/b")).unwrap().count(), 60);
    assert!(!host.path().join("a").exists());
}

#[test]
fn a_read_only_share_stays_as_it_is() {
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("f"), "same").unwrap();
    let script = "cd /s; cat f; echo x > f; echo x > g; rm -f f; mkdir d; true";
    let done = sh(&["-v", &volume(host.path(), "/s:ro")], script).done();
    assert_eq!(done.good(), "same");
    assert!(done.stderr.contains("Read-only file system"), "{}", done.stderr);
    assert_eq!(fs::read_to_string(host.path().join("f")).unwrap(), "same");
    assert_eq!(fs::read_dir(host.path()).unwrap().count(), 1);
}

#[test]
fn a_symlink_does_not_lead_out_of_the_share() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let host = tempfile::tempdir().unwrap();
    symlink(outside.path(), host.path().join("out")).unwrap();
    symlink("../".repeat(20) + "etc/hostname", host.path().join("up")).unwrap();
    let script = "cd /s; cat out/secret up ../../../../../../etc/coracle-host 2>/dev/null; echo evil > out/new 2>/dev/null; echo done";
    let said = sh(&["-v", &volume(host.path(), "/s")], script).done().good();
    let hostname = fs::read_to_string("/etc/hostname").unwrap_or_default();
    assert!(
        !said.contains("secret") && (hostname.trim().len() < 2 || !said.contains(hostname.trim())),
        "{said}"
    );
    assert!(!outside.path().join("new").exists());
}

#[test]
fn a_single_file_and_two_folders_at_once() {
    let host = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    fs::write(host.path().join("conf"), "one\n").unwrap();
    fs::write(host.path().join("neighbour"), "").unwrap();
    let flags =
        ["-v", &volume(&host.path().join("conf"), "/etc/my.conf"), "-v", &volume(other.path(), "/deep/er")];
    let said = sh(&flags, "cat /etc/my.conf; echo two >> /etc/my.conf; echo x > /deep/er/f").done().good();
    assert_eq!(said, "one\n");
    assert_eq!(fs::read_to_string(host.path().join("conf")).unwrap(), "one\ntwo\n");
    assert_eq!(fs::read_to_string(other.path().join("f")).unwrap(), "x\n");
}

#[test]
fn make_builds_and_git_sees_it_in_the_share() {
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("Makefile"), "out: in\n\tcp in out\n\techo built >> out\n").unwrap();
    fs::write(host.path().join("in"), "text\n").unwrap();
    let git = |arguments: &[&str]| {
        let status =
            std::process::Command::new("git").current_dir(host.path()).args(arguments).status().unwrap();
        assert!(status.success());
    };
    git(&["init", "-q"]);
    git(&["add", "."]);
    git(&["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "first"]);
    let script = "cd /s && make >/dev/null && git status --porcelain && git add out && \
        git -c user.name=g -c user.email=g commit -qm 'from the guest' && git log --oneline | wc -l";
    let done = sh(&["--package", "git,make", "-v", &volume(host.path(), "/s")], script).done();
    assert_eq!(done.good(), "?? out\n2\n", "{}", done.stderr);
    assert_eq!(fs::read_to_string(host.path().join("out")).unwrap(), "text\nbuilt\n");
    git(&["fsck", "--full"]);
    git(&["diff", "--quiet", "HEAD"]);
}
