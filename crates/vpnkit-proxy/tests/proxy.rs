//! The proxy between curl and real servers on loopback.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use vpnkit_proxy::{Kind, Proxy, ProxyConfig};

/// A server that answers every request with what it got, one request a connection.
struct Mirror {
    address: SocketAddr,
}

impl Mirror {
    fn start() -> Mirror {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || mirror(stream));
            }
        });
        Mirror { address }
    }

    fn port(&self) -> u16 {
        self.address.port()
    }
}

fn mirror(mut stream: TcpStream) {
    let mut head = String::new();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut length = 0;
    loop {
        let start = head.len();
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
        let line = head[start..].to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let text = format!("{head}{}", String::from_utf8_lossy(&body));
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nKeep-Alive: timeout=5\r\nConnection: close, x-hop\r\nX-Hop: 1\r\nX-End: 2\r\n\r\n{text}",
        text.len()
    );
    let _ = stream.write_all(answer.as_bytes());
}

/// A proxy with these settings, for which `host.internal` is the host.
fn proxy(json: &str) -> Proxy {
    let mut config = ProxyConfig::from_json(json).unwrap();
    config.host_names = vec!["host.internal".into()];
    Proxy::start(config).unwrap()
}

fn curl(arguments: &[&str]) -> (String, i32) {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-i", "--max-time", "20", "--noproxy", ""]).args(arguments);
    let output = curl.output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (text, output.status.code().unwrap())
}

/// What curl gets through an explicit proxy.
fn through(proxy: &Proxy, kind: Kind, arguments: &[&str]) -> String {
    let address = format!("http://{}", proxy.address(kind));
    curl(&[&["-x", &address], arguments].concat()).0
}

/// What curl gets when its connection to `name` was caught.
fn caught(proxy: &Proxy, kind: Kind, url: &str, name: &str, port: u16, more: &[&str]) -> (String, i32) {
    let to = format!("{name}:{port}:{}", proxy.address(kind));
    curl(&[&["--connect-to", &to, url], more].concat())
}

#[test]
fn a_request_reaches_its_server_with_its_own_path_and_without_the_hop() {
    let (mirror, proxy) = (Mirror::start(), proxy("{}"));
    let url = format!("http://host.internal:{}/a?b=c", mirror.port());
    let more =
        ["-d", "body", "-H", "X-Mine: 1", "-H", "Proxy-Authorization: Basic eA==", "-H", "TE: trailers"];
    let text = through(&proxy, Kind::Explicit, &[&[url.as_str()][..], &more].concat());
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    let lower = text.to_ascii_lowercase();
    assert!(text.contains("POST /a?b=c HTTP/1.1\r\n") && text.ends_with("\r\n\r\nbody"), "{text}");
    assert!(lower.contains("x-mine: 1") && lower.contains("x-end: 2"), "{text}");
    for gone in ["proxy-authorization", "proxy-connection", "te: trailers", "keep-alive", "x-hop"] {
        assert!(!lower.contains(gone), "{gone} was passed on: {text}");
    }
}

#[test]
fn a_proxy_further_on_gets_the_whole_address_and_the_credentials() {
    let mirror = Mirror::start();
    let proxy =
        proxy(&format!(r#"{{"http": "http://me:word@127.0.0.1:{}", "exclude": "near"}}"#, mirror.port()));
    let text = through(&proxy, Kind::Explicit, &["http://far.example/x"]);
    assert!(text.contains("GET http://far.example/x HTTP/1.1\r\n"), "{text}");
    assert!(text.to_ascii_lowercase().contains("proxy-authorization: basic bwu6d29yza=="), "{text}");
}

#[test]
fn two_proxies_make_one_tunnel() {
    let mirror = Mirror::start();
    let far = proxy("{}");
    let near = proxy(&format!(r#"{{"https": "{}"}}"#, far.address(Kind::Explicit)));
    let url = format!("http://host.internal:{}/t", mirror.port());
    // `host.internal` would be reached straight: another name leads through the tunnel.
    near.configure(
        ProxyConfig::from_json(&format!(r#"{{"https": "{}"}}"#, far.address(Kind::Explicit))).unwrap(),
    );
    let text = through(&near, Kind::ExplicitSecure, &["-p", &url]);
    assert!(text.contains("GET /t HTTP/1.1\r\n"), "{text}");
}

#[test]
fn what_a_proxy_further_on_refuses_is_refused_as_it_says() {
    let far = proxy(r#"{"allow_enabled": true, "allow": [], "allow_error_msg": "no %s"}"#);
    let near = proxy(&format!(r#"{{"https": "{}"}}"#, far.address(Kind::Explicit)));
    let text = through(&near, Kind::ExplicitSecure, &["-p", "http://far.example:1/"]);
    assert!(text.contains(" 403 Forbidden"), "{text}");
    let (text, _) =
        caught(&far, Kind::TransparentHttp, "http://far.example/", "far.example", 80, &["-H", "Host: a/b"]);
    assert!(text.contains(" 400 "), "{text}");
    let text = through(&far, Kind::Explicit, &["http://far.example/"]);
    assert!(text.contains(" 403 Forbidden") && text.contains("no far.example"), "{text}");
}

#[test]
fn a_caught_request_goes_by_its_host_header() {
    let (mirror, proxy) = (Mirror::start(), proxy("{}"));
    let url = format!("http://host.internal:{}/caught", mirror.port());
    let (text, _) = caught(&proxy, Kind::TransparentHttp, &url, "host.internal", mirror.port(), &[]);
    assert!(text.contains("GET /caught HTTP/1.1\r\n"), "{text}");
}

#[test]
fn a_caught_request_without_a_host_goes_where_it_was_going() {
    let mirror = Mirror::start();
    // The proxy further on sees where that was.
    let proxy = proxy(&format!(r#"{{"http": "127.0.0.1:{}"}}"#, mirror.port()));
    let socket = bound();
    proxy.adopt(socket.local_addr().unwrap().as_socket().unwrap(), "192.0.2.7:8080".parse().unwrap());
    socket.connect(&proxy.address(Kind::TransparentHttp).into()).unwrap();
    let mut stream: TcpStream = socket.into();
    stream.write_all(b"GET /old HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.contains("GET http://192.0.2.7:8080/old HTTP/1.1\r\n"), "{text}");
}

/// A socket whose own address is known before it is connected.
fn bound() -> socket2::Socket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    socket
}

#[test]
fn the_hosts_own_addresses_are_reached_by_its_names_only() {
    let (mirror, proxy) = (Mirror::start(), proxy("{}"));
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0"] {
        let url = format!("http://{host}:{}/", mirror.port());
        let text = through(&proxy, Kind::Explicit, &["-g", &url]);
        assert!(text.contains(" 403 Forbidden"), "{host}: {text}");
    }
}

#[test]
fn a_server_that_is_not_there_is_a_bad_gateway() {
    let proxy = proxy("{}");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = through(&proxy, Kind::Explicit, &[&format!("http://host.internal:{port}/")]);
    assert!(text.contains(" 502 Bad Gateway") && text.contains("cannot be reached"), "{text}");
    let text = through(&proxy, Kind::Explicit, &["-p", &format!("http://host.internal:{port}/")]);
    assert!(text.contains(" 502 Bad Gateway"), "{text}");
}

#[test]
fn settings_can_change_while_it_runs() {
    let (mirror, proxy) = (Mirror::start(), proxy("{}"));
    proxy
        .configure(ProxyConfig::from_json(&format!(r#"{{"http": "127.0.0.1:{}"}}"#, mirror.port())).unwrap());
    let text = through(&proxy, Kind::Explicit, &["http://far.example/new"]);
    assert!(text.contains("GET http://far.example/new"), "{text}");
}

/// An echo server that is reached by HTTP's Upgrade.
#[test]
fn an_upgrade_becomes_a_tunnel() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        assert!(String::from_utf8_lossy(&head).to_ascii_lowercase().contains("upgrade: echo"));
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
            .unwrap();
        let mut copy = stream.try_clone().unwrap();
        std::io::copy(&mut stream, &mut copy).unwrap();
    });
    let proxy = proxy("{}");
    let mut stream = TcpStream::connect(proxy.address(Kind::TransparentHttp)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let request = format!(
        "GET / HTTP/1.1\r\nHost: host.internal:{port}\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.contains("101"), "{line}");
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).unwrap();
    }
    stream.write_all(b"ping\n").unwrap();
    line.clear();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "ping\n");
}

/// `openssl s_server` with a certificate made for the test.
struct TlsServer {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl TlsServer {
    fn start() -> Option<TlsServer> {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (key, certificate) = (path("key"), path("certificate"));
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=host.internal",
            ])
            .args(["-addext", "subjectAltName=DNS:host.internal", "-keyout", &key, "-out", &certificate])
            .stderr(Stdio::null())
            .status();
        if !made.is_ok_and(|status| status.success()) {
            return None;
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new("openssl")
            .args([
                "s_server",
                "-www",
                "-accept",
                &format!("127.0.0.1:{port}"),
                "-key",
                &key,
                "-cert",
                &certificate,
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(TlsServer { child, port, _folder: folder })
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn caught_tls_goes_by_the_name_in_its_hello() {
    let Some(server) = TlsServer::start() else {
        println!("SKIP: no openssl on this machine");
        return;
    };
    let far = proxy("{}");
    let mut config =
        ProxyConfig::from_json(&format!(r#"{{"https": "{}"}}"#, far.address(Kind::Explicit))).unwrap();
    let near = Proxy::start(config.clone()).unwrap();
    // The connection was going to an address, not to a name; the name is what the proxy further on is asked for.
    let socket = bound();
    let going = SocketAddr::new("192.0.2.9".parse().unwrap(), server.port);
    near.adopt(socket.local_addr().unwrap().as_socket().unwrap(), going);
    let (ready, at) = mpsc::channel();
    let address = near.address(Kind::TransparentHttps);
    let thread = std::thread::spawn(move || relay(socket, address, &ready));
    let to = format!("host.internal:443:{}", at.recv().unwrap());
    let (text, code) = curl(&["-k", "--connect-to", &to, "https://host.internal/"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("s_server"), "{text}");
    thread.join().unwrap();
    // The list of allowed hosts goes by the same name.
    config.allow = Some(Default::default());
    near.configure(config);
    let (text, code) =
        caught(&near, Kind::TransparentHttps, "https://host.internal/", "host.internal", 443, &["-k"]);
    assert_ne!(code, 0, "{text}");
}

/// Carries one connection on over a socket that is bound already, as an engine does for its guest.
fn relay(socket: socket2::Socket, to: SocketAddr, ready: &mpsc::Sender<SocketAddr>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    ready.send(listener.local_addr().unwrap()).unwrap();
    let (mut guest, _) = listener.accept().unwrap();
    socket.connect(&to.into()).unwrap();
    let mut server: TcpStream = socket.into();
    let (mut up, mut down) = (guest.try_clone().unwrap(), server.try_clone().unwrap());
    let thread = std::thread::spawn(move || {
        let _ = std::io::copy(&mut up, &mut down);
        let _ = down.shutdown(std::net::Shutdown::Write);
    });
    let _ = std::io::copy(&mut server, &mut guest);
    let _ = guest.shutdown(std::net::Shutdown::Both);
    thread.join().unwrap();
}
