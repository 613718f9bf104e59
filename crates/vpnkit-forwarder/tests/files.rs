//! The tree of ports over 9P, in the dialects that VPNKit had, with a network that binds real sockets.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use p9p::Errno;
use p9p::client::ClientError;
use p9p::connection::{ConnectOptions, Connection};
use p9p::filesystem::OpenFlags;
use p9p::message::{Dialect, Fid};
use p9p::net::{Server, ServerOptions};
use vpnkit::{Counters, Flows, Forward, ForwardError, MacAddr, Update};
use vpnkit_control::{Exposed, Network};
use vpnkit_forwarder::PortFiles;

/// Listens, and does nothing with who comes.
#[derive(Default)]
struct Listening(Mutex<HashMap<SocketAddr, TcpListener>>);

impl Network for Listening {
    fn forward(&self, forward: Forward) -> Result<SocketAddr, ForwardError> {
        let (protocol, bind) = (forward.protocol, forward.bind);
        let listener = TcpListener::bind(bind).map_err(|error| match error.kind() {
            std::io::ErrorKind::AddrInUse => ForwardError::InUse { protocol, bind },
            _ => ForwardError::NotLocal { protocol, bind },
        })?;
        let local = listener.local_addr().unwrap();
        self.0.lock().unwrap().insert(local, listener);
        Ok(local)
    }
    fn unforward(&self, forward: Forward) -> Result<(), ForwardError> {
        let (protocol, bind) = (forward.protocol, forward.bind);
        let gone = self.0.lock().unwrap().remove(&bind);
        gone.map(drop).ok_or(ForwardError::Unknown { protocol, bind })
    }
    fn flows(&self) -> Flows {
        Flows::default()
    }
    fn counters(&self) -> Counters {
        Counters::default()
    }
    fn check_guest(&self, _guest: SocketAddr) -> Result<(), ForwardError> {
        unreachable!()
    }
    fn lead(&self, _stream: std::os::fd::OwnedFd, _guest: SocketAddr) -> Result<(), ForwardError> {
        unreachable!()
    }
    fn lead_to_path(&self, _stream: std::os::fd::OwnedFd, _path: &Path) -> Result<(), ForwardError> {
        unreachable!()
    }
    fn check_path(&self, _path: &Path) -> Result<(), ForwardError> {
        unreachable!()
    }
    fn leases(&self) -> Vec<(Ipv4Addr, MacAddr)> {
        Vec::new()
    }
    fn update(&self, _update: Update) {}
}

/// A served tree.
struct World {
    exposed: Arc<Exposed>,
    _server: Server,
    socket: String,
    _folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let exposed = Arc::new(Exposed::new(Arc::new(Listening::default()), Vec::new()));
        let files = PortFiles::new(Arc::clone(&exposed));
        let server = Server::start(Arc::new(files), ServerOptions::default()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let socket = format!("unix://{}", folder.path().join("port.sock").display());
        server.listen(&socket.parse().unwrap()).unwrap();
        Self { exposed, _server: server, socket, _folder: folder }
    }

    fn client(&self, dialect: Dialect) -> Client {
        let options = ConnectOptions { dialects: vec![dialect], ..ConnectOptions::default() };
        let connection = Connection::open(&self.socket.parse().unwrap(), &options).unwrap();
        let root = connection.attach(b"", u32::MAX, b"").unwrap();
        Client { connection, root }
    }

    /// Waits until this many ports are exposed: what a closed connection leaves ends a little after it.
    fn wait_for_ports(&self, count: usize) {
        let began = Instant::now();
        while self.exposed.list().len() != count {
            assert!(began.elapsed() < Duration::from_secs(60), "{:?}", self.exposed.list());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

struct Client {
    connection: Connection,
    root: Fid,
}

impl Client {
    fn at(&self, path: &str, flags: OpenFlags) -> Result<Fid, ClientError> {
        let fid = self.connection.walk_path(self.root, path.as_bytes())?;
        self.connection.open_file(fid, flags)?;
        Ok(fid)
    }

    fn text(&self, fid: Fid) -> String {
        let mut buffer = vec![0; 8192];
        let count = self.connection.read(fid, 0, &mut buffer).unwrap();
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    }

    /// Makes an entry and asks; returns the open `ctl` and what it says.
    fn ask(&self, name: &str, specification: &str) -> (Fid, String) {
        self.connection.make_directory(self.root, name.as_bytes(), 0o755, 0).unwrap();
        let ctl = self.at(&format!("{name}/ctl"), OpenFlags::RDWR).unwrap();
        assert!(self.text(ctl).starts_with("ERROR "));
        self.connection.write_all(ctl, 0, specification.as_bytes()).unwrap();
        let text = self.text(ctl);
        (ctl, text)
    }

    fn names(&self) -> Vec<String> {
        let fid = self.at("", OpenFlags::RDONLY).unwrap();
        let names = self.connection.list(fid).unwrap().into_iter().map(|entry| entry.name);
        let names = names.map(|name| String::from_utf8(name).unwrap());
        names.filter(|name| !name.starts_with('.')).collect()
    }
}

fn errno<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Errno {
    result.unwrap_err().errno().unwrap()
}

/// On an address of its own: a port that was given back is not taken by another test at once.
#[test]
fn a_port_is_exposed_while_its_file_is_open() {
    for dialect in Dialect::ALL {
        let world = World::new();
        let client = world.client(dialect);
        let (ctl, answer) = client.ask("web", "tcp:127.65.0.1:0:tcp:192.168.65.3:80\n");
        let local = world.exposed.list()[0].local;
        assert_eq!(answer, format!("OK tcp:{local}:tcp:192.168.65.3:80\n"), "{dialect:?}");
        TcpStream::connect(local).unwrap();
        assert_eq!(client.names(), ["README", "web"]);
        let entry = client.at("web", OpenFlags::RDONLY).unwrap();
        assert_eq!(client.text(entry), format!("tcp:{local}:tcp:192.168.65.3:80\n"));
        // A second specification is refused, as a second reader is not.
        assert_eq!(
            errno(client.connection.write_all(ctl, 0, b"tcp:127.65.0.1:0:tcp:1.2.3.4:5")),
            Errno::EACCES
        );
        let reader = client.at("web/ctl", OpenFlags::RDONLY).unwrap();
        client.connection.clunk(reader).unwrap();
        TcpStream::connect(local).unwrap();
        client.connection.clunk(ctl).unwrap();
        assert_eq!(client.names(), ["README"]);
        assert!(world.exposed.list().is_empty());
        TcpListener::bind(local).unwrap();
    }
}

#[test]
fn a_port_goes_with_its_entry_and_with_its_client() {
    let world = World::new();
    let client = world.client(Dialect::Unix);
    client.ask("one", "tcp:127.0.0.1:0:tcp:192.168.65.3:80");
    client.ask("two", "tcp:127.0.0.1:0:tcp:192.168.65.3:80");
    let other = world.client(Dialect::Plan9);
    let two = other.connection.walk_path(other.root, b"two").unwrap();
    other.connection.remove(two).unwrap();
    assert_eq!((other.names(), world.exposed.list().len()), (vec!["README".into(), "one".into()], 1));
    drop(client);
    world.wait_for_ports(0);
    assert_eq!(other.names(), ["README"]);
}

#[test]
fn what_cannot_be_is_said_in_dockers_words() {
    let world = World::new();
    let client = world.client(Dialect::Unix);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    let says = |name: &str, specification: &str| client.ask(name, specification).1;
    assert_eq!(
        says("a", &format!("tcp:{at}:tcp:192.168.65.3:80")),
        format!("ERROR Bind for {at} failed: port is already allocated\n")
    );
    assert_eq!(
        says("b", "tcp:192.0.2.1:80:tcp:192.168.65.3:80"),
        "ERROR listen tcp 192.0.2.1:80: bind: cannot assign requested address\n"
    );
    let (_held, answer) = client.ask("c", "tcp:127.0.0.1:0:tcp:192.168.65.3:80");
    let exposed = answer.trim_end().strip_prefix("OK ").unwrap();
    assert!(says("d", exposed).ends_with("failed: port is already allocated\n"));
    assert!(says("e", "sctp:1.2.3.4:5:sctp:1.2.3.4:5").starts_with("ERROR `sctp` is neither"));
    assert!(says("f", &"x".repeat(5000)).starts_with("ERROR a specification has at most"));
    let refused = client.connection.make_directory(client.root, b"a", 0o755, 0);
    assert_eq!(errno(refused), Errno::EEXIST);
    assert_eq!(errno(client.at("nothing", OpenFlags::RDONLY)), Errno::ENOENT);
    assert_eq!(errno(client.at("README", OpenFlags::RDWR)), Errno::EACCES);
    let file = client.connection.copy_fid(client.root).unwrap();
    assert_eq!(errno(client.connection.create_file(file, b"f", OpenFlags::WRONLY, 0o644, 0)), Errno::EACCES);
    let readme = client.at("README", OpenFlags::RDONLY).unwrap();
    assert!(client.text(readme).contains("tcp:<address of the host>"));
}

/// What Docker starts, with a pipe as descriptor 3 by way of a shell.
fn proxy(world: &World, port: u16) -> Child {
    let program = env!("CARGO_BIN_EXE_vpnkit-expose-port");
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$@\" 3>&1 >/dev/null", "sh", program]);
    command.args(["-proto", "tcp", "-host-ip", "127.0.0.1", "-host-port", &port.to_string()]);
    command.args(["-container-ip", "172.17.0.2", "--container-port=80"]);
    command.env("VPNKIT_PORT", &world.socket);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn dockers_proxy_reports_on_its_descriptor_and_ends_with_a_signal() {
    let world = World::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut first = proxy(&world, port);
    let mut said = [0; 2];
    first.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"0\n");
    TcpStream::connect(("127.0.0.1", port)).unwrap();
    let second = proxy(&world, port).wait_with_output().unwrap();
    let words = format!("Bind for 127.0.0.1:{port} failed: port is already allocated");
    assert_eq!(String::from_utf8(second.stdout).unwrap(), format!("1\n{words}"));
    assert_eq!(second.status.code(), Some(1));
    Command::new("kill").arg(first.id().to_string()).status().unwrap();
    assert!(first.wait().unwrap().success());
    world.wait_for_ports(0);
}

#[test]
fn dockers_proxy_says_what_is_wrong_with_its_flags() {
    for (arguments, expected) in [
        (&["-proto", "sctp"][..], "neither tcp nor udp"),
        (&["-host-port", "x"], "`x` is no port"),
        (&["host"], "`host` is no flag"),
        (&["-port", "tcp://127.0.0.1:1"], "-host-ip is missing"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_vpnkit-expose-port"))
            .args(arguments)
            .env("VPNKIT_PORT", "unix:///nowhere")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}
