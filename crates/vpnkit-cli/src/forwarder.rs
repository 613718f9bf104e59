//! `--port`, `--introspection` and `--vsock-path`: ports controlled over 9P, the network's state over 9P, and ports forwarded
//! through a hypervisor's socket.
//!
//! Sockets are bound before the process is confined; threads are started afterwards, so that they are as well.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ethlink::take_fd;
use p9p::filesystem::Filesystem;
use p9p::net::{Address, Server, ServerOptions, Socket};
use vpnkit_control::{Api, Network};
use vpnkit_forwarder::{PortFiles, Tunnel, address};
use vpnkit_sandbox::Warden;

use crate::cli::Cli;
use crate::failure::Failure;
use crate::introspection::StateFiles;

const PORT: &str = "--port";
const STATE: &str = "--introspection";
/// How long we rest when the process has no descriptors left.
const REST: Duration = Duration::from_millis(20);

/// A socket that clients of the tree of ports come to.
pub enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// What the sockets of a flag serve, all bound.
pub struct Listeners {
    pub ports: Vec<Listener>,
    pub state: Vec<Listener>,
}

fn addresses(flag: &str, texts: &[String]) -> Result<Vec<Address>, Failure> {
    let parse = |text: &String| {
        address::parse(text).map_err(|error| Failure::usage(format!("{flag} {text}: {error}")))
    };
    texts.iter().map(parse).collect()
}

/// The Unix sockets that [`bind`] makes.
pub fn paths(cli: &Cli) -> Result<Vec<PathBuf>, Failure> {
    let (ports, state) = (addresses(PORT, &cli.classic.port)?, addresses(STATE, &cli.classic.introspection)?);
    let paths = ports.into_iter().chain(state).filter_map(|address| match address {
        Address::Unix(path) => Some(path),
        _ => None,
    });
    Ok(paths.collect())
}

/// Binds what `--port` and `--introspection` name.
pub fn bind(cli: &Cli) -> Result<Listeners, Failure> {
    let all = |flag: &str, texts: &[String]| -> Result<Vec<Listener>, Failure> {
        addresses(flag, texts)?.iter().map(|at| listen(flag, at)).collect()
    };
    Ok(Listeners { ports: all(PORT, &cli.classic.port)?, state: all(STATE, &cli.classic.introspection)? })
}

fn listen(flag: &str, at: &Address) -> Result<Listener, Failure> {
    let bound = match at {
        Address::Unix(path) => unix(path).map(Listener::Unix),
        Address::Tcp { host, port } => TcpListener::bind((host.as_str(), *port)).map(Listener::Tcp),
        Address::Inherited(number) => {
            let number = i32::try_from(*number).unwrap_or(-1);
            take_fd(number).map(|fd| Listener::Unix(UnixListener::from(fd)))
        }
        Address::Vsock { .. } => {
            return Err(Failure::usage(format!("{flag} {at}: use a Unix socket, tcp:// or fd:N")));
        }
    };
    bound.map_err(|error| Failure::usage(format!("{flag} {at}: {error}")))
}

/// Binds a path; a socket that nobody listens at any more is replaced.
fn unix(path: &Path) -> std::io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => match UnixStream::connect(path) {
            Err(refused) if refused.kind() == ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)
            }
            _ => Err(error),
        },
        result => result,
    }
}

/// The hypervisor's socket that forwards go through, if they do.
pub fn hypervisor(cli: &Cli) -> Option<PathBuf> {
    let path = cli.classic.port_forwards.as_ref()?;
    Some(path.strip_prefix("unix:").unwrap_or(path).into())
}

/// The network whose ports are to be forwarded: the machine's, or the way into it beside its Ethernet. The process
/// outside connects.
pub fn through(
    cli: &Cli,
    network: Arc<dyn Network>,
    warden: &Arc<Warden>,
) -> Result<Arc<dyn Network>, Failure> {
    let Some(path) = hypervisor(cli) else { return Ok(network) };
    let warden = Arc::clone(warden);
    let tunnel = Tunnel::start(network, Box::new(move || warden.connect(&path)));
    Ok(Arc::new(tunnel.map_err(|error| Failure::of(&error))?))
}

/// Serves both trees until the process ends.
pub fn serve(listeners: Listeners, api: &Api) -> Result<(), Failure> {
    serve_tree(listeners.ports, Arc::new(PortFiles::new(Arc::clone(&api.exposed))))?;
    serve_tree(listeners.state, Arc::new(StateFiles(api.clone())))
}

fn serve_tree(listeners: Vec<Listener>, files: Arc<dyn Filesystem>) -> Result<(), Failure> {
    if listeners.is_empty() {
        return Ok(());
    }
    let server = Server::start(files, ServerOptions::default());
    let server = Arc::new(server.map_err(|error| Failure::of(&error))?);
    for listener in listeners {
        let server = Arc::clone(&server);
        let accept = move || {
            loop {
                let accepted = match &listener {
                    Listener::Unix(listener) => listener.accept().map(|(stream, _)| Socket::from(stream)),
                    Listener::Tcp(listener) => listener.accept().map(|(stream, _)| Socket::from(stream)),
                };
                // A client that cannot be served is let go; there may be room for the next one.
                if accepted.and_then(|socket| server.serve(socket)).is_err() {
                    thread::sleep(REST);
                }
            }
        };
        let spawned = thread::Builder::new().name("ports".into()).spawn(accept);
        spawned.map_err(|error| Failure::of(&error))?;
    }
    Ok(())
}
