//! Measures the server without a transport: `measure [DIRECTORY]`, best of three, in a temporary folder there.
#![allow(clippy::print_stdout, reason = "a command")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use p9p::client::{Client, ClientError, Direct};
use p9p::filesystem::OpenFlags;
use p9p::message::Fid;
use p9p::{HostDir, Session};

const MSIZE: u32 = 512_000;
const FILES: u32 = 2_000;
const STREAM_BYTES: u64 = 256 << 20;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn best_seconds(mut work: impl FnMut() -> std::result::Result<(), ClientError>) -> Result<f64> {
    let mut best = f64::MAX;
    for _ in 0..3 {
        let start = Instant::now();
        work()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn each(name: &str, work: impl FnMut() -> std::result::Result<(), ClientError>) -> Result<()> {
    let seconds = best_seconds(work)?;
    println!("{name:32} {:8.2} us each", seconds / f64::from(FILES) * 1e6);
    Ok(())
}

fn small_operations(client: &mut Client<Direct>, root: Fid) -> Result<()> {
    let names: Vec<_> = (0..FILES).map(|i| format!("file-{i}").into_bytes()).collect();
    for name in &names {
        let fid = client.walk(root, &[])?;
        client.create(fid, name, OpenFlags::WRONLY, 0o644)?;
        client.clunk(fid)?;
    }
    each("getattr", || (0..FILES).try_for_each(|_| client.getattr(root).map(drop)))?;
    each("walk of nothing and clunk", || {
        (0..FILES).try_for_each(|_| client.walk(root, &[]).and_then(|fid| client.clunk(fid)))
    })?;
    each("walk, getattr, clunk (stat)", || {
        names.iter().try_for_each(|name| {
            let fid = client.walk(root, &[name])?;
            client.getattr(fid)?;
            client.clunk(fid)
        })
    })?;
    each("walk, open, read, clunk (cat)", || {
        names.iter().try_for_each(|name| {
            let fid = client.walk(root, &[name])?;
            client.open(fid, OpenFlags::RDONLY)?;
            client.read(fid, 0, 4096)?;
            client.clunk(fid)
        })
    })?;
    each("readdir, per entry", || {
        let fid = client.walk(root, &[])?;
        client.open(fid, OpenFlags::DIRECTORY)?;
        client.list(fid)?;
        client.clunk(fid)
    })?;
    each("walk to a missing name", || {
        (0..FILES).for_each(|_| drop(client.walk(root, &[b"missing"])));
        Ok(())
    })
}

fn streams(client: &mut Client<Direct>, root: Fid) -> Result<()> {
    let piece = vec![7; (MSIZE - 24) as usize];
    let file = client.walk(root, &[])?;
    client.create(file, b"stream", OpenFlags::RDWR, 0o644)?;
    let megabytes = (STREAM_BYTES >> 20) as f64;
    let offsets = || (0..STREAM_BYTES).step_by(piece.len());
    let seconds = best_seconds(|| offsets().try_for_each(|offset| client.write_all(file, offset, &piece)))?;
    println!("{:32} {:8.0} MiB/s", "sequential write", megabytes / seconds);
    let seconds =
        best_seconds(|| offsets().try_for_each(|offset| client.read(file, offset, MSIZE).map(drop)))?;
    println!("{:32} {:8.0} MiB/s", "sequential read (3 copies)", megabytes / seconds);
    Ok(())
}

fn main() -> Result<()> {
    let parent = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(parent)?;
    let session = Session::new(Arc::new(HostDir::new(folder.path(), false)?), MSIZE);
    let mut client = Client::connect(Direct::new(Arc::new(session)), MSIZE)?;
    let root = client.attach(b"root", 0, b"")?;
    small_operations(&mut client, root)?;
    streams(&mut client, root)
}
