//! A hostile 9P server. The first byte chooses the dialect; the rest is what the server sends, whatever it is asked.
#![no_main]

use libfuzzer_sys::fuzz_target;
use p9p::connection::{ConnectOptions, Connection, Link};
use p9p::filesystem::OpenFlags;
use p9p::message::{Dialect, Reply, Tag};

const MSIZE: u32 = 8192;

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, rest)) = bytes.split_first() else { return };
    let dialect = Dialect::ALL[usize::from(*choice) % Dialect::ALL.len()];
    let mut stream = [0; 64];
    let version = Reply::Version { msize: MSIZE, version: dialect.name().as_bytes() };
    let written = version.emit(Tag::NONE, &mut stream, dialect).expect("it fits");
    let stream = [&stream[..written], rest].concat();
    let options = ConnectOptions { msize: MSIZE, dialects: vec![dialect], timeout: None };
    let link = Link::new(std::io::Cursor::new(stream), std::io::sink());
    let connection = Connection::over(link, &options).expect("the version is agreed on");
    // Each of these ends, at the latest with the stream.
    let _ = connection.attach(b"", 0, b"").and_then(|root| {
        let file = connection.walk_path(root, b"a/b")?;
        connection.attributes(file)?;
        connection.open_file(file, OpenFlags::RDWR)?;
        connection.write_all(file, 0, &[7; 10_000])?;
        connection.read_to_end(file, 1 << 20)?;
        connection.list(file)?;
        connection.xattr(file, b"user.x")?;
        connection.clunk(file)
    });
});
