//! The files that are followed, and what a change of each does.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use vpnkit::{Config, Engine, Update, Upstreams};
use vpnkit_control::Settings;
use vpnkit_sandbox::{Event, Events};

use crate::cli::{Cli, Dns};
use crate::detours::Detours;
use crate::failure::Failure;

/// Where the host's name servers are.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Hosts,
    ResolvConf,
    /// VPNKit's `--dns`.
    Dns,
    Dhcp,
    Http,
    GatewayForwards,
    Forwards,
}

impl Role {
    /// The flag that names it.
    fn flag(self) -> &'static str {
        match self {
            Self::Hosts => "--hosts",
            Self::ResolvConf | Self::Dns => "--dns",
            Self::Dhcp => "--dhcp-path",
            Self::Http => "--http",
            Self::GatewayForwards => "--gateway-forwards",
            Self::Forwards => "--forwards",
        }
    }
}

/// The name servers of a file of VPNKit's form, of which there is to be one at least.
fn name_servers(text: &str) -> Result<Upstreams, String> {
    let upstreams = Upstreams::parse(text).map_err(|error| error.to_string())?;
    if upstreams.servers.is_empty() { Err("it has no line `nameserver IP`".into()) } else { Ok(upstreams) }
}

/// Why a file that should have something in it has nothing.
fn trouble_with(path: &Path) -> Option<String> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some("is missing".into()),
        Err(error) => Some(format!("cannot be read: {error}")),
        Ok(found) if found.is_dir() => Some("is a folder".into()),
        Ok(found) if found.is_file() && found.len() == 0 => Some("is empty".into()),
        Ok(_) => None,
    }
}

/// The files, each with its role.
#[derive(Debug)]
pub struct Watched {
    files: Vec<(Role, PathBuf)>,
    /// The domain of the command line, which no file changes.
    domain: Option<String>,
}

/// `{"searchDomains": [], "domainName": ""}`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Dhcp {
    search_domains: Vec<String>,
    domain_name: String,
}

impl Watched {
    /// Those that the command line names.
    pub fn of(cli: &Cli) -> Self {
        let mut files = vec![(Role::Hosts, cli.hosts.clone())];
        if cli.dns.is_empty() {
            files.push((Role::ResolvConf, RESOLV_CONF.into()));
        }
        files.extend(cli.dns.iter().filter_map(|dns| match dns {
            Dns::File(path) => Some((Role::Dns, path.clone())),
            Dns::Servers(_) => None,
        }));
        let classic = &cli.classic;
        let settings = [
            (Role::Dhcp, &classic.dhcp_path),
            (Role::Http, &classic.http),
            (Role::GatewayForwards, &classic.gateway_forwards),
            (Role::Forwards, &classic.forwards),
        ];
        files.extend(settings.into_iter().filter_map(|(role, path)| Some((role, path.clone()?))));
        let domain = Some(cli.domain.clone()).filter(|domain| !domain.is_empty());
        Self { files, domain }
    }

    /// Errs for a file that a person named and that has nothing to say. Later, in the sandbox, nobody can tell why.
    pub fn check(&self) -> Result<(), Failure> {
        let named = |role: Role| !matches!(role, Role::Hosts | Role::ResolvConf);
        let mut named = self.files.iter().filter(|(role, _)| named(*role));
        match named.find_map(|(role, path)| Some((role, path, trouble_with(path)?))) {
            Some((role, path, why)) => {
                Err(Failure::usage(format!("{} {} {why}", role.flag(), path.display())))
            }
            None => Ok(()),
        }
    }

    /// Their paths, in order.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().map(|(_, path)| path.clone()).collect()
    }

    /// The file of tunnels, by its number, which the process outside reads too.
    pub fn tunnels(&self) -> Option<usize> {
        self.files.iter().position(|(role, _)| *role == Role::Forwards)
    }

    /// What is in them at first; a file that is missing is empty.
    pub fn first(&self, events: &mut Events) -> Result<Vec<String>, Failure> {
        let gone = || Failure { message: "the process outside of the sandbox ended".into(), code: 1 };
        let mut texts: Vec<Option<String>> = vec![None; self.files.len()];
        while texts.iter().any(Option::is_none) {
            match events.next().ok_or_else(gone)? {
                Event::File(index, bytes) => {
                    texts[index] = Some(String::from_utf8_lossy(&bytes).into_owned())
                }
                Event::Missing(index) => texts[index] = Some(String::new()),
                Event::Ended => return Err(Failure::usage("what was to be served ended at once")),
            }
        }
        Ok(texts.into_iter().flatten().collect())
    }

    /// Errs for settings that are wrong from the start, which a person can correct; applies those that a network begins
    /// with.
    pub fn begin(&self, texts: &[String], config: &mut Config, detours: &Detours) -> Result<(), Failure> {
        for ((role, path), text) in self.files.iter().zip(texts) {
            let name = path.display();
            if text.is_empty() && !matches!(role, Role::Hosts | Role::ResolvConf) {
                return Err(Failure::usage(format!(
                    "{} {name} cannot be read, or is too large",
                    role.flag()
                )));
            }
            let wrong = |error: String| Failure::usage(format!("{name} is not understood: {error}"));
            match role {
                Role::Hosts | Role::ResolvConf => {}
                Role::Dns => {
                    let upstreams = name_servers(text).map_err(wrong)?;
                    if config.network.search.is_empty() {
                        config.network.search = upstreams.search;
                    }
                }
                Role::Dhcp => {
                    let dhcp: Dhcp = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
                    config.network.search = dhcp.search_domains;
                    config.network.domain = self.domain.clone().unwrap_or(dhcp.domain_name);
                }
                Role::Http => detours.set(text).map_err(wrong)?,
                Role::GatewayForwards => detours.set_gateway_ports(text).map_err(wrong)?,
                Role::Forwards => detours.set_tunnels(text).map_err(wrong)?,
            }
        }
        Ok(())
    }

    /// Applies what a running network is told.
    pub fn apply_all(&self, texts: Vec<String>, engine: &Engine, detours: &Detours) {
        for (index, text) in texts.into_iter().enumerate() {
            self.apply(index, text, engine, detours);
        }
    }

    /// What is not understood changes nothing, and is said.
    fn apply(&self, index: usize, text: String, engine: &Engine, detours: &Detours) {
        let Some((role, path)) = self.files.get(index) else { return };
        let applied = match role {
            Role::Hosts => {
                engine.update(Update::Hosts(text));
                Ok(())
            }
            Role::ResolvConf => {
                engine.update(Update::Resolvers(Upstreams::of_resolv_conf(&text)));
                Ok(())
            }
            Role::Dns => name_servers(&text).map(|upstreams| engine.update(Update::Resolvers(upstreams))),
            Role::Dhcp => serde_json::from_str::<Dhcp>(&text)
                .map(|dhcp| {
                    let domain = self.domain.clone().unwrap_or(dhcp.domain_name);
                    engine.update(Update::Domains { domain, search: dhcp.search_domains });
                })
                .map_err(|error| error.to_string()),
            Role::Http => detours.set(&text),
            Role::GatewayForwards => detours.set_gateway_ports(&text),
            Role::Forwards => detours.set_tunnels(&text),
        };
        if let Err(error) = applied {
            let path = path.display();
            eprintln!("vpnkit: {path} is not understood, so what it said before holds: {error}");
        }
    }

    /// Applies changes until what is served has ended.
    pub fn follow(&self, events: &mut Events, engine: &Engine, detours: &Detours) {
        loop {
            match events.next() {
                Some(Event::File(index, bytes)) => {
                    self.apply(index, String::from_utf8_lossy(&bytes).into_owned(), engine, detours);
                }
                Some(Event::Missing(index)) => self.apply(index, String::new(), engine, detours),
                Some(Event::Ended) | None => return,
            }
        }
    }
}
