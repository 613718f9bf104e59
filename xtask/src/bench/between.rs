//! What can stand between a client and a server: networks, and as little as possible, which is their floor.
//!
//! Each has two network namespaces of its own: the servers and the network are in one, the clients in the other. Nothing
//! of the machine's network is touched. Needs root, for `ip netns`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::run::root;

/// How long a network may take to carry something.
const PATIENCE: Duration = Duration::from_secs(10);

/// What frames cross on their way to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Socket {
    /// A stream with QEMU's framing.
    Stream,
    /// `SOCK_SEQPACKET`.
    Packets,
    /// `SOCK_DGRAM`.
    Datagrams,
}

/// What is between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Between {
    /// The loopback device: clients are in the servers' namespace.
    Loopback,
    /// A pair of devices.
    Veth,
    /// Two TAP devices and a process that copies frames from one to the other: the least outside of the kernel.
    Devices,
    /// Ours, with a device of its own.
    Vpnkit,
    /// pasta.
    Pasta,
    /// slirp4netns.
    Slirp4netns,
    /// Ours at a socket, and a connector between that and a device.
    Behind(Socket),
    /// Two connectors back to back, each with a device: what they cost with no network between.
    Connectors(Socket),
}

impl Between {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Between::Loopback => "loopback",
            Between::Veth => "veth",
            Between::Devices => "two taps",
            Between::Vpnkit | Between::Behind(_) => "vpnkit",
            Between::Pasta => "pasta",
            Between::Slirp4netns => "slirp4netns",
            Between::Connectors(_) => "connectors",
        }
    }

    /// Whether it is ours.
    pub fn is_ours(self) -> bool {
        matches!(self, Between::Vpnkit | Between::Behind(_))
    }

    /// Whether it is a process that copies frames: what any network outside of the kernel pays here.
    pub fn is_floor_outside(self) -> bool {
        matches!(self, Between::Devices | Between::Connectors(_))
    }

    /// Whether it is another network.
    pub fn is_peer(self) -> bool {
        matches!(self, Between::Pasta | Between::Slirp4netns)
    }

    /// The address by which clients reach the servers, and the one where they find the name server.
    fn addresses(self) -> (&'static str, &'static str) {
        match self {
            Between::Loopback => ("127.0.0.1", "127.0.0.1"),
            Between::Veth | Between::Devices | Between::Connectors(_) => ("10.98.0.1", "10.98.0.1"),
            Between::Vpnkit | Between::Behind(_) => ("192.168.65.2", "192.168.65.1"),
            Between::Pasta => ("10.0.2.2", "10.0.2.2"),
            Between::Slirp4netns => ("10.0.2.2", "10.0.2.3"),
        }
    }
}

/// Words of a command.
pub fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// A program of ours that was built for release.
fn program(name: &str) -> String {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    target.join("release").join(name).display().to_string()
}

/// A process, ended with the measurement.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The two namespaces, by their names, and a folder for sockets.
struct Namespaces {
    host: String,
    guest: String,
    folder: PathBuf,
}

impl Namespaces {
    fn new() -> Result<Self> {
        let own = std::process::id();
        let folder = std::env::temp_dir().join(format!("vpnkit-bench-{own}"));
        fs::create_dir_all(&folder)?;
        let these = Self { host: format!("vpnkit-host-{own}"), guest: format!("vpnkit-guest-{own}"), folder };
        // ip-netns(8) has what is run in a namespace see this file: the networks ask the name server that it names.
        let etc = these.etc();
        fs::create_dir_all(&etc)?;
        fs::write(etc.join("resolv.conf"), "nameserver 127.0.0.1\n")?;
        for name in [&these.host, &these.guest] {
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {name} link set lo up"))?;
        }
        let host = &these.host;
        // pasta wants a device with a default route, though nothing goes there.
        ip(&format!("-n {host} link add ext0 type veth peer name ext1"))?;
        ip(&format!("-n {host} address add 192.0.2.1/24 dev ext0"))?;
        ip(&format!("-n {host} link set ext0 up"))?;
        ip(&format!("-n {host} link set ext1 up"))?;
        ip(&format!("-n {host} route add default via 192.0.2.254 dev ext0"))?;
        Ok(these)
    }

    fn etc(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.host)
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in [&self.host, &self.guest] {
            // What cannot be removed was not made.
            let _ = ip(&format!("netns delete {name}"));
        }
        let _ = fs::remove_dir_all(self.etc());
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn inside(namespace: &str, command: &[String]) -> Command {
    let mut inside = Command::new("ip");
    inside.args(["netns", "exec", namespace]).args(command).stdin(Stdio::null());
    inside
}

fn ip(line: &str) -> Result<()> {
    let done = Command::new("ip").args(line.split_whitespace()).output().context("ip cannot be started")?;
    if !done.status.success() {
        bail!("ip {line}: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
}

/// Asks until it is so.
fn until(what: &str, mut is_so: impl FnMut() -> Result<()>) -> Result<()> {
    let began = Instant::now();
    while let Err(error) = is_so() {
        if began.elapsed() > PATIENCE {
            return Err(error.context(what.to_owned()));
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Servers, clients, and what is between, ready to be measured.
pub struct Setup {
    between: Between,
    // Processes end before their namespaces go.
    running: Vec<Running>,
    spaces: Namespaces,
    mtu: u16,
}

impl Setup {
    /// Sets everything up; something was carried when it returns.
    ///
    /// # Errors
    /// When a program or namespace cannot be had, or nothing is carried.
    pub fn new(between: Between, mtu: u16) -> Result<Self> {
        let mut setup = Self { between, running: Vec::new(), spaces: Namespaces::new()?, mtu };
        setup.start_in_host("iperf3 -s")?;
        setup.start_in_host(&format!("{} serve 0.0.0.0", program("examples/traffic")))?;
        setup.join()?;
        until(&format!("{} carries nothing", between.name()), || setup.traffic("rr", 0.01).map(drop))?;
        Ok(setup)
    }

    /// Runs a client of `traffic` and returns its figure.
    ///
    /// # Errors
    /// When it failed.
    pub fn traffic(&self, kind: &str, seconds: f64) -> Result<f64> {
        let (host, names) = self.between.addresses();
        let to = if kind == "dns" { names } else { host };
        let done = self.client(&format!("{} {kind} {to} {seconds}", program("examples/traffic")))?;
        done.trim().parse().context("a figure that is none")
    }

    /// Runs iperf3 for a second and returns gigabits a second.
    ///
    /// # Errors
    /// When it failed.
    pub fn iperf(&self, extra: &str) -> Result<f64> {
        let (host, _) = self.between.addresses();
        let report = self.client(&format!("iperf3 -J -t 1 --connect-timeout 1000 -c {host} {extra}"))?;
        let report: serde_json::Value =
            serde_json::from_str(&report).context("iperf3's report is not JSON")?;
        let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
        Ok(rate.context("iperf3 measured nothing")? / 1e9)
    }

    fn client(&self, command: &str) -> Result<String> {
        let Namespaces { host, guest, .. } = &self.spaces;
        let namespace = if self.between == Between::Loopback { host } else { guest };
        let done = inside(namespace, &words(command)).output().context("a client cannot be started")?;
        if !done.status.success() {
            bail!("{command}: {}", String::from_utf8_lossy(&done.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    fn start(&mut self, namespace: &str, command: &str) -> Result<()> {
        let mut command = inside(namespace, &words(command));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.running.push(Running(child.context("a program cannot be started")?));
        Ok(())
    }

    fn start_in_host(&mut self, command: &str) -> Result<()> {
        let host = self.spaces.host.clone();
        self.start(&host, command)
    }

    /// Puts between what is to be there.
    fn join(&mut self) -> Result<()> {
        let (mtu, path) = (self.mtu, format!("/run/netns/{}", self.spaces.guest));
        match self.between {
            Between::Loopback => Ok(()),
            Between::Veth => self.join_by_veth(),
            Between::Devices => self.join_by_devices(),
            Between::Vpnkit => self.start_in_host(&format!(
                "{} --netns {path} --tap tap0 --config-net --mtu {mtu}",
                program("vpnkit")
            )),
            Between::Pasta => self.start_in_host(&format!(
                "pasta -f -4 -q --runas 0 --config-net -I tap0 -a 10.0.2.15 -n 24 -g 10.0.2.2 -i ext0 -m {mtu} \
                 -t none -u none -T none -U none -D none --netns {path}"
            )),
            Between::Slirp4netns => {
                self.start_in_host(&format!("slirp4netns -c -m {mtu} --netns-type=path {path} tap0"))
            }
            Between::Behind(socket) => self.join_by_socket(socket),
            Between::Connectors(socket) => self.join_by_connectors(socket),
        }
    }

    fn join_by_veth(&self) -> Result<()> {
        let Namespaces { host, guest, .. } = &self.spaces;
        let mtu = self.mtu;
        ip(&format!("-n {host} link add veth0 mtu {mtu} type veth peer name tap0 mtu {mtu} netns {guest}"))?;
        self.address_host("veth0")?;
        self.address_guest("10.98.0.2", "10.98.0.1")
    }

    fn join_by_devices(&mut self) -> Result<()> {
        let Namespaces { host, guest, .. } = &self.spaces;
        let connector = program("examples/connector");
        self.start_in_host(&format!("{connector} {guest} tap0 {} device {host} tap0", self.mtu))?;
        until("there is no device", || self.address_host("tap0"))?;
        self.address_guest("10.98.0.2", "10.98.0.1")
    }

    fn join_by_socket(&mut self, socket: Socket) -> Result<()> {
        let path = self.spaces.path("net");
        let listen = match socket {
            Socket::Stream => format!("--listen-qemu unix:{path}"),
            Socket::Packets => format!("--listen-bess {path}"),
            Socket::Datagrams => format!("--listen-vfkit {path}"),
        };
        self.start_in_host(&format!("{} {listen} --mtu {}", program("vpnkit"), self.mtu))?;
        let guest = self.spaces.guest.clone();
        self.connect(&guest, socket, "guest", "net")?;
        self.address_guest("192.168.65.3", "192.168.65.1")
    }

    fn join_by_connectors(&mut self, socket: Socket) -> Result<()> {
        let Namespaces { host, guest, .. } = &self.spaces;
        let (host, guest) = (host.clone(), guest.clone());
        let listens = if socket == Socket::Datagrams { "guest" } else { "-" };
        self.connect(&host, socket, "net", listens)?;
        self.connect(&guest, socket, "guest", "net")?;
        until("there is no device", || self.address_host("tap0"))?;
        self.address_guest("10.98.0.2", "10.98.0.1")
    }

    /// Starts a connector with a device in a namespace.
    fn connect(&mut self, namespace: &str, socket: Socket, own: &str, peer: &str) -> Result<()> {
        let kind = match socket {
            Socket::Stream => "stream",
            Socket::Packets => "packets",
            Socket::Datagrams => "datagrams",
        };
        let (own, mtu) = (self.spaces.path(own), self.mtu);
        let peer = if peer == "-" { peer.to_owned() } else { self.spaces.path(peer) };
        let connector = program("examples/connector");
        self.start_in_host(&format!("{connector} {namespace} tap0 {mtu} {kind} {own} {peer}"))
    }

    fn address_host(&self, device: &str) -> Result<()> {
        let host = &self.spaces.host;
        ip(&format!("-n {host} address replace 10.98.0.1/24 dev {device}"))?;
        ip(&format!("-n {host} link set {device} up"))
    }

    fn address_guest(&self, address: &str, gateway: &str) -> Result<()> {
        let guest = &self.spaces.guest;
        until("there is no device", || ip(&format!("-n {guest} address replace {address}/24 dev tap0")))?;
        ip(&format!("-n {guest} link set tap0 up"))?;
        ip(&format!("-n {guest} route replace default via {gateway}"))
    }
}
