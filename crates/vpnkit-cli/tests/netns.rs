//! The command attached to a network namespace that belongs to another user namespace.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says why it did not run"
)]

mod world;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use world::{VPNKIT, run};

#[test]
fn a_namespace_of_another_user_namespace_gets_a_network() {
    run("a_namespace_of_another_user_namespace_gets_a_network", |guest| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"ashore").unwrap();
        });
        let arguments = ["--config-net", "--mtu", "9000", "-t", "127.0.0.1/18080:80"];
        let _vpnkit = guest.serve(&arguments);
        assert!(guest.shell("ip -o link show tap0").contains("mtu 9000"));
        assert!(guest.shell("ip -o link show tap0").contains("qlen 10000"));
        assert!(guest.shell("ip -o -4 address show tap0").contains("192.168.65.3/24"));
        assert!(guest.shell("ip route show default").contains("192.168.65.1"));
        let address = guest.shell("ip -o -6 address show tap0 scope global");
        assert!(address.contains("fd76:706e:6b69:7400::3/64"), "{address}");
        let v6 = TcpListener::bind("[::1]:0").unwrap();
        let v6_port = v6.local_addr().unwrap().port();
        let v6_server = thread::spawn(move || v6.accept().unwrap().0.write_all(b"ahoy").unwrap());
        assert_eq!(
            guest.python(&format!(
                "print(socket.create_connection((\"fd76:706e:6b69:7400::2\",{v6_port}),20).recv(9).decode())"
            )),
            "ahoy"
        );
        v6_server.join().unwrap();
        assert_eq!(
            guest.python(&format!(
                "print(socket.create_connection((\"192.168.65.2\",{port}),10).recv(9).decode())"
            )),
            "ashore"
        );
        server.join().unwrap();

        let program = "l=socket.create_server((\"\",80));print(\"ready\",flush=True);l.accept()[0].sendall(b\"afloat\")";
        let mut server = guest.python_command(program).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let mut answer = String::new();
        TcpStream::connect("127.0.0.1:18080").unwrap().read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "afloat");
        server.wait().unwrap();
    });
}

#[test]
fn ipv6_is_left_out_or_has_other_addresses_if_told_so() {
    run("ipv6_is_left_out_or_has_other_addresses_if_told_so", |guest| {
        let vpnkit = guest.serve(&["--config-net", "--no-ipv6"]);
        assert_eq!(guest.shell("ip -o -6 address show tap0 scope global"), "");
        drop(vpnkit);
        let _vpnkit = guest.serve(&["--config-net", "--gateway-ip6", "fd00:1:2:3::a"]);
        let address = guest.shell("ip -o -6 address show tap0 scope global");
        assert!(address.contains("fd00:1:2:3::c/64"), "{address}");
        guest.python("socket.create_connection((\"fd00:1:2:3::a\", 53), 20)");
    });
}

#[test]
fn an_impossible_ipv6_network_is_one_line_and_code_2() {
    let output = Command::new(VPNKIT)
        .args(["--netns", "1", "--tap", "tap0", "--gateway-ip6", "fd00::1", "--host-ip6", "fd01::2"])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), error.lines().count()), (Some(2), 1), "{error}");
    assert!(error.contains("host fd01::2 is not an address of the gateway's network fd00::/64"), "{error}");
}

#[test]
fn the_command_ends_with_its_namespace() {
    run("the_command_ends_with_its_namespace", |guest| {
        let mut vpnkit = guest.serve(&["--config-net"]);
        guest.end();
        assert!(ends(&mut vpnkit.0, Duration::from_secs(20)), "still there without a namespace");
    });
}

#[test]
fn a_wrong_namespace_is_one_line_and_code_2() {
    let output = Command::new(VPNKIT).args(["--netns", "not-there", "--tap", "tap0"]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains("there is no network namespace not-there"), "{error}");
}

fn ends(child: &mut Child, within: Duration) -> bool {
    let began = Instant::now();
    while began.elapsed() < within {
        if child.try_wait().unwrap().is_some() {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    false
}
