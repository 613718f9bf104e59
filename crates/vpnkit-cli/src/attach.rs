//! How frames come in: what the command line names becomes a link of the engine.
//!
//! A TAP device is made by a second process of this program that moves into the namespace, hands the device over and
//! ends: to join a user namespace a process must have one thread, and this one keeps its own view of the host.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;

use ethlink::inside::{self, Inside};
use ethlink::{
    Address, Addresses, Addressing, Hub, Identities, Namespace, Protocol, Tap, TapError, TapOptions, pass,
    take_fd,
};
use vpnkit::{HubLink, Link, MacAddr, Network, PREFIX_BITS, TapLink, Update};
use vpnkit_sandbox::Code;

use crate::cli::{Cli, Local};
use crate::detours::Later;
use crate::failure::{self, Failure};

/// What the engine is attached to.
pub struct Attached {
    /// Where frames come from.
    pub link: Arc<dyn Link>,
    /// The same, if it is a switch.
    pub switch: Option<Arc<HubLink>>,
    /// Where sockets of the namespace come from.
    pub inside: Option<Arc<Inside>>,
    /// The device that has the guest's address without asking for it, among others who might be given it.
    pub tap: Option<MacAddr>,
}

/// Makes the link.
pub fn attach(cli: &Cli, network: &Network, engine: &Arc<Later>) -> Result<Attached, Failure> {
    let sockets = cli.sockets();
    let on_sockets = !sockets.is_empty() || !cli.fd.is_empty() || !cli.ethernet.is_empty();
    match (cli.tap.is_some(), on_sockets) {
        // A device alone needs no switch.
        (true, false) => {
            let (tap, inside) = tap_of_helper(cli, None)?;
            Ok(Attached { link: Arc::new(TapLink::new(tap)), switch: None, inside, tap: None })
        }
        (with_tap, true) => {
            let (mut hub, mut inside) = (hub(cli, &sockets, network, engine)?, None);
            let mac = cli.config_net.then(random_mac);
            if with_tap {
                let made = tap_of_helper(cli, mac)?;
                hub.attach_tap(made.0).map_err(|error| Failure::of(&error))?;
                inside = made.1;
            }
            let link = Arc::new(HubLink::new(hub).map_err(|error| Failure::of(&error))?);
            Ok(Attached { link: Arc::clone(&link) as Arc<dyn Link>, switch: Some(link), inside, tap: mac })
        }
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
) -> Result<Hub, Failure> {
    let mut hub = Hub::new(network.gateway_mac.0, network.mtu).map_err(|error| Failure::of(&error))?;
    hub.set_identities(Arc::new(identities(network, engine)));
    hub.set_addresses(Addresses {
        engine: network.own_addresses(),
        ipv4: (network.gateway, network.prefix),
        ipv6: network.ipv6.as_ref().map(|ipv6| ipv6.gateway),
    });
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
    Ok(hub)
}

/// The addresses that machines may prefer, which DHCP keeps for them from then on.
fn identities(network: &Network, engine: &Arc<Later>) -> Identities {
    let last = network.guest_last.unwrap_or(Ipv4Addr::from_bits(network.broadcast().to_bits() - 1));
    let engine = Arc::clone(engine);
    Identities::new((network.guest, last), vec![network.gateway, network.host], move |mac, address| {
        engine.update(Update::Reserve(MacAddr(mac), address));
    })
}

/// A hardware address of a station, locally administered.
fn random_mac() -> MacAddr {
    use std::hash::{BuildHasher, Hasher};
    let random = std::hash::RandomState::new().build_hasher().finish();
    let [a, b, c, d, e, ..] = random.to_be_bytes();
    MacAddr([2, a, b, c, d, e])
}

/// Lets a process of its own make the device; where ports may be forwarded it stays and makes sockets.
fn tap_of_helper(cli: &Cli, mac: Option<MacAddr>) -> Result<(Tap, Option<Arc<Inside>>), Failure> {
    let (here, there) = UnixStream::pair().map_err(|error| Failure::of(&error))?;
    let mut helper = Command::new("/proc/self/exe")
        .arg("--make-tap")
        .args(mac.map(|mac| format!("--tap-mac={mac}")))
        .args(std::env::args_os().skip(1))
        .stdin(Stdio::from(OwnedFd::from(there)))
        .spawn()
        .map_err(|error| Failure::of(&error))?;
    let Some(fd) = pass::receive(&here).map_err(|error| Failure::of(&error))? else {
        // The helper said why.
        let status = helper.wait().map_err(|error| Failure::of(&error))?;
        let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(failure::HOST);
        return Err(Failure { message: String::new(), code });
    };
    if !forwards_ports(cli) {
        helper.wait().map_err(|error| Failure::of(&error))?;
        return Ok((Tap::from_fd(fd), None));
    }
    // It ends when this process does, or sooner: then connections go through the device.
    let inside = Inside::new(here).map_err(|error| Failure::of(&error))?;
    Ok((Tap::from_fd(fd), Some(Arc::new(inside))))
}

/// Whether ports are forwarded, or may be later.
fn forwards_ports(cli: &Cli) -> bool {
    !cli.tcp_ports.is_empty() || cli.control.is_some()
}

/// The helper's part: makes the device in the namespace, hands it over on stdin, and then sockets as they are asked for.
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
    let options =
        TapOptions { name: name.clone(), mtu: network.mtu, mac: cli.tap_mac.map(|mac| mac.0), addressing };
    let tap = Tap::create(&options).map_err(|error| match error {
        TapError::Name(_) | TapError::Busy { .. } | TapError::TunDenied => Failure::usage(error.to_string()),
        other => Failure::of(&other),
    })?;
    pass::send(std::io::stdin(), std::os::fd::AsFd::as_fd(&tap)).map_err(|error| Failure::of(&error))?;
    drop(tap);
    if forwards_ports(cli) {
        if let Ok(code) = Code::find() {
            code.release();
        }
        inside::serve(std::io::stdin()).map_err(|error| Failure::of(&error))?;
    }
    Ok(())
}
