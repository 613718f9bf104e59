//! Brings the network up: addresses, route, resolver, names.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use guest_protocol::Network;

use crate::sys::Interfaces;

/// How long the interface may take to appear once its driver is there.
const INTERFACE_WAIT: Duration = Duration::from_secs(5);

/// Switches the loopback interface on; its addresses come by themselves.
///
/// # Errors
/// What the kernel says.
pub fn up_loopback() -> io::Result<()> {
    Interfaces::open()?.up("lo")
}

/// Configures the guest's interface as the host says.
///
/// # Errors
/// What failed, on one line.
pub fn configure(network: &Network) -> Result<(), String> {
    let name = wait_for_interface()?;
    apply(&name, network).map_err(|error| format!("cannot configure {name}: {error}"))?;
    std::fs::write("/etc/resolv.conf", resolv_conf(network))
        .map_err(|error| format!("cannot write /etc/resolv.conf: {error}"))
}

fn apply(name: &str, network: &Network) -> io::Result<()> {
    let interfaces = Interfaces::open()?;
    interfaces.set_mtu(name, network.mtu)?;
    interfaces.set_address(name, network.address, network.prefix)?;
    interfaces.up(name)?;
    interfaces.add_default_route(network.gateway)
}

fn wait_for_interface() -> Result<String, String> {
    let begun = Instant::now();
    loop {
        let names = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
        let mut names: Vec<_> = names
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(['e', 'w']))
            .collect();
        names.sort();
        if let Some(name) = names.into_iter().next() {
            return Ok(name);
        }
        if begun.elapsed() > INTERFACE_WAIT {
            return Err("there is no network interface".to_owned());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn resolv_conf(network: &Network) -> String {
    let search = if network.search.is_empty() {
        String::new()
    } else {
        format!("search {}\n", network.search.join(" "))
    };
    format!("{search}nameserver {}\n", network.dns)
}

/// Sets the host name, and the names that are found without asking a server.
///
/// # Errors
/// What failed, on one line.
pub fn set_names(hostname: &str, network: Option<&Network>) -> Result<(), String> {
    rustix::system::sethostname(hostname.as_bytes())
        .map_err(|error| format!("cannot set the host name: {error}"))?;
    let entries = hosts_entries(hostname, network);
    let mut file = std::fs::File::options()
        .create(true)
        .append(true)
        .open("/etc/hosts")
        .map_err(|error| format!("cannot open /etc/hosts: {error}"))?;
    file.write_all(entries.as_bytes()).map_err(|error| format!("cannot write /etc/hosts: {error}"))?;
    std::fs::write("/etc/hostname", format!("{hostname}\n"))
        .map_err(|error| format!("cannot write /etc/hostname: {error}"))
}

fn hosts_entries(hostname: &str, network: Option<&Network>) -> String {
    let own = if hostname.is_empty() { String::new() } else { format!("127.0.1.1 {hostname}\n") };
    let host = network.map(|network| format!("{} host.internal\n", network.host)).unwrap_or_default();
    own + &host
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        let address = |last| std::net::Ipv4Addr::new(192, 168, 127, last);
        Network {
            address: address(2),
            prefix: 24,
            gateway: address(1),
            dns: address(1),
            host: address(254),
            mtu: 1500,
            search: vec!["a.b".to_owned(), "c".to_owned()],
        }
    }

    #[test]
    fn names_are_found_where_programs_look() {
        assert_eq!(resolv_conf(&network()), "search a.b c\nnameserver 192.168.127.1\n");
        assert_eq!(
            hosts_entries("boat", Some(&network())),
            "127.0.1.1 boat\n192.168.127.254 host.internal\n"
        );
        assert_eq!(hosts_entries("", None), "");
    }

    /// The rest of the next test, inside a network namespace of its own.
    #[test]
    fn child_configures() {
        if std::env::var_os("TEST_IN_NAMESPACE").is_none() {
            println!("SKIP: the next test runs this");
            return;
        }
        up_loopback().unwrap();
        apply("eth0", &Network { mtu: 1400, ..network() }).unwrap();
        assert!(apply("eth7", &network()).is_err());
        for words in [&["-o", "address"][..], &["route"]] {
            let output = std::process::Command::new("ip").args(words).output().unwrap();
            println!("{}", String::from_utf8_lossy(&output.stdout));
        }
    }

    #[test]
    fn the_kernel_takes_address_route_and_mtu() {
        let script = "ip link add eth0 type veth peer name peer && ip link set peer up && exec \"$0\" \"$@\"";
        let mut command = std::process::Command::new("unshare");
        command.args(["-Urn", "sh", "-c", script]).arg(std::env::current_exe().unwrap());
        command
            .args(["--exact", "network::tests::child_configures", "--nocapture"])
            .env("TEST_IN_NAMESPACE", "1");
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !text.contains("running 1 test") {
            eprintln!(
                "SKIP: this host has no network namespaces: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            return;
        }
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        for part in [
            "inet 127.0.0.1/8",
            "inet 192.168.127.2/24 brd 192.168.127.255",
            "default via 192.168.127.1 dev eth0",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
