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
