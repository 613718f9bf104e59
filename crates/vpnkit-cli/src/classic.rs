//! The flags that VPNKit had and this command has no other name for, so that its clients can start this one instead.

use std::path::PathBuf;

use clap::Args;
use vpnkit::{MacAddr, Network};

use crate::cli::{Local, domain, local};
use crate::detours::LeadsOn;

/// See the module.
#[derive(Debug, Args)]
#[command(next_help_heading = "As VPNKit had them")]
pub struct Classic {
    /// Connections and datagram flows of guests at once, each
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: Option<u32>,
    /// Names of the host
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "host.internal", value_parser = domain)]
    pub host_names: Vec<String>,
    /// Names of the gateway
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "gateway.internal", value_parser = domain)]
    pub gateway_names: Vec<String>,
    /// Names of the guest itself
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "vm.internal", value_parser = domain)]
    pub vm_names: Vec<String>,
    /// Connections that may wait to be accepted at a port of the host
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=65535))]
    pub listen_backlog: Option<u32>,
    /// Hardware address of the gateway
    #[arg(long, value_name = "MAC", value_parser = parse_mac)]
    pub server_macaddr: Option<MacAddr>,
    /// File of the domain and search list of guests: {"searchDomains": […], "domainName": "…"}
    #[arg(long, value_name = "FILE")]
    pub dhcp_path: Option<PathBuf>,
    /// File of the HTTP proxy's settings, as JSON
    #[arg(long, value_name = "FILE")]
    pub http: Option<PathBuf>,
    /// Unix socket at which they are read and replaced: /http_proxy.json
    #[arg(long, value_name = "SOCKET")]
    pub http_api_path: Option<PathBuf>,
    /// TCP ports of the gateway that lead on: PORT:IP:PORT,…
    #[arg(long, value_name = "PORTS")]
    pub tcpv4_forwards: Option<LeadsOn>,
    /// UDP ports of the gateway that lead on: PORT:IP:PORT,…
    #[arg(long, value_name = "PORTS")]
    pub udpv4_forwards: Option<LeadsOn>,
    /// File of ports of the gateway that lead on, as JSON
    #[arg(long, value_name = "FILE")]
    pub gateway_forwards: Option<PathBuf>,
    /// File of networks whose connections go through Unix sockets, as JSON
    #[arg(long, value_name = "FILE")]
    pub forwards: Option<PathBuf>,
    /// Socket that gives an archive of the network's state to who connects: a path, or fd:NUMBER that is bound
    #[arg(long, value_name = "SOCKET", value_parser = local)]
    pub diagnostics: Vec<Local>,
    /// Socket that gives frames as they pass, as pcap, to who connects
    #[arg(long, value_name = "SOCKET", value_parser = local)]
    pub pcap: Vec<Local>,
    /// Bytes of each frame that --pcap gives; 0 is all
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    pub pcap_snaplen: u32,
    /// Show the network's state as files over 9P at this socket; forms as for --port
    #[arg(long, value_name = "SOCKET")]
    pub introspection: Vec<String>,
    /// Control ports over 9P at this socket: PATH, fd:N, tcp://HOST:PORT, hyperkit://:PORT/DIRECTORY
    #[arg(long, value_name = "SOCKET")]
    pub port: Vec<String>,
    /// Forward ports through a hypervisor's socket to VPNKit's forwarder in the machine, not over its Ethernet
    #[arg(long, value_name = "PATH", visible_alias = "vsock-path")]
    pub port_forwards: Option<String>,
    /// Accepted, and without effect
    #[command(flatten)]
    pub ignored: Ignored,
}

/// Flags without effect.
#[derive(Debug, Args)]
pub struct Ignored {
    /// No effect: connections are not closed for being idle
    #[arg(long, value_name = "SECONDS", hide = true, allow_hyphen_values = true)]
    port_max_idle_time: Option<i64>,
    /// No effect: there is no garbage to collect
    #[arg(long, value_name = "SECONDS", hide = true)]
    gc_compact_interval: Option<u64>,
    /// No effect: what there is to say goes to stderr
    #[arg(long, value_name = "WHERE", hide = true)]
    log_destination: Option<String>,
    /// No effect: see --control
    #[arg(long, hide = true)]
    debug: bool,
}

/// Six bytes in hexadecimal between colons, of one station.
pub fn parse_mac(text: &str) -> Result<MacAddr, String> {
    let bytes: Result<Vec<u8>, _> = text.split([':', '-']).map(|byte| u8::from_str_radix(byte, 16)).collect();
    let mac = bytes.ok().and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()).map(MacAddr);
    mac.filter(|mac| mac.is_unicast())
        .ok_or_else(|| format!("`{text}` is not the hardware address of a station"))
}

impl Classic {
    /// Applies what is a matter of the network.
    pub fn apply(&self, network: &mut Network) {
        // An empty list is one empty name.
        let given = |names: &[String]| names.iter().filter(|name| !name.is_empty()).cloned().collect();
        network.host_names = given(&self.host_names);
        network.gateway_names = given(&self.gateway_names);
        network.guest_names = given(&self.vm_names);
        if let Some(mac) = self.server_macaddr {
            network.gateway_mac = mac;
        }
        if let Some(connections) = self.max_connections {
            let connections = connections as usize;
            network.limits.tcp_flows = network.limits.tcp_flows.min(connections);
            network.limits.udp_flows = network.limits.udp_flows.min(connections);
        }
    }
}
