//! Answers Prometheus: one text, to every GET.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

/// Longest request that is read, in bytes.
const REQUEST_BYTES_MAX: usize = 8192;
/// How long a client may take for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers one client after the other, for ever.
pub fn serve(listener: &TcpListener, text: impl Fn() -> String) {
    for stream in listener.incoming().flatten() {
        let mut stream = stream;
        let _ = stream.set_read_timeout(Some(PATIENCE));
        let _ = stream.set_write_timeout(Some(PATIENCE));
        let mut request = Vec::new();
        let mut piece = [0; 1024];
        while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST_BYTES_MAX {
            match stream.read(&mut piece) {
                Ok(0) | Err(_) => break,
                Ok(count) => request.extend_from_slice(&piece[..count]),
            }
        }
        let (status, body) = if request.starts_with(b"GET /metrics ") || request.starts_with(b"GET / ") {
            ("200 OK", text())
        } else {
            ("404 Not Found", String::from("GET /metrics\n"))
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        // A client that went away is its own business.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
    }
}
