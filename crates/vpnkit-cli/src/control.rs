//! The control socket, and the ports that are exposed from the start.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use ethlink::Address;
use vpnkit::{ForwardError, HubLink, Link};
use vpnkit_capture::Recorder;
use vpnkit_control::{
    Api, CapturedLink, ExposeError, Exposed, Listening, Network, Offer, Paths, Places, Server, diagnostics,
};
use vpnkit_sandbox::Warden;

use crate::cli::{Cli, Local};
use crate::failure::Failure;
use crate::forwarder;

/// Bytes that the ring keeps of each frame: all headers, and the beginning of what they carry.
const RING_SNAP_BYTES: u32 = 256;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;
/// Bytes of the ring that diagnostics are made from.
const RING_BYTES: usize = 1 << 20;

/// Has frames captured, if there is anybody who could look.
pub fn capture(
    cli: &Cli,
    link: Arc<dyn Link>,
    switch: Option<&Arc<HubLink>>,
) -> (Arc<dyn Link>, Arc<Recorder>) {
    // An archive has the last frames, as VPNKit's had.
    let classic = &cli.classic;
    let has_files = !classic.diagnostics.is_empty() || !classic.introspection.is_empty();
    let least = if has_files { RING_BYTES } else { 0 };
    let ring_bytes = least.max(usize::from(cli.capture_ring) << 20);
    let recorder = Arc::new(Recorder::new(ring_bytes, RING_SNAP_BYTES));
    if cli.control.is_none() && classic.pcap.is_empty() && !has_files {
        return (link, recorder);
    }
    let name = cli.tap.as_deref().unwrap_or("machines");
    let captured = CapturedLink::new(link, Arc::clone(&recorder), name);
    if let Some(switch) = switch {
        captured.watch(switch);
    }
    (Arc::new(captured), recorder)
}

/// Binds the sockets for control: that of everything, and that of the proxy's settings.
pub fn listen(cli: &Cli) -> Result<Vec<Listening>, Failure> {
    let settings = cli.classic.http_api_path.clone().map(Address::Unix);
    let bind = |address: &Address| match address {
        Address::Unix(path) => Listening::unix(path),
        Address::Tcp(address) => Listening::tcp(*address),
    };
    cli.control
        .iter()
        .chain(&settings)
        .map(bind)
        .collect::<Result<_, _>>()
        .map_err(|error| Failure::bad(&error))
}

/// The sockets that give something to who connects, bound.
pub struct Offers {
    archives: Vec<UnixListener>,
    frames: Vec<UnixListener>,
    snap_bytes: u32,
}

/// Binds, or takes over, the sockets of `--diagnostics` and `--pcap`.
pub fn offers(cli: &Cli) -> Result<Offers, Failure> {
    let bind = |local: &Local| match local {
        Local::Path(path) => match Listening::unix(path).map_err(|error| Failure::bad(&error))? {
            Listening::Unix(listener, _) => Ok(listener),
            Listening::Tcp(_) => Err(Failure::usage(format!("{} is no Unix socket", path.display()))),
        },
        Local::Fd(number) => {
            let wrong = |error: std::io::Error| {
                Failure::usage(format!("descriptor {number} is no socket of ours: {error}"))
            };
            let fd = ethlink::take_fd(*number).map_err(wrong)?;
            rustix::net::listen(&fd, BACKLOG).map_err(|error| wrong(error.into()))?;
            Ok(UnixListener::from(fd))
        }
    };
    let all = |locals: &[Local]| locals.iter().map(bind).collect::<Result<Vec<_>, _>>();
    let classic = &cli.classic;
    let (archives, frames) = (all(&classic.diagnostics)?, all(&classic.pcap)?);
    Ok(Offers { archives, frames, snap_bytes: classic.pcap_snaplen })
}

impl Offers {
    /// Serves them from now on.
    pub fn serve(self, api: &Api) -> Result<(), Failure> {
        let archives = self.archives.into_iter().map(|listener| (listener, Offer::Archive(api.clone())));
        let frames = || Offer::Frames(Arc::clone(&api.recorder), self.snap_bytes);
        let frames = self.frames.into_iter().map(|listener| (listener, frames()));
        for (listener, offer) in archives.chain(frames) {
            diagnostics::serve(listener, offer).map_err(|error| Failure::of(&error))?;
        }
        Ok(())
    }
}

/// The process outside makes sockets, in the folders that it was started with.
struct Outside(Arc<Warden>);

impl Places for Outside {
    fn bind(&self, path: &Path) -> io::Result<UnixListener> {
        self.0.bind(path).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => {
                io::Error::new(error.kind(), "it is in no folder of --forward-sockets that may be written")
            }
            _ => error,
        })
    }

    fn remove(&self, path: &Path) {
        // Without the process outside it stays behind.
        let _ = self.0.remove(path);
    }
}

/// The Unix sockets that may be exposed, if any.
pub fn paths(cli: &Cli, network: Arc<dyn Network>, warden: &Arc<Warden>) -> Option<Arc<Paths>> {
    if cli.forward_sockets.is_empty() {
        return None;
    }
    Some(Arc::new(Paths::new(network, Box::new(Outside(Arc::clone(warden))))))
}

/// Errs for a folder of `--forward-sockets` that is none.
pub fn check_folders(cli: &Cli) -> Result<(), Failure> {
    match cli.forward_sockets.iter().find(|folder| !folder.is_dir()) {
        Some(folder) => {
            Err(Failure::usage(format!("--forward-sockets {}: it is not a folder", folder.display())))
        }
        None => Ok(()),
    }
}

/// Exposes the ports of the command line.
pub fn expose(cli: &Cli, network: Arc<dyn Network>, warden: &Arc<Warden>) -> Result<Arc<Exposed>, Failure> {
    let network = forwarder::through(cli, network, warden)?;
    let exposed = Arc::new(Exposed::new(network, cli.allowed_bind_addresses.clone()));
    for (forward, everywhere) in cli.forwards() {
        let done = if everywhere {
            exposed.expose_everywhere(forward)
        } else {
            exposed.expose(forward, "").map(|_| ())
        };
        done.map_err(|error| match error {
            ExposeError::NotAllowed(_) | ExposeError::Forward(ForwardError::NotLocal { .. }) => {
                Failure::bad(&error)
            }
            error => Failure::of(&error),
        })?;
    }
    Ok(exposed)
}

/// Serves the sockets for control, for as long as the result is kept.
pub fn serve(listening: Vec<Listening>, api: &Api) -> Result<Vec<Server>, Failure> {
    let serve = |listening| Server::on(api.clone(), listening);
    listening.into_iter().map(serve).collect::<Result<_, _>>().map_err(|error| Failure::of(&error))
}
