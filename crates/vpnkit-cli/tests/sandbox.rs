//! The sandbox of the command: what the confined process tries and must not be able to do, and what still works.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says why it did not run"
)]

mod world;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use world::{VPNKIT, run};

/// A command that tries something in its sandbox.
struct Trying {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStderr>>,
}

impl Trying {
    fn start(folder: &Path, attempts: &[String]) -> Self {
        let mut command = Command::new(VPNKIT);
        command.arg("--listen-qemu").arg(folder.join("qemu"));
        command.args(attempts.iter().flat_map(|attempt| ["--try", attempt]));
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next line about an attempt.
    fn outcome(&mut self) -> String {
        let tried = |line: &String| line.starts_with("vpnkit: tried ");
        self.lines.by_ref().map(Result::unwrap).find(tried).unwrap()
    }
}

impl Drop for Trying {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn files_programs_and_sockets_of_others_are_out_of_reach() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    let other = folder.path().join("other");
    let _listener = std::os::unix::net::UnixListener::bind(&other).unwrap();
    let inside = |name: &str| folder.path().join(name).display().to_string();
    let refused = [
        format!("read={}", inside("secret")),
        "read=/etc/passwd".to_owned(),
        "read=/proc/self/environ".to_owned(),
        "list=/".to_owned(),
        format!("create={}", inside("new")),
        format!("remove={}", inside("secret")),
        format!("unix={}", inside("other")),
        "spawn=/bin/true".to_owned(),
        "limits".to_owned(),
    ];
    let mut trying = Trying::start(folder.path(), &refused);
    for attempt in refused {
        assert!(trying.outcome().starts_with(&format!("vpnkit: tried {attempt}: refused")), "{attempt}");
    }
    assert_eq!(std::fs::read(&secret).unwrap(), b"secret");
    assert!(!folder.path().join("new").exists());
}

#[test]
fn what_only_an_intruder_does_ends_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let mut other = Command::new("sleep").arg("600").spawn().unwrap();
    let victim = other.id().to_string();
    for attempt in [
        "exec=/bin/true",
        "setns",
        "userns",
        "chroot",
        &format!("signal={victim}"),
        &format!("own={victim}"),
        &format!("trace={victim}"),
    ] {
        let mut trying = Trying::start(folder.path(), &[attempt.to_owned()]);
        let rest: Vec<String> = trying.lines.by_ref().map(Result::unwrap).collect();
        let status = trying.child.wait().unwrap();
        assert_eq!(status.signal(), Some(31), "SIGSYS for {attempt}: {status} {rest:?}");
        assert!(other.try_wait().unwrap().is_none(), "{attempt} ended another process");
    }
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn connections_are_what_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let attempt = format!("tcp={}", server.local_addr().unwrap());
    let mut trying = Trying::start(folder.path(), std::slice::from_ref(&attempt));
    assert_eq!(trying.outcome(), format!("vpnkit: tried {attempt}: done"));
}

#[test]
fn sockets_are_removed_even_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let mut trying = Trying::start(folder.path(), &["list=/".to_owned()]);
    trying.outcome();
    let path = folder.path().join("qemu");
    assert!(path.exists());
    trying.child.kill().unwrap();
    for _ in 0..500 {
        if !path.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("the socket is still there");
}

#[test]
fn a_confined_network_forwards_follows_files_and_captures() {
    run("a_confined_network_forwards_follows_files_and_captures", |guest| {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("hosts"), "10.1.1.1 changes\n").unwrap();
        let (control, hosts) = (path("control"), path("hosts"));
        let arguments =
            ["--config-net", "-t", "127.0.0.1/18081:81", "--control", &control, "--hosts", &hosts];
        let _vpnkit = guest.serve(&arguments);
        let resolve = || guest.python(&format!("{RESOLVE}\nprint(resolve(\"changes\"))"));
        assert_eq!(resolve(), "10.1.1.1");
        // Replaced, as programs do it that write configuration files.
        std::fs::write(path("new"), "10.2.2.2 changes\n").unwrap();
        std::fs::rename(path("new"), path("hosts")).unwrap();
        let followed = (0..200).any(|_| {
            std::thread::sleep(Duration::from_millis(50));
            resolve() == "10.2.2.2"
        });
        assert!(followed, "the hosts file was not read again");

        let program = "l=socket.create_server((\"\",81));print(\"ready\",flush=True);l.accept()[0].sendall(b\"afloat\")";
        let mut server = guest.python_command(program).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let mut answer = String::new();
        TcpStream::connect("127.0.0.1:18081").unwrap().read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "afloat");
        server.wait().unwrap();

        // Not of that connection: it went past the device.
        let mut capture = std::os::unix::net::UnixStream::connect(path("control")).unwrap();
        capture.write_all(b"GET /capture?filter=udp%20port%2053 HTTP/1.0\r\n\r\n").unwrap();
        let mut head = [0; 64];
        capture.read_exact(&mut head).unwrap();
        assert_eq!(resolve(), "10.2.2.2");
        capture.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut seen = head.to_vec();
        let mut piece = [0; 4096];
        while !seen.windows(7).any(|window| window == b"changes") {
            let count = capture.read(&mut piece).unwrap();
            assert!(count > 0, "the capture ended");
            seen.extend_from_slice(&piece[..count]);
        }
    });
}

#[test]
fn a_confined_network_exposes_sockets_in_the_folders_it_was_given() {
    run("a_confined_network_exposes_sockets_in_the_folders_it_was_given", |guest| {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::create_dir(path("sockets")).unwrap();
        let (control, sockets) = (path("control"), path("sockets"));
        let arguments = ["--config-net", "--control", &control, "--forward-sockets", &sockets];
        let vpnkit = guest.serve(&arguments);
        let ask = |what: &str, body: &str| {
            let mut curl = Command::new("curl");
            curl.args(["-sS", "--max-time", "20", "-H", "Content-Type: application/json", "--unix-socket"]);
            curl.arg(&control).args(["-d", body]).arg(format!("http://vpnkit{what}"));
            String::from_utf8(curl.output().unwrap().stdout).unwrap()
        };
        let body = |local: &str| {
            format!(r#"{{"protocol": "unix", "local": "{local}", "remote": "tcp://192.168.65.3:82"}}"#)
        };
        let (expose, unexpose) = ("/services/forwarder/expose", "/services/forwarder/unexpose");
        for outside in [path("other"), path("sockets/../other"), path("sockets/none/../../other")] {
            let refused = ask(expose, &body(&outside));
            assert!(refused.contains("--forward-sockets"), "{outside}: {refused}");
        }
        assert!(!folder.path().join("other").exists());
        let web = path("sockets/web");
        assert_eq!(ask(expose, &body(&web)), "");
        assert_eq!(ask(expose, &body(&web)), "", "to say it again is no error");

        let program = "l=socket.create_server((\"\",82));print(\"ready\",flush=True);c,a=l.accept();\
            d=c.makefile(\"rb\").read();c.sendall(d[::-1]+a[0].encode())";
        let mut server = guest.python_command(program).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let mut client = std::os::unix::net::UnixStream::connect(&web).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        client.write_all(b"taofa").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "afoat192.168.65.2", "half-closed, and from the host");
        server.wait().unwrap();

        assert_eq!(ask(unexpose, &body(&web)), "");
        let gone = (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            !Path::new(&web).exists()
        });
        assert!(gone, "the socket is still there");
        assert!(ask(unexpose, &body(&web)).contains("proxy not found"));
        // One that is exposed goes with the network.
        assert_eq!(ask(expose, &body(&web)), "");
        assert!(Path::new(&web).exists());
        drop(vpnkit);
        let gone = (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            !Path::new(&web).exists()
        });
        assert!(gone, "the socket outlives the network");
    });
}

/// A lookup of an A record at the gateway, in Python.
const RESOLVE: &str = "
def resolve(name):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(10)
    q = b'\\x12\\x34\\x01\\0\\0\\x01\\0\\0\\0\\0\\0\\0' + b''.join(bytes([len(p)])+p.encode() for p in name.split('.')) + b'\\0\\0\\x01\\0\\x01'
    s.sendto(q, ('192.168.65.1', 53))
    return socket.inet_ntoa(s.recv(512)[-4:])
";
