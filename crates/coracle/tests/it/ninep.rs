//! Linux's own 9P client in a guest, with p9p's server over TCP: a file system's work, in the dialects that it mounts.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use p9p::HostDir;
use p9p::connection::{ConnectOptions, Connection};
use p9p::filesystem::OpenFlags;
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

/// Mounts the server at `$PORT` on /m over TCP.
const OVER_TCP: &str = "mount -t 9p -o trans=tcp,port=$PORT,$OPTIONS 192.168.65.2 /m || exit 3";

/// Mounts it over two FIFOs, between which and the server another program carries the bytes.
const OVER_DESCRIPTORS: &str = "mkfifo /tmp/to /tmp/from
    nc 192.168.65.2 $PORT < /tmp/to > /tmp/from &
    exec 4> /tmp/to 3< /tmp/from
    mount -t 9p -o trans=fd,rfdno=3,wfdno=4,$OPTIONS none /m || exit 3
    exec 4>&- 3<&-";

fn work(version: &str, mount: &str, more: &str) {
    let host = tempfile::tempdir().unwrap();
    let filesystem = Arc::new(HostDir::new(host.path(), false).unwrap());
    let server = Server::start(filesystem, ServerOptions::default()).unwrap();
    let listening = server.listen(&"tcp://127.0.0.1:0".parse().unwrap()).unwrap();
    let Address::Tcp { port, .. } = listening else { panic!("{listening}") };
    let script = format!(
        "modprobe 9pnet_fd; modprobe 9p; mkdir /m
        PORT={port} OPTIONS=version={version},msize=65536,access=any,uname=root
        {mount}
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
    work("9p2000.L", OVER_TCP, LINUX_ALONE);
}

#[test]
fn linux_works_over_tcp_in_the_unix_dialect() {
    work("9p2000.u", OVER_TCP, "");
}

#[test]
fn linux_works_over_descriptors_that_a_program_gave_it() {
    work("9p2000.L", OVER_DESCRIPTORS, LINUX_ALONE);
}

/// Where a guest's part of the next test is done.
const IN_GUEST: &str = "CORACLE_TEST_IN_GUEST";

/// A server and a client in one machine, joined by vsock's loopback. Debian's kernel has that; the host's may not.
#[test]
fn vsock_carries_9p_within_a_guest() {
    if std::env::var_os(IN_GUEST).is_some() {
        return vsock_loopback();
    }
    let folder = tempfile::tempdir().unwrap();
    let libraries = with_libraries(folder.path());
    let share = format!("{}:/t:ro", folder.path().display());
    let script = format!(
        "modprobe vsock_loopback && exec /t/{libraries} --library-path /t /t/test --exact ninep::vsock_carries_9p_within_a_guest --nocapture"
    );
    let said = sh(&["-v", &share, "-e", &format!("{IN_GUEST}=1")], &script).done().good();
    assert!(said.contains("1 passed"), "{said}");
}

/// This program as `test`, and all that it is linked to, in `folder`; returns the loader's name there.
fn with_libraries(folder: &std::path::Path) -> String {
    let this = std::env::current_exe().unwrap();
    fs::copy(&this, folder.join("test")).unwrap();
    let listed = std::process::Command::new("ldd").arg(&this).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let mut loader = None;
    for path in listed.split_whitespace().filter(|word| word.starts_with('/')) {
        let name = std::path::Path::new(path).file_name().unwrap().to_str().unwrap().to_owned();
        fs::copy(path, folder.join(&name)).unwrap();
        loader = loader.or_else(|| name.starts_with("ld-linux").then_some(name));
    }
    loader.unwrap()
}

fn vsock_loopback() {
    /// VMADDR_CID_LOCAL of vsock(7).
    const LOCAL: u32 = 1;
    let server =
        Server::start(Arc::new(p9p::Memory::new(p9p::memory::Quota::default())), ServerOptions::default())
            .unwrap();
    let listening = server.listen(&"vsock://any:5640".parse().unwrap()).unwrap();
    assert_eq!(listening.to_string(), "vsock://any:5640");
    let address = Address::Vsock { cid: LOCAL, port: 5640 };
    let connection = Connection::open(&address, &ConnectOptions::default()).unwrap();
    let root = connection.attach(b"root", 0, b"").unwrap();
    let file = connection.copy_fid(root).unwrap();
    connection.create_file(file, b"f", OpenFlags::RDWR, 0o644, 0).unwrap();
    let bytes: Vec<u8> = (0..5_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    connection.write_file(file, 0, &mut &*bytes).unwrap();
    let mut back = Vec::new();
    connection.read_file(file, 0, &mut back).unwrap();
    assert!(back == bytes);
    assert_eq!(server.connection_count(), 1);
    drop(connection);
    server.wait_until_unused();
}
