//! The command line.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use ethlink::{Address, Protocol};
use vpnkit::{Config, Forward, Network, Resolvers};

use crate::failure::Failure;
use crate::ports::Ports;

/// A user-space network: Ethernet of a namespace or of machines becomes ordinary sockets of this process.
#[derive(Debug, Parser)]
#[command(name = "vpnkit", version, max_term_width = 100, args_conflicts_with_subcommands = true)]
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
    /// Unix socket for HyperKit and other clients of VPNKit's Ethernet protocol
    #[arg(long, value_name = "PATH")]
    pub ethernet: Vec<PathBuf>,
    /// Socket for QEMU's `-netdev stream`: unix:PATH or tcp:ADDRESS:PORT
    #[arg(long, value_name = "SOCKET", value_parser = socket)]
    pub listen_qemu: Vec<Address>,
    /// Socket for gvproxy's clients, which send POST /connect
    #[arg(long, value_name = "SOCKET", value_parser = socket)]
    pub listen: Vec<Address>,
    /// Unix socket of sequenced packets, for user-mode Linux
    #[arg(long, value_name = "PATH")]
    pub listen_bess: Vec<PathBuf>,
    /// Unix socket of datagrams, for vfkit and QEMU's `-netdev dgram`; one machine each
    #[arg(long, value_name = "PATH")]
    pub listen_vfkit: Vec<PathBuf>,
    /// Connected socket that the command was started with: a stream with QEMU's framing, or packets
    #[arg(long, value_name = "NUMBER")]
    pub fd: Vec<i32>,
    /// Largest IP packet, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1500)]
    pub mtu: u16,
    /// Router, name server and DHCP server of the network
    #[arg(long, value_name = "ADDRESS", default_value = "192.168.65.1")]
    pub gateway_ip: Ipv4Addr,
    /// Stands for the host: what is sent there goes to 127.0.0.1
    #[arg(long, value_name = "ADDRESS", default_value = "192.168.65.2")]
    pub host_ip: Ipv4Addr,
    /// Address of the guest; further guests get those after it
    #[arg(long, value_name = "ADDRESS", default_value = "192.168.65.3")]
    pub guest_ip: Ipv4Addr,
    /// Bits of the network in an address
    #[arg(long, value_name = "BITS", default_value_t = 24)]
    pub prefix: u8,
    /// Name servers to ask, instead of those of /etc/resolv.conf
    #[arg(long, value_name = "ADDRESS[:PORT]", value_delimiter = ',', value_parser = resolver)]
    pub dns: Vec<SocketAddr>,
    /// File of names, as hosts(5)
    #[arg(long, value_name = "FILE", default_value = "/etc/hosts")]
    pub hosts: PathBuf,
    /// Domain of the guests
    #[arg(long, value_name = "NAME", default_value = "")]
    pub domain: String,
    /// Domains that guests search
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub search: Vec<String>,
    /// TCP ports of the host that lead to the guest: [ADDRESS/]PORT[-PORT][:PORT[-PORT]],…
    #[arg(short = 't', long, value_name = "PORTS")]
    pub tcp_ports: Vec<Ports>,
    /// UDP ports of the host that lead to the guest
    #[arg(short = 'u', long, value_name = "PORTS")]
    pub udp_ports: Vec<Ports>,
    /// Socket for control and observation over HTTP: ports, flows, metrics, captures
    #[arg(long, value_name = "SOCKET", value_parser = socket)]
    pub control: Option<Address>,
    /// The only addresses of the host that ports may be bound to; 0.0.0.0 is any
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub allowed_bind_addresses: Vec<IpAddr>,
    /// Keep the last frames, of so many mebibytes, for /capture/ring
    #[arg(long, value_name = "MIB", default_value_t = 0, requires = "control",
        value_parser = clap::value_parser!(u16).range(0..=1024))]
    pub capture_ring: u16,
    /// Internal: make the device and hand it over on stdin
    #[arg(long, hide = true, requires = "tap")]
    pub make_tap: bool,
}

/// Questions to a network that runs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the connections of a network, with their rates
    Flows(FlowsArguments),
}

/// See [`Command::Flows`].
#[derive(Debug, Args)]
pub struct FlowsArguments {
    /// The socket that it was started with as --control
    #[arg(long, value_name = "SOCKET", value_parser = socket)]
    pub control: Address,
    /// As JSON, at once and without rates
    #[arg(long)]
    pub json: bool,
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
    if path.is_empty() { Err("a socket needs a path".into()) } else { Ok(Address::Unix(path.into())) }
}

fn resolver(text: &str) -> Result<SocketAddr, String> {
    let whole = text.parse::<SocketAddr>();
    whole
        .or_else(|_| text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53)))
        .map_err(|_| format!("`{text}` is no address"))
}

impl Cli {
    /// What the engine is started with.
    pub fn config(&self) -> Result<Config, Failure> {
        let network = Network {
            gateway: self.gateway_ip,
            host: self.host_ip,
            guest: self.guest_ip,
            prefix: self.prefix,
            mtu: self.mtu,
            offload: self.tap.is_some(),
            domain: self.domain.clone(),
            search: self.search.clone(),
            ..Network::default()
        };
        network.validate().map_err(|error| Failure::usage(error.to_string()))?;
        let dns = if self.dns.is_empty() { Resolvers::default() } else { Resolvers::Fixed(self.dns.clone()) };
        Ok(Config { network, dns, hosts: Some(self.hosts.clone()), forwards: Vec::new() })
    }

    /// The sockets that machines connect to.
    pub fn sockets(&self) -> Vec<(Protocol, Address)> {
        let paths = |protocol, paths: &[PathBuf]| -> Vec<_> {
            paths.iter().map(|path| (protocol, Address::Unix(path.clone()))).collect()
        };
        let any = |protocol, addresses: &[Address]| -> Vec<_> {
            addresses.iter().map(|address| (protocol, address.clone())).collect()
        };
        [
            paths(Protocol::Vmnet, &self.ethernet),
            any(Protocol::Qemu, &self.listen_qemu),
            any(Protocol::Connect, &self.listen),
            paths(Protocol::Bess, &self.listen_bess),
            paths(Protocol::Datagram, &self.listen_vfkit),
        ]
        .concat()
    }

    /// The ports that lead to the guest from the start.
    pub fn forwards(&self) -> Vec<Forward> {
        let pairs = |ports: &[Ports]| -> Vec<(SocketAddr, SocketAddrV4)> {
            let of = |ports: &Ports| {
                let address = ports.address;
                let guest = self.guest_ip;
                let pair = move |(host, port): &(u16, u16)| {
                    (SocketAddr::new(address, *host), SocketAddrV4::new(guest, *port))
                };
                ports.pairs.iter().map(pair).collect::<Vec<_>>()
            };
            ports.iter().flat_map(of).collect()
        };
        let tcp = pairs(&self.tcp_ports).into_iter().map(|(bind, guest)| Forward::tcp(bind, guest));
        let udp = pairs(&self.udp_ports).into_iter().map(|(bind, guest)| Forward::udp(bind, guest));
        tcp.chain(udp).collect()
    }
}
