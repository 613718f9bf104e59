//! Tests of the command line.

use std::net::{IpAddr, Ipv4Addr};

use clap::{CommandFactory, Parser};

use crate::cli::Cli;
use crate::ports::Ports;

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn ports_are_read_as_pasta_reads_them() {
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    for (text, address, pairs) in [
        ("22", any, vec![(22, 22)]),
        ("2222:22", any, vec![(2222, 22)]),
        ("80-82:8080-8082", any, vec![(80, 8080), (81, 8081), (82, 8082)]),
        ("127.0.0.1/80,443:4430", [127, 0, 0, 1].into(), vec![(80, 80), (443, 4430)]),
        ("none", any, vec![]),
    ] {
        assert_eq!(text.parse::<Ports>().unwrap(), Ports { address, pairs }, "{text}");
    }
}

#[test]
fn ports_that_make_no_sense_are_refused() {
    for text in ["", "0", "70000", "5-4", "1-3:1-2", "x/80", "80:", "1-65535"] {
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
