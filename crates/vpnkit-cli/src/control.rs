//! The control socket, and the ports that are exposed from the start.

use std::sync::Arc;

use ethlink::Address;
use vpnkit::Link;
use vpnkit_capture::Recorder;
use vpnkit_control::{Api, CapturedLink, ExposeError, Exposed, Network, Server};

use crate::cli::Cli;
use crate::failure::Failure;

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

/// Exposes the ports of the command line and serves the control socket, for as long as the result is kept.
pub fn serve(
    cli: &Cli,
    network: Arc<dyn Network>,
    recorder: Arc<Recorder>,
) -> Result<Option<Server>, Failure> {
    let exposed = Arc::new(Exposed::new(network, cli.allowed_bind_addresses.clone()));
    for forward in cli.forwards() {
        exposed.expose(forward, "").map_err(|error| match error {
            ExposeError::NotAllowed(_) => Failure::usage(error.to_string()),
            error => Failure::of(&error),
        })?;
    }
    let Some(address) = &cli.control else { return Ok(None) };
    let api = Api { exposed, recorder };
    let server = match address {
        Address::Unix(path) => Server::unix(api, path),
        Address::Tcp(address) => Server::tcp(api, *address),
    };
    server.map(Some).map_err(|error| Failure::of(&error))
}
