//! Serves a host directory over TCP: `serve ADDRESS:PORT DIRECTORY [ro]`.

use std::net::TcpListener;
use std::sync::Arc;

use p9p::transport::serve;
use p9p::{HostDir, Session};

const MSIZE: u32 = 1 << 20;
const WORKERS: usize = 4;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (address, directory) =
        (arguments.next().ok_or("no address")?, arguments.next().ok_or("no directory")?);
    let directory = HostDir::new(directory, arguments.next().as_deref() == Some("ro"))?;
    for stream in TcpListener::bind(address)?.incoming() {
        let (stream, directory) = (stream?, directory.clone());
        stream.set_nodelay(true)?;
        std::thread::spawn(move || {
            let session = Session::new(Arc::new(directory), MSIZE);
            if let Err(error) = serve(&session, &stream, &stream, WORKERS) {
                eprintln!("a session ended: {error}");
            }
        });
    }
    Ok(())
}
