//! The ways in, and what is done through them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use datakit::{FuseMount, Logs, Service};
use datakit_store::{Durability, Options, Store};
use p9p::Errno;
use p9p::client::ClientError;
use p9p::connection::{ConnectOptions, Connection};
use p9p::filesystem::OpenFlags;
use p9p::message::{Dialect, Fid};
use p9p::net::{Address, Server, ServerOptions};
use p9p::stat::{SetAttributes, Time, setattr};
use p9p_fuse::{MountError, MountOptions};
use tempfile::TempDir;

/// What an operation fails with: an errno.
pub type Done<T> = Result<T, u32>;

/// Kind letter, size, link count and number of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub kind: char,
    pub size: u64,
    pub number: u64,
}

/// A way in. Paths are from the root, without a leading slash.
pub trait Door: Send + Sync {
    fn read(&self, path: &str) -> Done<Vec<u8>>;
    /// Makes the file or empties it, and writes all at once.
    fn write(&self, path: &str, bytes: &[u8]) -> Done<()>;
    fn append(&self, path: &str, bytes: &[u8]) -> Done<()>;
    fn make_directory(&self, path: &str) -> Done<()>;
    fn remove(&self, path: &str, is_directory: bool) -> Done<()>;
    fn rename(&self, from: &str, to: &str) -> Done<()>;
    fn list(&self, path: &str) -> Done<Vec<String>>;
    fn stat(&self, path: &str) -> Done<Seen>;
    fn truncate(&self, path: &str, size: u64) -> Done<()>;
    fn make_executable(&self, path: &str) -> Done<()>;
    fn symlink(&self, path: &str, target: &str) -> Done<()>;
    fn read_link(&self, path: &str) -> Done<String>;
    /// fsync.
    fn sync(&self, path: &str) -> Done<()>;
    /// Opens a stream: each call gives the next piece of text.
    fn stream(&self, path: &str) -> Done<Box<dyn FnMut() -> String + Send>>;
}

/// A repository, served, and a way in.
pub struct World {
    pub door: Box<dyn Door>,
    pub name: &'static str,
    _service: Service,
    pub repository: PathBuf,
    pub server: Option<(Server, Address)>,
    mount: Option<FuseMount>,
    _folder: TempDir,
}

/// Runs a test through every door, each in a world of its own. Without FUSE, that door says SKIP.
pub fn through_all(test: impl Fn(&World)) {
    through_all_with(visible, test);
}

/// How most tests open a store.
pub fn visible() -> Options {
    Options { durability: Durability::Visible, ..Options::default() }
}

/// The same with stores opened otherwise.
pub fn through_all_with(options: impl Fn() -> Options, test: impl Fn(&World)) {
    for dialect in Dialect::ALL {
        test(&by_9p(dialect, options()));
    }
    if let Some(world) = by_fuse(options()) {
        test(&world);
    }
}

fn served(options: Options) -> (Service, PathBuf, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("repository.git");
    let options = Options { create: true, ..options };
    let store = Store::open(&repository, options).unwrap();
    (Service::new(store, Logs::none()), repository, folder)
}

pub fn by_9p(dialect: Dialect, options: Options) -> World {
    let (service, repository, folder) = served(options);
    let server = Server::start(Arc::new(service.clone()), ServerOptions::default()).unwrap();
    let at = server.listen(&Address::Tcp { host: "127.0.0.1".into(), port: 0 }).unwrap();
    let name = match dialect {
        Dialect::Linux => "9P2000.L",
        Dialect::Unix => "9P2000.u",
        Dialect::Plan9 => "9P2000",
    };
    World {
        door: connect(&at, dialect),
        name,
        _service: service,
        repository,
        server: Some((server, at)),
        mount: None,
        _folder: folder,
    }
}

/// One more connection.
pub fn connect(at: &Address, dialect: Dialect) -> Box<dyn Door> {
    let options = ConnectOptions { dialects: vec![dialect], ..ConnectOptions::default() };
    let connection = Connection::open(at, &options).unwrap();
    let root = connection.attach(b"test", 0, b"").unwrap();
    Box::new(NineP { connection, root })
}

pub fn by_fuse(options: Options) -> Option<World> {
    let (service, repository, folder) = served(options);
    let place = folder.path().join("mount");
    fs::create_dir(&place).unwrap();
    let mount = match service.mount(&place, MountOptions::default()) {
        Ok(mount) => mount,
        Err(error @ (MountError::NoDevice | MountError::NotPermitted { .. })) => {
            eprintln!("SKIP: {error}");
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    let door = Box::new(Fuse { place });
    Some(World {
        door,
        name: "FUSE",
        _service: service,
        repository,
        server: None,
        mount: Some(mount),
        _folder: folder,
    })
}

struct NineP {
    connection: Connection,
    root: Fid,
}

/// What DataKit says where it does not say what strerror(3) does. 9P2000 has no numbers, so there only the words tell.
const WORDS: &[(&str, Errno)] = &[
    ("Is not a directory", Errno::ENOTDIR),
    ("Read-only file", Errno::EROFS),
    ("Directory is read-only", Errno::EROFS),
    ("Can only contain directories", Errno::EPERM),
    ("Can't chmod special file", Errno::EPERM),
    ("Can't extend command file", Errno::EPERM),
    ("Already exists", Errno::EEXIST),
    ("Merge conflict: ", Errno::EBUSY),
    ("conflicts file is not empty: ", Errno::EBUSY),
    ("not-fast-forward: ", Errno::EBUSY),
    ("Unknown command ", Errno::EINVAL),
    ("invalid-hash ", Errno::EINVAL),
    ("Attempt to seek in stream", Errno(29)),
    (" is missing", Errno::ENOENT),
    (" is not error, warning, info or debug", Errno::EINVAL),
    (" is not binary, text, union or ours", Errno::EINVAL),
    (" cannot be the name of a file in git", Errno::EPERM),
];

fn refused(error: ClientError) -> u32 {
    let by_words = |text: &str| WORDS.iter().find(|(words, _)| text.contains(words));
    match error {
        ClientError::RefusedWithText { errno: Errno::EIO, text } => {
            by_words(&text).map_or(Errno::EIO, |(_, errno)| *errno).0
        }
        error => error.errno().unwrap_or(Errno::EIO).0,
    }
}

impl NineP {
    fn at<T>(&self, path: &str, with: impl FnOnce(&Connection, Fid) -> Result<T, ClientError>) -> Done<T> {
        let fid = self.connection.walk_path(self.root, path.as_bytes()).map_err(refused)?;
        let result = with(&self.connection, fid).map_err(refused);
        let _ = self.connection.clunk(fid);
        result
    }

    fn inside(path: &str) -> (&str, &[u8]) {
        path.rsplit_once('/').map_or(("", path.as_bytes()), |(directory, name)| (directory, name.as_bytes()))
    }

    fn change(&self, path: &str, change: SetAttributes) -> Done<()> {
        self.at(path, |connection, fid| connection.set_attributes(fid, &change))
    }
}

impl Door for NineP {
    fn read(&self, path: &str) -> Done<Vec<u8>> {
        self.at(path, |connection, fid| {
            connection.open_file(fid, OpenFlags::RDONLY)?;
            connection.read_to_end(fid, 1 << 30)
        })
    }
    fn write(&self, path: &str, bytes: &[u8]) -> Done<()> {
        let flags = OpenFlags::WRONLY | OpenFlags::TRUNC;
        let opened = self.at(path, |connection, fid| {
            connection.open_file(fid, flags)?;
            connection.write_all(fid, 0, bytes)
        });
        if opened != Err(Errno::ENOENT.0) || self.stat(path).is_ok() {
            return opened;
        }
        let (directory, name) = Self::inside(path);
        self.at(directory, |connection, fid| {
            connection.create_file(fid, name, OpenFlags::WRONLY, 0o644, 0)?;
            connection.write_all(fid, 0, bytes)
        })
    }
    fn append(&self, path: &str, bytes: &[u8]) -> Done<()> {
        let end = self.stat(path)?.size;
        self.at(path, |connection, fid| {
            connection.open_file(fid, OpenFlags::WRONLY)?;
            connection.write_all(fid, end, bytes)
        })
    }
    fn make_directory(&self, path: &str) -> Done<()> {
        let (directory, name) = Self::inside(path);
        self.at(directory, |connection, fid| connection.make_directory(fid, name, 0o755, 0)).map(drop)
    }
    fn remove(&self, path: &str, is_directory: bool) -> Done<()> {
        let (directory, name) = Self::inside(path);
        self.at(directory, |connection, fid| connection.unlink(fid, name, is_directory))
    }
    fn rename(&self, from: &str, to: &str) -> Done<()> {
        let ((old, old_name), (new, new_name)) = (Self::inside(from), Self::inside(to));
        let new = self.connection.walk_path(self.root, new.as_bytes()).map_err(refused)?;
        self.at(old, |connection, old| connection.rename(old, old_name, new, new_name))
    }
    fn list(&self, path: &str) -> Done<Vec<String>> {
        let listed = self.at(path, |connection, fid| {
            connection.open_file(fid, OpenFlags::RDONLY)?;
            connection.list(fid)
        })?;
        let names = listed.into_iter().map(|entry| String::from_utf8(entry.name).unwrap());
        let mut names: Vec<String> = names.filter(|name| name != "." && name != "..").collect();
        names.sort();
        Ok(names)
    }
    fn stat(&self, path: &str) -> Done<Seen> {
        let attributes = self.at(path, |connection, fid| connection.attributes(fid))?;
        Ok(Seen { kind: kind(attributes.mode), size: attributes.size, number: attributes.qid.path })
    }
    fn truncate(&self, path: &str, size: u64) -> Done<()> {
        // With the time, as Linux's client does.
        let mtime = Time { seconds: 1_700_000_000, nanoseconds: 0 };
        let valid = setattr::SIZE | setattr::MTIME | setattr::MTIME_SET;
        self.change(path, SetAttributes { valid, size, mtime, ..SetAttributes::default() })
    }
    fn make_executable(&self, path: &str) -> Done<()> {
        self.change(path, SetAttributes { valid: setattr::MODE, mode: 0o755, ..SetAttributes::default() })
    }
    fn symlink(&self, path: &str, target: &str) -> Done<()> {
        let (directory, name) = Self::inside(path);
        self.at(directory, |connection, fid| connection.make_symlink(fid, name, target.as_bytes(), 0))
            .map(drop)
    }
    fn read_link(&self, path: &str) -> Done<String> {
        let target = self.at(path, |connection, fid| connection.read_link(fid))?;
        Ok(String::from_utf8(target).unwrap())
    }
    fn sync(&self, path: &str) -> Done<()> {
        self.at(path, |connection, fid| {
            connection.open_file(fid, OpenFlags::RDONLY)?;
            connection.sync(fid, false)
        })
    }
    fn stream(&self, path: &str) -> Done<Box<dyn FnMut() -> String + Send>> {
        let fid = self.connection.walk_path(self.root, path.as_bytes()).map_err(refused)?;
        self.connection.open_file(fid, OpenFlags::RDONLY).map_err(refused)?;
        let connection = self.connection.clone();
        let mut offset = 0;
        Ok(Box::new(move || {
            let mut buffer = [0; 4096];
            loop {
                // An empty read is the end of what there is now.
                let count = connection.read(fid, offset, &mut buffer).unwrap();
                offset += count as u64;
                if count > 0 {
                    return String::from_utf8(buffer[..count].to_vec()).unwrap();
                }
            }
        }))
    }
}

fn kind(mode: u32) -> char {
    match mode & 0o170_000 {
        0o040_000 => 'D',
        0o120_000 => 'L',
        _ if mode & 0o100 != 0 => 'X',
        _ => 'F',
    }
}

struct Fuse {
    place: PathBuf,
}

fn done<T>(result: std::io::Result<T>) -> Done<T> {
    result.map_err(|error| error.raw_os_error().map_or(Errno::EIO.0, i32::unsigned_abs))
}

impl Door for Fuse {
    fn read(&self, path: &str) -> Done<Vec<u8>> {
        done(fs::read(self.place.join(path)))
    }
    fn write(&self, path: &str, bytes: &[u8]) -> Done<()> {
        done(fs::write(self.place.join(path), bytes))
    }
    fn append(&self, path: &str, bytes: &[u8]) -> Done<()> {
        let mut file = done(fs::OpenOptions::new().append(true).mode(0o644).open(self.place.join(path)))?;
        done(std::io::Write::write_all(&mut file, bytes))
    }
    fn make_directory(&self, path: &str) -> Done<()> {
        done(fs::create_dir(self.place.join(path)))
    }
    fn remove(&self, path: &str, is_directory: bool) -> Done<()> {
        let path = self.place.join(path);
        done(if is_directory { fs::remove_dir(path) } else { fs::remove_file(path) })
    }
    fn rename(&self, from: &str, to: &str) -> Done<()> {
        done(fs::rename(self.place.join(from), self.place.join(to)))
    }
    fn list(&self, path: &str) -> Done<Vec<String>> {
        let entries = done(fs::read_dir(self.place.join(path)))?;
        let names: BTreeMap<String, ()> =
            entries.map(|entry| (entry.unwrap().file_name().into_string().unwrap(), ())).collect();
        Ok(names.into_keys().collect())
    }
    fn stat(&self, path: &str) -> Done<Seen> {
        let metadata = done(fs::symlink_metadata(self.place.join(path)))?;
        Ok(Seen { kind: kind(metadata.mode()), size: metadata.len(), number: metadata.ino() })
    }
    fn truncate(&self, path: &str, size: u64) -> Done<()> {
        let file = done(fs::OpenOptions::new().write(true).open(self.place.join(path)))?;
        done(file.set_len(size))
    }
    fn make_executable(&self, path: &str) -> Done<()> {
        done(fs::set_permissions(self.place.join(path), fs::Permissions::from_mode(0o755)))
    }
    fn symlink(&self, path: &str, target: &str) -> Done<()> {
        done(std::os::unix::fs::symlink(target, self.place.join(path)))
    }
    fn read_link(&self, path: &str) -> Done<String> {
        Ok(done(fs::read_link(self.place.join(path)))?.into_os_string().into_string().unwrap())
    }
    fn sync(&self, path: &str) -> Done<()> {
        done(fs::File::open(self.place.join(path)).and_then(|file| file.sync_all()))
    }
    fn stream(&self, path: &str) -> Done<Box<dyn FnMut() -> String + Send>> {
        let mut file = done(fs::File::open(self.place.join(path)))?;
        Ok(Box::new(move || {
            let mut buffer = [0; 4096];
            let count = std::io::Read::read(&mut file, &mut buffer).unwrap();
            String::from_utf8(buffer[..count].to_vec()).unwrap()
        }))
    }
}

impl World {
    /// 9P2000 has no symbolic links.
    pub fn has_links(&self) -> bool {
        self.name != "9P2000"
    }

    /// 9P2000 and 9P2000.u rename within a directory only.
    pub fn renames_across(&self) -> bool {
        !matches!(self.name, "9P2000" | "9P2000.u")
    }

    /// Keeps a directory open, where a kernel knows it.
    pub fn hold(&self, path: &str) -> Option<fs::File> {
        self.mount.as_ref().map(|mount| fs::File::open(mount.path().join(path)).unwrap())
    }

    pub fn text(&self, path: &str) -> String {
        let read = self.door.read(path);
        String::from_utf8(read.unwrap_or_else(|errno| panic!("{}: {path}: errno {errno}", self.name)))
            .unwrap()
    }

    /// Commits one file to a branch and returns the new head.
    pub fn commit(&self, branch: &str, path: &str, text: &str) -> String {
        let transaction = format!("branch/{branch}/transactions/one");
        let _ = self.door.make_directory(&format!("branch/{branch}"));
        self.door.make_directory(&transaction).unwrap();
        self.door.write(&format!("{transaction}/rw/{path}"), text.as_bytes()).unwrap();
        let committed = self.door.write(&format!("{transaction}/ctl"), b"commit");
        assert_eq!(committed, Ok(()), "{}: {path} on {branch}", self.name);
        self.text(&format!("branch/{branch}/head")).trim().to_owned()
    }

    pub fn git(&self, arguments: &[&str]) -> String {
        let mut command = std::process::Command::new("git");
        command.arg("-C").arg(&self.repository).args(arguments).env("GIT_CONFIG_NOSYSTEM", "1");
        for (name, value) in [
            ("GIT_AUTHOR_NAME", "a"),
            ("GIT_AUTHOR_EMAIL", "a@b"),
            ("GIT_COMMITTER_NAME", "a"),
            ("GIT_COMMITTER_EMAIL", "a@b"),
        ] {
            command.env(name, value);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}
