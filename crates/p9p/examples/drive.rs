//! Works with a 9P server and says how long it took: what `cargo xtask bench 9p` times.
//!
//!     drive URL TREE read|write NAME BYTES
//!     drive URL TREE make|tree NAME THREADS
//!     drive URL TREE mkdir NAME 0
//!
//! `read` and `write` are sequential, of a whole file. `tree` lists all directories below NAME, and walks to, stats and
//! reads every file, on THREADS threads over one connection; `make` fills NAME with 50,000 files for that. Prints seconds.
#![allow(clippy::print_stdout, reason = "that is what it is for")]

use std::error::Error;
use std::io::Read;
use std::sync::Mutex;
use std::time::Instant;

use p9p::connection::{ConnectOptions, Connection};
use p9p::filesystem::OpenFlags;
use p9p::message::{Dialect, Fid};

const DIRECTORIES: u32 = 500;
const FILES_OF_EACH: u32 = 100;

type Done = Result<(), Box<dyn Error + Send + Sync>>;

fn main() -> Done {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, tree, task, name, number] = &arguments[..] else {
        return Err("usage: drive URL TREE read|write|mkdir|make|tree NAME NUMBER".into());
    };
    let number: u64 = number.parse()?;
    let options = ConnectOptions { dialects: vec![Dialect::Linux], ..ConnectOptions::default() };
    let connection = Connection::open(&url.parse()?, &options)?;
    let root = connection.attach(b"", rustix::process::geteuid().as_raw(), tree.as_bytes())?;
    let began = Instant::now();
    match task.as_str() {
        "read" => {
            let file = connection.walk_path(root, name.as_bytes())?;
            connection.open_file(file, OpenFlags::RDONLY)?;
            let bytes = connection.read_file(file, 0, &mut std::io::sink())?;
            if bytes != number {
                return Err(format!("{bytes} bytes were read").into());
            }
        }
        "write" => {
            let (directory, name) = name.rsplit_once('/').unwrap_or(("", name));
            let file = connection.walk_path(root, directory.as_bytes())?;
            connection.create_file(file, name.as_bytes(), OpenFlags::WRONLY | OpenFlags::TRUNC, 0o644, 0)?;
            connection.write_file(file, 0, &mut std::io::repeat(b'9').take(number))?;
            connection.clunk(file)?;
        }
        "mkdir" => {
            let (directory, name) = name.rsplit_once('/').unwrap_or(("", name));
            let at = connection.walk_path(root, directory.as_bytes())?;
            connection.make_directory(at, name.as_bytes(), 0o755, 0)?;
        }
        "make" => make(&connection, root, name)?,
        "tree" => {
            let files = walk_all(&connection, root, name, number)?;
            if files != u64::from(DIRECTORIES * FILES_OF_EACH) {
                return Err(format!("{files} files were found").into());
            }
        }
        task => return Err(format!("`{task}` is no task").into()),
    }
    println!("{:.4}", began.elapsed().as_secs_f64());
    Ok(())
}

fn make(connection: &Connection, root: Fid, name: &str) -> Done {
    connection.make_directory(root, name.as_bytes(), 0o755, 0)?;
    let top = connection.walk_path(root, name.as_bytes())?;
    for directory in 0..DIRECTORIES {
        let directory_name = format!("d{directory}");
        connection.make_directory(top, directory_name.as_bytes(), 0o755, 0)?;
        let at = connection.walk_path(top, directory_name.as_bytes())?;
        for file in 0..FILES_OF_EACH {
            let fid = connection.copy_fid(at)?;
            connection.create_file(fid, format!("f{file}").as_bytes(), OpenFlags::WRONLY, 0o644, 0)?;
            connection.write_all(fid, 0, &[b'x'; 1000])?;
            connection.forget(fid);
        }
        connection.forget(at);
    }
    Ok(())
}

/// How many files there are below a directory, each looked at and read.
fn walk_all(
    connection: &Connection,
    root: Fid,
    name: &str,
    threads: u64,
) -> Result<u64, Box<dyn Error + Send + Sync>> {
    let top = connection.walk_path(root, name.as_bytes())?;
    let directories = Mutex::new(list(connection, top)?);
    let files = Mutex::new(0);
    std::thread::scope(|scope| {
        let work = || -> Done {
            loop {
                let next = directories.lock().map_err(|_| "a thread panicked")?.pop();
                let Some(directory) = next else { return Ok(()) };
                let (at, _) = connection.walk(top, &[&directory])?;
                for file in list(connection, at)? {
                    let (fid, _) = connection.walk(at, &[&file])?;
                    let size = connection.attributes(fid)?.size;
                    connection.open_file(fid, OpenFlags::RDONLY)?;
                    let mut content = vec![0; usize::try_from(size)?];
                    if connection.read(fid, 0, &mut content)? != content.len() {
                        return Err("a file is shorter than it says".into());
                    }
                    connection.clunk(fid)?;
                    *files.lock().map_err(|_| "a thread panicked")? += 1;
                }
                connection.clunk(at)?;
            }
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
    })?;
    files.into_inner().map_err(|_| "a thread panicked".into())
}

fn list(connection: &Connection, directory: Fid) -> Result<Vec<Vec<u8>>, Box<dyn Error + Send + Sync>> {
    let open = connection.copy_fid(directory)?;
    connection.open_file(open, OpenFlags::DIRECTORY)?;
    let listed = connection.list(open)?;
    connection.clunk(open)?;
    Ok(listed.into_iter().map(|entry| entry.name).collect())
}
