//! The same work in each dialect, through our client and server; and what 9P2000 and .u have of their own.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use p9p::connection::{ConnectOptions, Connection};
use p9p::filesystem::{NodeSpec, OpenFlags};
use p9p::message::{Dialect, Extension, Fid, NumericUser, Reply, Request, Tag, UnixErrno};
use p9p::net::{Server, ServerOptions, Socket};
use p9p::qid::QidKind;
use p9p::stat::{SetAttributes, Stat, Wrapped, setattr};
use p9p::{Errno, HostDir, Session};

/// A served directory and a client of it.
pub struct Served {
    pub directory: tempfile::TempDir,
    pub server: Server,
    pub connection: Connection,
    pub root: Fid,
}

pub fn options(dialect: Dialect) -> ConnectOptions {
    ConnectOptions { dialects: vec![dialect], msize: 64 << 10, timeout: None }
}

pub fn serve(dialect: Dialect) -> Served {
    let directory = tempfile::tempdir().unwrap();
    let filesystem = Arc::new(HostDir::new(directory.path(), false).unwrap());
    let server = Server::start(filesystem, ServerOptions::default()).unwrap();
    let connection = connect(&server, dialect);
    let root = connection.attach(b"root", 0, b"").unwrap();
    Served { directory, server, connection, root }
}

pub fn connect(server: &Server, dialect: Dialect) -> Connection {
    let (ours, theirs) = UnixStream::pair().unwrap();
    server.serve(Socket::from(theirs)).unwrap();
    Connection::over(Socket::from(ours), &options(dialect)).unwrap()
}

fn names(connection: &Connection, root: Fid, path: &str) -> Vec<String> {
    let fid = connection.walk_path(root, path.as_bytes()).unwrap();
    connection.open_file(fid, OpenFlags::DIRECTORY).unwrap();
    let listed = connection.list(fid).unwrap();
    connection.clunk(fid).unwrap();
    let mut names: Vec<_> = listed.into_iter().map(|entry| String::from_utf8(entry.name).unwrap()).collect();
    names.sort_unstable();
    names
}

fn work(dialect: Dialect) {
    let Served { directory, connection, root, server: _server } = serve(dialect);
    let host = |name: &str| directory.path().join(name);
    let content: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    let file = connection.copy_fid(root).unwrap();
    connection.create_file(file, b"new", OpenFlags::RDWR, 0o640, 0).unwrap();
    assert_eq!(connection.write_file(file, 0, &mut &content[..]).unwrap(), 300_000);
    assert_eq!(connection.read_to_end(file, 1 << 20).unwrap(), content);
    let attributes = connection.attributes(file).unwrap();
    assert_eq!((attributes.size, attributes.mode), (300_000, 0o100_640));
    let change = SetAttributes { valid: setattr::SIZE, size: 5, ..Default::default() };
    connection.set_attributes(file, &change).unwrap();
    connection.sync(file, false).unwrap();
    connection.clunk(file).unwrap();
    assert_eq!(fs::read(host("new")).unwrap(), content[..5]);
    connection.make_directory(root, b"d", 0o750, 0).unwrap();
    assert_eq!(fs::metadata(host("d")).unwrap().permissions().mode() & 0o777, 0o750);
    connection.rename(root, b"new", root, b"moved").unwrap();
    assert_eq!(names(&connection, root, ""), ["d", "moved"]);
    assert_eq!(connection.unlink(root, b"d", false).unwrap_err().errno(), Some(Errno::EISDIR));
    connection.unlink(root, b"d", true).unwrap();
    connection.unlink(root, b"moved", false).unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    let missing = connection.walk_path(root, b"missing").unwrap_err();
    assert_eq!(missing.errno(), Some(Errno::ENOENT));
    assert_eq!(missing.to_string().to_lowercase(), "no such file or directory");
}

#[test]
fn files_are_worked_with_in_linux() {
    work(Dialect::Linux);
}

#[test]
fn files_are_worked_with_in_unix() {
    work(Dialect::Unix);
}

#[test]
fn files_are_worked_with_in_plan9() {
    work(Dialect::Plan9);
}

#[test]
fn unix_has_links_fifos_and_sockets() {
    let Served { directory, connection, root, server: _server } = serve(Dialect::Unix);
    fs::write(directory.path().join("f"), b"x").unwrap();
    connection.make_symlink(root, b"s", b"f", 0).unwrap();
    assert_eq!(fs::read_link(directory.path().join("s")).unwrap().to_str(), Some("f"));
    let link = connection.walk_path(root, b"s").unwrap();
    assert_eq!(connection.read_link(link).unwrap(), b"f");
    assert_eq!(connection.attributes(link).unwrap().mode & 0o170_000, 0o120_000);
    let file = connection.walk_path(root, b"f").unwrap();
    connection.link(root, file, b"hard").unwrap();
    assert_eq!(fs::metadata(directory.path().join("f")).unwrap().nlink(), 2);
    assert_eq!(connection.attributes(file).unwrap().nlink, 2);
    for (name, mode) in [(&b"fifo"[..], 0o010_600), (b"socket", 0o140_600)] {
        let spec = NodeSpec { mode, major: 0, minor: 0, gid: u32::MAX };
        connection.make_node(root, name, &spec).unwrap();
        let made = connection.walk_path(root, name).unwrap();
        assert_eq!(connection.attributes(made).unwrap().mode, mode);
    }
    let change = SetAttributes { valid: setattr::MODE, mode: 0o4755, ..Default::default() };
    connection.set_attributes(file, &change).unwrap();
    assert_eq!(fs::metadata(directory.path().join("f")).unwrap().permissions().mode() & 0o7777, 0o4755);
    assert_eq!(names(&connection, root, ""), ["f", "fifo", "hard", "s", "socket"]);
}

#[test]
fn unix_replaces_by_a_rename_and_plan9_does_not() {
    for (dialect, renamed) in [(Dialect::Unix, true), (Dialect::Plan9, false)] {
        let Served { directory, connection, root, server: _server } = serve(dialect);
        fs::write(directory.path().join("a"), b"a").unwrap();
        fs::write(directory.path().join("b"), b"b").unwrap();
        let result = connection.rename(root, b"a", root, b"b");
        assert_eq!(result.is_ok(), renamed, "{result:?}");
        let content = fs::read(directory.path().join("b")).unwrap();
        assert_eq!(content, if renamed { b"a" } else { b"b" });
    }
}

#[test]
fn plan9_sees_a_link_as_a_file_with_its_target() {
    let Served { directory, connection, root, server: _server } = serve(Dialect::Plan9);
    std::os::unix::fs::symlink("some/where", directory.path().join("s")).unwrap();
    let link = connection.walk_path(root, b"s").unwrap();
    assert_eq!(connection.attributes(link).unwrap().qid.kind, QidKind::FILE);
    connection.open_file(link, OpenFlags::RDONLY).unwrap();
    assert_eq!(connection.read_to_end(link, 100).unwrap(), b"some/where");
}

#[test]
fn entries_are_walked_to_and_looked_at_together() {
    for dialect in Dialect::ALL {
        let Served { directory, connection, root, server: _server } = serve(dialect);
        let names: Vec<String> = (0..200).map(|n| format!("f{n}")).collect();
        for (n, name) in names.iter().enumerate().filter(|(n, _)| n % 7 != 3) {
            fs::write(directory.path().join(name), vec![b'x'; n]).unwrap();
        }
        let asked: Vec<&[u8]> = names.iter().map(|name| name.as_bytes()).collect();
        let found = connection.walk_each(root, &asked);
        assert_eq!(found.len(), 200);
        for (n, found) in found.into_iter().enumerate() {
            if n % 7 == 3 {
                assert_eq!(found.unwrap_err().errno(), Some(Errno::ENOENT), "{dialect:?}");
                continue;
            }
            let (fid, attributes) = found.unwrap();
            assert_eq!(attributes.size, n as u64, "{dialect:?}");
            connection.open_file(fid, OpenFlags::RDONLY).unwrap();
            assert_eq!(connection.read_to_end(fid, 1000).unwrap().len(), n);
            connection.clunk(fid).unwrap();
        }
        // Nothing is left of what failed: the fids are free again.
        assert!(connection.walk_each(root, &asked[3..4]).remove(0).is_err());
        connection.clunk(root).unwrap();
        assert!(connection.walk_each(root, &asked[..2]).iter().all(Result::is_err));
    }
}

#[test]
fn directories_longer_than_a_message_are_read_to_their_end() {
    for dialect in Dialect::ALL {
        let Served { directory, connection, root, server: _server } = serve(dialect);
        for n in 0..2000 {
            fs::write(directory.path().join(format!("{n:04}-{}", "x".repeat(n % 200))), b"").unwrap();
        }
        let listed = names(&connection, root, "");
        assert_eq!(listed.len(), 2000, "{dialect:?}");
        assert!(listed.iter().enumerate().all(|(n, name)| name.starts_with(&format!("{n:04}-"))));
    }
}

/// Requests by hand, to a session without a stream.
struct Raw {
    session: Session,
    dialect: Dialect,
}

impl Raw {
    fn new(path: &std::path::Path, dialect: Dialect) -> Self {
        let raw = Self { session: Session::new(Arc::new(HostDir::new(path, false).unwrap()), 8192), dialect };
        let version = Request::Version { msize: 8192, version: dialect.name().as_bytes() };
        assert!(matches!(raw.ask(&version), Ok(101)));
        let attach = Request::Attach {
            fid: Fid(0),
            afid: Fid::NONE,
            user: b"glenda",
            tree: b"",
            numeric_user: NumericUser::NONE,
        };
        assert!(matches!(raw.ask(&attach), Ok(105)));
        raw
    }

    /// The reply's type, or what an Rerror says.
    fn ask(&self, request: &Request<'_>) -> Result<u8, (String, u32)> {
        let mut buffer = vec![0; 8192];
        let bytes = request.emit(Tag(1), &mut buffer, self.dialect).unwrap();
        let mut reply = vec![0; 8192];
        let written = self.session.handle(&buffer[..bytes], &mut reply);
        match Reply::parse(&reply[..written], self.dialect).unwrap().1 {
            Reply::Error { text, errno: UnixErrno(errno) } => {
                Err((String::from_utf8(text.to_vec()).unwrap(), errno))
            }
            reply => Ok(reply.code()),
        }
    }

    fn walk(&self, new_fid: u32, name: &[u8]) {
        let names = p9p::message::WalkNames::from_slice(&[name]).unwrap();
        assert_eq!(self.ask(&Request::Walk { fid: Fid(0), new_fid: Fid(new_fid), names }), Ok(111));
    }
}

fn untouched() -> Stat<'static> {
    Stat {
        mode: u32::MAX,
        atime_s: u32::MAX,
        mtime_s: u32::MAX,
        length: u64::MAX,
        numeric_user: u32::MAX,
        numeric_group: u32::MAX,
        numeric_last_writer: u32::MAX,
        ..Stat::default()
    }
}

#[test]
fn errors_have_a_text_and_in_unix_a_number() {
    let directory = tempfile::tempdir().unwrap();
    let names = p9p::message::WalkNames::from_slice(&[b"no"]).unwrap();
    let walk = Request::Walk { fid: Fid(0), new_fid: Fid(1), names };
    for (dialect, errno) in [(Dialect::Unix, 2), (Dialect::Plan9, 0)] {
        let raw = Raw::new(directory.path(), dialect);
        assert_eq!(raw.ask(&walk), Err(("No such file or directory".into(), errno)));
    }
}

#[test]
fn wstat_changes_all_or_nothing() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("f"), b"content").unwrap();
    fs::write(directory.path().join("taken"), b"").unwrap();
    let raw = Raw::new(directory.path(), Dialect::Unix);
    raw.walk(1, b"f");
    let wstat = |stat| raw.ask(&Request::Wstat { fid: Fid(1), stat: Wrapped(stat) });
    // A rename that cannot be leaves the rest alone as well.
    let refused = wstat(Stat { name: b"taken", length: 2, mode: 0o600, ..untouched() });
    assert_eq!(refused, Err(("File exists".into(), 17)));
    // So does a length that cannot be, after the rename.
    let refused = wstat(Stat { name: b"g", length: u64::MAX - 1, mode: 0o600, ..untouched() });
    assert!(refused.is_err());
    let found = fs::metadata(directory.path().join("f")).unwrap();
    assert_eq!((found.len(), found.permissions().mode() & 0o777), (7, 0o644));
    let all = Stat { name: b"g", length: 2, mode: 0o600, mtime_s: 1000, ..untouched() };
    assert_eq!(wstat(all), Ok(127));
    let found = fs::metadata(directory.path().join("g")).unwrap();
    assert_eq!((found.len(), found.permissions().mode() & 0o777, found.mtime()), (2, 0o600, 1000));
    assert_eq!(wstat(untouched()), Ok(127));
    assert!(wstat(Stat { mode: 0x8000_0000 | 0o755, ..untouched() }).is_err());
}

#[test]
fn the_root_is_not_renamed_and_dotdot_stays_inside() {
    let directory = tempfile::tempdir().unwrap();
    let raw = Raw::new(directory.path(), Dialect::Plan9);
    let rename = Request::Wstat { fid: Fid(0), stat: Wrapped(Stat { name: b"x", ..untouched() }) };
    assert_eq!(raw.ask(&rename), Err(("the root cannot be renamed".into(), 0)));
    raw.walk(1, b"..");
    assert_eq!(raw.ask(&Request::Stat { fid: Fid(1) }), Ok(125));
}

#[test]
fn a_file_opened_to_be_removed_is_gone_after_its_clunk() {
    let directory = tempfile::tempdir().unwrap();
    let raw = Raw::new(directory.path(), Dialect::Plan9);
    let create = |fid, name: &'static [u8]| Request::Create {
        fid: Fid(fid),
        name,
        permissions: 0o644,
        mode: 0x42,
        extension: Extension(b""),
    };
    let names = p9p::message::WalkNames::new;
    for fid in [1, 2] {
        raw.ask(&Request::Walk { fid: Fid(0), new_fid: Fid(fid), names: names() }).unwrap();
    }
    assert_eq!(raw.ask(&create(1, b"clunked")), Ok(115));
    assert_eq!(raw.ask(&create(2, b"left")), Ok(115));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    assert_eq!(raw.ask(&Request::Clunk { fid: Fid(1) }), Ok(121));
    assert!(!directory.path().join("clunked").exists());
    raw.session.reset();
    assert!(!directory.path().join("left").exists());
}

#[test]
fn an_unknown_extension_of_9p2000_is_plain_9p2000() {
    let directory = tempfile::tempdir().unwrap();
    let session = Session::new(Arc::new(HostDir::new(directory.path(), false).unwrap()), 8192);
    let mut request = vec![0; 64];
    let version = Request::Version { msize: 8192, version: b"9P2000.e" };
    let bytes = version.emit(Tag::NONE, &mut request, Dialect::Plan9).unwrap();
    let mut reply = vec![0; 64];
    let written = session.handle(&request[..bytes], &mut reply);
    let (_, reply) = Reply::parse(&reply[..written], Dialect::Plan9).unwrap();
    assert_eq!(reply, Reply::Version { msize: 8192, version: b"9P2000" });
}

#[test]
fn a_walk_that_stops_on_the_way_says_why() {
    // walk(5): only a walk that fails at its first name is answered with an error.
    for dialect in [Dialect::Linux, Dialect::Unix, Dialect::Plan9] {
        let Served { directory, connection, root, server: _server } = serve(dialect);
        fs::create_dir_all(directory.path().join("a/b")).unwrap();
        fs::write(directory.path().join("a/f"), b"").unwrap();
        let check = |path: &str, errno: Errno| {
            let found = connection.walk_path(root, path.as_bytes()).unwrap_err().errno();
            assert_eq!(found, Some(errno), "{path} in {dialect:?}");
        };
        check("absent/b", Errno::ENOENT);
        check("a/absent/b", Errno::ENOENT);
        check("a/f/below", Errno::ENOTDIR);
        check("a/f/below/again", Errno::ENOTDIR);
        check(&format!("a/b/{}", "x".repeat(300)), Errno::ENAMETOOLONG);
        check(&format!("{}f/below", "a/b/../../".repeat(10) + "a/"), Errno::ENOTDIR);
        let reached = connection.walk_path(root, b"a/b").unwrap();
        connection.clunk(reached).unwrap();
    }
}
