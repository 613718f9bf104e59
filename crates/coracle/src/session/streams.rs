//! The command's streams, joined to ours: one thread a direction, raw bytes, half-closes kept.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender};
use std::thread::{self, JoinHandle};

use guest_protocol::{CONTROL_PORT, FromGuest, STDERR_PORT, STDIN_PORT, STDOUT_PORT, frame};

use super::Event;

/// How much is moved at once.
const CHUNK_BYTES: usize = 64 << 10;

/// The threads that write what the command says.
#[derive(Debug)]
pub struct Streams {
    acceptor: JoinHandle<Vec<JoinHandle<()>>>,
}

impl Streams {
    /// Serves the guest's connections as they come; with a terminal, stdout is all there is.
    pub fn accept(opened: Receiver<(u32, UnixStream)>, events: Sender<Event>, terminal: bool) -> Streams {
        let acceptor = thread::spawn(move || {
            let mut outputs = Vec::new();
            // Stdout and stderr (or the terminal) are all there is to drain; stop looking once they are here.
            let wanted = if terminal { 1 } else { 2 };
            while outputs.len() < wanted {
                let Ok((port, stream)) = opened.recv() else { break };
                serve(port, stream, terminal, &events, &mut outputs);
            }
            thread::spawn(move || {
                while let Ok((port, stream)) = opened.recv() {
                    serve(port, stream, terminal, &events, &mut Vec::new());
                }
            });
            outputs
        });
        Streams { acceptor }
    }

    /// Waits until everything that the command wrote is written.
    pub fn drain(self) {
        for output in self.acceptor.join().unwrap_or_default() {
            let _ = output.join();
        }
    }
}

fn serve(
    port: u32,
    stream: UnixStream,
    terminal: bool,
    events: &Sender<Event>,
    outputs: &mut Vec<JoinHandle<()>>,
) {
    match port {
        CONTROL_PORT => control(stream, events.clone()),
        STDIN_PORT => feed(stream),
        STDOUT_PORT => {
            if terminal && let Ok(keys) = stream.try_clone() {
                feed(keys);
            }
            outputs.push(thread::spawn(move || drain_into(stream, io::stdout())));
        }
        STDERR_PORT => outputs.push(thread::spawn(move || drain_into(stream, io::stderr()))),
        _ => {}
    }
}

fn control(stream: UnixStream, events: Sender<Event>) {
    let Ok(mut reader) = stream.try_clone() else { return };
    if events.send(Event::Connected(stream)).is_err() {
        return;
    }
    thread::spawn(move || {
        while let Ok(Some(message)) = frame::read::<FromGuest>(&mut reader) {
            if events.send(Event::Guest(message)).is_err() {
                return;
            }
        }
    });
}

/// Our stdin to the guest, then a half-close.
fn feed(mut stream: UnixStream) {
    thread::spawn(move || {
        // The lock is held for good: nobody else reads stdin.
        let _ = copy(&mut io::stdin().lock(), &mut stream);
        let _ = stream.shutdown(Shutdown::Write);
    });
}

/// What the guest writes, to `output`; when that is closed, the guest learns it as a closed pipe.
fn drain_into(mut stream: UnixStream, mut output: impl Write) {
    let _ = copy(&mut stream, &mut output);
    let _ = stream.shutdown(Shutdown::Both);
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let n = match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(&chunk[..n])?;
        to.flush()?;
    }
}
