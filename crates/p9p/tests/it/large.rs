//! Files of 4 GiB and directories of a million entries, with bounded memory: `CORACLE_SOAK=1`, and `--test-threads 1`, as memory is
//! the whole process's; without it 30,000 entries.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use p9p::connection::Connection;
use p9p::filesystem::OpenFlags;
use p9p::memory::{Memory, Quota};
use p9p::message::{Dialect, Fid};
use p9p::net::{Server, ServerOptions};

use crate::dialects::{connect, serve};

const GIB_4: u64 = 4 << 30;
/// What this process may take beyond what it had, in MiB; a message is 64 KiB here.
const GROWTH_MIB_MAX: u64 = 64;

fn is_soak() -> bool {
    std::env::var_os("CORACLE_SOAK").is_some_and(|value| value != "0")
}

/// Checks what it is given, by position, and counts it.
struct Counted {
    bytes: u64,
    others: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bytes += bytes.len() as u64;
        self.others += bytes.iter().filter(|byte| **byte != 0).count() as u64;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn resident_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn a_file_of_more_than_4_gib_is_read_and_written_at_both_ends() {
    for dialect in Dialect::ALL {
        let served = serve(dialect);
        let file = served.connection.copy_fid(served.root).unwrap();
        served.connection.create_file(file, b"big", OpenFlags::RDWR, 0o644, 0).unwrap();
        served.connection.write_all(file, 0, b"first").unwrap();
        served.connection.write_all(file, GIB_4 - 2, b"last").unwrap();
        assert_eq!(served.connection.attributes(file).unwrap().size, GIB_4 + 2, "{dialect:?}");
        let mut end = [9; 10];
        assert_eq!(served.connection.read(file, GIB_4 - 4, &mut end).unwrap(), 6);
        assert_eq!(&end[..6], b"\0\0last", "{dialect:?}");
        let host = File::open(served.directory.path().join("big")).unwrap();
        assert_eq!(host.metadata().unwrap().len(), GIB_4 + 2);
        let mut seen = [0; 4];
        host.read_exact_at(&mut seen, GIB_4 - 2).unwrap();
        assert_eq!(&seen, b"last");
        assert!(host.metadata().unwrap().blocks() < 1024, "the hole is a hole");
    }
}

#[test]
fn reading_4_gib_takes_no_memory() {
    if !is_soak() {
        println!("SKIP: 4 GiB are read with CORACLE_SOAK=1");
        return;
    }
    let served = serve(Dialect::Linux);
    let path = served.directory.path().join("big");
    let host = File::create(&path).unwrap();
    host.write_all_at(b"x", GIB_4).unwrap();
    let before = resident_mib();
    let file = served.connection.walk_path(served.root, b"big").unwrap();
    served.connection.open_file(file, OpenFlags::RDONLY).unwrap();
    let mut counted = Counted { bytes: 0, others: 0 };
    served.connection.read_file(file, 0, &mut counted).unwrap();
    assert_eq!((counted.bytes, counted.others), (GIB_4 + 1, 1));
    let grown = resident_mib().saturating_sub(before);
    assert!(grown < GROWTH_MIB_MAX, "{grown} MiB more");
}

/// How many names a directory has, each once.
fn count(connection: &Connection, directory: Fid) -> usize {
    let open = connection.copy_fid(directory).unwrap();
    connection.open_file(open, OpenFlags::DIRECTORY).unwrap();
    let mut names: Vec<Vec<u8>> =
        connection.list(open).unwrap().into_iter().map(|entry| entry.name).collect();
    connection.clunk(open).unwrap();
    names.retain(|name| name != b"." && name != b"..");
    names.sort_unstable();
    let all = names.len();
    names.dedup();
    assert_eq!(all, names.len(), "a name came twice");
    all
}

fn n_entries() -> usize {
    if is_soak() { 1_000_000 } else { 30_000 }
}

#[test]
fn a_directory_of_very_many_entries_is_listed_whole() {
    let n = n_entries();
    let served = serve(Dialect::Linux);
    fs::create_dir(served.directory.path().join("many")).unwrap();
    for index in 0..n {
        File::create(served.directory.path().join(format!("many/entry-{index}"))).unwrap();
    }
    let many = served.connection.walk_path(served.root, b"many").unwrap();
    assert_eq!(count(&served.connection, many), n);
    // Any of them is found without a list.
    let last = served.connection.walk_path(many, format!("entry-{}", n - 1).as_bytes()).unwrap();
    served.connection.remove(last).unwrap();
    assert_eq!(count(&served.connection, many), n - 1);
    let unix = connect(&served.server, Dialect::Unix);
    let root = unix.attach(b"root", 0, b"").unwrap();
    let many = unix.walk_path(root, b"many").unwrap();
    assert_eq!(count(&unix, many), n - 1);
}

#[test]
fn a_directory_of_very_many_entries_in_memory() {
    let n = n_entries();
    let quota = Quota { nodes: n as u64 + 10, ..Quota::default() };
    let server = Server::start(Arc::new(Memory::new(quota)), ServerOptions::default()).unwrap();
    let connection = connect(&server, Dialect::Linux);
    let root = connection.attach(b"root", 0, b"").unwrap();
    for index in 0..n {
        connection.make_directory(root, format!("entry-{index}").as_bytes(), 0o755, 0).unwrap();
    }
    assert_eq!(count(&connection, root), n);
}
