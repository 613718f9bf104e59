//! How frames come in: what the command line names becomes a link of the engine.
//!
//! A TAP device is made by a second process of this program that moves into the namespace, hands the device over and
//! ends: to join a user namespace a process must have one thread, and this one keeps its own view of the host.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;

use ethlink::{Addressing, Namespace, Tap, TapOptions, pass};
use vpnkit::{Link, Network, TapLink};

use crate::cli::Cli;
use crate::failure::{self, Failure};

/// Makes the link.
pub fn attach(cli: &Cli, _network: &Network) -> Result<Arc<dyn Link>, Failure> {
    if cli.tap.is_some() {
        return Ok(Arc::new(TapLink::new(tap_of_helper()?)));
    }
    Err(Failure::usage("nothing to attach to: give --netns and --tap"))
}

/// Lets a process of its own make the device.
fn tap_of_helper() -> Result<Tap, Failure> {
    let (here, there) = UnixStream::pair().map_err(|error| Failure::of(&error))?;
    let status = Command::new("/proc/self/exe")
        .arg("--make-tap")
        .args(std::env::args_os().skip(1))
        .stdin(Stdio::from(OwnedFd::from(there)))
        .status()
        .map_err(|error| Failure::of(&error))?;
    let fd = pass::receive(&here).map_err(|error| Failure::of(&error))?;
    match fd {
        Some(fd) if status.success() => Ok(Tap::from_fd(fd)),
        // The helper said why.
        _ => Err(Failure {
            message: String::new(),
            code: status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(failure::HOST),
        }),
    }
}

/// The helper's part: makes the device in the namespace and hands it over on stdin.
pub fn make_tap(cli: &Cli) -> Result<(), Failure> {
    let config = cli.config()?;
    let (Some(netns), Some(name)) = (&cli.netns, &cli.tap) else {
        return Err(Failure::usage("--make-tap needs --netns and --tap"));
    };
    let Ok(namespace) = netns.parse::<Namespace>();
    namespace.enter().map_err(|error| Failure { code: failure::USAGE, ..Failure::of(&error) })?;
    let network = &config.network;
    let addressing = Addressing { address: network.guest, prefix: network.prefix, gateway: network.gateway };
    let options = TapOptions {
        name: name.clone(),
        mtu: network.mtu,
        mac: None,
        addressing: cli.config_net.then_some(addressing),
    };
    let tap = Tap::create(&options).map_err(|error| match error {
        ethlink::TapError::Name(_) | ethlink::TapError::Busy { .. } => Failure::usage(error.to_string()),
        other => Failure::of(&other),
    })?;
    pass::send(std::io::stdin(), std::os::fd::AsFd::as_fd(&tap)).map_err(|error| Failure::of(&error))
}
