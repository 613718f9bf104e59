//! The command line.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ethlink::{Address, Protocol};
use vpnkit::{Config, ConfigError, Forward, Ipv6Network, MacAddr, Network, Resolvers};

use crate::classic::Classic;
use crate::failure::Failure;
use crate::ports::{Pair, Ports};

/// A user-space network: Ethernet of a namespace or of machines becomes ordinary sockets of this process.
#[derive(Debug, Parser)]
#[command(name = "vpnkit", version, max_term_width = 100, args_conflicts_with_subcommands = true)]
// VPNKit's clients shorten flags: Docker Desktop says --dhcp.
#[command(infer_long_args = true)]
pub struct Cli {
    /// What to do instead of serving a network
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Network namespace to serve: a process, a path, or a name of ip-netns(8)
    #[arg(long, value_name = "PID|PATH|NAME", requires = "tap")]
    pub netns: Option<String>,
    /// Name of the device to make in it
    #[arg(long, value_name = "NAME", requires = "netns")]
    pub tap: Option<String>,
    /// Give the device its address and default route, and bring it up
    #[arg(long, requires = "tap")]
    pub config_net: bool,
    /// Socket for HyperKit and other clients of VPNKit's Ethernet protocol: a path, or fd:NUMBER that is bound
    #[arg(long, value_name = "SOCKET", value_parser = local)]
    pub ethernet: Vec<Local>,
    /// Socket for QEMU's `-netdev stream`: unix:PATH or tcp:ADDRESS:PORT
    #[arg(long, value_name = "SOCKET", value_parser = socket)]
    pub listen_qemu: Vec<Address>,
    /// Socket for gvproxy's clients, which send POST /connect
    #[arg(long, value_name = "SOCKET", value_parser = socket)]
    pub listen: Vec<Address>,
    /// Unix socket of sequenced packets, for user-mode Linux
    #[arg(long, value_name = "PATH", value_parser = packets)]
    pub listen_bess: Vec<PathBuf>,
    /// Unix socket of datagrams, for vfkit and QEMU's `-netdev dgram`; one machine each
    #[arg(long, value_name = "PATH", value_parser = packets)]
    pub listen_vfkit: Vec<PathBuf>,
    /// Unix socket for machines over vhost-user, whose memory is shared: QEMU, cloud-hypervisor, crosvm
    #[arg(long, value_name = "PATH")]
    pub vhost_user: Vec<PathBuf>,
    /// Connected socket that the command was started with: a stream with QEMU's framing, or packets
    #[arg(long, value_name = "NUMBER")]
    pub fd: Vec<i32>,
    /// Microseconds to stay awake for more while answers come faster than that; 0 is never
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 50,
        value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub busy_poll: u32,
    /// Largest IP packet, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1500)]
    pub mtu: u16,
    /// Router, name server and DHCP server of the network
    #[arg(long, value_name = "ADDRESS", default_value = "192.168.65.1")]
    pub gateway_ip: Ipv4Addr,
    /// Stands for the host: what is sent there goes to 127.0.0.1; else the address after the gateway's
    #[arg(long, value_name = "ADDRESS")]
    pub host_ip: Option<Ipv4Addr>,
    /// Address of the guest; further guests get those after it. Else the second after the gateway's
    #[arg(long, value_name = "ADDRESS", alias = "lowest-ip")]
    pub guest_ip: Option<Ipv4Addr>,
    /// Last address that guests get; else the last of the network
    #[arg(long, value_name = "ADDRESS")]
    pub highest_ip: Option<Ipv4Addr>,
    /// Bits of the network in an address; else 24, or fewer if the addresses need it
    #[arg(long, value_name = "BITS")]
    pub prefix: Option<u8>,
    /// Router and name server for IPv6; its first 64 bits are the network's
    #[arg(long, value_name = "ADDRESS", default_value = "fd76:706e:6b69:7400::1")]
    pub gateway_ip6: Ipv6Addr,
    /// Stands for the host over IPv6: what is sent there goes to ::1
    #[arg(long, value_name = "ADDRESS")]
    pub host_ip6: Option<Ipv6Addr>,
    /// IPv6 address of the guest, by DHCPv6; further guests get those after it
    #[arg(long, value_name = "ADDRESS")]
    pub guest_ip6: Option<Ipv6Addr>,
    /// No IPv6 for the guests
    #[arg(long, conflicts_with_all = ["gateway_ip6", "host_ip6", "guest_ip6"])]
    pub no_ipv6: bool,
    /// Name servers to ask, instead of those of /etc/resolv.conf: addresses, or a file of VPNKit's form
    #[arg(long, value_name = "ADDRESS[:PORT],…|FILE", value_parser = dns)]
    pub dns: Vec<Dns>,
    /// File of names, as hosts(5)
    #[arg(long, value_name = "FILE", default_value = "/etc/hosts")]
    pub hosts: PathBuf,
    /// Domain of the guests
    #[arg(long, value_name = "NAME", default_value = "", value_parser = domain)]
    pub domain: String,
    /// Domains that guests search
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = domain)]
    pub search: Vec<String>,
    /// TCP ports of the host that lead to the guest: [ADDRESS/]PORT[-PORT][:PORT[-PORT]],…
    #[arg(short = 't', long, value_name = "PORTS")]
    pub tcp_ports: Vec<Ports>,
    /// UDP ports of the host that lead to the guest
    #[arg(short = 'u', long, value_name = "PORTS")]
    pub udp_ports: Vec<Ports>,
    /// Socket for control and observation over HTTP: ports, flows, metrics, captures. On TCP, of the loopback alone
    #[arg(long, value_name = "SOCKET", value_parser = own_socket)]
    pub control: Option<Address>,
    /// The only addresses of the host that ports may be bound to; 0.0.0.0 is any
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub allowed_bind_addresses: Vec<IpAddr>,
    /// Folder that Unix sockets may be exposed in, through --control
    #[arg(long, value_name = "FOLDER", requires = "control")]
    pub forward_sockets: Vec<PathBuf>,
    /// Keep the last frames, of so many mebibytes, for /capture/ring
    #[arg(long, value_name = "MIB", default_value_t = 0, requires = "control",
        value_parser = clap::value_parser!(u16).range(0..=1024))]
    pub capture_ring: u16,
    /// Whether the process gives up what it does not need: files, programs, privileges
    #[arg(long, value_name = "yes|no", default_value = "yes")]
    pub sandbox: YesNo,
    /// What VPNKit had
    #[command(flatten)]
    pub classic: Classic,
    /// For tests: what to try inside of the sandbox
    #[cfg(debug_assertions)]
    #[arg(long = "try", hide = true)]
    pub attempts: Vec<String>,
    /// Internal: make the device and hand it over on stdin
    #[arg(long, hide = true, requires = "tap")]
    pub make_tap: bool,
    /// Internal: the device's hardware address
    #[arg(long, hide = true, value_parser = crate::classic::parse_mac)]
    pub tap_mac: Option<MacAddr>,
}

/// Questions to a network that runs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the connections of a network, with their rates
    Flows(QuestionArguments),
    /// Show what the process of a network is: its version and its sandbox
    Status(QuestionArguments),
}

/// Which network is asked, and how it is shown.
#[derive(Debug, Args)]
pub struct QuestionArguments {
    /// The socket that it was started with as --control
    #[arg(long, value_name = "SOCKET", value_parser = socket)]
    pub control: Address,
    /// As JSON, and flows at once, without rates
    #[arg(long)]
    pub json: bool,
}

/// Yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum YesNo {
    /// Yes.
    Yes,
    /// No.
    No,
}

/// Who is asked for names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dns {
    /// These.
    Servers(Vec<SocketAddr>),
    /// Those that a file of VPNKit's form names, followed as it changes.
    File(PathBuf),
}

/// A socket of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Local {
    /// To be made here.
    Path(PathBuf),
    /// Inherited, bound already.
    Fd(i32),
}

/// How Windows names its pipes.
const PIPE: &str = r"\\.\pipe\";

/// `PATH`, `unix:PATH` or `fd:NUMBER`; Hyper-V's and other sockets of hypervisors are not of this system.
pub fn local(text: &str) -> Result<Local, String> {
    if let Some(number) = text.strip_prefix("fd:") {
        return number.parse().map(Local::Fd).map_err(|_| format!("`{number}` is no descriptor"));
    }
    let path = text.strip_prefix("unix:").map_or(text, |rest| rest.strip_prefix("//").unwrap_or(rest));
    if path.is_empty() {
        return Err("a socket needs a path".into());
    }
    match path.split_once("://") {
        Some((scheme, _)) => {
            Err(format!("{scheme} sockets are not of this system: give a path or fd:NUMBER"))
        }
        None if path.starts_with(PIPE) => {
            Err("named pipes are not of this system: give a path or fd:NUMBER".into())
        }
        None => Ok(Local::Path(path.into())),
    }
}

/// `unix:PATH`, `unix://PATH`, `tcp:ADDRESS:PORT`, or a path.
fn socket(text: &str) -> Result<Address, String> {
    let strip = |scheme: &str| {
        let rest = text.strip_prefix(scheme)?;
        Some(rest.strip_prefix("//").unwrap_or(rest))
    };
    if let Some(address) = strip("tcp:") {
        return address.parse().map(Address::Tcp).map_err(|_| format!("`{address}` is no ADDRESS:PORT"));
    }
    let path = strip("unix:").unwrap_or(text);
    if let Some((scheme, _)) = path.split_once("://") {
        return Err(format!("{scheme} sockets are not spoken here: give unix:PATH or tcp:ADDRESS:PORT"));
    }
    if path.is_empty() { Err("a socket needs a path".into()) } else { Ok(Address::Unix(path.into())) }
}

/// As [`socket`], for who controls the network: whoever can connect may.
fn own_socket(text: &str) -> Result<Address, String> {
    match socket(text)? {
        Address::Tcp(address) if !address.ip().is_loopback() => Err(format!(
            "{} is no loopback address, and whoever can connect controls the network: give 127.0.0.1 or a path",
            address.ip()
        )),
        address => Ok(address),
    }
}

/// A path, with or without gvproxy's `unixpacket://`, `unixgram://` or `unix://`.
fn packets(text: &str) -> Result<PathBuf, String> {
    let strip = |scheme| text.strip_prefix(scheme);
    let path =
        ["unixpacket://", "unixgram://", "unix://", "unix:"].into_iter().find_map(strip).unwrap_or(text);
    match path.split_once("://") {
        Some((scheme, _)) => Err(format!("{scheme} sockets are not spoken here: give a path")),
        None if path.is_empty() => Err("a socket needs a path".into()),
        None => Ok(path.into()),
    }
}

/// A domain name, or none. Spec: RFC 1035 §2.3.4, with letters of any kind.
pub fn domain(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.contains(|letter: char| letter.is_whitespace() || letter.is_control())
    };
    if !name.is_empty() && (name.len() > 253 || !name.split('.').all(is_label)) {
        return Err(format!(
            "`{text}` is no domain name: it has labels of 1 to 63 bytes, 253 in all, and no space"
        ));
    }
    Ok(name.to_owned())
}

fn dns(text: &str) -> Result<Dns, String> {
    let servers: Result<Vec<_>, _> = text.split(',').map(resolver).collect();
    match servers {
        Ok(servers) => Ok(Dns::Servers(servers)),
        Err(_) if std::path::Path::new(text).is_file() => Ok(Dns::File(text.into())),
        Err(error) => Err(format!("{error}, and there is no such file")),
    }
}

fn resolver(text: &str) -> Result<SocketAddr, String> {
    let whole = text.parse::<SocketAddr>();
    whole
        .or_else(|_| text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53)))
        .map_err(|_| format!("`{text}` is no address"))
        .and_then(
            |address| if address.port() == 0 { Err(format!("`{text}` has port 0")) } else { Ok(address) },
        )
}

impl Local {
    /// Its path, if it has one.
    pub fn path(&self) -> Option<PathBuf> {
        if let Self::Path(path) = self { Some(path.clone()) } else { None }
    }
}

impl Cli {
    /// What the engine is started with. Files are not its business: they are followed from outside.
    pub fn config(&self) -> Result<Config, Failure> {
        let after = |step| Ipv6Addr::from_bits(self.gateway_ip6.to_bits().saturating_add(step));
        let ipv6 = (!self.no_ipv6).then(|| Ipv6Network {
            gateway: self.gateway_ip6,
            host: self.host_ip6.unwrap_or(after(1)),
            guest: self.guest_ip6.unwrap_or(after(2)),
            ..Ipv6Network::default()
        });
        let mut network = Network {
            ipv6,
            gateway: self.gateway_ip,
            host: self.host_ip(),
            guest: self.guest_ip(),
            guest_last: self.highest_ip,
            prefix: self.prefix(),
            mtu: self.mtu,
            offload: self.tap.is_some(),
            domain: self.domain.clone(),
            search: self.search.iter().filter(|name| !name.is_empty()).cloned().collect(),
            ..Network::default()
        };
        self.classic.apply(&mut network);
        network.validate().map_err(|error| match error {
            ConfigError::Prefix(0..8) if self.prefix.is_none() => Failure::usage(format!(
                "no network has --gateway-ip {}, --host-ip {} and --guest-ip {} in it: give addresses that are closer",
                network.gateway, network.host, network.guest
            )),
            error => Failure::usage(error.to_string()),
        })?;
        let servers = self.dns.iter().flat_map(|dns| match dns {
            Dns::Servers(servers) => servers.as_slice(),
            Dns::File(_) => &[],
        });
        let dns = Resolvers::Fixed(servers.copied().collect());
        let backlog = self.classic.listen_backlog.map_or(Config::default().backlog, |count| count as u16);
        let busy_poll = Duration::from_micros(self.busy_poll.into());
        Ok(Config { network, dns, hosts: None, backlog, busy_poll, ..Config::default() })
    }

    /// What stands for the host.
    pub fn host_ip(&self) -> Ipv4Addr {
        self.host_ip.unwrap_or(Ipv4Addr::from_bits(self.gateway_ip.to_bits().saturating_add(1)))
    }

    /// Where the guest is.
    pub fn guest_ip(&self) -> Ipv4Addr {
        self.guest_ip.unwrap_or(Ipv4Addr::from_bits(self.gateway_ip.to_bits().saturating_add(2)))
    }

    /// The smallest network of at least 256 addresses that has all of those given.
    fn prefix(&self) -> u8 {
        let addresses = [Some(self.host_ip()), Some(self.guest_ip()), self.highest_ip];
        let given = addresses.into_iter().flatten().filter(|address| !address.is_unspecified());
        let differ = given.fold(0, |bits, address| bits | (address.to_bits() ^ self.gateway_ip.to_bits()));
        self.prefix.unwrap_or((differ.leading_zeros() as u8).min(24))
    }

    /// The sockets that machines connect to.
    pub fn sockets(&self) -> Vec<(Protocol, Address)> {
        let paths = |protocol, paths: &[PathBuf]| -> Vec<_> {
            paths.iter().map(|path| (protocol, Address::Unix(path.clone()))).collect()
        };
        let any = |protocol, addresses: &[Address]| -> Vec<_> {
            addresses.iter().map(|address| (protocol, address.clone())).collect()
        };
        let ethernet: Vec<PathBuf> = self.ethernet.iter().filter_map(Local::path).collect();
        [
            paths(Protocol::Vmnet, &ethernet),
            any(Protocol::Qemu, &self.listen_qemu),
            any(Protocol::Connect, &self.listen),
            paths(Protocol::Bess, &self.listen_bess),
            paths(Protocol::Datagram, &self.listen_vfkit),
            paths(Protocol::VhostUser, &self.vhost_user),
        ]
        .concat()
    }

    /// The ports that lead to the guest from the start, and whether each is to be one of all addresses of the host.
    pub fn forwards(&self) -> Vec<(Forward, bool)> {
        let guest = IpAddr::V4(self.guest_ip());
        let of = |ports: &[Ports], forward: fn(SocketAddr, SocketAddr) -> Forward| -> Vec<_> {
            let pairs = ports.iter().flat_map(|ports| &ports.0);
            let forward = |pair: &Pair| {
                let address = pair.address.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
                let bind = SocketAddr::new(address, pair.host);
                (forward(bind, SocketAddr::new(guest, pair.guest)), pair.address.is_none())
            };
            pairs.map(forward).collect()
        };
        [of(&self.tcp_ports, Forward::tcp), of(&self.udp_ports, Forward::udp)].concat()
    }
}
