//! What the command's process holds when it has nothing to do.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says why it did not run"
)]

mod world;

use std::io::Write;
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use world::run;

/// Bytes that each stream brings, and how many there are at once.
const BYTES: usize = 256 << 20;
const STREAMS: usize = 4;
/// KiB that may stay of what streams needed.
const KEPT_KIB: u64 = 1024;

/// KiB of memory of a process that is no file's.
fn anonymous(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn the_buffers_of_fast_streams_are_given_back() {
    run("the_buffers_of_fast_streams_are_given_back", |guest| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let _server = thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    let block = vec![7; 1 << 20];
                    for _ in 0..BYTES / block.len() {
                        stream.write_all(&block).unwrap();
                    }
                });
            }
        });
        let vpnkit = guest.serve(&["--config-net"]);
        let fetch = |streams: usize| {
            let program = format!(
                "
import threading
def fetch():
    with socket.create_connection((\"192.168.65.2\",{port}),20) as s:
        total = 0
        while data := s.recv(1<<20): total += len(data)
        totals.append(total)
totals = []
threads = [threading.Thread(target=fetch) for _ in range({streams})]
[t.start() for t in threads]; [t.join() for t in threads]
print(sum(totals))"
            );
            assert_eq!(guest.python(&program), (streams * BYTES).to_string());
        };
        let before = anonymous(vpnkit.0.id());
        for streams in [1, STREAMS, 1, 1] {
            fetch(streams);
        }
        // The last buffers go when the flows are over, which is a moment later.
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut kept = u64::MAX;
        while kept > KEPT_KIB && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(100));
            kept = anonymous(vpnkit.0.id()).saturating_sub(before);
        }
        assert!(kept <= KEPT_KIB, "{kept} KiB more than the {before} before");
    });
}
