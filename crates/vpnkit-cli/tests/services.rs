//! What guests find at the gateway, and what becomes of their connections: names, time, proxies, tunnels. The guest's
//! side are `dig`, `curl` and `ntpdig` in a namespace, the host's are `dnsmasq` and small servers on loopback.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says why it did not run"
)]

mod world;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use world::{Guest, run};

/// Whether all programs are there; says SKIP if not.
fn have(test: &str, programs: &[&str]) -> bool {
    for program in programs {
        let found = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
            .iter()
            .any(|folder| Path::new(folder).join(program).exists());
        if !found {
            println!("SKIP {test}: there is no {program}");
            return false;
        }
    }
    true
}

/// A name server, ended with the test.
struct Dnsmasq(Child);

impl Dnsmasq {
    fn start(port: u16, arguments: &[&str]) -> Self {
        Self::start_at("127.0.0.1", port, arguments)
    }

    fn start_at(address: &str, port: u16, arguments: &[&str]) -> Self {
        let mut command = Command::new("dnsmasq");
        command.args(["--no-daemon", "--no-resolv", "--no-hosts", "--pid-file="]);
        command.args(["--conf-file=/dev/null", "--bind-interfaces"]);
        command.args([format!("--listen-address={address}"), format!("--port={port}")]).args(arguments);
        let server = Self(command.stderr(Stdio::null()).spawn().unwrap());
        for _ in 0..500 {
            if TcpStream::connect((address, port)).is_ok() {
                return server;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("dnsmasq does not answer");
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Guest {
    fn dig(&self, arguments: &str) -> String {
        self.shell(&format!("dig @192.168.65.1 +timeout=20 +tries=1 {arguments}"))
    }
}

#[test]
fn names_are_asked_of_the_servers_of_their_zones() {
    let test = "names_are_asked_of_the_servers_of_their_zones";
    if !have(test, &["dig", "dnsmasq", "curl"]) {
        return;
    }
    run(test, |guest| {
        let long = format!("--txt-record=long.test,{}", vec!["x".repeat(200); 6].join(","));
        let _corp = Dnsmasq::start(5301, &["--address=/corp.test/10.1.1.1", "--address=/both.test/10.9.9.1"]);
        let all = [
            "--address=/a.test/10.2.2.2",
            "--address=/none.test/",
            long.as_str(),
            "--address=/both.test/10.9.9.2",
        ];
        let _all = Dnsmasq::start(5302, &all);
        // Refuses everything that it is not told of.
        let _refuses = Dnsmasq::start(5303, &[]);
        // Takes queries and says nothing.
        let _silent = UdpSocket::bind("127.0.0.1:5304").unwrap();

        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let servers = "nameserver 127.0.0.1#5301\nzone corp.test\nnameserver 127.0.0.1#5304\nnameserver 127.0.0.1#5303\n\
                       nameserver 127.0.0.1#5302\n";
        std::fs::write(path("dns"), servers).unwrap();
        std::fs::write(path("hosts"), "10.3.3.3 Listed.Test other\n127.0.0.1 myself\n").unwrap();
        let (dns, hosts, control) = (path("dns"), path("hosts"), path("control"));
        let names = [
            "--host-names",
            "host.docker.internal,the-host",
            "--gateway-names",
            "the-gateway",
            "--vm-names",
            "the-vm",
        ];
        let flags = ["--config-net", "--no-ipv6", "--dns", &dns, "--hosts", &hosts, "--control", &control];
        let _vpnkit = guest.serve(&[&flags[..], &names[..]].concat());

        assert_eq!(guest.dig("+short www.corp.test"), "10.1.1.1", "by its zone");
        assert_eq!(guest.dig("+short both.test"), "10.9.9.2", "not by the server of another zone");
        assert_eq!(guest.dig("+short a.test"), "10.2.2.2", "beside a silent server and one that refuses");
        assert!(guest.dig("x.none.test").contains("status: NXDOMAIN"), "no such name is more than a refusal");
        assert!(guest.dig("refused.example").contains("status: REFUSED"), "the code is kept");
        assert!(guest.dig("+bufsize=1400 a.test").contains("; EDNS: version: 0"), "EDNS is kept");
        let cut = guest.dig("+noedns +ignore long.test TXT");
        assert!(cut.contains("flags: qr aa tc") || cut.contains(" tc "), "{cut}");
        assert!(guest.dig("+noedns +short long.test TXT").matches('x').count() == 1200, "then over TCP");
        assert!(guest.dig("+tcp +short a.test").contains("10.2.2.2"));

        assert_eq!(guest.dig("+short LISTED.test"), "10.3.3.3", "of the hosts file");
        assert_eq!(guest.dig("+short myself"), "192.168.65.2", "loopback is the host");
        assert_eq!(guest.dig("+short the-host"), "192.168.65.2");
        assert_eq!(guest.dig("+short the-gateway"), "192.168.65.1");
        assert_eq!(guest.dig("+short the-vm"), "192.168.65.3");
        let no_data = guest.dig("the-host AAAA");
        assert!(no_data.contains("status: NOERROR") && no_data.contains("ANSWER: 0"), "{no_data}");

        let zone = r#"{"Name":"crc.testing.","Records":[{"Name":"api","IP":"10.4.4.4"},{"Regexp":"^w[0-9]+$","IP":"10.5.5.5"}]}"#;
        let added = Command::new("curl")
            .args(["-sSf", "--unix-socket", &control, "-H", "Content-Type: application/json", "-d", zone])
            .arg("http://vpnkit/services/dns/add")
            .status();
        assert!(added.unwrap().success());
        assert_eq!(guest.dig("+short api.crc.testing"), "10.4.4.4");
        assert_eq!(guest.dig("+short w12.crc.testing"), "10.5.5.5");
        assert!(guest.dig("x.crc.testing").contains("status: NXDOMAIN"));

        std::fs::write(path("new"), "nameserver 127.0.0.1#5301\n").unwrap();
        std::fs::rename(path("new"), path("dns")).unwrap();
        let followed = (0..200).any(|_| {
            std::thread::sleep(Duration::from_millis(50));
            guest.dig("+short both.test") == "10.9.9.1"
        });
        assert!(followed, "the file of servers was not read again");
    });
}

#[test]
fn the_hosts_own_name_servers_are_followed_as_they_change() {
    let test = "the_hosts_own_name_servers_are_followed_as_they_change";
    if !have(test, &["dig", "dnsmasq"]) {
        return;
    }
    run(test, |guest| {
        // resolv.conf has no ports, so that each has an address.
        let server = |address: &str, answer: &str| {
            let added =
                Command::new("ip").args(["address", "add", &format!("{address}/8"), "dev", "lo"]).status();
            assert!(added.unwrap().success());
            Dnsmasq::start_at(address, 53, &[&format!("--address=/moves.test/{answer}")])
        };
        let _servers = [server("127.0.0.11", "10.1.1.1"), server("127.0.0.12", "10.2.2.2")];
        let folder = tempfile::tempdir().unwrap();
        let resolv = folder.path().join("resolv.conf");
        std::fs::write(&resolv, "nameserver 127.0.0.11\n").unwrap();
        // In a mount namespace of its own, where the files of the machine are these.
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc && exec \"$@\""]);
        command.arg(folder.path()).arg(world::VPNKIT);
        let _vpnkit = guest.serve_by(command, &["--config-net", "--no-ipv6"]);
        let becomes = |address: &str| {
            (0..200).any(|_| {
                std::thread::sleep(Duration::from_millis(50));
                guest.shell("dig @192.168.65.1 +timeout=5 +tries=1 +short moves.test || true") == address
            })
        };
        assert!(becomes("10.1.1.1"), "the host's name server is asked");
        // As programs do it that write configuration files.
        std::fs::write(folder.path().join("new"), "search x\nnameserver 127.0.0.12\n").unwrap();
        std::fs::rename(folder.path().join("new"), &resolv).unwrap();
        assert!(becomes("10.2.2.2"), "and the new one after a change");
    });
}

#[test]
fn the_gateway_tells_the_time() {
    let test = "the_gateway_tells_the_time";
    if !have(test, &["ntpdig"]) {
        return;
    }
    run(test, |guest| {
        let _vpnkit = guest.serve(&["--config-net"]);
        // TIME OFFSET +/- ERROR SERVER STRATUM LEAP
        let said = guest.shell("ntpdig --timeout=20 192.168.65.1 2>&1");
        let offset = said.split(" +/- ").next().and_then(|before| before.rsplit(' ').next());
        let offset: f64 = offset.and_then(|offset| offset.parse().ok()).unwrap_or_else(|| panic!("{said}"));
        assert!(offset.abs() < 1.0 && said.contains("192.168.65.1 s2"), "the clock is the host's: {said}");
    });
}

/// A proxy further on: notes the heads of requests, and answers each.
fn upstream(listener: TcpListener) -> mpsc::Receiver<String> {
    let (heads, received) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let heads = heads.clone();
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap_or(0) > 0 {}
                let mut stream = stream;
                let answer = if head.starts_with("CONNECT") {
                    "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
                } else {
                    "HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nupstream"
                };
                let _ = stream.write_all(answer.as_bytes());
                let _ = heads.send(head);
            });
        }
    });
    received
}

#[test]
fn web_requests_go_through_proxies() {
    let test = "web_requests_go_through_proxies";
    if !have(test, &["curl"]) {
        return;
    }
    run(test, |guest| {
        let listener = TcpListener::bind("127.0.0.1:8118").unwrap();
        let heads = upstream(listener);
        let next = || heads.recv_timeout(Duration::from_secs(30)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let settings = r#"{"http": "http://me:secret@127.0.0.1:8118", "https": "me:secret@127.0.0.1:8118", "exclude": "127.0.0.1,near.test",
            "transparent_http_ports": [80, 8080], "transparent_https_ports": [443, 8443]}"#;
        std::fs::write(path("http"), settings).unwrap();
        std::fs::write(path("hosts"), "127.0.0.1 near.test\n").unwrap();
        let (http, hosts, api) = (path("http"), path("hosts"), path("api"));
        let _vpnkit =
            guest.serve(&["--config-net", "--http", &http, "--hosts", &hosts, "--http-api-path", &api]);
        let curl = |arguments: &str| guest.shell(&format!("curl -sS --max-time 30 {arguments} || true"));

        assert_eq!(curl("-x http://192.168.65.1:3128 http://far.test/page"), "upstream", "explicit");
        let head = next();
        assert!(head.starts_with("GET http://far.test/page HTTP/1.1\r\n"), "{head}");
        assert!(head.to_lowercase().contains("proxy-authorization: basic bwu6c2vjcmv0\r\n"), "{head}");

        assert_eq!(curl("-H 'Host: far.test' http://203.0.113.7/page"), "upstream", "caught by its port");
        let head = next();
        assert!(
            head.starts_with("GET http://far.test/page HTTP/1.1\r\n"),
            "by the name, not the address: {head}"
        );

        curl("-k --resolve secret.test:8443:203.0.113.7 https://secret.test:8443/");
        assert!(next().starts_with("CONNECT secret.test:8443 HTTP/1.1\r\n"), "by the name in the TLS hello");

        let server = TcpListener::bind("127.0.0.1:8000").unwrap();
        std::thread::spawn(move || {
            for mut stream in server.incoming().flatten() {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nstraight");
            }
        });
        assert_eq!(
            curl("-x http://192.168.65.1:3128 http://host.internal:8000/"),
            "straight",
            "the host by its name"
        );

        let limited = r#"{"allow_enabled": true, "allow": ["good.test"], "allow_error_msg": "no way to %s"}"#;
        let replaced = Command::new("curl")
            .args(["-sSf", "--unix-socket", &api, "-d", limited, "http://vpnkit/http_proxy.json"])
            .status();
        assert!(replaced.unwrap().success());
        assert!(curl("-x http://192.168.65.1:3128 http://bad.test/").contains("no way to bad.test"));
        assert!(
            curl("-H 'Host: bad.test' http://203.0.113.7/").contains("no way to bad.test"),
            "caught ones too"
        );
    });
}

#[test]
fn connections_lead_on_from_the_gateway_and_through_tunnels() {
    run("connections_lead_on_from_the_gateway_and_through_tunnels", |guest| {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let tunnel = UnixListener::bind(path("tunnel")).unwrap();
        let (requests, requested) = mpsc::channel();
        std::thread::spawn(move || {
            for mut stream in tunnel.incoming().flatten() {
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let mut request = vec![0; usize::from(u16::from_le_bytes(length))];
                stream.read_exact(&mut request).unwrap();
                let request = String::from_utf8(request).unwrap();
                let accepted = request.contains("\"dst_port\":700");
                let answer = format!("{{\"accepted\":{accepted}}}");
                stream.write_all(&(answer.len() as u16).to_le_bytes()).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                requests.send(request).unwrap();
                let _ = stream.write_all(b"tunnelled");
            }
        });
        let rules = format!(
            r#"[{{"protocol":"tcp","dst_prefix":"203.0.113.0/24","dst_port":0,"path":"{}"}}]"#,
            path("tunnel")
        );
        std::fs::write(path("forwards"), rules).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:7100").unwrap();
        std::thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                let _ = stream.write_all(b"led on");
            }
        });
        let udp = UdpSocket::bind("127.0.0.1:7200").unwrap();
        std::thread::spawn(move || {
            let mut datagram = [0; 64];
            while let Ok((count, from)) = udp.recv_from(&mut datagram) {
                let _ = udp.send_to(&datagram[..count], from);
            }
        });
        let gateway =
            r#"[{"protocol":"tcp","external_port":72,"internal_ip":"127.0.0.1","internal_port":7100}]"#;
        std::fs::write(path("gateway"), gateway).unwrap();
        let (forwards, gateway) = (path("forwards"), path("gateway"));
        let _vpnkit = guest.serve(&[
            "--config-net",
            "--forwards",
            &forwards,
            "--gateway-forwards",
            &gateway,
            "--tcpv4-forwards",
            "71:127.0.0.1:7100",
            "--udpv4-forwards",
            "123:127.0.0.1:7200",
        ]);
        let receive =
            |to: &str| guest.python(&format!("print(socket.create_connection({to}, 20).recv(9).decode())"));
        assert_eq!(receive("('192.168.65.1', 71)"), "led on");
        assert_eq!(receive("('192.168.65.1', 72)"), "led on");
        // Connected, so that an answer from another address is not seen.
        let udp = "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.settimeout(20);s.connect(('192.168.65.1',123));s.send(b'there');print(s.recv(9).decode())";
        assert_eq!(guest.python(udp), "there");

        assert_eq!(receive("('203.0.113.9', 700)"), "tunnelled");
        let request = requested.recv_timeout(Duration::from_secs(30)).unwrap();
        assert!(
            request.contains(r#""src_ip":"192.168.65.3""#) && request.contains(r#""dst_ip":"203.0.113.9""#),
            "{request}"
        );
        let refused = guest.python("try:\n    socket.create_connection(('203.0.113.9', 999), 20)\nexcept ConnectionRefusedError: print('refused')");
        assert_eq!(refused, "refused");
    });
}
