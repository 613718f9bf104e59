//! `remotes/`: other repositories, fetched and pushed to through files, by git's own servers and a real sshd.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use p9p::Errno;
use p9p::message::Dialect;

use crate::doors::{World, by_9p, connect, through_all, visible};
use crate::streams::{follow, line};

const PATIENCE: Duration = Duration::from_secs(60);

/// A repository elsewhere, with one commit on `main`; its head.
fn elsewhere(folder: &Path) -> (PathBuf, String) {
    let far = folder.join("far.git");
    run(Command::new("git").args(["init", "-q", "--bare", "-b", "main"]).arg(&far));
    let tree = run(Command::new("git").arg("-C").arg(&far).arg("mktree").stdin(Stdio::null()));
    let mut commit = Command::new("git");
    commit.arg("-C").arg(&far).args(["-c", "user.name=a", "-c", "user.email=a@b"]);
    let head = run(commit.args(["commit-tree", "-m", "far", tree.trim()]));
    run(Command::new("git").arg("-C").arg(&far).args(["update-ref", "refs/heads/main", head.trim()]));
    (far, head)
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn head_of(far: &Path, branch: &str) -> String {
    run(Command::new("git").arg("-C").arg(far).args(["rev-parse", branch]))
}

/// Fetches, takes over what was fetched, commits on top and pushes that, by files alone.
fn there_and_back(world: &World, url: &str, far: &Path, head: &str) {
    let door = &world.door;
    door.make_directory("remotes/far").unwrap();
    door.write("remotes/far/url", url.as_bytes()).unwrap();
    assert_eq!(world.text("remotes/far/url"), format!("{url}\n"));
    let heads = follow(world, "remotes/far/head");
    assert_eq!(door.write("remotes/far/fetch", b"main\n"), Ok(()), "{}: {url}", world.name);
    assert_eq!(line(&heads), head, "{}", world.name);
    door.make_directory("branch/main").unwrap();
    door.write("branch/main/fast-forward", head.as_bytes()).unwrap();
    let ours = world.commit("main", "f", "text\n");
    assert_eq!(door.write("remotes/far/push", b"main"), Ok(()), "{}: {url}", world.name);
    assert_eq!(head_of(far, "main").trim(), ours, "{}", world.name);
    door.write("remotes/far/push", b"main:copy").unwrap();
    assert_eq!(head_of(far, "copy").trim(), ours, "{}", world.name);
    door.write("remotes/far/fetch", b"main").unwrap();
    assert_eq!(line(&heads).trim(), ours, "{}", world.name);
    run(Command::new("git").arg("-C").arg(far).args(["fsck", "--full", "--strict"]));
}

#[test]
fn a_remote_is_fetched_and_pushed_to_through_files() {
    through_all(|world| {
        let folder = tempfile::tempdir().unwrap();
        let (far, head) = elsewhere(folder.path());
        there_and_back(world, &format!("file://{}", far.display()), &far, &head);
    });
}

#[test]
fn what_a_remote_cannot_do_is_said() {
    let world = by_9p(Dialect::Unix, visible());
    let door = &world.door;
    door.make_directory("remotes/r").unwrap();
    assert_eq!(door.make_directory("remotes/r"), Err(Errno::EEXIST.0));
    assert_eq!(door.remove("remotes/r", true), Err(Errno::EPERM.0));
    assert_eq!(door.write("remotes/r/fetch", b"main"), Err(Errno::EINVAL.0));
    assert_eq!(world.text("remotes/r/fetch"), "error: remote url is not defined\n");
    door.rename("remotes/r", "remotes/s").unwrap();
    assert_eq!(door.list("remotes").unwrap(), ["s"]);
    door.write("remotes/s/url", b"file:///not/there").unwrap();
    assert_eq!(door.write("remotes/s/fetch", b"main"), Err(Errno::EIO.0));
    assert!(world.text("remotes/s/fetch").starts_with("error: cannot fetch file:///not/there: "));
    assert_eq!(door.write("remotes/s/push", b"nothing"), Err(Errno::ENOENT.0));
    // Another attach has remotes of its own.
    let (_, at) = world.server.as_ref().unwrap();
    assert_eq!(connect(at, Dialect::Linux).list("remotes").unwrap(), [""; 0]);
}

#[test]
fn a_name_used_again_is_another_remote_even_where_the_first_is_held() {
    through_all(|world| {
        let door = &world.door;
        door.make_directory("remotes/a").unwrap();
        door.write("remotes/a/url", b"file:///first").unwrap();
        let held = world.hold("remotes/a");
        let first = door.stat("remotes/a").unwrap().number;
        door.rename("remotes/a", "remotes/b").unwrap();
        assert_eq!(door.stat("remotes/b").unwrap().number, first, "{}: it was renamed", world.name);
        assert_eq!(door.stat("remotes/a"), Err(Errno::ENOENT.0), "{}", world.name);
        door.make_directory("remotes/a").unwrap();
        assert_ne!(door.stat("remotes/a").unwrap().number, first, "{}", world.name);
        assert_eq!(world.text("remotes/a/url"), "", "{}: the first one's", world.name);
        door.write("remotes/a/url", b"file:///second").unwrap();
        assert_eq!(world.text("remotes/b/url"), "file:///first\n", "{}", world.name);
        assert_eq!(world.text("remotes/a/url"), "file:///second\n", "{}", world.name);
        assert_eq!(door.list("remotes").unwrap(), ["a", "b"], "{}", world.name);
        drop(held);
    });
}

#[test]
fn progress_is_read_while_a_fetch_runs() {
    let world = by_9p(Dialect::Linux, visible());
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("git://{}/r.git", silent.local_addr().unwrap());
    world.door.make_directory("remotes/r").unwrap();
    world.door.write("remotes/r/url", url.as_bytes()).unwrap();
    assert_eq!(world.text("remotes/r/progress"), "");
    std::thread::scope(|scope| {
        let fetch = scope.spawn(|| world.door.write("remotes/r/fetch", b"main"));
        let (connection, _) = silent.accept().unwrap();
        let began = Instant::now();
        while world.text("remotes/r/progress").is_empty() {
            assert!(began.elapsed() < PATIENCE);
        }
        assert!(!fetch.is_finished());
        drop(connection);
        assert_eq!(fetch.join().unwrap(), Err(Errno::EIO.0));
    });
}

/// An sshd of its own on the loopback, for the user who runs the test, by a key.
struct Sshd {
    child: Child,
    port: u16,
    /// What ssh is told by `core.sshCommand`.
    command: String,
}

impl Sshd {
    /// `None`, having said why, where there is none.
    fn start(folder: &Path) -> Option<Self> {
        if !Path::new("/usr/sbin/sshd").exists() {
            eprintln!("SKIP: no /usr/sbin/sshd (package openssh-server)");
            return None;
        }
        // Without it sshd does not start; Debian makes it with the service.
        if std::fs::create_dir_all("/run/sshd").is_err() {
            eprintln!("SKIP: there is no /run/sshd, and it cannot be made");
            return None;
        }
        let key = |name: &str| {
            let path = folder.join(name);
            run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path));
            path
        };
        let (host, user) = (key("host"), key("user"));
        let authorized = folder.join("authorized");
        std::fs::copy(folder.join("user.pub"), &authorized).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = folder.join("sshd_config");
        let mut text = std::fs::File::create(&config).unwrap();
        writeln!(text, "Port {port}\nListenAddress 127.0.0.1\nHostKey {}", host.display()).unwrap();
        writeln!(text, "AuthorizedKeysFile {}\nStrictModes no\nUsePAM no", authorized.display()).unwrap();
        writeln!(text, "PasswordAuthentication no\nPidFile none\nPermitRootLogin yes").unwrap();
        std::fs::set_permissions(&host, std::fs::Permissions::from_mode(0o600)).unwrap();
        let mut command = Command::new("/usr/sbin/sshd");
        command.arg("-D").arg("-f").arg(&config).stdin(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o IdentitiesOnly=yes -o BatchMode=yes";
        let command = format!("ssh -F /dev/null -i {} {options}", user.display());
        let sshd = Self { child, port, command };
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < PATIENCE, "sshd does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(sshd)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_real_sshd_is_fetched_from_and_pushed_to() {
    let folder = tempfile::tempdir().unwrap();
    let Some(sshd) = Sshd::start(folder.path()) else { return };
    let (far, head) = elsewhere(folder.path());
    let world = by_9p(Dialect::Linux, visible());
    world.git(&["config", "core.sshCommand", &sshd.command]);
    let user = run(Command::new("id").arg("-un"));
    let url = format!("ssh://{}@127.0.0.1:{}{}", user.trim(), sshd.port, far.display());
    there_and_back(&world, &url, &far, &head);
}
