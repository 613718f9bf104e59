//! Linux's own 9P client in a guest, with p9p's server over TCP: a file system's work, in the dialects that it mounts.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use p9p::HostDir;
use p9p::net::{Address, Server, ServerOptions};

use crate::sh;

/// What works in each dialect: files, directories, links, renames, truncation, appending, tar, a directory of many.
const WORK: &str = r#"
set -e
cd /m
echo hello > f; [ "$(cat f)" = hello ]
echo more >> f; [ "$(wc -l < f)" = 2 ]
mkdir -p a/b/c; echo deep > a/b/c/d; [ "$(cat a/b/../b/c/d)" = deep ]
mv f g; [ ! -e f ]; echo other > f; mv f g; [ "$(cat g)" = other ]
ln -s g l; [ "$(readlink l)" = g ]; [ "$(cat l)" = other ]
ln g h; [ "$(stat -c %h g)" = 2 ]; echo changed > h; [ "$(cat g)" = changed ]
chmod 750 g; [ "$(stat -c %a g)" = 750 ]
touch -d @1000000000 g; [ "$(stat -c %Y g)" = 1000000000 ]
truncate -s 3 g 2>/dev/null || dd if=/dev/null of=g bs=1 seek=3 2>/dev/null; [ "$(stat -c %s g)" = 3 ]
dd if=/dev/urandom of=r bs=64k count=16 2>/dev/null; cp r s; cmp r s
mkdir many; i=0; while [ $i -lt 300 ]; do : > many/a-name-that-is-not-short-$i; i=$((i+1)); done
[ "$(ls many | wc -l)" = 300 ]
tar cf t.tar a many l; mkdir x; tar xf t.tar -C x; diff -r a x/a; [ "$(ls x/many | wc -l)" = 300 ]
mkfifo p; [ -p p ]
exec 3> open; rm open; echo still >&3; exec 3>&-
rm -r many x; [ ! -e many ]
if cat nothing 2> /tmp/said; then exit 1; fi; grep -q 'No such file' /tmp/said
if mkdir a 2> /tmp/said; then exit 1; fi; grep -q 'File exists' /tmp/said
if rmdir a 2> /tmp/said; then exit 1; fi; grep -q 'not empty' /tmp/said
"#;

/// What only .L has: renames between directories.
const LINUX_ALONE: &str = "mv a/b/c/d moved; [ \"$(cat moved)\" = deep ]; mv moved a/b/c/d\n";

fn work(version: &str, more: &str) {
    let host = tempfile::tempdir().unwrap();
    let filesystem = Arc::new(HostDir::new(host.path(), false).unwrap());
    let server = Server::start(filesystem, ServerOptions::default()).unwrap();
    let listening = server.listen(&"tcp://127.0.0.1:0".parse().unwrap()).unwrap();
    let Address::Tcp { port, .. } = listening else { panic!("{listening}") };
    let script = format!(
        "modprobe 9pnet_fd; modprobe 9p; mkdir /m
        mount -t 9p -o trans=tcp,port={port},version={version},msize=65536,access=any,uname=root 192.168.65.2 /m || exit 3
        {WORK}{more}
        cd /; umount /m; echo all done"
    );
    let done = sh(&[], &script).done();
    assert_eq!(String::from_utf8_lossy(&done.stdout), "all done\n", "{version}: {}", done.stderr);
    assert_eq!(fs::read(host.path().join("a/b/c/d")).unwrap(), b"deep\n");
    assert_eq!(fs::metadata(host.path().join("h")).unwrap().nlink(), 2);
    assert_eq!(fs::metadata(host.path().join("s")).unwrap().len(), 1 << 20);
    server.wait_until_unused();
}

#[test]
fn linux_works_over_tcp_in_its_own_dialect() {
    work("9p2000.L", LINUX_ALONE);
}

#[test]
fn linux_works_over_tcp_in_the_unix_dialect() {
    work("9p2000.u", "");
}
