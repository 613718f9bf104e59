//! IPv6 as Linux sees it: it configures itself by what the router tells, and reaches the host and what is outside.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use vpnkit::Forward;

use crate::world::{OUTSIDE6, World, has, run};
use crate::{block, download_from, upload_to};

/// The host, as guests know it.
pub const HOST6: &str = "fd76:706e:6b69:7400::2";

/// Waits until the guest has made itself an address of the network's prefix; returns it.
pub fn configured(world: &World) -> String {
    world.shell(
        "for i in $(seq 400); do
            a=$(ip -6 -o address show dev tap0 scope global -tentative | grep -o 'fd76:706e:6b69:7400:[0-9a-f:]*' | head -1)
            if [ -n \"$a\" ]; then echo $a; exit 0; fi
            sleep 0.05
        done; ip -6 address; exit 1",
    )
}

#[test]
fn a_guest_configures_itself_and_moves_bytes_both_ways() {
    run("ipv6::a_guest_configures_itself_and_moves_bytes_both_ways", 1500, |world| {
        let address = configured(world);
        assert!(address.parse::<Ipv6Addr>().is_ok_and(|address| address.segments()[7] != 3), "{address}");
        let route = world.shell("ip -6 route show default");
        assert!(route.contains("via fe80::f416:36ff:febc:f9c6") && route.contains("proto ra"), "{route}");
        let bind = "[::1]:0".parse::<SocketAddr>().unwrap();
        let listen = || TcpListener::bind(bind).unwrap();
        upload_to(world, HOST6, listen(), 3000);
        download_from(world, HOST6, listen(), 3000);
        world.check_nothing_lost();
    });
}

#[test]
fn a_guest_of_a_host_without_a_way_out_gets_no_default_route() {
    run("ipv6::a_guest_of_a_host_without_a_way_out_gets_no_default_route", 1500, |world| {
        configured(world);
        assert!(!world.shell("ip -6 route show default").is_empty());
        std::process::Command::new("ip")
            .args(["-6", "route", "del", "default", "dev", "lo"])
            .status()
            .unwrap();
        // The host is asked while there is traffic, every ten seconds.
        world.shell(
            "for i in $(seq 150); do
                ping -c 1 -W 1 192.168.65.1 > /dev/null 2>&1 || sleep 0.2
                [ -z \"$(ip -6 route show default)\" ] && exit 0
                sleep 0.2
            done; ip -6 route; exit 1",
        );
    });
}

#[test]
fn datagrams_and_fragments_cross_over_ipv6() {
    run("ipv6::datagrams_and_fragments_cross_over_ipv6", 1500, |world| {
        configured(world);
        let server = UdpSocket::bind((OUTSIDE6, 0)).unwrap();
        let port = server.local_addr().unwrap().port();
        thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            for _ in 0..2 {
                let (count, from) = server.recv_from(&mut buffer).unwrap();
                server.send_to(&buffer[..count], from).unwrap();
            }
        });
        world.python(&format!(
            "
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.settimeout(20)
for size in (10, 30000):
    s.sendto(bytes(i * 7 & 255 for i in range(size)), (\"{OUTSIDE6}\", {port}))
    answer, peer = s.recvfrom(65536)
    assert answer == bytes(i * 7 & 255 for i in range(size)) and peer[:2] == (\"{OUTSIDE6}\", {port}), peer"
        ));
        assert_eq!(block().len(), 65521);
    });
}

#[test]
fn errors_over_ipv6_reach_the_programs_of_the_guest_at_once() {
    run("ipv6::errors_over_ipv6_reach_the_programs_of_the_guest_at_once", 1500, |world| {
        configured(world);
        let program = format!(
            "
import socket, errno, time
def error(call):
    began = time.time()
    try: call()
    except OSError as e:
        assert time.time() - began < 5, \"slow\"
        return errno.errorcode[e.errno]
def connect(address):
    socket.create_connection((address, 1), 20)
def datagram(address):
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.settimeout(20)
    s.connect((address, 1))
    s.send(b\"x\")
    s.recv(10)
print(error(lambda: connect(\"{OUTSIDE6}\")), error(lambda: connect(\"2001:db8:dead::1\")), error(lambda: datagram(\"{OUTSIDE6}\")), error(lambda: connect(\"{HOST6}\")))"
        );
        let expected = "ECONNREFUSED ENETUNREACH ECONNREFUSED ECONNREFUSED";
        // An unreachable route's error depends on the host's kernel: no route, or no such host.
        assert_eq!(world.python(&program).replace("EHOSTUNREACH", "ENETUNREACH"), expected);
    });
}

#[test]
fn pings_over_ipv6_reach_gateway_host_and_outside() {
    run("ipv6::pings_over_ipv6_reach_gateway_host_and_outside", 1500, |world| {
        if !has("ping") {
            println!("SKIP: no ping");
            return;
        }
        configured(world);
        for address in
            ["fd76:706e:6b69:7400::1", HOST6, "fe80::f416:36ff:febc:f9c6%tap0", &OUTSIDE6.to_string()]
        {
            world.shell(&format!("ping -6 -c 2 -i 0.2 -W 10 -s 2000 {address}"));
        }
    });
}

#[test]
fn a_port_bound_to_ipv6_leads_to_either_family_of_the_guest() {
    run("ipv6::a_port_bound_to_ipv6_leads_to_either_family_of_the_guest", 1500, |world| {
        let address: Ipv6Addr = configured(world).parse().unwrap();
        let program = "
import socket
l = socket.create_server((\"::\", 8000), family=socket.AF_INET6, dualstack_ipv6=True)
print(\"ready\", flush=True)
for _ in range(2):
    c, peer = l.accept()
    c.sendall((\"%s got %s\" % (peer[0], c.recv(100).decode())).encode())
    c.close()";
        let mut server = world
            .guest(&format!("python3 -c '{program}'"))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        server.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        let fetch = |guest: SocketAddr| {
            let at = world.engine.forward(Forward::tcp((OUTSIDE6, 0).into(), guest)).unwrap();
            let mut stream = TcpStream::connect(at).unwrap();
            let mut answer = String::new();
            stream.write_all(b"hello").unwrap();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        assert_eq!(fetch((address, 8000).into()), format!("{OUTSIDE6} got hello"), "the client is seen");
        assert_eq!(fetch(([192, 168, 65, 3], 8000).into()), "::ffff:192.168.65.2 got hello");
        server.wait().unwrap();
    });
}

#[test]
fn the_tools_of_neighbour_discovery_read_what_the_router_tells() {
    run("ipv6::the_tools_of_neighbour_discovery_read_what_the_router_tells", 1500, |world| {
        if !has("rdisc6") || !has("ndisc6") {
            println!("SKIP: no ndisc6");
            return;
        }
        configured(world);
        let told = world.shell("rdisc6 -1 tap0");
        for part in [
            "Router lifetime",
            "9000 ",
            "fd76:706e:6b69:7400::/64",
            "MTU",
            "1500 bytes",
            "F6:16:36:BC:F9:C6",
            "Recursive DNS server     : fd76:706e:6b69:7400::1",
        ] {
            assert!(told.contains(part), "{part} is not in {told}");
        }
        assert!(world.shell(&format!("ndisc6 -1 {HOST6} tap0")).contains("F6:16:36:BC:F9:C6"));
    });
}

#[test]
fn names_of_the_host_have_both_kinds_of_addresses() {
    run("ipv6::names_of_the_host_have_both_kinds_of_addresses", 1500, |world| {
        if !has("dig") {
            println!("SKIP: no dig");
            return;
        }
        configured(world);
        for server in ["192.168.65.1", "fd76:706e:6b69:7400::1"] {
            let ask =
                |words: &str| world.shell(&format!("dig +short +time=5 {words} @{server} host.internal"));
            assert_eq!(ask("AAAA"), HOST6);
            assert_eq!(ask("A"), "192.168.65.2");
            assert_eq!(ask("+tcp AAAA"), HOST6);
        }
    });
}
