//! How frames come in: what the command line names becomes a link of the engine.
//!
//! A TAP device is made by a second process of this program that moves into the namespace, hands the device over and
//! ends: to join a user namespace a process must have one thread, and this one keeps its own view of the host.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;

use ethlink::{Address, Addressing, Hub, Identities, Namespace, Protocol, Tap, TapOptions, pass, take_fd};
use vpnkit::{HubLink, Link, MacAddr, Network, PREFIX_BITS, TapLink, Update};

use crate::cli::{Cli, Local};
use crate::detours::Later;
use crate::failure::{self, Failure};

/// Makes the link.
pub fn attach(cli: &Cli, network: &Network, engine: &Arc<Later>) -> Result<Arc<dyn Link>, Failure> {
    let sockets = cli.sockets();
    let on_sockets = !sockets.is_empty() || !cli.fd.is_empty() || !cli.ethernet.is_empty();
    match (cli.tap.is_some(), on_sockets) {
        (true, true) => Err(Failure::usage("a namespace and sockets of machines need a vpnkit each")),
        (true, false) => Ok(Arc::new(TapLink::new(tap_of_helper()?))),
        (false, true) => Ok(Arc::new(hub(cli, &sockets, network, engine)?)),
        (false, false) => Err(Failure::usage(
            "nothing to attach to: give --netns and --tap, or a socket such as --listen-qemu unix:PATH",
        )),
    }
}

/// Binds the sockets and takes over descriptors.
fn hub(
    cli: &Cli,
    sockets: &[(Protocol, Address)],
    network: &Network,
    engine: &Arc<Later>,
) -> Result<HubLink, Failure> {
    let mut hub = Hub::new(network.gateway_mac.0, network.mtu).map_err(|error| Failure::of(&error))?;
    hub.set_identities(Arc::new(identities(network, engine)));
    for (protocol, address) in sockets {
        let name = match address {
            Address::Unix(path) => path.display().to_string(),
            Address::Tcp(address) => address.to_string(),
        };
        hub.listen(*protocol, address)
            .map_err(|error| Failure::usage(format!("the socket {name} cannot be bound: {error}")))?;
    }
    for local in &cli.ethernet {
        if let Local::Fd(number) = local {
            take_fd(*number).and_then(|fd| hub.listen_on(Protocol::Vmnet, fd)).map_err(|error| {
                Failure::usage(format!("descriptor {number} is no socket of ours: {error}"))
            })?;
        }
    }
    for number in &cli.fd {
        take_fd(*number)
            .and_then(|fd| hub.attach(fd))
            .map_err(|error| Failure::usage(format!("descriptor {number} is no socket of ours: {error}")))?;
    }
    HubLink::new(hub).map_err(|error| Failure::of(&error))
}

/// The addresses that machines may prefer, which DHCP keeps for them from then on.
fn identities(network: &Network, engine: &Arc<Later>) -> Identities {
    let last = network.guest_last.unwrap_or(Ipv4Addr::from_bits(network.broadcast().to_bits() - 1));
    let engine = Arc::clone(engine);
    Identities::new((network.guest, last), vec![network.gateway, network.host], move |mac, address| {
        if let Some(engine) = engine.get() {
            engine.update(Update::Reserve(MacAddr(mac), address));
        }
    })
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
    let mut addressing = Vec::new();
    if cli.config_net {
        addressing.push(Addressing {
            address: network.guest.into(),
            prefix: network.prefix,
            gateway: Some(network.gateway.into()),
        });
        // The router tells of the default route for IPv6 as the host has one.
        addressing.extend(network.ipv6.as_ref().map(|ipv6| Addressing {
            address: ipv6.guest.into(),
            prefix: PREFIX_BITS,
            gateway: None,
        }));
    }
    let options = TapOptions { name: name.clone(), mtu: network.mtu, mac: None, addressing };
    let tap = Tap::create(&options).map_err(|error| match error {
        ethlink::TapError::Name(_) | ethlink::TapError::Busy { .. } => Failure::usage(error.to_string()),
        other => Failure::of(&other),
    })?;
    pass::send(std::io::stdin(), std::os::fd::AsFd::as_fd(&tap)).map_err(|error| Failure::of(&error))
}
