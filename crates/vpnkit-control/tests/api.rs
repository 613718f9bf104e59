//! The API over a real engine and real sockets, with curl as the client.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde_json::{Value, json};
use vpnkit::{Config, Engine, MemoryLink};
use vpnkit_capture::{Direction, Recorder};
use vpnkit_control::{Api, Exposed, ServeError, Server};

struct Served {
    folder: tempfile::TempDir,
    recorder: Arc<Recorder>,
    server: Option<Server>,
}

impl Served {
    fn new(allowed: &[&str]) -> Served {
        let engine = Engine::start(Config::default(), Arc::new(MemoryLink::new())).unwrap();
        let allowed: Vec<IpAddr> = allowed.iter().map(|address| address.parse().unwrap()).collect();
        let recorder = Arc::new(Recorder::new(1 << 20, 0));
        recorder.add_port("machine");
        let exposed = Arc::new(Exposed::new(Arc::new(engine), allowed));
        let folder = tempfile::tempdir().unwrap();
        let api = Api {
            exposed,
            paths: None,
            recorder: Arc::clone(&recorder),
            status: Arc::default(),
            proxy: None,
            zones: Arc::default(),
            switch: None,
        };
        let server = Server::unix(api, &folder.path().join("api")).unwrap();
        Served { folder, recorder, server: Some(server) }
    }

    fn curl(&self, method: &str, path: &str) -> Command {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-N", "--max-time", "20", "-X", method, "--unix-socket"]);
        curl.arg(self.folder.path().join("api")).arg(format!("http://localhost{path}"));
        curl
    }

    /// Status and body.
    fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, String) {
        let mut curl = self.curl(method, path);
        if !body.is_null() {
            curl.args(["-H", "Content-Type: application/json", "-d", &body.to_string()]);
        }
        let output = curl.args(["-w", "\n%{http_code}"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }

    fn json(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, text) = self.ask(method, path, body);
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

#[test]
fn the_go_clients_api_exposes_lists_and_hides_a_port() {
    let served = Served::new(&[]);
    let port = free_port();
    let body = json!({"proto": "tcp", "out_ip": "127.0.0.1", "out_port": port, "in_ip": "192.168.65.3",
        "in_port": 80, "annotation": "web"});
    served.json("PUT", "/forwards/expose/port", &body);
    assert!(listens(port));
    // Saying it again is no error.
    served.json("POST", "/forwards/expose/port", &body);
    assert_eq!(served.json("GET", "/forwards/list", &Value::Null), json!([body]));
    served.json("DELETE", "/forwards/unexpose/port", &body);
    assert!(!listens(port));
    served.json("POST", "/forwards/unexpose/port", &body);
    assert_eq!(served.json("GET", "/forwards/list", &Value::Null), json!([]));
}

/// As gvproxy's own documentation has it: curl then says that the body is a form.
#[test]
fn a_body_needs_no_type() {
    let served = Served::new(&[]);
    let port = free_port();
    let said = |path: &str, body: &str| {
        let output = served.curl("POST", path).args(["-d", body, "-w", "\n%{http_code}"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let forward = format!(r#"{{"local":"127.0.0.1:{port}","remote":"192.168.65.3:80"}}"#);
    assert_eq!(said("/services/forwarder/expose", &forward), "\n200");
    assert!(listens(port));
    let (message, status) = said("/forwards/expose/port", "{bad")
        .rsplit_once('\n')
        .map(|(message, status)| {
            (serde_json::from_str::<Value>(message).unwrap()["message"].to_string(), status.to_owned())
        })
        .unwrap();
    assert!(message.contains("parse the request body as JSON") && status == "400", "{message} {status}");
}

#[test]
fn a_port_without_an_address_is_of_both_families() {
    if TcpListener::bind("[::1]:0").is_err() {
        println!("SKIP: this host has no IPv6");
        return;
    }
    let served = Served::new(&[]);
    let port = free_port();
    let listens6 = || TcpStream::connect(("::1", port)).is_ok();
    let forward = json!({"local": format!(":{port}"), "remote": "192.168.65.3:80", "protocol": "tcp"});
    served.json("POST", "/services/forwarder/expose", &forward);
    assert!(listens(port) && listens6());
    served.json("POST", "/services/forwarder/unexpose", &forward);
    assert!(!listens(port) && !listens6());
    // Docker asks for both by themselves.
    for out_ip in ["0.0.0.0", "::"] {
        let body = json!({"proto": "tcp", "out_ip": out_ip, "out_port": port, "in_ip": "192.168.65.3", "in_port": 80});
        served.json("PUT", "/forwards/expose/port", &body);
    }
    assert!(listens(port) && listens6());
}

#[test]
fn a_web_page_may_ask_nothing() {
    let served = Served::new(&[]);
    let page = ["-H", "Origin: http://page.example", "-w", "%{http_code}", "-o", "/dev/null"];
    for (method, path) in
        [("GET", "/flows"), ("POST", "/http_proxy.json"), ("POST", "/tunnel?ip=192.168.65.3&port=1")]
    {
        let output = served.curl(method, path).args(page).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "403", "{method} {path}");
    }
}

#[test]
fn what_is_not_there_is_said() {
    let served = Served::new(&[]);
    for (method, path, status) in
        [("GET", "/nosuch", 404), ("DELETE", "/flows", 405), ("POST", "/tunnel?ip=8.8.8.8&port=1", 400)]
    {
        let (code, body) = served.ask(method, path, &Value::Null);
        let message = serde_json::from_str::<Value>(&body).unwrap()["message"].to_string();
        assert!(code == status && message.len() > 10, "{method} {path}: {code} {body}");
    }
}

#[test]
fn a_port_that_the_host_chooses_is_told() {
    let served = Served::new(&[]);
    let body = json!({"proto": "tcp", "out_ip": "127.0.0.1", "in_ip": "192.168.65.3", "in_port": 80});
    let answer = served.json("PUT", "/forwards/expose/port", &body);
    assert!(listens(answer["out_port"].as_u64().unwrap() as u16));
}

#[test]
fn gvproxys_api_exposes_lists_and_hides_a_port() {
    let served = Served::new(&[]);
    let port = free_port();
    let local = format!("127.0.0.1:{port}");
    let body = json!({"local": local, "remote": "192.168.65.3:22"});
    served.json("POST", "/services/forwarder/expose", &body);
    assert!(listens(port));
    let all = served.json("GET", "/services/forwarder/all", &Value::Null);
    assert_eq!(all, json!([{"local": local, "remote": "192.168.65.3:22", "protocol": "tcp"}]));
    served.json("POST", "/services/forwarder/unexpose", &body);
    assert!(!listens(port));
    let (status, text) = served.ask("POST", "/services/forwarder/unexpose", &body);
    assert_eq!((status, text.contains("not found")), (500, true), "{text}");
}

#[test]
fn addresses_that_are_not_allowed_are_not_bound() {
    let served = Served::new(&["127.0.0.1"]);
    let body = json!({"proto": "tcp", "out_ip": "0.0.0.0", "out_port": free_port(), "in_ip": "192.168.65.3",
        "in_port": 80});
    let (status, text) = served.ask("PUT", "/forwards/expose/port", &body);
    assert_eq!(status, 400);
    assert!(text.contains("0.0.0.0 is not one of the addresses"), "{text}");
}

#[test]
fn what_a_client_gets_wrong_is_said_to_it() {
    let served = Served::new(&[]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let good = json!({"proto": "tcp", "out_ip": "127.0.0.1", "out_port": port, "in_ip": "192.168.65.3",
        "in_port": 80});
    let cases = [
        ("out_port", json!(port), &*format!("Bind for 127.0.0.1:{port} failed: port is already allocated")),
        (
            "out_ip",
            json!("192.0.2.1"),
            &*format!("listen tcp 192.0.2.1:{port}: bind: cannot assign requested address"),
        ),
        ("proto", json!("sctp"), "neither tcp nor udp"),
        ("in_ip", json!("harbour"), "not an address"),
        ("in_ip", json!("::1"), "not an address that a guest of"),
        ("in_ip", json!("10.0.0.1"), "not an address that a guest of"),
        ("out_ip", json!("nowhere"), "not an address"),
        ("in_port", json!(0), "in_port is missing"),
        ("in_port", json!(70000), "in_port: invalid value"),
    ];
    for (field, value, expected) in cases {
        let mut body = good.clone();
        body[field] = value;
        let (status, text) = served.ask("PUT", "/forwards/expose/port", &body);
        assert_eq!(status, 400, "{body}: {text}");
        let message = serde_json::from_str::<Value>(&text).unwrap()["message"].as_str().unwrap().to_owned();
        assert!(message.contains(expected), "{body}: {message}");
    }
    let (status, _) = served.ask("PUT", "/forwards/expose/port", &json!("x".repeat(100 << 10)));
    assert_eq!(status, 413);
}

#[test]
fn metrics_are_in_the_format_of_prometheus() {
    let served = Served::new(&[]);
    let (status, text) = served.ask("GET", "/metrics", &Value::Null);
    assert_eq!(status, 200);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.split_once(' ').unwrap();
        assert!(name.starts_with("vpnkit_"), "{line}");
        value.parse::<u64>().unwrap();
    }
    assert!(text.contains("# TYPE vpnkit_tcp_flows gauge"));
    assert_eq!(served.json("GET", "/flows", &Value::Null), json!([]));
}

fn record(recorder: &Recorder, letter: u8) {
    recorder.record(1, 0, Direction::FromMachine, &[std::io::IoSlice::new(&[letter; 60])], "why");
}

#[test]
fn the_ring_is_a_file_that_can_be_fetched_afterwards() {
    let served = Served::new(&[]);
    record(&served.recorder, b'r');
    let output = served.curl("GET", "/capture/ring").output().unwrap();
    assert!(output.stdout.windows(60).any(|window| window == [b'r'; 60]));
    let (status, text) = served.ask("GET", "/capture/ring?filter=tpc", &Value::Null);
    assert_eq!((status, text.contains("`tpc` at column 1")), (400, true), "{text}");
}

#[test]
fn a_capture_is_read_while_it_grows() {
    let served = Served::new(&[]);
    let mut curl = served.curl("GET", "/capture?filter=ether%20host%207a:7a:7a:7a:7a:7a");
    let mut curl = curl.stdout(Stdio::piped()).spawn().unwrap();
    let mut stream = BufReader::new(curl.stdout.take().unwrap());
    // The section header comes at once; then the capture has begun.
    assert!(!stream.fill_buf().unwrap().is_empty());
    record(&served.recorder, b'x');
    record(&served.recorder, b'z');
    let mut seen = Vec::new();
    while !seen.windows(60).any(|window| window == [b'z'; 60]) {
        let mut piece = [0; 512];
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "the capture ended");
        seen.extend_from_slice(&piece[..count]);
    }
    assert!(!seen.windows(60).any(|window| window == [b'x'; 60]));
    curl.kill().unwrap();
    curl.wait().unwrap();
}

#[test]
fn a_socket_is_removed_at_the_end_and_replaced_when_it_was_left() {
    let mut served = Served::new(&[]);
    let path = served.folder.path().join("api");
    let api = |path: &Path| {
        let engine = Engine::start(Config::default(), Arc::new(MemoryLink::new())).unwrap();
        let exposed = Arc::new(Exposed::new(Arc::new(engine), Vec::new()));
        Server::unix(
            Api {
                exposed,
                paths: None,
                recorder: Arc::default(),
                status: Arc::default(),
                proxy: None,
                zones: Arc::default(),
                switch: None,
            },
            path,
        )
    };
    assert!(matches!(api(&path), Err(ServeError::InUse { .. })));
    served.server = None;
    assert!(!path.exists());
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    api(&path).unwrap();
}
