//! What the tests of the program share: a served repository, and git beside it.

#![allow(dead_code, reason = "each test binary takes what it needs")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use datakit_client::DataKit;

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with a bare repository `repo.git` in it.
pub struct World {
    pub folder: tempfile::TempDir,
    pub repo: PathBuf,
}

impl World {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        git(folder.path(), &["init", "-q", "--bare", "repo.git"]);
        let repo = folder.path().join("repo.git");
        Self { folder, repo }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A clone of the repository, which may be empty.
    pub fn clone(&self, name: &str) -> PathBuf {
        git(self.folder.path(), &["clone", "-q", "repo.git", name]);
        self.path(name)
    }
}

/// Says why a test does nothing, when there is no such program.
pub fn has(program: &str) -> bool {
    let has =
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !has {
        println!("SKIP: no {program}");
    }
    has
}

/// Whether directories can be mounted by FUSE here.
pub fn has_fuse() -> bool {
    let has = Path::new("/dev/fuse").exists()
        && (rustix::process::geteuid().is_root() || Path::new("/usr/bin/fusermount3").exists());
    if !has {
        println!("SKIP: no /dev/fuse, or nobody who may mount");
    }
    has
}

/// A git command in `folder`, untouched by the configuration of whoever runs the tests.
pub fn git_command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("git");
    command
        .args(["-c", "user.name=T", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"])
        .args(arguments)
        .current_dir(folder)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null");
    command
}

/// Runs git and takes what it prints.
pub fn git(folder: &Path, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = git_command(folder, arguments).output().unwrap();
    assert!(status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap().trim().to_owned()
}

/// What fsck has to say, which should be nothing but of objects that nobody refers to.
pub fn fsck(repo: &Path) {
    let Output { status, stdout, stderr } =
        git_command(repo, &["fsck", "--full", "--no-dangling"]).output().unwrap();
    let said = [stdout, stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(status.success() && !said.contains("missing") && !said.contains("error"), "fsck: {said}");
}

/// `datakit serve`, killed when dropped.
pub struct Server {
    pub child: Child,
    pub url: String,
}

impl Server {
    /// Serves the repository on a unix socket, with more arguments.
    pub fn start(world: &World, socket: &str, arguments: &[&str]) -> Self {
        let path = world.path(socket);
        // A killed server leaves its socket behind; here it would be taken for a living one.
        let _ = std::fs::remove_file(&path);
        let url = format!("unix://{}", path.display());
        let log = std::fs::File::create(world.path(&format!("{socket}.log"))).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_datakit"))
            .arg("serve")
            .arg("--git")
            .arg(&world.repo)
            .args(["--listen", &url])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut server = Self { child, url };
        let began = Instant::now();
        while DataKit::connect(&server.url).is_err() {
            let status = server.child.try_wait().unwrap();
            let log = || std::fs::read_to_string(world.path(&format!("{socket}.log"))).unwrap_or_default();
            assert!(status.is_none(), "the server ended, {status:?}: {}", log());
            assert!(began.elapsed() < PATIENCE, "nobody answers: {}", log());
            thread::sleep(Duration::from_millis(10));
        }
        server
    }

    pub fn connect(&self) -> DataKit {
        DataKit::connect(&self.url).unwrap()
    }

    /// Ends it as the out-of-memory killer would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Descriptors, threads, and resident memory in KiB.
    pub fn usage(&self) -> (usize, usize, usize) {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let fds = std::fs::read_dir(process.join("fd")).unwrap().count();
        let status = std::fs::read_to_string(process.join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()
        };
        (fds, field("Threads:"), field("VmRSS:"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory on which the server's tree is mounted; unmounted when dropped.
pub struct Mounted(pub PathBuf);

impl Mounted {
    /// Waits until the tree is there.
    pub fn wait(folder: PathBuf) -> Self {
        let began = Instant::now();
        while !folder.join("branch").is_dir() {
            assert!(began.elapsed() < PATIENCE, "nothing is mounted on {}", folder.display());
            thread::sleep(Duration::from_millis(10));
        }
        Self(folder)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).stderr(Stdio::null()).status();
    }
}

/// Many more rounds, when asked for.
pub fn rounds(few: usize, many: usize) -> usize {
    if std::env::var_os("CORACLE_SOAK").is_some_and(|value| value != "0") { many } else { few }
}
