//! The 9P servers and the mounts of benchmarks, ours and diod's, ended when dropped; and what works with them.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::run::{output, root};

/// How long a server may take to listen.
const START_MAX: Duration = Duration::from_secs(10);

/// A process that goes on until it is dropped.
struct Running {
    child: Child,
    /// Open, so that it may go on talking.
    _stderr: Option<BufReader<ChildStderr>>,
}

impl Running {
    /// Starts it, and reads lines of its stderr up to one that begins with `prefix`; returns what that goes on with.
    fn start(command: &mut Command, prefix: &str) -> Result<(Running, String)> {
        let name = command.get_program().display().to_string();
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{name} cannot be started"))?;
        let mut stderr = BufReader::new(child.stderr.take().context("it has no stderr")?);
        let mut running = Running { child, _stderr: None };
        let (mut line, mut said) = (String::new(), String::new());
        while stderr.read_line(&mut line)? > 0 {
            if let Some(rest) = line.trim_end().strip_prefix(prefix) {
                running._stderr = Some(stderr);
                return Ok((running, rest.to_owned()));
            }
            said += &std::mem::take(&mut line);
        }
        bail!("{name} ended, and said: {said}")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, which the rows have shown then.
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let began = Instant::now();
        while began.elapsed() < START_MAX {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A 9P server.
pub struct Server {
    _running: Running,
    /// Where it listens.
    pub url: String,
    /// Its port of 127.0.0.1.
    pub port: u16,
    /// What is attached to.
    pub tree: String,
}

/// A mounted directory.
pub struct Mounted {
    _running: Running,
}

/// The release build of one of our programs.
pub fn program(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    target.join("release").join(name)
}

fn listening(command: &mut Command, prefix: &str) -> Result<Server> {
    let (running, url) = Running::start(command.args(["--listen", "tcp://127.0.0.1:0"]), prefix)?;
    let port = url.rsplit(':').next().unwrap_or_default().parse()?;
    Ok(Server { _running: running, url, port, tree: String::new() })
}

/// Our server of a directory.
pub fn p9(directory: &Path) -> Result<Server> {
    listening(Command::new(program("p9")).arg("serve").arg(directory), "p9: serving on ")
}

/// Our server of a repository.
pub fn datakit(repository: &Path) -> Result<Server> {
    listening(
        Command::new(program("datakit")).args(["serve", "--git"]).arg(repository),
        "datakit: listening at ",
    )
}

/// diod, of a directory.
pub fn diod(directory: &Path) -> Result<Server> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut command = Command::new("/usr/sbin/diod");
    command.args(["-f", "-n", "-N", "-c", "/dev/null", "-L", "stderr", "-e"]).arg(directory);
    command.args(["-l", &format!("127.0.0.1:{port}")]).stderr(Stdio::null());
    let child = command.spawn().context("diod cannot be started")?;
    let tree = directory.to_str().context("the directory's name is not UTF-8")?.to_owned();
    let running = Running { child, _stderr: None };
    let server = Server { _running: running, url: format!("tcp://127.0.0.1:{port}"), port, tree };
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if began.elapsed() > START_MAX {
            bail!("diod does not listen");
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(server)
}

/// Mounts a 9P server's tree by our client.
pub fn mount(server: &Server, directory: &Path) -> Result<Mounted> {
    let mut command = Command::new(program("p9"));
    command.args(["mount", &server.url]).arg(directory).args(["--tree", &server.tree]);
    let (running, _) = Running::start(&mut command, &format!("p9: {} is mounted", server.url))?;
    Ok(Mounted { _running: running })
}

/// Mounts a repository.
pub fn mount_datakit(repository: &Path, directory: &Path) -> Result<Mounted> {
    let mut command = Command::new(program("datakit"));
    command.args(["serve", "--git"]).arg(repository).arg("--fuse").arg(directory);
    let (running, _) = Running::start(&mut command, "datakit: mounted on ")?;
    Ok(Mounted { _running: running })
}

/// Seconds that our client takes for these tasks of `crates/p9p/examples/drive.rs`.
pub fn drive<S: AsRef<str>>(server: &Server, tasks: &[S]) -> Result<f64> {
    let mut command = Command::new(program("examples/drive"));
    command.args([&server.url, &server.tree]).args(tasks.iter().map(AsRef::as_ref));
    let said = output(&mut command)?;
    said.trim().parse().with_context(|| format!("drive said `{said}`"))
}

/// How long a program runs, its output thrown away.
pub fn seconds(command: &mut Command) -> Result<f64> {
    let began = Instant::now();
    let status = command.stdout(Stdio::null()).status().context("it cannot be started")?;
    if !status.success() {
        bail!("{} failed: {status}", command.get_program().display());
    }
    Ok(began.elapsed().as_secs_f64())
}
