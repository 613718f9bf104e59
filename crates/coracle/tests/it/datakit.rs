//! DataKit's tree in a guest, mounted by Linux's own 9P client: over TCP in the dialects that it mounts, and over virtio.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use datakit::{Logs, Service};
use datakit_store::{Options, Store};
use p9p::net::{Address, Server, ServerOptions};

use crate::sh;

/// A repository that is served, in a folder of its own.
struct Served {
    folder: tempfile::TempDir,
    server: Server,
}

impl Served {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { create: true, ..Options::default() };
        let service = Service::new(Store::open(folder.path().join("repo"), options).unwrap(), Logs::none());
        Self { server: Server::start(Arc::new(service), ServerOptions::default()).unwrap(), folder }
    }

    fn git(&self, arguments: &[&str]) -> String {
        let mut git = Command::new("git");
        git.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
        let output = git.current_dir(self.folder.path().join("repo")).args(arguments).output().unwrap();
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }
}

/// A branch and a transaction, watched by as many as `$WATCHERS` says, and what came of it: all in the guest.
const WORK: &str = r#"
set -e
cd /m
mkdir branch/main
for n in $(seq $WATCHERS); do
    cat branch/main/watch/dir.node/tree.live > /tmp/watched-$n &
    echo $! >> /tmp/pids
done
# The first line is what there is: nothing.
for n in $(seq $WATCHERS); do while [ ! -s /tmp/watched-$n ]; do sleep 0.05; done; done
mkdir branch/main/transactions/t
cd branch/main/transactions/t
mkdir rw/dir
echo hello > rw/dir/file
mv rw/dir/file rw/dir/moved
[ "$(ls rw/dir)" = moved ]
echo more >> rw/dir/moved
echo 'from the guest' > msg
[ ! -e /m/branch/main/ro/dir ]
echo commit > ctl
cd /m
[ "$(cat branch/main/ro/dir/moved)" = "$(printf 'hello\nmore')" ]
for n in $(seq $WATCHERS); do while [ "$(wc -l < /tmp/watched-$n)" -lt 2 ]; do sleep 0.05; done; done
for n in $(seq $WATCHERS); do tail -n 1 /tmp/watched-$n; done | sort | uniq -c
kill $(cat /tmp/pids); wait
cat branch/main/head
if echo nonsense > branch/main/fast-forward 2> /tmp/said; then exit 1; fi
cd /; umount /m
"#;

fn check(served: &Served, watchers: usize, flags: &[&str], mount: &str) {
    let script = format!("mkdir -p /m; {mount} WATCHERS={watchers}\n{WORK}");
    let done = sh(flags, &script).done();
    let said = done.good();
    let (tree, head) = (served.git(&["rev-parse", "main:dir"]), served.git(&["rev-parse", "main"]));
    assert_eq!(
        said.split_whitespace().collect::<Vec<_>>(),
        [&*watchers.to_string(), &*format!("D-{tree}"), &*head]
    );
    assert_eq!(served.git(&["log", "--format=%s", "main"]), "from the guest");
    assert_eq!(served.git(&["show", "main:dir/moved"]), "hello\nmore");
    served.git(&["fsck", "--full", "--strict"]);
}

fn over_tcp(version: &str) {
    let served = Served::new();
    let listening = served.server.listen(&"tcp://127.0.0.1:0".parse().unwrap()).unwrap();
    let Address::Tcp { port, .. } = listening else { panic!("{listening}") };
    let mount = format!(
        "modprobe 9pnet_fd; modprobe 9p;
        mount -t 9p -o trans=tcp,port={port},version={version},msize=65536,access=any,uname=root 192.168.65.2 /m || exit 3;"
    );
    check(&served, 3, &[], &mount);
    served.server.wait_until_unused();
}

#[test]
fn a_guest_works_with_a_repository_over_tcp_in_its_own_dialect() {
    over_tcp("9p2000.L");
}

#[test]
fn a_guest_works_with_a_repository_over_tcp_in_the_unix_dialect() {
    over_tcp("9p2000.u");
}

/// More reads that wait than the device used to have threads.
#[test]
fn a_guest_works_with_a_repository_over_virtio() {
    let served = Served::new();
    let socket = served.folder.path().join("9p.sock");
    served.server.listen(&Address::Unix(socket.clone())).unwrap();
    check(&served, 20, &["-v", &format!("unix://{}:/m", socket.display())], "");
    served.server.wait_until_unused();
}

#[test]
fn a_server_that_is_not_there_is_told_before_anything_is_made() {
    let missing = Path::new("/nowhere/9p.sock");
    let done = sh(&["-v", &format!("unix://{}:/m", missing.display())], "true").done();
    assert_eq!(done.code, Some(2));
    assert!(done.stderr.contains("cannot connect to unix:///nowhere/9p.sock"), "{}", done.stderr);
    let done = sh(&["-v", "http://example.com:/m"], "true").done();
    assert_eq!(done.code, Some(2));
    assert!(done.stderr.contains("is not tcp://host:port"), "{}", done.stderr);
}
