//! Name servers, and which names each is asked for: VPNKit's `--dns` file, and `resolv.conf(5)`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Name servers that are used; more are not.
pub(crate) const SERVERS_MAX: usize = 16;
/// As in resolv.conf(5): more name servers are ignored.
const RESOLV_CONF_MAX: usize = 3;
/// How long a server of a resolv.conf may take before the next one is asked, if there is one.
const TIMEOUT_NEXT: Duration = Duration::from_secs(2);
/// How long a server of VPNKit's file may take, if it does not say, and the last one of a resolv.conf.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Answers in a row that a server may owe before it is not waited for any more.
const OFFLINE_AFTER: u32 = 5;

/// A name server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Where it is.
    pub address: SocketAddr,
    /// The domains that it is for, in lower case; none: all that no other is for.
    pub zones: Vec<String>,
    /// How long it may take, in whole seconds.
    pub timeout: Duration,
    /// Those of the lowest order are asked first, all at once.
    pub order: u32,
}

/// Name servers, and the domains that their network searches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstreams {
    /// The servers.
    pub servers: Vec<Upstream>,
    /// Searched by guests, if nothing else is said to them.
    pub search: Vec<String>,
    /// Answers in a row that a server may owe before it is not waited for any more.
    pub offline_after: u32,
}

impl From<Vec<SocketAddr>> for Upstreams {
    /// Asks one after the other. The last has longer: nobody comes after it, and a name server that has to ask others first
    /// takes more than two seconds at times. Spec: resolv.conf(5), `timeout`, whose default is five.
    fn from(addresses: Vec<SocketAddr>) -> Self {
        let last = addresses.len().min(SERVERS_MAX).saturating_sub(1);
        let server = |(order, address)| Upstream {
            address,
            zones: Vec::new(),
            timeout: if order == last { TIMEOUT } else { TIMEOUT_NEXT },
            order: order as u32,
        };
        let servers = addresses.into_iter().take(SERVERS_MAX).enumerate().map(server).collect();
        Self { servers, search: Vec::new(), offline_after: OFFLINE_AFTER }
    }
}

/// Servers by number, without memory of its own: there is a list for each query.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Numbers {
    numbers: [u8; SERVERS_MAX],
    count: usize,
}

impl Extend<u8> for Numbers {
    /// Numbers beyond the room for all servers are not taken: none comes twice.
    fn extend<I: IntoIterator<Item = u8>>(&mut self, numbers: I) {
        for (place, number) in self.numbers[self.count..].iter_mut().zip(numbers) {
            *place = number;
            self.count += 1;
        }
    }
}

impl std::ops::Deref for Numbers {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.numbers[..self.count]
    }
}

impl std::ops::DerefMut for Numbers {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.numbers[..self.count]
    }
}

/// Why a file of name servers was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, `{text}`, {why}")]
pub struct UpstreamsError {
    /// Which line, from 1.
    pub line: usize,
    /// What it says.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Upstreams {
    /// The name servers of a `resolv.conf(5)`; without any it is the one on this machine.
    pub fn of_resolv_conf(text: &str) -> Self {
        let address = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let word = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
            word.parse::<IpAddr>().ok()
        };
        let found = text.lines().filter_map(address).take(RESOLV_CONF_MAX);
        let mut found: Vec<SocketAddr> = found.map(|ip| SocketAddr::new(ip, 53)).collect();
        if found.is_empty() {
            found.push((Ipv4Addr::LOCALHOST, 53).into());
        }
        found.into()
    }

    /// Reads VPNKit's form: `nameserver IP[#PORT]`, each followed by its own `zone`, `timeout` (milliseconds) and
    /// `order`; `search`, `assume-offline-after`, comments.
    ///
    /// # Errors
    /// When a line makes no sense; lines of unknown words, as a resolv.conf may have, are passed over.
    pub fn parse(text: &str) -> Result<Self, UpstreamsError> {
        let mut found = Self { servers: Vec::new(), search: Vec::new(), offline_after: OFFLINE_AFTER };
        for (index, line) in text.lines().enumerate() {
            let refuse = |why| UpstreamsError { line: index + 1, text: line.trim().to_owned(), why };
            if line.trim_start().starts_with('#') {
                continue;
            }
            let mut words = line.split_ascii_whitespace();
            let Some(keyword) = words.next() else { continue };
            let rest: Vec<&str> = words.collect();
            let number = || rest.first().and_then(|word| word.parse::<u32>().ok());
            let count = found.servers.len();
            let last = found.servers.last_mut().ok_or_else(|| refuse("comes before any nameserver"));
            match keyword {
                "nameserver" if count >= SERVERS_MAX => {
                    return Err(refuse("is one server too many"));
                }
                "nameserver" => {
                    let address = rest.first().and_then(|word| server_address(word));
                    let address =
                        address.ok_or_else(|| refuse("has no address of the form IP or IP#PORT"))?;
                    found.servers.push(Upstream { address, zones: Vec::new(), timeout: TIMEOUT, order: 0 });
                }
                "zone" => {
                    let zone = |word: &&str| word.trim_matches('.').to_ascii_lowercase();
                    last?.zones.extend(rest.iter().map(zone).filter(|zone| !zone.is_empty()));
                }
                "timeout" => {
                    let ms = number().filter(|ms| *ms > 0).ok_or_else(|| refuse("has no milliseconds"))?;
                    last?.timeout = Duration::from_secs(u64::from(ms).div_ceil(1000));
                }
                "order" => last?.order = number().ok_or_else(|| refuse("has no number"))?,
                "search" => found.search.extend(rest.iter().map(|word| (*word).to_owned())),
                "assume-offline-after" => {
                    found.offline_after = number().ok_or_else(|| refuse("has no number"))?;
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// The servers to ask for `name`, in lower case, by their numbers: those of the lowest order first.
    pub(crate) fn plan(&self, name: &str) -> Numbers {
        let within = |zone: &String| {
            name.strip_suffix(zone.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        let pick = |wanted: &dyn Fn(&Upstream) -> bool| -> Numbers {
            let servers = self.servers.iter().take(SERVERS_MAX).enumerate();
            let mut picked = Numbers::default();
            picked.extend(servers.filter(|(_, server)| wanted(server)).map(|(index, _)| index as u8));
            picked
        };
        let mut plan = pick(&|server| server.zones.iter().any(within));
        if plan.is_empty() {
            plan = pick(&|server| server.zones.is_empty());
        }
        if plan.is_empty() {
            plan = pick(&|_| true);
        }
        plan.sort_by_key(|index| self.servers[usize::from(*index)].order);
        plan
    }
}

fn server_address(word: &str) -> Option<SocketAddr> {
    let (address, port) = word.split_once('#').unwrap_or((word, "53"));
    let port = port.parse().ok().filter(|port| *port != 0)?;
    Some(SocketAddr::new(address.parse().ok()?, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_vpnkit_is_read() {
        let text = "# comment\nnameserver 10.0.0.1\nzone Corp.example. dev\ntimeout 1500\norder 2\n\nnameserver ::1#5353\n\
                    search a.b c\nassume-offline-after 3\noptions edns0\n";
        let found = Upstreams::parse(text).unwrap();
        let seconds = Duration::from_secs;
        let servers = vec![
            Upstream {
                address: "10.0.0.1:53".parse().unwrap(),
                zones: vec!["corp.example".into(), "dev".into()],
                timeout: seconds(2),
                order: 2,
            },
            Upstream { address: "[::1]:5353".parse().unwrap(), zones: vec![], timeout: seconds(5), order: 0 },
        ];
        assert_eq!(found, Upstreams { servers, search: vec!["a.b".into(), "c".into()], offline_after: 3 });
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, message) in [
            ("order 1", "line 1, `order 1`, comes before any nameserver"),
            ("\nnameserver x", "line 2, `nameserver x`, has no address of the form IP or IP#PORT"),
            ("nameserver 1.1.1.1\ntimeout 0", "line 2, `timeout 0`, has no milliseconds"),
        ] {
            assert_eq!(Upstreams::parse(text).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn servers_are_chosen_by_zone_and_order() {
        let text = "nameserver 10.0.0.1\nzone corp\nnameserver 10.0.0.2\norder 1\nnameserver 10.0.0.3\n";
        let servers = Upstreams::parse(text).unwrap();
        assert_eq!(*servers.plan("a.corp"), [0]);
        assert_eq!(*servers.plan("corp"), [0]);
        assert_eq!(*servers.plan("notcorp"), [2, 1]);
    }

    #[test]
    fn the_last_server_of_a_resolv_conf_has_the_time_that_resolv_conf_gives() {
        let timeouts = |text: &str| -> Vec<Duration> {
            Upstreams::of_resolv_conf(text).servers.iter().map(|server| server.timeout).collect()
        };
        assert_eq!(timeouts("nameserver 10.0.0.1"), [TIMEOUT]);
        assert_eq!(timeouts("nameserver 10.0.0.1\nnameserver 10.0.0.2"), [TIMEOUT_NEXT, TIMEOUT]);
    }

    #[test]
    fn name_servers_of_resolv_conf_are_read_and_the_rest_skipped() {
        let text =
            "# c\nsearch a.b\nnameserver 1.1.1.1\n nameserver ::1 # x\noptions edns0\nnameserver nonsense\n";
        let addresses = |text| -> Vec<String> {
            Upstreams::of_resolv_conf(text).servers.iter().map(|server| server.address.to_string()).collect()
        };
        assert_eq!(addresses(text), ["1.1.1.1:53", "[::1]:53"]);
        assert_eq!(addresses("search x\n"), ["127.0.0.1:53"]);
    }
}
