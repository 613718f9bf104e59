//! Where connections of guests go that do not go straight: proxies, tunnels, and ports of the gateway that lead on.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use vpnkit::{Detour, Engine, GatewayPorts, Intercept, Update};
use vpnkit_control::Settings;
use vpnkit_proxy::{Kind, Proxy, ProxyConfig, Resolve, Resolver};
use vpnkit_sandbox::Warden;

use crate::cli::Cli;
use crate::failure::Failure;

/// Ports of the gateway at which the proxy is, as VPNKit has them.
const PROXY_PORTS: [(u16, Kind); 2] = [(3128, Kind::Explicit), (3129, Kind::ExplicitSecure)];
/// Tunnels, and ports of the gateway, that a file may name.
const RULES_MAX: usize = 4096;

/// A rule of `--forwards`.
#[derive(Debug, Clone, Deserialize)]
struct Tunnel {
    #[serde(default = "tcp")]
    protocol: String,
    dst_prefix: String,
    #[serde(default)]
    dst_port: u16,
    path: PathBuf,
}

fn tcp() -> String {
    "tcp".to_owned()
}

/// A rule of `--gateway-forwards`.
#[derive(Debug, Clone, Deserialize)]
struct GatewayForward {
    protocol: String,
    external_port: u16,
    internal_ip: Ipv4Addr,
    internal_port: u16,
}

/// What a tunnel is asked for.
#[derive(Debug, Serialize)]
struct Request {
    protocol: &'static str,
    src_ip: IpAddr,
    src_port: u16,
    dst_ip: IpAddr,
    dst_port: u16,
}

#[derive(Debug)]
struct Network {
    address: Ipv4Addr,
    mask: u32,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/').unwrap_or((text, "32"));
        let bits: u32 = bits.parse().ok().filter(|bits| *bits <= 32)?;
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        Some(Self { address: address.parse().ok()?, mask })
    }

    fn contains(&self, address: IpAddr) -> bool {
        let IpAddr::V4(address) = address else { return false };
        (self.address.to_bits() ^ address.to_bits()) & self.mask == 0
    }
}

/// The proxy with its settings.
#[derive(Debug)]
struct Proxying {
    proxy: Proxy,
    config: Mutex<Arc<ProxyConfig>>,
    json: Mutex<String>,
    host_names: Vec<String>,
    resolver: Resolver,
}

/// Everything that goes another way.
#[derive(Debug)]
pub struct Detours {
    warden: Arc<Warden>,
    engine: Arc<Later>,
    proxying: Option<Proxying>,
    tunnels: Mutex<Vec<(Network, Tunnel)>>,
    /// From the command line.
    fixed: GatewayPorts,
    /// From the file.
    filed: Mutex<GatewayPorts>,
}

/// The engine, which starts after what it needs.
#[derive(Debug, Default)]
pub struct Later(Mutex<Known>);

/// What is known of the engine.
#[derive(Debug)]
enum Known {
    /// Nothing yet; what it is to be told.
    Updates(Vec<Update>),
    /// It has started, and may have ended.
    Engine(Weak<Engine>),
}

impl Default for Known {
    fn default() -> Self {
        Known::Updates(Vec::new())
    }
}

impl Later {
    /// The engine, if it has started and not ended.
    pub fn get(&self) -> Option<Arc<Engine>> {
        match &*lock(&self.0) {
            Known::Updates(_) => None,
            Known::Engine(engine) => engine.upgrade(),
        }
    }

    /// Tells the engine; one that is not there yet, and may serve machines already, when it is.
    pub fn update(&self, update: Update) {
        let engine = match &mut *lock(&self.0) {
            Known::Updates(updates) => return updates.push(update),
            Known::Engine(engine) => engine.upgrade(),
        };
        if let Some(engine) = engine {
            engine.update(update);
        }
    }

    /// The engine is there.
    fn set(&self, engine: &Arc<Engine>) {
        let mut known = lock(&self.0);
        if let Known::Updates(updates) = std::mem::replace(&mut *known, Known::Engine(Arc::downgrade(engine)))
        {
            updates.into_iter().for_each(|update| engine.update(update));
        }
    }
}

impl Resolve for Later {
    fn resolve(&self, name: &str, answer: Box<dyn FnOnce(Vec<IpAddr>) + Send>) {
        if let Some(engine) = self.get() {
            engine.lookup(name, answer);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sockets that a file of `--forwards` names, for the process outside.
pub fn sockets_of(text: &str) -> Vec<PathBuf> {
    tunnels_of(text).unwrap_or_default().into_iter().map(|(_, tunnel)| tunnel.path).collect()
}

fn tunnels_of(text: &str) -> Result<Vec<(Network, Tunnel)>, String> {
    let tunnels: Vec<Tunnel> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let read = |tunnel: Tunnel| {
        if tunnel.protocol != "tcp" {
            return Err(format!("a tunnel is for tcp, not for `{}`", tunnel.protocol));
        }
        let network = Network::parse(&tunnel.dst_prefix);
        let network = network.ok_or_else(|| format!("`{}` is not of the form IP/BITS", tunnel.dst_prefix))?;
        Ok((network, tunnel))
    };
    tunnels.into_iter().take(RULES_MAX).map(read).collect()
}

fn gateway_ports_of(text: &str) -> Result<GatewayPorts, String> {
    let rules: Vec<GatewayForward> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let mut ports = GatewayPorts::default();
    for rule in rules.into_iter().take(RULES_MAX) {
        let table = match rule.protocol.as_str() {
            "tcp" => &mut ports.tcp,
            "udp" => &mut ports.udp,
            other => return Err(format!("`{other}` is neither tcp nor udp")),
        };
        table.insert(rule.external_port, SocketAddrV4::new(rule.internal_ip, rule.internal_port));
    }
    Ok(ports)
}

impl Detours {
    /// Those of the command line; nothing of files yet.
    pub fn start(cli: &Cli, warden: Arc<Warden>, engine: Arc<Later>) -> Result<Self, Failure> {
        let classic = &cli.classic;
        let wanted = classic.http.is_some() || classic.http_api_path.is_some();
        let proxying = wanted.then(|| Proxying::start(cli, Arc::clone(&engine))).transpose()?;
        let mut fixed = GatewayPorts { tcp: HashMap::new(), udp: HashMap::new() };
        for (port, kind) in PROXY_PORTS {
            if let Some(SocketAddr::V4(address)) =
                proxying.as_ref().map(|proxying| proxying.proxy.address(kind))
            {
                fixed.tcp.insert(port, address);
            }
        }
        fixed.tcp.extend(classic.tcpv4_forwards.iter().flat_map(|ports| ports.0.iter().copied()));
        fixed.udp.extend(classic.udpv4_forwards.iter().flat_map(|ports| ports.0.iter().copied()));
        let (tunnels, filed) = (Mutex::default(), Mutex::default());
        Ok(Self { warden, engine, proxying, tunnels, fixed, filed })
    }

    /// The engine is there.
    pub fn attach(&self, engine: &Arc<Engine>) {
        self.engine.set(engine);
        self.tell_ports();
    }

    /// Whether there is a proxy whose settings can be looked at.
    pub fn has_proxy(&self) -> bool {
        self.proxying.is_some()
    }

    fn tell_ports(&self) {
        let mut ports = lock(&self.filed).clone();
        ports.tcp.extend(&self.fixed.tcp);
        ports.udp.extend(&self.fixed.udp);
        if let Some(engine) = self.engine.get() {
            engine.update(Update::GatewayPorts(ports));
        }
    }

    /// Takes the text of `--forwards`; empty is none.
    pub fn set_tunnels(&self, text: &str) -> Result<(), String> {
        *lock(&self.tunnels) = if text.is_empty() { Vec::new() } else { tunnels_of(text)? };
        Ok(())
    }

    /// Takes the text of `--gateway-forwards`; empty is none.
    pub fn set_gateway_ports(&self, text: &str) -> Result<(), String> {
        *lock(&self.filed) = if text.is_empty() { GatewayPorts::default() } else { gateway_ports_of(text)? };
        self.tell_ports();
        Ok(())
    }

    fn tunnel(&self, guest: SocketAddr, to: SocketAddr) -> Option<Detour> {
        let tunnels = lock(&self.tunnels);
        let fits = |network: &Network, tunnel: &Tunnel| {
            network.contains(to.ip()) && [0, to.port()].contains(&tunnel.dst_port)
        };
        let path = tunnels.iter().find(|(network, tunnel)| fits(network, tunnel))?.1.path.clone();
        drop(tunnels);
        let (src_ip, src_port) = (guest.ip(), guest.port());
        let request = Request { protocol: "tcp", src_ip, src_port, dst_ip: to.ip(), dst_port: to.port() };
        let connected = self.warden.connect(&path).ok().zip(serde_json::to_vec(&request).ok());
        Some(connected.map_or(Detour::Refuse, |(stream, request)| Detour::Tunnel { stream, request }))
    }

    /// The proxy that a connection is caught for, if it is.
    fn caught(&self, to: SocketAddr) -> Option<(SocketAddr, Kind)> {
        let proxying = self.proxying.as_ref()?;
        let config = Arc::clone(&lock(&proxying.config));
        let limited = config.allow.is_some();
        let kind = if config.transparent_http_ports.contains(&to.port()) && (config.http.is_some() || limited)
        {
            Kind::TransparentHttp
        } else if config.transparent_https_ports.contains(&to.port()) && (config.https.is_some() || limited) {
            Kind::TransparentHttps
        } else {
            return None;
        };
        Some((proxying.proxy.address(kind), kind))
    }
}

/// What the engine asks: the same, by a handle of its own.
#[derive(Debug, Clone)]
pub struct Interception(pub Arc<Detours>);

impl Intercept for Interception {
    fn intercept(&self, guest: SocketAddr, to: SocketAddr) -> Option<Detour> {
        if let Some(detour) = self.0.tunnel(guest, to) {
            return Some(detour);
        }
        let (address, _) = self.0.caught(to)?;
        let detours = Arc::clone(&self.0);
        let announce = move |local| {
            if let Some(proxying) = &detours.proxying {
                proxying.proxy.adopt(local, to);
            }
        };
        Some(Detour::Proxy { address, announce: Box::new(announce) })
    }
}

impl Proxying {
    fn start(cli: &Cli, engine: Arc<Later>) -> Result<Self, Failure> {
        let mut host_names = cli.classic.host_names.clone();
        if !cli.host_ip().is_unspecified() {
            host_names.extend([cli.host_ip().to_string(), "localhost".to_owned()]);
        }
        let resolver = Resolver(engine);
        let config = ProxyConfig {
            host_names: host_names.clone(),
            resolver: Some(resolver.clone()),
            ..ProxyConfig::default()
        };
        let proxy = Proxy::start(config.clone()).map_err(|error| Failure::of(&error))?;
        let (config, json) = (Mutex::new(Arc::new(config)), Mutex::new("{}".to_owned()));
        Ok(Self { proxy, config, json, host_names, resolver })
    }
}

impl Settings for Detours {
    fn get(&self) -> String {
        self.proxying.as_ref().map_or_else(|| "{}".to_owned(), |proxying| lock(&proxying.json).clone())
    }

    fn set(&self, json: &str) -> Result<(), String> {
        let Some(proxying) = &self.proxying else { return Ok(()) };
        let text = if json.trim().is_empty() { "{}" } else { json };
        let mut config = ProxyConfig::from_json(text).map_err(|error| match &error {
            vpnkit_proxy::ConfigError::Json(source) => format!("{error}: {source}"),
            other => other.to_string(),
        })?;
        config.host_names.clone_from(&proxying.host_names);
        config.resolver = Some(proxying.resolver.clone());
        proxying.proxy.configure(config.clone());
        *lock(&proxying.config) = Arc::new(config);
        *lock(&proxying.json) = text.to_owned();
        Ok(())
    }
}

/// Ports of the gateway as `--tcpv4-forwards` has them: `PORT:IP:PORT,…`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeadsOn(pub Vec<(u16, SocketAddrV4)>);

impl std::str::FromStr for LeadsOn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let item = |item: &str| {
            let (port, to) = item.split_once(':')?;
            Some((port.parse().ok()?, to.parse().ok()?))
        };
        let items = text.split(',').filter(|item| !item.is_empty());
        items
            .map(|text| item(text).ok_or_else(|| format!("`{text}` is not of the form PORT:IP:PORT")))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_lead_on_are_read() {
        let read: LeadsOn = "123:127.0.0.1:53859,80:10.0.0.1:8080".parse().unwrap();
        let to = |text: &str| text.parse().unwrap();
        assert_eq!(read.0, [(123, to("127.0.0.1:53859")), (80, to("10.0.0.1:8080"))]);
        assert_eq!("".parse(), Ok(LeadsOn::default()));
        assert!("80".parse::<LeadsOn>().unwrap_err().contains("`80`"));
        let file = r#"[{"protocol":"udp","external_port":1,"internal_ip":"1.2.3.4","internal_port":2}]"#;
        assert_eq!(gateway_ports_of(file).unwrap().udp[&1], to("1.2.3.4:2"));
        assert!(gateway_ports_of(&file.replace("udp", "sctp")).unwrap_err().contains("sctp"));
    }

    #[test]
    fn tunnels_are_read_with_their_networks() {
        let file = r#"[{"protocol":"tcp","dst_prefix":"10.0.0.0/8","dst_port":0,"path":"/s"}]"#;
        let tunnels = tunnels_of(file).unwrap();
        assert!(tunnels[0].0.contains([10, 9, 8, 7].into()));
        assert!(!tunnels[0].0.contains([11, 0, 0, 0].into()));
        assert_eq!(sockets_of(file), [PathBuf::from("/s")]);
        assert!(tunnels_of(&file.replace("/8", "/40")).is_err());
    }
}
