//! The command attached to a network namespace that belongs to another user namespace.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says why it did not run"
)]

mod world;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
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
fn connections_from_loopback_go_past_the_device() {
    run("connections_from_loopback_go_past_the_device", |guest| {
        let _vpnkit = guest.serve(&["--config-net", "-t", "127.0.0.1/18081:81"]);
        // A server that listens on its own loopback only is found too.
        let program = "
l = socket.create_server((\"127.0.0.1\", 81))
print(\"ready\", flush=True)
c, peer = l.accept()
parts = []
while True:
    part = c.recv(1 << 20)
    if not part: break
    parts.append(part)
c.sendall(b\"\".join(parts)[::-1])
c.close()
print(peer[0], flush=True)";
        let mut server = guest.python_command(program).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        let before: u64 =
            guest.shell("sed -n \"s/ *tap0: *\\([0-9]*\\).*/\\1/p\" /proc/net/dev").parse().unwrap();
        let bytes: Vec<u8> =
            (0..20_000_000u32).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
        let mut stream = TcpStream::connect("127.0.0.1:18081").unwrap();
        stream.write_all(&bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer.reverse();
        assert!(answer == bytes, "{} bytes came back", answer.len());
        assert_eq!(lines.next().unwrap().unwrap(), "127.0.0.1", "who the server saw");
        let after: u64 =
            guest.shell("sed -n \"s/ *tap0: *\\([0-9]*\\).*/\\1/p\" /proc/net/dev").parse().unwrap();
        assert!(after - before < 1_000_000, "{} bytes came over the device", after - before);
        server.wait().unwrap();
        // Nobody listens any more: neither there nor at the guest's address.
        let mut refused = TcpStream::connect("127.0.0.1:18081").unwrap();
        assert!(refused.read(&mut [0]).is_err(), "an end instead of a reset");
    });
}

#[test]
fn a_connection_to_the_control_socket_becomes_one_to_the_guest() {
    run("a_connection_to_the_control_socket_becomes_one_to_the_guest", |guest| {
        let folder = tempfile::tempdir().unwrap();
        let control = folder.path().join("control");
        let _vpnkit = guest.serve(&["--config-net", "--control", control.to_str().unwrap()]);
        let program = "
l = socket.create_server((\"\", 82))
print(\"ready\", flush=True)
c, _ = l.accept()
while True:
    part = c.recv(100)
    if not part: break
    c.sendall(part.upper())";
        let mut server = guest.python_command(program).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let connect = || {
            let stream = std::os::unix::net::UnixStream::connect(&control).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream
        };
        // What is not whole is not led anywhere yet, and what is no request for a tunnel is answered as ever.
        let mut tunnel = connect();
        tunnel.write_all(b"POST /tunnel?ip=192.168.65.3&po").unwrap();
        let mut other = connect();
        other.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        other.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("\r\n\r\nok\n"), "{answer}");
        tunnel.write_all(b"rt=82 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\nahoy").unwrap();
        let mut said = [0; 6];
        tunnel.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"OKAHOY");
        tunnel.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(tunnel.read(&mut said).unwrap(), 0, "the end of one is the end of the other");
        server.wait().unwrap();
        let mut nowhere = connect();
        nowhere.write_all(b"POST /tunnel?ip=10.0.0.1&port=82 HTTP/1.1\r\n\r\n").unwrap();
        nowhere.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"HTTP/1", "no OK for what is no guest");
    });
}

#[test]
fn iperf3_measures_both_ways_and_loses_no_datagrams() {
    const TEST: &str = "iperf3_measures_both_ways_and_loses_no_datagrams";
    if Command::new("iperf3").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("SKIP {TEST}: no iperf3");
        return;
    }
    run(TEST, |guest| {
        let _vpnkit = guest.serve(&["--config-net", "-t", "127.0.0.2/15201:5201"]);
        let quiet = |command: &mut Command| world::Vpnkit(command.stdout(Stdio::null()).spawn().unwrap());
        let _server = quiet(Command::new("iperf3").args(["-s", "-p", "5201"]));
        let _inside = quiet(guest.command("iperf3").args(["-s", "-p", "5201"]));
        // A number of bytes, not of seconds: how fast it is does not matter here.
        let measure = |command: &mut Command, arguments: &[&str]| {
            command.args(["-J", "--connect-timeout", "20000", "-p"]).args(arguments);
            let mut error = String::new();
            for _ in 0..40 {
                let output = command.output().unwrap();
                let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
                if report["error"].is_null() {
                    return report["end"].clone();
                }
                // The servers may not be there yet, or busy with the test before.
                error = report["error"].to_string();
                thread::sleep(Duration::from_millis(250));
            }
            panic!("iperf3 {arguments:?}: {error}");
        };
        let out = |more: &[&str]| {
            measure(&mut guest.command("iperf3"), &[&["5201", "-c", "192.168.65.2"], more].concat())
        };
        for more in [
            &["-n", "40M"][..],
            &["-n", "40M", "-R"],
            &["-n", "40M", "-P", "8"],
            &["-n", "40M", "-R", "-P", "8"],
        ] {
            let end = out(more);
            let received = end["sum_received"]["bytes"].as_u64().unwrap();
            // What is under way when the sender has sent all is not in it.
            assert!(received >= 20 << 20, "{more:?}: {received} bytes");
        }
        let end = measure(&mut Command::new("iperf3"), &["15201", "-c", "127.0.0.2", "-n", "40M"]);
        assert!(end["sum_received"]["bytes"].as_u64().unwrap() >= 20 << 20, "over the forwarded port");
        // So slow that the queues of sockets hold what comes while a busy machine does something else.
        let datagrams = ["-u", "-b", "4M", "-l", "1400", "-n", "1M", "-w", "400K"];
        for more in [datagrams.to_vec(), [&datagrams[..], &["-R"]].concat()] {
            let end = out(&more);
            let (lost, packets) =
                (end["sum"]["lost_packets"].as_u64().unwrap(), end["sum"]["packets"].as_u64().unwrap());
            assert!(packets >= 700 && lost == 0, "{more:?}: {lost} of {packets} datagrams lost");
        }
    });
}

#[test]
fn a_namespace_and_a_machine_on_a_socket_share_a_switch() {
    run("a_namespace_and_a_machine_on_a_socket_share_a_switch", |guest| {
        let socket = std::env::temp_dir().join(format!("vpnkit-mixed-{}", std::process::id()));
        let path = format!("unix:{}", socket.display());
        let _vpnkit = guest.serve(&["--config-net", "--listen-qemu", &path]);
        let mut machine = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        machine.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mac = [2, 0, 0, 0, 0, 77];
        let request = [
            &[0, 0, 0, 42][..],
            &[0xff; 6],
            &mac,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
            &mac,
            &[192, 168, 65, 77],
            &[0; 6],
            &[192, 168, 65, 3],
        ]
        .concat();
        machine.write_all(&request).unwrap();
        loop {
            let mut length = [0; 4];
            machine.read_exact(&mut length).unwrap();
            let mut frame = vec![0; u32::from_be_bytes(length) as usize];
            machine.read_exact(&mut frame).unwrap();
            // The namespace's kernel says where its address is.
            if frame[..6] == mac && frame[12..14] == [8, 6] && frame[20..22] == [0, 2] {
                assert_eq!(frame[28..32], [192, 168, 65, 3]);
                break;
            }
        }
        // The address that the device has without asking is given to nobody else: this machine is offered the next.
        let mut discover = vec![0; 240];
        discover[..8].copy_from_slice(&[1, 1, 6, 0, 9, 9, 9, 9]);
        discover[28..34].copy_from_slice(&mac);
        discover[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
        discover.extend([53, 1, 1, 255]);
        let udp =
            [&[0, 68, 0, 67][..], &(8 + discover.len() as u16).to_be_bytes(), &[0, 0], &discover].concat();
        let mut ip = [
            &[0x45, 0][..],
            &(20 + udp.len() as u16).to_be_bytes(),
            &[0; 4],
            &[64, 17, 0, 0],
            &[0; 4],
            &[255; 4],
        ]
        .concat();
        let sum: u32 = ip.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        ip[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
        let frame = [&[0xff; 6][..], &mac, &[8, 0], &ip, &udp].concat();
        machine.write_all(&[&(frame.len() as u32).to_be_bytes()[..], &frame].concat()).unwrap();
        loop {
            let mut length = [0; 4];
            machine.read_exact(&mut length).unwrap();
            let mut frame = vec![0; u32::from_be_bytes(length) as usize];
            machine.read_exact(&mut frame).unwrap();
            if frame.len() > 282
                && frame[12..14] == [8, 0]
                && frame[34..36] == [0, 67]
                && frame[46..50] == [9; 4]
            {
                assert_eq!(frame[58..62], [192, 168, 65, 4]);
                break;
            }
        }
    });
}

#[test]
fn ranges_of_ports_of_both_protocols_lead_into_the_namespace() {
    run("ranges_of_ports_of_both_protocols_lead_into_the_namespace", |guest| {
        let folder = tempfile::tempdir().unwrap();
        let control = folder.path().join("control").display().to_string();
        let ports = [
            ["-t", "127.0.0.3/18200-18202:90-92,18203:93"],
            ["-u", "127.0.0.3/18200-18202:90-92"],
            ["-t", "18210:90"],
            ["-u", "18210:90"],
        ]
        .concat();
        let _vpnkit = guest.serve(&[&["--config-net", "--control", &control][..], &ports].concat());
        // Each says which port it is.
        let program = "
import threading
def tcp(port):
    l = socket.create_server((\"\", port))
    while True:
        c, peer = l.accept(); c.sendall(b\"tcp %d\" % port); c.close()
def udp(port):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((\"\", port))
    while True:
        d, peer = s.recvfrom(99); s.sendto(b\"udp %d \" % port + d, peer)
for port in range(90, 94):
    for serve in (tcp, udp): threading.Thread(target=serve, args=(port,), daemon=True).start()
import time; time.sleep(0.5)
print(\"ready\", flush=True)
time.sleep(600)";
        let mut server = world::Vpnkit(guest.python_command(program).stdout(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(server.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        for step in 0..4u16 {
            let mut answer = String::new();
            TcpStream::connect(("127.0.0.3", 18200 + step)).unwrap().read_to_string(&mut answer).unwrap();
            assert_eq!(answer, format!("tcp {}", 90 + step));
        }
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        for step in 0..3u16 {
            // To other addresses of this host nothing is bound.
            TcpStream::connect(("127.0.0.1", 18200 + step)).unwrap_err();
            socket.send_to(b"hello", ("127.0.0.3", 18200 + step)).unwrap();
            let mut answer = [0; 99];
            let (count, from) = socket.recv_from(&mut answer).unwrap();
            assert_eq!(
                (from.port(), &answer[..count]),
                (18200 + step, format!("udp {} hello", 90 + step).as_bytes())
            );
        }
        // Without an address they are of all, in both families.
        for host in ["127.0.0.1", "127.0.0.9", "::1"] {
            if host == "::1" && TcpListener::bind("[::1]:0").is_err() {
                println!("SKIP: ports over IPv6: this host has none");
                continue;
            }
            let mut answer = String::new();
            TcpStream::connect((host, 18210)).unwrap().read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "tcp 90", "{host}");
            let socket = UdpSocket::bind((host, 0)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            socket.send_to(b"hello", (host, 18210)).unwrap();
            let mut answer = [0; 99];
            let count = socket.recv(&mut answer).unwrap();
            assert_eq!(&answer[..count], b"udp 90 hello", "{host}");
        }
    });
}

#[test]
fn a_connection_outlives_its_link_going_down() {
    run("a_connection_outlives_its_link_going_down", |guest| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut all = vec![0; 100_000];
            stream.read_exact(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        });
        let _vpnkit = guest.serve(&["--config-net", "--no-ipv6"]);
        let said = guest.python(&format!(
            "
import os, subprocess, time
s = socket.create_connection((\"192.168.65.2\", {port}), 20)
s.settimeout(60)
data = os.urandom(100000)
s.sendall(data[:40000])
ip = lambda *words: subprocess.run([\"ip\", *words], check=True)
ip(\"link\", \"set\", \"tap0\", \"down\")
time.sleep(1)
ip(\"link\", \"set\", \"tap0\", \"up\")
ip(\"route\", \"replace\", \"default\", \"via\", \"192.168.65.1\")
s.sendall(data[40000:])
back = b\"\"
while len(back) < len(data): back += s.recv(100000) or exit(\"the connection ended\")
print(back == data)"
        ));
        assert_eq!(said, "True");
        server.join().unwrap();
    });
}

#[test]
fn limits_of_connections_hold_and_the_host_can_be_kept_out_of_reach() {
    run("limits_of_connections_hold_and_the_host_can_be_kept_out_of_reach", |guest| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (said, heard) = std::sync::mpsc::channel();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let said = said.clone();
                thread::spawn(move || {
                    let mut all = Vec::new();
                    let _ = stream.read_to_end(&mut all);
                    said.send(all)
                });
            }
        });
        let vpnkit = guest.serve(&["--config-net", "--no-ipv6", "--max-connections", "4"]);
        // What asked whether the network is there has ended; that it did is remembered for a second.
        let program = format!(
            "
import time
time.sleep(2)
def open_all():
    made = []
    for attempt in range(8):
        try:
            s = socket.create_connection((\"192.168.65.2\", {port}), 20); made.append(s)
        except OSError: pass
    return made
first = open_all()
count = len(first)
for s in first: s.sendall(b\"alive\")
for s in first[1:]: s.close()
time.sleep(2)
print(count, len(open_all()))"
        );
        assert_eq!(guest.python(&program), "4 3", "made at first, and beside the one that stayed");
        // Those of the second time said nothing.
        let said: Vec<_> = (0..7).map(|_| heard.recv_timeout(Duration::from_secs(20)).unwrap()).collect();
        let alive = said.iter().filter(|said| said.as_slice() == b"alive").count();
        assert_eq!(alive, 4, "what refuses others does not touch connections that were made: {said:?}");
        drop(vpnkit);

        let _vpnkit = guest.serve(&["--config-net", "--no-ipv6", "--host-ip", "0.0.0.0"]);
        let reached = guest.python(&format!(
            "
try:
    socket.create_connection((\"192.168.65.2\", {port}), 5); print(\"reached\")
except OSError: print(\"no\")"
        ));
        assert_eq!(reached, "no");
    });
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
