//! The control socket, and the ports that are exposed from the start.

use std::sync::Arc;

use ethlink::Address;
use vpnkit::Link;
use vpnkit_capture::Recorder;
use vpnkit_control::{Api, CapturedLink, ExposeError, Exposed, Listening, Network, Server};

use crate::cli::Cli;
use crate::failure::Failure;
use crate::forwarder;

/// Bytes that the ring keeps of each frame: all headers, and the beginning of what they carry.
const RING_SNAP_BYTES: u32 = 256;

/// Has frames captured, if there is anybody who could look.
pub fn capture(cli: &Cli, link: Arc<dyn Link>) -> (Arc<dyn Link>, Arc<Recorder>) {
    let recorder = Arc::new(Recorder::new(usize::from(cli.capture_ring) << 20, RING_SNAP_BYTES));
    if cli.control.is_none() {
        return (link, recorder);
    }
    let name = cli.tap.as_deref().unwrap_or("machines");
    (Arc::new(CapturedLink::new(link, Arc::clone(&recorder), name)), recorder)
}

/// Binds the control socket.
pub fn listen(cli: &Cli) -> Result<Option<Listening>, Failure> {
    let bound = cli.control.as_ref().map(|address| match address {
        Address::Unix(path) => Listening::unix(path),
        Address::Tcp(address) => Listening::tcp(*address),
    });
    bound.transpose().map_err(|error| Failure::of(&error))
}

/// Exposes the ports of the command line and serves the control sockets: HTTP's for as long as the result is kept.
pub fn serve(
    cli: &Cli,
    (listening, ports): (Option<Listening>, Vec<forwarder::Listener>),
    network: Arc<dyn Network>,
    recorder: Arc<Recorder>,
    status: serde_json::Value,
) -> Result<Option<Server>, Failure> {
    let network = forwarder::through(cli, network)?;
    let exposed = Arc::new(Exposed::new(network, cli.allowed_bind_addresses.clone()));
    for forward in cli.forwards() {
        exposed.expose(forward, "").map_err(|error| match error {
            ExposeError::NotAllowed(_) => Failure::usage(error.to_string()),
            error => Failure::of(&error),
        })?;
    }
    forwarder::serve(ports, &exposed)?;
    let api = Api { exposed, recorder, status: Arc::new(status) };
    let server = listening.map(|listening| Server::on(api, listening)).transpose();
    server.map_err(|error| Failure::of(&error))
}
