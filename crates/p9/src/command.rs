//! The commands that ask a server for one thing.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use p9p::client::Listed;
use p9p::connection::Connection;
use p9p::filesystem::OpenFlags;
use p9p::message::Fid;
use p9p::stat::Attributes;
use serde_json::{Value, json};

use crate::client::Client;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::target::Target;

/// Entries that are walked to at a time.
const ENTRIES_AT_ONCE: usize = 1024;
/// Deepest directory that `rm -r` goes into.
const DEPTH_MAX: usize = 1000;

/// `p9 ls`.
#[derive(Args)]
pub struct Ls {
    #[command(flatten)]
    target: Target,
    /// What to list
    #[arg(default_value = "/")]
    path: String,
    /// Modes, owners, sizes and times as well
    #[arg(short, long)]
    long: bool,
    /// One JSON array
    #[arg(long)]
    json: bool,
}

/// `p9 cat`.
#[derive(Args)]
pub struct Cat {
    #[command(flatten)]
    target: Target,
    /// What to read
    #[arg(required = true)]
    paths: Vec<String>,
    /// Go on after the end of what is there, until the server says that there will be no more
    #[arg(short, long)]
    follow: bool,
}

/// `p9 put`.
#[derive(Args)]
pub struct Put {
    #[command(flatten)]
    target: Target,
    /// Where to write; made if it is not there, else replaced
    path: String,
    /// What to write [default: stdin]
    file: Option<PathBuf>,
    /// Add to the end instead
    #[arg(short, long)]
    append: bool,
    /// Permissions of a new file, in octal
    #[arg(long, default_value = "644", value_parser = octal)]
    mode: u32,
    /// Have the server bring it to the disk before it is done
    #[arg(long)]
    sync: bool,
}

/// `p9 stat`.
#[derive(Args)]
pub struct Stat {
    #[command(flatten)]
    target: Target,
    /// What to look at
    #[arg(required = true)]
    paths: Vec<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// `p9 rm`.
#[derive(Args)]
pub struct Rm {
    #[command(flatten)]
    target: Target,
    /// What to remove
    #[arg(required = true)]
    paths: Vec<String>,
    /// Directories and all that is in them as well
    #[arg(short, long)]
    recursive: bool,
}

/// `p9 mkdir`.
#[derive(Args)]
pub struct Mkdir {
    #[command(flatten)]
    target: Target,
    /// What to make
    #[arg(required = true)]
    paths: Vec<String>,
    /// Those above as well, and no complaint about one that is there
    #[arg(short, long)]
    parents: bool,
}

fn octal(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
    mode.ok_or_else(|| "it is an octal number up to 7777".to_owned())
}

/// Writes to stdout; a reader that left ends the command quietly.
fn say(text: &str) -> Result<(), Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::of("stdout", &error)),
        _ => Ok(()),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A name for a terminal: control characters do nothing.
fn printable(name: &[u8]) -> String {
    text(name).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn kind_of(mode: u32) -> (&'static str, char) {
    match mode & 0o170_000 {
        0o040_000 => ("directory", 'd'),
        0o120_000 => ("symlink", 'l'),
        0o010_000 => ("fifo", 'p'),
        0o140_000 => ("socket", 's'),
        0o020_000 => ("character device", 'c'),
        0o060_000 => ("block device", 'b'),
        _ => ("file", '-'),
    }
}

fn mode_text(mode: u32) -> String {
    let bits = (0..9).rev().map(|bit| if mode >> bit & 1 == 1 { ['x', 'w', 'r'][bit % 3] } else { '-' });
    std::iter::once(kind_of(mode).1).chain(bits).collect()
}

fn as_json(name: &str, attributes: &Attributes, target: Option<&str>) -> Value {
    let mut value = json!({
        "name": name,
        "kind": kind_of(attributes.mode).0,
        "mode": format!("{:o}", attributes.mode & 0o7777),
        "uid": attributes.uid,
        "gid": attributes.gid,
        "links": attributes.nlink,
        "size": attributes.size,
        "mtime": attributes.mtime.seconds.cast_signed(),
        "qid": { "path": attributes.qid.path, "version": attributes.qid.version },
    });
    if let Some(target) = target {
        value["target"] = json!(target);
    }
    value
}

fn link_target(connection: &Connection, fid: Fid, attributes: &Attributes) -> Option<String> {
    let is_link = attributes.mode & 0o170_000 == 0o120_000;
    is_link.then(|| connection.read_link(fid).ok()).flatten().map(|target| text(&target))
}

fn list(client: &Client, path: &str, directory: Fid) -> Result<Vec<Listed>, Failure> {
    let of = |error| Failure::of_call(path, &error);
    let open = client.connection.copy_fid(directory).map_err(of)?;
    client.connection.open_file(open, OpenFlags::DIRECTORY).map_err(of)?;
    let listed = client.connection.list(open);
    client.connection.forget(open);
    let mut listed = listed.map_err(of)?;
    listed.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(listed)
}

impl Ls {
    /// Lists.
    pub fn run(&self) -> Result<(), Failure> {
        let client = Client::new(&self.target)?;
        let connection = &client.connection;
        let fid = client.walk(&self.path)?;
        let attributes = connection.attributes(fid).map_err(|error| Failure::of_call(&self.path, &error))?;
        let is_directory = attributes.qid.kind.is_directory();
        let names: Vec<Vec<u8>> = if is_directory {
            list(&client, &self.path, fid)?.into_iter().map(|entry| entry.name).collect()
        } else {
            vec![self.path.clone().into_bytes()]
        };
        if !self.long && !self.json {
            let lines: String = names.iter().map(|name| printable(name) + "\n").collect();
            return say(&lines);
        }
        let rows = if is_directory {
            each(connection, fid, &names)?
        } else {
            let row = |name| Row { name, target: link_target(connection, fid, &attributes), attributes };
            names.first().map(|name| row(&**name)).into_iter().collect()
        };
        if self.json {
            let all: Vec<_> = rows
                .iter()
                .map(|row| as_json(&text(row.name), &row.attributes, row.target.as_deref()))
                .collect();
            return say(&format!("{}\n", Value::from(all)));
        }
        let mut lines = String::new();
        for Row { name, attributes, target } in rows {
            let Attributes { mode, nlink, uid, gid, size, mtime, .. } = attributes;
            let arrow =
                target.map_or(String::new(), |target| format!(" -> {}", printable(target.as_bytes())));
            let (mode, time) = (mode_text(mode), mtime.seconds.cast_signed());
            lines += &format!(
                "{mode} {nlink:>3} {uid:>5} {gid:>5} {size:>12} {time:>10} {}{arrow}\n",
                printable(name)
            );
        }
        say(&lines)
    }
}

/// A line of a long listing.
struct Row<'n> {
    name: &'n [u8],
    attributes: Attributes,
    target: Option<String>,
}

/// The entries of a directory, looked at. One that is gone meanwhile is not there to be listed.
fn each<'n>(connection: &Connection, directory: Fid, names: &'n [Vec<u8>]) -> Result<Vec<Row<'n>>, Failure> {
    let mut rows = Vec::with_capacity(names.len());
    // Not all at once: a server has a quota of files.
    for names in names.chunks(ENTRIES_AT_ONCE) {
        let entries: Vec<&[u8]> = names.iter().map(|name| &**name).collect();
        for (name, found) in names.iter().zip(connection.walk_each(directory, &entries)) {
            if found.as_ref().is_err_and(|error| error.errno() == Some(p9p::Errno::ENOENT)) {
                continue;
            }
            let (fid, attributes) = found.map_err(|error| Failure::of_call(&text(name), &error))?;
            rows.push(Row { name, target: link_target(connection, fid, &attributes), attributes });
            connection.forget(fid);
        }
    }
    Ok(rows)
}

impl Cat {
    /// Writes files to stdout.
    pub fn run(&self) -> Result<(), Failure> {
        let client = Client::new(&self.target)?;
        for path in &self.paths {
            let fid = client.walk(path)?;
            let of = |error| Failure::of_call(path, &error);
            client.connection.open_file(fid, OpenFlags::RDONLY).map_err(of)?;
            let total = client.connection.attributes(fid).map_err(of)?.size;
            let mut stdout = Progress::new(io::stdout().lock(), Some(total).filter(|total| *total > 0));
            let copied = if self.follow {
                follow(&client.connection, fid, &mut stdout)
            } else {
                client.connection.read_file(fid, 0, &mut stdout).map(|_| ())
            };
            match copied {
                Err(p9p::connection::CopyError::Local(error))
                    if error.kind() == io::ErrorKind::BrokenPipe =>
                {
                    return Ok(());
                }
                copied => copied.map_err(|error| Failure::of_copy(path, &error))?,
            }
            client.connection.forget(fid);
        }
        Ok(())
    }
}

fn follow(
    connection: &Connection,
    fid: Fid,
    stdout: &mut dyn Write,
) -> Result<(), p9p::connection::CopyError> {
    let mut offset = 0;
    while let Some(bytes) = connection.read_stream(fid, offset)? {
        offset += bytes.len() as u64;
        stdout.write_all(&bytes).and_then(|()| stdout.flush()).map_err(p9p::connection::CopyError::Local)?;
    }
    Ok(())
}

impl Put {
    /// Copies to the server.
    pub fn run(&self) -> Result<(), Failure> {
        // Before anything is made there.
        let source = self.file.as_ref().map(|path| {
            let opened = File::open(path).and_then(|file| match file.metadata()?.is_dir() {
                true => Err(io::ErrorKind::IsADirectory.into()),
                false => Ok(file),
            });
            opened.map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
        });
        let source = source.transpose()?;
        let client = Client::new(&self.target)?;
        let connection = &client.connection;
        let of = |error| Failure::of_call(&self.path, &error);
        let truncate = if self.append { OpenFlags::WRONLY } else { OpenFlags::WRONLY | OpenFlags::TRUNC };
        let fid = match connection.walk_path(client.root, self.path.as_bytes()) {
            Ok(fid) => {
                connection.open_file(fid, truncate).map_err(of)?;
                fid
            }
            Err(_) => {
                let (parent, name) = client.walk_to_parent(&self.path)?;
                let flags = OpenFlags::WRONLY | OpenFlags::CREAT;
                connection
                    .create_file(parent, name, flags, self.mode, rustix::process::getegid().as_raw())
                    .map_err(of)?;
                parent
            }
        };
        let offset = if self.append { connection.attributes(fid).map_err(of)?.size } else { 0 };
        let total = source.as_ref().and_then(|file| file.metadata().ok()).map(|found| found.len());
        let copied = match source {
            Some(file) => connection.write_file(fid, offset, &mut Progress::new(file, total)),
            None => connection.write_file(fid, offset, &mut Progress::new(io::stdin().lock(), None)),
        };
        copied.map_err(|error| Failure::of_copy(&self.path, &error))?;
        if self.sync {
            connection.sync(fid, false).map_err(of)?;
        }
        connection.clunk(fid).map_err(of)
    }
}

impl Stat {
    /// Shows attributes.
    pub fn run(&self) -> Result<(), Failure> {
        let client = Client::new(&self.target)?;
        for path in &self.paths {
            let fid = client.walk(path)?;
            let found = client.connection.attributes(fid).map_err(|error| Failure::of_call(path, &error))?;
            let target = link_target(&client.connection, fid, &found);
            client.connection.forget(fid);
            if self.json {
                say(&format!("{}\n", as_json(path, &found, target.as_deref())))?;
                continue;
            }
            let arrow =
                target.map_or(String::new(), |target| format!(" -> {}", printable(target.as_bytes())));
            say(&format!(
                "{path}{arrow}\n  {}, mode {:04o}, {} bytes, {} links, uid {}, gid {}, modified {}, qid {:x}.{}\n",
                kind_of(found.mode).0,
                found.mode & 0o7777,
                found.size,
                found.nlink,
                found.uid,
                found.gid,
                found.mtime.seconds.cast_signed(),
                found.qid.path,
                found.qid.version,
            ))?;
        }
        Ok(())
    }
}

impl Rm {
    /// Removes.
    pub fn run(&self) -> Result<(), Failure> {
        let client = Client::new(&self.target)?;
        for path in &self.paths {
            let (parent, name) = client.walk_to_parent(path)?;
            let of = |error| Failure::of_call(path, &error);
            let (fid, qid) = client.connection.walk(parent, &[name]).map_err(of)?;
            let is_directory = qid.is_some_and(|qid| qid.kind.is_directory());
            if is_directory && !self.recursive {
                return Err(Failure::new(format!(
                    "{path}: is a directory; -r removes it and all that is in it"
                )));
            }
            if is_directory {
                empty(&client, path, fid, 0)?;
            }
            client.connection.forget(fid);
            client.connection.unlink(parent, name, is_directory).map_err(of)?;
            client.connection.forget(parent);
        }
        Ok(())
    }
}

/// Removes all that is in a directory.
fn empty(client: &Client, path: &str, directory: Fid, depth: usize) -> Result<(), Failure> {
    if depth > DEPTH_MAX {
        return Err(Failure::new(format!("{path}: is too deep")));
    }
    for entry in list(client, path, directory)? {
        let path = format!("{path}/{}", text(&entry.name));
        let of = |error| Failure::of_call(&path, &error);
        let is_directory = entry.qid.kind.is_directory();
        if is_directory {
            let (below, _) = client.connection.walk(directory, &[&entry.name]).map_err(of)?;
            empty(client, &path, below, depth + 1)?;
            client.connection.forget(below);
        }
        client.connection.unlink(directory, &entry.name, is_directory).map_err(of)?;
    }
    Ok(())
}

impl Mkdir {
    /// Makes directories.
    pub fn run(&self) -> Result<(), Failure> {
        let client = Client::new(&self.target)?;
        for path in &self.paths {
            if self.parents {
                self.make_all(&client, path)?;
                continue;
            }
            let (parent, name) = client.walk_to_parent(path)?;
            self.make(&client, parent, name).map_err(|error| Failure::of_call(path, &error))?;
        }
        Ok(())
    }

    fn make(&self, client: &Client, parent: Fid, name: &[u8]) -> Result<(), p9p::client::ClientError> {
        let gid = rustix::process::getegid().as_raw();
        client.connection.make_directory(parent, name, 0o755, gid).map(|_| ())
    }

    fn make_all(&self, client: &Client, path: &str) -> Result<(), Failure> {
        let of = |error| Failure::of_call(path, &error);
        let mut at = client.connection.copy_fid(client.root).map_err(of)?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let next = match client.connection.walk(at, &[name.as_bytes()]) {
                Ok((next, _)) => next,
                Err(_) => {
                    // One that somebody else made meanwhile is found by the walk.
                    let made = self.make(client, at, name.as_bytes());
                    match client.connection.walk(at, &[name.as_bytes()]) {
                        Ok((next, _)) => next,
                        Err(error) => return Err(of(made.err().unwrap_or(error))),
                    }
                }
            };
            client.connection.forget(at);
            at = next;
        }
        Ok(())
    }
}
