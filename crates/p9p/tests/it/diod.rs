//! diod, the 9P2000.L server and clients of Debian, as a peer: our client with its server, its clients with ours.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use p9p::client::{Client, Stream};
use p9p::connection::{ConnectOptions, Connection};
use p9p::filesystem::OpenFlags;
use p9p::message::{Dialect, Fid};
use p9p::net::{Server, ServerOptions, Socket};
use p9p::stat::{LockKind, LockRange, LockStatus, SetAttributes, setattr};
use p9p::transport::serve;
use p9p::{Errno, HostDir};

use crate::share::{MSIZE, session};

/// How long diod may take to listen.
const START_MAX: Duration = Duration::from_secs(10);

/// The path of one of diod's programs; says so when it is not installed.
fn program(name: &str) -> Option<String> {
    let found = ["/usr/sbin", "/usr/bin"].map(|folder| format!("{folder}/{name}"));
    let found = found.into_iter().find(|path| Path::new(path).exists());
    if found.is_none() {
        println!("SKIP: {name} is not installed (apt-get install diod)");
    }
    found
}

/// diod serving a directory; ended when dropped.
struct Diod {
    child: Child,
    port: u16,
}

impl Diod {
    fn serve(program: &str, directory: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(program)
            .args(["-f", "-n", "-N", "-c", "/dev/null", "-L", "stderr", "-e"])
            .arg(directory)
            .args(["-l", &format!("127.0.0.1:{port}")])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, port }
    }

    fn connect(&self) -> TcpStream {
        let started = Instant::now();
        loop {
            match TcpStream::connect(("127.0.0.1", self.port)) {
                Ok(stream) => return stream,
                Err(error) => assert!(started.elapsed() < START_MAX, "diod does not listen: {error}"),
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Diod {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn path_bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

#[test]
fn our_client_works_with_its_server() {
    let Some(program) = program("diod") else { return };
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(directory.path().join("a/b")).unwrap();
    let content: Vec<u8> = (0..300_000u32).map(|i| (i % 253) as u8).collect();
    fs::write(directory.path().join("a/b/data"), &content).unwrap();
    let diod = Diod::serve(&program, directory.path());
    let mut client = Client::connect(Stream(diod.connect()), MSIZE).unwrap();
    let uid = rustix::process::geteuid().as_raw();
    let root = client.attach(b"", uid, path_bytes(directory.path())).unwrap();

    let data = client.walk_path(root, b"a/b/data").unwrap();
    assert_eq!(client.getattr(data).unwrap().size, 300_000);
    client.open(data, OpenFlags::RDONLY).unwrap();
    assert_eq!(client.read_to_end(data).unwrap(), content);

    let listing = client.walk(root, &[b"a"]).unwrap();
    client.open(listing, OpenFlags::DIRECTORY).unwrap();
    let mut names: Vec<_> = client.list(listing).unwrap().into_iter().map(|entry| entry.name).collect();
    names.sort_unstable();
    assert_eq!(names, [&b"."[..], b"..", b"b"]);
    change_things(&mut client, root);
    assert_eq!(fs::read(directory.path().join("moved")).unwrap(), b"wri");
    assert_eq!(fs::read_link(directory.path().join("link")).unwrap().to_str(), Some("moved"));
}

fn change_things(client: &mut Client<Stream<TcpStream>>, root: Fid) {
    let file = client.walk(root, &[]).unwrap();
    client.create(file, b"new", OpenFlags::RDWR, 0o644).unwrap();
    client.write_all(file, 0, b"written").unwrap();
    client.fsync(file).unwrap();
    let range = LockRange { start: 0, length: 0, process: 1, client: b"test" };
    assert!(client.lock(file, LockKind::WRITE, range).unwrap());
    client.setattr(file, SetAttributes { valid: setattr::SIZE, size: 3, ..Default::default() }).unwrap();
    client.mkdir(root, b"made", 0o755).unwrap();
    client.symlink(root, b"link", b"moved").unwrap();
    client.rename(root, b"new", root, b"moved").unwrap();
    client.rmdir(root, b"made").unwrap();
    let link = client.walk(root, &[b"link"]).unwrap();
    assert_eq!(client.readlink(link).unwrap(), b"moved");
    assert!(client.statfs(root).unwrap().blocks > 0);
}

#[test]
fn its_clients_work_with_our_server() {
    let (Some(list), Some(cat)) = (program("diodls"), program("diodcat")) else { return };
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("sub")).unwrap();
    let content = "a line of text\n".repeat(20_000);
    fs::write(directory.path().join("sub/text"), &content).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let session = session(directory.path(), false);
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(["-s", &address, "-a", "/"]).args(arguments);
        let client = command.stdout(Stdio::piped()).spawn().unwrap();
        let (stream, _) = listener.accept().unwrap();
        let output = thread::scope(|scope| {
            scope.spawn(|| serve(&session, &stream, &stream, 2));
            client.wait_with_output().unwrap()
        });
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run(&list, &["sub"]), "text\n");
    let long = run(&list, &["-l", "sub"]);
    assert!(long.contains("300000") && long.contains(" text\n"), "{long}");
    assert_eq!(run(&cat, &["sub/text"]), content);
}

#[test]
fn our_pipelined_client_does_everything_with_its_server() {
    let Some(program) = program("diod") else { return };
    let directory = tempfile::tempdir().unwrap();
    let diod = Diod::serve(&program, directory.path());
    let options = ConnectOptions { dialects: vec![Dialect::Linux], ..ConnectOptions::default() };
    let connection = Connection::over(Socket::from(diod.connect()), &options).unwrap();
    let uid = rustix::process::geteuid().as_raw();
    let root = connection.attach(b"", uid, path_bytes(directory.path())).unwrap();
    let content: Vec<u8> = (0..3_000_000u32).map(|i| (i % 241) as u8).collect();
    let file = connection.copy_fid(root).unwrap();
    connection.create_file(file, b"file", OpenFlags::RDWR, 0o640, 0).unwrap();
    assert_eq!(connection.write_file(file, 0, &mut &content[..]).unwrap(), 3_000_000);
    assert!(connection.read_to_end(file, 4 << 20).unwrap() == content);
    connection.sync(file, true).unwrap();
    let change = SetAttributes { valid: setattr::SIZE, size: 10, ..Default::default() };
    connection.set_attributes(file, &change).unwrap();
    let range = LockRange { start: 0, length: 5, process: 1, client: b"us" };
    assert_eq!(connection.lock(file, LockKind::WRITE, &range).unwrap(), LockStatus::Success);
    assert_eq!(connection.conflicting_lock(file, LockKind::READ, &range).unwrap(), None);
    connection.clunk(file).unwrap();
    assert_eq!(fs::read(directory.path().join("file")).unwrap(), content[..10]);
    connection.make_directory(root, b"d", 0o755, 0).unwrap();
    let d = connection.walk_path(root, b"d").unwrap();
    connection.rename(root, b"file", d, b"moved").unwrap();
    connection.make_symlink(d, b"link", b"moved", 0).unwrap();
    let link = connection.walk_path(d, b"link").unwrap();
    assert_eq!(connection.read_link(link).unwrap(), b"moved");
    let moved = connection.walk_path(d, b"moved").unwrap();
    connection.link(d, moved, b"hard").unwrap();
    assert_eq!(connection.attributes(moved).unwrap().nlink, 2);
    for n in 0..500 {
        fs::write(directory.path().join(format!("d/{n:03}-{}", "x".repeat(200))), b"").unwrap();
    }
    let listing = connection.copy_fid(d).unwrap();
    connection.open_file(listing, OpenFlags::DIRECTORY).unwrap();
    assert_eq!(connection.list(listing).unwrap().len(), 503);
    connection.unlink(d, b"hard", false).unwrap();
    assert!(connection.totals(root).unwrap().blocks > 0);
    let missing = connection.walk_path(root, b"d/none").unwrap_err();
    assert_eq!(missing.errno(), Some(Errno::ENOENT));
}

/// Not diodload, dioddate and dtop: they attach to a tree that only diod has.
#[test]
fn its_clients_work_with_our_server_loop() {
    let (Some(list), Some(cat)) = (program("diodls"), program("diodcat")) else { return };
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("sub")).unwrap();
    let content = "a line of text\n".repeat(100_000);
    fs::write(directory.path().join("sub/text"), &content).unwrap();
    let filesystem = Arc::new(HostDir::new(directory.path(), false).unwrap());
    let server = Server::start(filesystem, ServerOptions::default()).unwrap();
    let bound = server.listen(&"tcp://127.0.0.1:0".parse().unwrap()).unwrap();
    let address = bound.to_string().replace("tcp://", "");
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(["-s", &address, "-a", "/"]).args(arguments);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run(&list, &["sub"]), "text\n");
    assert!(run(&cat, &["sub/text"]) == content);
    assert!(run(&cat, &["-m", "65536", "sub/text"]) == content);
    server.wait_until_unused();
}
