//! Tests of the command line.

use std::net::{IpAddr, Ipv6Addr};

use clap::{CommandFactory, Parser};

use crate::cli::Cli;
use crate::ports::{Pair, Ports};

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn ports_are_read_as_pasta_reads_them() {
    let (any, loopback) = (None, Some(IpAddr::from([127, 0, 0, 1])));
    let ipv6 = Some(IpAddr::V6(Ipv6Addr::LOCALHOST));
    for (text, pairs) in [
        ("22", vec![(any, 22, 22)]),
        ("2222:22", vec![(any, 2222, 22)]),
        ("80-82:8080-8082", vec![(any, 80, 8080), (any, 81, 8081), (any, 82, 8082)]),
        ("127.0.0.1/80,443:4430", vec![(loopback, 80, 80), (loopback, 443, 4430)]),
        (
            "22,127.0.0.1/80,::1/81,[::1]/82:83",
            vec![(any, 22, 22), (loopback, 80, 80), (ipv6, 81, 81), (ipv6, 82, 83)],
        ),
        ("none", vec![]),
    ] {
        let pairs = pairs.into_iter().map(|(address, host, guest)| Pair { address, host, guest }).collect();
        assert_eq!(text.parse::<Ports>().unwrap(), Ports(pairs), "{text}");
    }
}

#[test]
fn ports_that_make_no_sense_are_refused() {
    for text in ["", "0", "70000", "5-4", "1-3:1-2", "x/80", "80:", "1-65535", "80,x/81", "80,,81"] {
        assert!(text.parse::<Ports>().is_err(), "{text}");
    }
}

#[test]
fn a_network_that_cannot_be_is_refused_with_code_2() {
    for arguments in [
        &["vpnkit", "--netns", "1", "--tap", "tap0", "--mtu", "100"][..],
        &["vpnkit", "--netns", "1", "--tap", "tap0", "--guest-ip", "10.0.0.1"],
    ] {
        let cli = Cli::try_parse_from(arguments).unwrap();
        assert_eq!(cli.config().unwrap_err().code, crate::failure::USAGE, "{arguments:?}");
    }
}

#[test]
fn the_host_and_the_guest_come_after_the_gateway_if_nothing_else_is_said() {
    let of = |arguments: &[&str]| {
        let network =
            Cli::try_parse_from([&["vpnkit"], arguments].concat()).unwrap().config().unwrap().network;
        [network.gateway, network.host, network.guest].map(|address| address.to_string())
    };
    assert_eq!(of(&[]), ["192.168.65.1", "192.168.65.2", "192.168.65.3"]);
    assert_eq!(of(&["--gateway-ip", "10.0.0.1"]), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    assert_eq!(
        of(&["--gateway-ip", "10.0.0.1", "--lowest-ip", "10.0.0.9"]),
        ["10.0.0.1", "10.0.0.2", "10.0.0.9"]
    );
}

#[test]
fn what_makes_no_sense_is_one_line_that_names_it() {
    for (arguments, words) in [
        ("--listen vsock://:1024", "vsock sockets are not spoken here"),
        ("--listen-bess tcp://1.2.3.4:5", "tcp sockets are not spoken here"),
        (r"--ethernet \\.\pipe\x", "named pipes are not of this system"),
        ("--dns 10.0.0.1:0", "has port 0"),
        ("--control tcp:0.0.0.0:5555", "0.0.0.0 is no loopback address"),
        ("--host-names a..b", "`a..b` is no domain name"),
        ("--netns 1", "--tap <NAME>"),
        ("--nosuch", "--nosuch"),
    ] {
        let error = Cli::try_parse_from(["vpnkit"].into_iter().chain(arguments.split(' '))).unwrap_err();
        let failure = crate::failure::Failure::of_command_line(&error);
        assert!(failure.message.contains(words), "{arguments}: {}", failure.message);
        assert!(
            !failure.message.contains('\n') && failure.code == crate::failure::USAGE,
            "{}",
            failure.message
        );
    }
    let long = "a".repeat(300);
    assert!(Cli::try_parse_from(["vpnkit", "--search", &long]).is_err());
    let far =
        Cli::try_parse_from(["vpnkit", "--gateway-ip", "10.0.0.1", "--host-ip", "192.168.0.1"]).unwrap();
    let message = far.config().unwrap_err().message;
    assert!(message.starts_with("no network has --gateway-ip 10.0.0.1, --host-ip 192.168.0.1"), "{message}");
}

#[test]
fn gvproxys_forms_of_sockets_are_read() {
    let cli = Cli::try_parse_from([
        "vpnkit",
        "--listen-bess",
        "unixpacket:///b",
        "--listen-vfkit",
        "unixgram:///v",
    ])
    .unwrap();
    assert_eq!((cli.listen_bess, cli.listen_vfkit), (vec!["/b".into()], vec!["/v".into()]));
}

/// Every flag of VPNKit with a value that its clients give.
const FLAGS_OF_VPNKIT: &[&str] = &[
    "--ethernet fd:3",
    "--port vpnkit.port.sock",
    "--introspection state.sock",
    "--diagnostics fd:4",
    "--pcap fd:5",
    "--pcap-snaplen 1500",
    "--max-connections 2000",
    "--vsock-path vms/0/connect",
    "--port-forwards unix:/run/connect",
    "--dns 10.0.0.1",
    "--http http_proxy.json",
    "--http-api-path http.sock",
    "--hosts /etc/hosts",
    "--host-names host.docker.internal,docker.for.mac.localhost",
    "--gateway-names gateway.docker.internal",
    "--vm-names docker-for-desktop",
    "--listen-backlog 32",
    "--port-max-idle-time 300",
    "--port-max-idle-time -1",
    "--debug",
    "--server-macaddr F6:16:36:BC:F9:C6",
    "--domain localdomain",
    "--allowed-bind-addresses 127.0.0.1,0.0.0.0",
    "--gateway-ip 192.168.65.1",
    "--host-ip 0.0.0.0",
    "--lowest-ip 192.168.65.3",
    "--highest-ip 192.168.65.254",
    "--dhcp-path dhcp.json",
    "--mtu 1500",
    "--udpv4-forwards 123:127.0.0.1:53859",
    "--tcpv4-forwards 80:127.0.0.1:8080",
    "--gateway-forwards gateway.json",
    "--forwards forwards.json",
    "--gc-compact-interval 1800",
    "--log-destination asl",
];

#[test]
fn every_flag_of_vpnkit_is_read_as_it_was() {
    let parse = |flag: &str| Cli::try_parse_from(["vpnkit"].into_iter().chain(flag.split(' ')));
    for flag in FLAGS_OF_VPNKIT {
        parse(flag).unwrap_or_else(|error| panic!("{flag}: {error}"));
        let with_sign = flag.replacen(' ', "=", 1);
        parse(&with_sign).unwrap_or_else(|error| panic!("{with_sign}: {error}"));
    }
    // Prefixes that were unambiguous there.
    for (short, long) in [
        ("--dhcp d.json", "--dhcp-path d.json"),
        ("--eth fd:3", "--ethernet fd:3"),
        ("--max 5", "--max-connections 5"),
        ("--server 02:00:00:00:00:01", "--server-macaddr 02:00:00:00:00:01"),
        ("--pcap-s 99", "--pcap-snaplen 99"),
        ("--high 192.168.65.9", "--highest-ip 192.168.65.9"),
        ("--listen-ba 5", "--listen-backlog 5"),
        ("--gateway-f g.json", "--gateway-forwards g.json"),
    ] {
        let (one, other) = (parse(short).unwrap(), parse(long).unwrap());
        assert_eq!(format!("{one:?}"), format!("{other:?}"), "{short}");
        assert_ne!(format!("{one:?}"), format!("{:?}", parse("--debug").unwrap()), "{short} says something");
    }
    let repeated = parse("--port a --port b --ethernet fd:3 --ethernet fd:4 --pcap x --pcap y").unwrap();
    assert_eq!(
        (repeated.classic.port.len(), repeated.ethernet.len(), repeated.classic.pcap.len()),
        (2, 2, 2)
    );
}
