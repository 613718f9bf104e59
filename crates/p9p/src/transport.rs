//! Messages over byte streams: the only I/O of this crate besides the host directory.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::message::HEADER_BYTES;
use crate::server::{Session, Ticket};

/// Reads one message into `buffer`, which then holds exactly that; `false` is the end of the stream.
///
/// # Errors
/// `InvalidData` when the message says it is shorter than a header or longer than `bytes_max`; `UnexpectedEof` when the
/// stream ends inside it.
pub fn read_message(stream: &mut impl Read, bytes_max: usize, buffer: &mut Vec<u8>) -> io::Result<bool> {
    let mut size = [0; 4];
    let mut got = 0;
    while got < size.len() {
        match stream.read(&mut size[got..]) {
            Ok(0) if got == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => got += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let bytes = usize::try_from(u32::from_le_bytes(size)).unwrap_or(usize::MAX);
    if bytes < HEADER_BYTES || bytes > bytes_max {
        let text = format!("message of {bytes} bytes, where {HEADER_BYTES} to {bytes_max} are possible");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    buffer.resize(bytes, 0);
    buffer[..4].copy_from_slice(&size);
    stream.read_exact(&mut buffer[4..])?;
    Ok(true)
}

/// Serves a session over a stream until the client hangs up, with `workers` requests at a time under way.
///
/// Returns when the stream ends and everything under way was given up; the session's fids are gone then.
///
/// # Errors
/// What reading from or writing to the stream fails with.
pub fn serve(
    session: &Session,
    mut reader: impl Read,
    writer: impl Write + Send,
    workers: usize,
) -> io::Result<()> {
    let writer = Mutex::new(writer);
    let (sender, receiver) = sync_channel::<(Ticket, Vec<u8>)>(workers);
    let receiver = Mutex::new(receiver);
    let served = thread::scope(|scope| {
        let running: Vec<_> =
            (0..workers.max(1)).map(|_| scope.spawn(|| answer_all(session, &receiver, &writer))).collect();
        let read = read_all(session, &mut reader, |ticket, request| sender.send((ticket, request)).is_ok());
        session.reset();
        drop(sender);
        running.into_iter().fold(read, |result, worker| match worker.join() {
            Ok(written) => result.and(written),
            Err(_) => result.and(Err(io::Error::other("a worker panicked"))),
        })
    });
    session.reset();
    served
}

fn read_all(
    session: &Session,
    reader: &mut impl Read,
    mut take: impl FnMut(Ticket, Vec<u8>) -> bool,
) -> io::Result<()> {
    loop {
        let mut request = Vec::new();
        if !read_message(reader, session.msize_max(), &mut request)? {
            return Ok(());
        }
        if !take(session.accept(&request), request) {
            return Ok(());
        }
    }
}

fn answer_all(
    session: &Session,
    receiver: &Mutex<Receiver<(Ticket, Vec<u8>)>>,
    writer: &Mutex<impl Write>,
) -> io::Result<()> {
    let mut reply = vec![0; session.msize_max()];
    let mut result = Ok(());
    loop {
        let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((ticket, request)) = next else { return result };
        let bytes = session.answer(&ticket, &request, &mut reply);
        // After a failed write go on taking requests, so that the reader is not stuck: the stream is dead for it, too.
        if result.is_ok() {
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            result = writer.write_all(&reply[..bytes]).and_then(|()| writer.flush());
        }
        drop(ticket);
    }
}
