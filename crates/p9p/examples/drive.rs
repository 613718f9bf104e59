//! Works with a 9P server and says how long it took: what `cargo xtask bench 9p` and `bench files` time.
//!
//!     drive URL TREE [TASK NAME NUMBER]…
//!
//! `read`, `write` and `write-sync` are sequential, of a whole file of NUMBER bytes; the last has the server bring it to the
//! disk. `find` lists all directories below NAME, `tree` also walks to, stats and reads every file, on NUMBER threads over one
//! connection; `make` fills NAME with 50,000 files for that. `mkdir` makes a directory; `say-WORD` writes the word to a file.
//! Prints the seconds of all tasks together.
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
    let [url, tree, tasks @ ..] = &arguments[..] else {
        return Err("usage: drive URL TREE [TASK NAME NUMBER]…".into());
    };
    let options = ConnectOptions { dialects: vec![Dialect::Linux], ..ConnectOptions::default() };
    let connection = Connection::open(&url.parse()?, &options)?;
    let root = connection.attach(b"", rustix::process::geteuid().as_raw(), tree.as_bytes())?;
    let began = Instant::now();
    for task in tasks.chunks(3) {
        let [task, name, number] = task else { return Err("a task is three words".into()) };
        run(&connection, root, task, name, number.parse()?)?;
    }
    println!("{:.4}", began.elapsed().as_secs_f64());
    Ok(())
}

/// Another one each time, more or less: so that a server that knows contents by their hashes has not got it already.
fn fresh_byte() -> u8 {
    std::process::id().to_le_bytes()[0]
}

fn run(connection: &Connection, root: Fid, task: &str, name: &str, number: u64) -> Done {
    match task {
        "read" => {
            let file = connection.walk_path(root, name.as_bytes())?;
            connection.open_file(file, OpenFlags::RDONLY)?;
            let bytes = connection.read_file(file, 0, &mut std::io::sink())?;
            connection.clunk(file)?;
            if bytes != number {
                return Err(format!("{bytes} bytes were read").into());
            }
        }
        "write" | "write-sync" => {
            let (file, name) = directory_of(connection, root, name)?;
            connection.create_file(file, name, OpenFlags::WRONLY | OpenFlags::TRUNC, 0o644, 0)?;
            connection.write_file(file, 0, &mut std::io::repeat(fresh_byte()).take(number))?;
            if task == "write-sync" {
                connection.sync(file, false)?;
            }
            connection.clunk(file)?;
        }
        "mkdir" => {
            let (at, name) = directory_of(connection, root, name)?;
            connection.make_directory(at, name, 0o755, 0)?;
            connection.clunk(at)?;
        }
        "make" => make(connection, root, name)?,
        "find" | "tree" => {
            let files = walk_all(connection, root, name, number, task == "tree")?;
            if files != u64::from(DIRECTORIES * FILES_OF_EACH) {
                return Err(format!("{files} files were found").into());
            }
        }
        task => match task.strip_prefix("say-") {
            Some(word) => {
                let file = connection.walk_path(root, name.as_bytes())?;
                connection.open_file(file, OpenFlags::WRONLY)?;
                connection.write_all(file, 0, word.as_bytes())?;
                connection.clunk(file)?;
            }
            None => return Err(format!("`{task}` is no task").into()),
        },
    }
    Ok(())
}

/// The directory that `path` is in, and its name there.
fn directory_of<'a>(
    connection: &Connection,
    root: Fid,
    path: &'a str,
) -> Result<(Fid, &'a [u8]), Box<dyn Error + Send + Sync>> {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    Ok((connection.walk_path(root, directory.as_bytes())?, name.as_bytes()))
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

/// How many files there are below a directory; with `reads`, each looked at and read.
fn walk_all(
    connection: &Connection,
    root: Fid,
    name: &str,
    threads: u64,
    reads: bool,
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
                let listed = list(connection, at)?;
                for file in listed.iter().filter(|_| reads) {
                    read(connection, at, file)?;
                }
                *files.lock().map_err(|_| "a thread panicked")? += listed.len() as u64;
                connection.clunk(at)?;
            }
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
    })?;
    files.into_inner().map_err(|_| "a thread panicked".into())
}

/// Walks to a file, looks at it, and reads it.
fn read(connection: &Connection, directory: Fid, name: &[u8]) -> Done {
    let (fid, _) = connection.walk(directory, &[name])?;
    let size = connection.attributes(fid)?.size;
    connection.open_file(fid, OpenFlags::RDONLY)?;
    let mut content = vec![0; usize::try_from(size)?];
    if connection.read(fid, 0, &mut content)? != content.len() {
        return Err("a file is shorter than it says".into());
    }
    Ok(connection.clunk(fid)?)
}

fn list(connection: &Connection, directory: Fid) -> Result<Vec<Vec<u8>>, Box<dyn Error + Send + Sync>> {
    let open = connection.copy_fid(directory)?;
    connection.open_file(open, OpenFlags::DIRECTORY)?;
    let listed = connection.list(open)?;
    connection.clunk(open)?;
    Ok(listed.into_iter().map(|entry| entry.name).collect())
}
